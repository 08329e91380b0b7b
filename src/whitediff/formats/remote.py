"""Remote files: fetched once with fsspec, then read like local ones."""

from __future__ import annotations

import atexit
import contextlib
import importlib
import logging
import shutil
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import FileFormatError, one_line
from ..paths import without_fsspec

if TYPE_CHECKING:
    import os

__all__ = ["RemotePath", "fetched"]

_log = logging.getLogger("whitediff.formats")

_BLOCK = 1 << 22

_lock = threading.Lock()
_copies: dict[str, RemotePath] = {}


class RemotePath(type(Path())):  # type: ignore[misc]
    """Path of the copy of a remote file, which messages call by its address.

    ``os.fspath``, which opens files, gives the name of the copy; ``str`` gives the address.
    """

    _address: str

    @classmethod
    def of(cls, copy: Path, address: str) -> RemotePath:
        """Make a path from a copy and its address.

        Parameters
        ----------
        copy
            Local file.
        address
            Address that it came from.

        Returns
        -------
        path
            Path of the copy.
        """
        path: RemotePath = cls(copy)
        path._address = address
        return path

    def with_segments(self, *segments: str | os.PathLike[str]) -> Path:
        """Ordinary path derived from this one, such as its parent.

        Parameters
        ----------
        *segments
            Parts of the path.

        Returns
        -------
        path
            Local path, without an address.
        """
        return Path(*(s.__fspath__() if isinstance(s, RemotePath) else s for s in segments))

    def __fspath__(self) -> str:
        return super().__str__()

    def __str__(self) -> str:
        return getattr(self, "_address", super().__str__())


def fetched(address: str) -> RemotePath:
    """Fetch a remote file, unless this process has already done so.

    Parameters
    ----------
    address
        Any address that fsspec understands; credentials are left to fsspec.

    Returns
    -------
    path
        Copy, which is removed when this process ends.

    Raises
    ------
    FileFormatError
        If fsspec, or a package that it needs for this kind of address, is missing, or the file
        cannot be fetched.
    """
    with _lock:
        if address in _copies:
            return _copies[address]
        try:
            fsspec = importlib.import_module("fsspec")
        except ImportError as error:
            raise without_fsspec(address) from error
        directory = Path(tempfile.mkdtemp(prefix="whitediff-"))
        name = address.rstrip("/").rsplit("/", 1)[-1].partition("?")[0] or "file.fits"
        try:
            with fsspec.open(address, "rb") as source, (directory / name).open("wb") as copy:
                shutil.copyfileobj(source, copy, _BLOCK)
        except ImportError as error:
            shutil.rmtree(directory, ignore_errors=True)
            raise FileFormatError.of(
                address, f"fsspec lacks what it needs for such addresses ({one_line(error)})."
            ) from error
        except Exception as error:
            # Every kind of store raises its own errors.
            shutil.rmtree(directory, ignore_errors=True)
            reason = "no such file" if isinstance(error, FileNotFoundError) else one_line(error)
            raise FileFormatError.of(address, f"cannot be fetched ({reason}).") from error
        atexit.register(_remove, directory)
        _copies[address] = RemotePath.of(directory / name, address)
        _log.debug("%s: fetched.", address)
        return _copies[address]


def _remove(directory: Path) -> None:
    with contextlib.suppress(OSError):
        shutil.rmtree(directory)
