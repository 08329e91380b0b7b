"""Archives of lsst.images, ours among them."""

from .read import read
from .recognise import recognise
from .write import write

__all__ = ["read", "recognise", "write"]
