"""Multi-extension exposures of lsst.afw, read without that library."""

from .format import FORMAT

__all__ = ["FORMAT"]
