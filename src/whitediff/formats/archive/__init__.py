"""Archives of lsst.images: to recognise one needs nothing, to read it that library."""

from .format import FORMAT

__all__ = ["FORMAT"]
