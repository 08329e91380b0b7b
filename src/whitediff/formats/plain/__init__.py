"""Plain FITS files with images in HDUs, in the usual layouts."""

from .format import FORMAT
from .mask import mask_planes
from .read import (
    compact,
    image_hdu,
    image_names,
    modelled_variance,
    parts,
    read,
    roles,
    with_options,
)

__all__ = [
    "FORMAT",
    "compact",
    "image_hdu",
    "image_names",
    "mask_planes",
    "modelled_variance",
    "parts",
    "read",
    "roles",
    "with_options",
]
