"""What a command spares at its start."""

from __future__ import annotations

import importlib
import types
from typing import Any

__all__ = ["spare_imports"]

_SPARED = ("f2py", "testing")
"""SciPy asks NumPy for all of its names when it is imported; these cost time, and no command needs
them."""


class _Later(types.ModuleType):
    """Stands for a module of NumPy until something of it is asked for."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(importlib.import_module(self.__name__), name)


def spare_imports() -> None:
    """Put off modules of NumPy, which no command uses, until one is used."""
    import numpy

    for name in _SPARED:
        if name not in vars(numpy):
            setattr(numpy, name, _Later(f"numpy.{name}"))
