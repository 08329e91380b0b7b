"""Archives of lsst.images: to recognise one needs nothing, to read it that library."""

from .recognise import recognise

__all__ = ["recognise"]
