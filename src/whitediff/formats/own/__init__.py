"""Files of whitediff: plain FITS with an image, its mask and its variance."""

from .format import FORMAT, is_whole, read_with_options
from .read import read
from .roles import ROLES, roles
from .write import write

__all__ = ["FORMAT", "ROLES", "is_whole", "read", "read_with_options", "roles", "write"]
