"""Solutions and differences of SFFT."""

from .read import read, read_solution
from .recognise import recognise

__all__ = ["read", "read_solution", "recognise"]
