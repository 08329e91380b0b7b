"""Multi-extension exposures of lsst.afw, read without it."""

from .format import FORMAT

__all__ = ["FORMAT"]
