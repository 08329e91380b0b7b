"""FITS files with images in HDUs, in the layouts that people have."""

from .read import read
from .recognise import recognise

__all__ = ["read", "recognise"]
