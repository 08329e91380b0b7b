"""FITS files with images in HDUs, in the layouts that people have."""

from .mask import mask_planes
from .read import (
    compact,
    image_hdu,
    image_names,
    modelled_variance,
    parts,
    read,
    with_options,
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
    "with_options",
]
