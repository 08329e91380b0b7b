"""Files at addresses: fetched once with fsspec, and then read like any other."""

from __future__ import annotations

import atexit
import contextlib
import importlib
import logging
import shutil
import tempfile
import threading
from pathlib import Path
from typing import Any

from ..errors import FileFormatError, one_line
from ..paths import without_fsspec

__all__ = ["RemotePath", "fetched"]

_log = logging.getLogger("whitediff.formats")

_BLOCK = 1 << 22

_lock = threading.Lock()
_copies: dict[str, RemotePath] = {}


class RemotePath(type(Path())):  # type: ignore[misc]
    """Copy of a remote file, which is called by its address in messages.

    What opens files (`os.fspath`) gets the name of the copy, ``str`` the address.
    """

    _address: str

    @classmethod
    def of(cls, copy: Path, address: str) -> RemotePath:
        """Make one.

        Parameters
        ----------
        copy
            Local file.
        address
            Where it came from.

        Returns
        -------
        path
            Of the copy.
        """
        path: RemotePath = cls(copy)
        path._address = address
        return path

    def with_segments(self, *segments: Any) -> Path:
        """Path derived from this one, such as its parent: an ordinary one.

        Parameters
        ----------
        *segments
            Its parts.

        Returns
        -------
        path
            Of local files.
        """
        return Path(*(s.__fspath__() if isinstance(s, RemotePath) else s for s in segments))

    def __fspath__(self) -> str:
        return super().__str__()

    def __str__(self) -> str:
        return getattr(self, "_address", super().__str__())


def fetched(address: str) -> RemotePath:
    """Fetch a remote file, unless that was done before.

    Parameters
    ----------
    address
        Anything that fsspec understands; credentials are its own affair.

    Returns
    -------
    path
        Copy, which lives as long as this process.

    Raises
    ------
    FileFormatError
        If fsspec, or what it needs for this kind of address, is missing, or the file cannot be
        fetched.
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
