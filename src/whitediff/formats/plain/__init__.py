"""FITS files with images in HDUs, in the layouts that people have."""

from .read import read

__all__ = ["read"]
