"""Differences of HOTPANTS, with the kernel that it wrote."""

from .read import read, read_solution
from .recognise import missing_layers, recognise

__all__ = ["missing_layers", "read", "read_solution", "recognise"]
