"""Multi-extension exposures of lsst.afw, read without it."""

from .read import read
from .recognise import recognise

__all__ = ["read", "recognise"]
