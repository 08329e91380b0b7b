"""Differences of HOTPANTS, with the kernel that it wrote."""

from .read import read, read_solution
from .recognise import recognise

__all__ = ["read", "read_solution", "recognise"]
