"""CCDData and NDData of astropy, in memory and in files."""

from .convert import from_ccddata, to_ccddata
from .format import FORMAT
from .read import read
from .write import write

__all__ = ["FORMAT", "from_ccddata", "read", "to_ccddata", "write"]
