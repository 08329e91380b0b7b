"""PSF models of Piff."""

from .read import read
from .recognise import facts, fitted_range, recognise

__all__ = ["facts", "fitted_range", "read", "recognise"]
