"""Differences of HOTPANTS, with the kernel that it wrote."""

from .format import FORMAT

__all__ = ["FORMAT"]
