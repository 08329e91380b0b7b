"""FITS files with images in HDUs, in the layouts that people have."""

from .read import (
    compact,
    image_hdu,
    image_names,
    mask_planes,
    modelled_variance,
    parts,
    read,
)
from .recognise import recognise, stamps

__all__ = [
    "compact",
    "image_hdu",
    "image_names",
    "mask_planes",
    "modelled_variance",
    "parts",
    "read",
    "recognise",
    "stamps",
]
