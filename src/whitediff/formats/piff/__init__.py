"""PSF models of Piff."""

from .read import read
from .recognise import fitted_range, recognise

__all__ = ["fitted_range", "read", "recognise"]
