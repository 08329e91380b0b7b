"""Archives of lsst.images; reading one needs that library, recognising one does not."""

from .format import FORMAT

__all__ = ["FORMAT"]
