"""CCDData and NDData of astropy: in memory, and in files."""

from .convert import from_ccddata, to_ccddata
from .read import read
from .recognise import recognise
from .write import write

__all__ = ["from_ccddata", "read", "recognise", "to_ccddata", "write"]
