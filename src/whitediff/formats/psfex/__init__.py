"""PSF models of PSFEx."""

from .format import FORMAT

__all__ = ["FORMAT"]
