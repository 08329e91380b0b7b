"""PSF models of Piff."""

from .format import FORMAT

__all__ = ["FORMAT"]
