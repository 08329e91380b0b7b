"""Solutions and differences of SFFT."""

from .format import FORMAT

__all__ = ["FORMAT"]
