"""Files of whitediff: plain FITS, with an image, its mask and its variance."""

from .read import read
from .recognise import recognise
from .write import write

__all__ = ["read", "recognise", "write"]
