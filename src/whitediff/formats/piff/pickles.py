"""Unpickling restricted to listed classes and functions.

Python's unpickler calls whatever a pickle names.  This one makes instances of admitted classes
without calling their constructors, as pickles of current protocols do, and calls a few functions
of NumPy, whose arguments it checks first.
"""

from __future__ import annotations

import collections
import importlib
import io
import pickle
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from ...errors import FileFormatError, one_line
from .trusted import CLASSES, FUNCTIONS

__all__ = ["unpickled"]

_OLD_NAMES = {"__builtin__": "builtins", "copy_reg": "copyreg"}
_LONGEST = 1 << 24


def unpickled(data: bytes, where: str) -> object:
    """Object from a pickle that holds only admitted classes.

    Parameters
    ----------
    data
        Pickle, of any protocol.
    where
        File and part, for messages.

    Returns
    -------
    obj
        Unpickled object.

    Raises
    ------
    FileFormatError
        If the pickle names anything that is not on the lists of `whitediff.formats.piff.trusted`,
        is too long, or is damaged.
    """
    if len(data) > _LONGEST:
        raise FileFormatError(f"{where}: a pickle of {len(data)} bytes is none of Piff.")
    try:
        return _Unpickler(io.BytesIO(data), where).load()
    except FileFormatError:
        raise
    except Exception as error:
        # Damaged pickles raise errors of any kind.
        raise FileFormatError(
            f"{where}: its pickle cannot be read ({one_line(error)}); is the file whole?"
        ) from error


class _Function:
    """Stand-in for a function, so that a pickle can only call it with checked arguments."""

    def __init__(self, name: str, work: Callable[..., Any]) -> None:
        self.name, self.work = name, work


def _is_plain(dtype: Any) -> bool:
    """Whether an object is a dtype of plain numbers or booleans."""
    return isinstance(dtype, np.dtype) and dtype.kind in "biufc"


def _array(subtype: Any, shape: Any, dtype: Any) -> Any:
    """Empty array; the pickle sets its size and content later, with its state."""
    if subtype is not np.ndarray or shape != (0,):
        raise ValueError("it makes no array")
    return np.ndarray(shape, dtype)


def _scalar(dtype: Any, value: Any = None) -> Any:
    if not _is_plain(dtype) or not isinstance(value, bytes | str):
        raise ValueError("it makes no number")
    raw = value.encode("latin1") if isinstance(value, str) else value
    return np.frombuffer(raw, dtype, 1)[0]


def _from_buffer(buffer: Any, dtype: Any, shape: Any, order: Any, axes: Any = None) -> Any:
    if not _is_plain(dtype) or axes is not None:
        raise ValueError("it makes no array of numbers")
    return np.frombuffer(bytes(buffer), dtype).reshape(shape, order=order).copy()


def _encoded(text: Any, encoding: Any = "latin1") -> Any:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise ValueError("it encodes no text")
    return text.encode("latin1")


def _instance(cls: Any, base: Any, state: Any) -> Any:
    if base is not object or state is not None:
        raise ValueError("it makes no plain instance")
    return _made(cls)


def _made(cls: Any, *arguments: Any) -> Any:
    """Instance of an admitted class, without a call of its constructor."""
    if not isinstance(cls, type):
        raise ValueError("it makes an instance of no class")
    if cls is np.ndarray or (arguments and cls not in (tuple, float, int, complex)):
        raise ValueError(f"it makes a {cls.__name__} of {len(arguments)} arguments")
    return cls.__new__(cls, *arguments)


_CALLS: dict[str, Callable[..., Any]] = {
    "_reconstruct": _array,
    "scalar": _scalar,
    "_frombuffer": _from_buffer,
    "encode": _encoded,
    "_reconstructor": _instance,
}


def _called(function: Any, arguments: Any) -> Any:
    """Result of a call, if both callable and arguments are admitted."""
    if not isinstance(arguments, tuple):
        raise ValueError("it calls something with no arguments' tuple")
    if isinstance(function, _Function):
        return function.work(*arguments)
    if not isinstance(function, type):
        raise ValueError("it calls what is neither a class nor a function")
    if function is np.dtype:
        if not arguments or not isinstance(arguments[0], str):
            raise ValueError("it makes no type of numbers")
        return np.dtype(arguments[0])
    name = function.__name__
    if (
        name == "Shear"
        and len(arguments) == 1
        and isinstance(arguments[0], complex | np.complex128)
    ):
        # Shears are made of one complex number.
        return function(arguments[0])
    if function is complex and all(isinstance(n, int | float) for n in arguments):
        return complex(*arguments)
    if name == "OrderedDict" and not arguments:
        return function()
    if name == "defaultdict" and (not arguments or arguments == (list,)):
        return function(*arguments)
    if function in (set, list, dict) and len(arguments) <= 1:
        if any(not isinstance(n, list | tuple | dict) for n in arguments):
            raise ValueError("it makes a container of something else")
        return function(*arguments)
    raise ValueError(f"it calls {name or 'something'}, which is not admitted")


_DICTIONARIES = (dict, collections.OrderedDict, collections.defaultdict)
_Steps: Any = pickle._Unpickler


class _Unpickler(_Steps):
    """Python's own unpickler in Python, with checked steps to find, make, call and fill objects."""

    dispatch: ClassVar[dict[int, Callable[..., None]]] = dict(_Steps.dispatch)

    def __init__(self, stream: io.BytesIO, where: str) -> None:
        super().__init__(stream, encoding="latin1")
        self._where = where

    def find_class(self, module: str, name: str) -> Any:
        """Class or function of a name, if the lists admit it."""
        module, name = (
            text.decode("latin1") if isinstance(text, bytes) else text for text in (module, name)
        )
        module = _OLD_NAMES.get(module, module)
        if (module, name) in FUNCTIONS:
            return _Function(name, _CALLS[name])
        if (module, name) not in CLASSES:
            raise FileFormatError(
                f"{self._where}: names {module}.{name}, which no model of Piff needs; whitediff"
                " executes nothing that a file holds."
            )
        found = importlib.import_module(module)
        return getattr(found, name)

    def persistent_load(self, pid: Any) -> Any:
        """Refuse references to objects outside the pickle."""
        raise ValueError("it refers to something outside of itself")

    def get_extension(self, code: int) -> None:
        """Refuse registered extensions."""
        raise ValueError("it uses a registered extension")

    def load_reduce(self) -> None:
        """Call an admitted class or function."""
        arguments = self.stack.pop()
        self.stack[-1] = _called(self.stack[-1], arguments)

    def load_newobj(self) -> None:
        """Make an instance without its constructor."""
        arguments = self.stack.pop()
        cls = self.stack.pop()
        if isinstance(cls, type) and cls.__name__ == "Shear" and len(arguments) == 1:
            self.append(_called(cls, arguments))
            return
        self.append(_made(cls, *arguments))

    def load_refused(self) -> None:
        """Refuse opcodes that call a class with arguments, and those that fill byte arrays."""
        raise ValueError("it is of a protocol that calls classes")

    def load_build(self) -> None:
        """Fill an instance."""
        state = self.stack[-1]
        obj = self.stack[-2]
        if isinstance(obj, _Function | type):
            raise ValueError("it changes a class or function")
        if type(obj).__name__ == "AstropyWCS":
            _check_header(state)
        if isinstance(obj, np.ndarray):
            _check_array(state)
        elif isinstance(obj, np.dtype):
            _check_dtype(state)
        else:
            _check_state(state)
        super().load_build()

    def load_append(self) -> None:
        """Fill a list."""
        _check_filled(self.stack[-2], (list,), self.stack[-1:])
        super().load_append()

    def load_appends(self) -> None:
        """Fill a list."""
        _check_filled(self._filled(), (list,), self.stack)
        super().load_appends()

    def load_additems(self) -> None:
        """Fill a set."""
        _check_filled(self._filled(), (set,), self.stack)
        super().load_additems()

    def load_setitem(self) -> None:
        """Fill a dictionary."""
        _check_filled(self.stack[-3], _DICTIONARIES, self.stack[-2:])
        super().load_setitem()

    def load_setitems(self) -> None:
        """Fill a dictionary."""
        _check_filled(self._filled(), _DICTIONARIES, self.stack)
        super().load_setitems()

    def _filled(self) -> Any:
        """Container that the items since the last mark are put into."""
        return self.metastack[-1][-1]

    dispatch[pickle.REDUCE[0]] = load_reduce
    dispatch[pickle.NEWOBJ[0]] = load_newobj
    dispatch[pickle.BUILD[0]] = load_build
    dispatch[pickle.APPEND[0]] = load_append
    dispatch[pickle.APPENDS[0]] = load_appends
    dispatch[pickle.ADDITEMS[0]] = load_additems
    dispatch[pickle.SETITEM[0]] = load_setitem
    dispatch[pickle.SETITEMS[0]] = load_setitems
    for _code in (pickle.INST, pickle.OBJ, pickle.NEWOBJ_EX, pickle.BYTEARRAY8):
        dispatch[_code[0]] = load_refused


def _check_header(state: Any) -> None:
    """Refuse a WCS of astropy without a header, which could be made from a file that it names."""
    from astropy.io.fits import Header

    header = state.get("header", state.get(b"header")) if isinstance(state, dict) else None
    if not isinstance(getattr(header, "header", None), Header):
        raise ValueError("its WCS has no header")


def _check_array(state: Any) -> None:
    """Refuse an array whose content does not match its shape, which NumPy would trust."""
    if not isinstance(state, tuple) or len(state) != 5:
        raise ValueError("its array has no state")
    _, shape, dtype, _, raw = state
    size = int(np.prod(shape, dtype=object))
    if not _is_plain(dtype) or not isinstance(raw, bytes | str):
        raise ValueError("its array holds no numbers")
    if len(raw) != size * dtype.itemsize:
        raise ValueError("its array is not as long as its shape says")


def _check_dtype(state: Any) -> None:
    """Refuse a dtype with fields or a size of its own, or without a byte order."""
    plain = isinstance(state, tuple) and len(state) in (8, 9) and state[2:5] == (None, None, None)
    if not plain or state[1] not in ("<", ">", "|", "=") or state[5:7] != (-1, -1):
        raise ValueError("its array is of no plain type")


def _check_filled(target: Any, kinds: tuple[type, ...], items: Any) -> None:
    """Refuse to fill anything but plain containers: an instance's ``append`` may be anything."""
    if type(target) not in kinds:
        raise ValueError(f"it fills a {type(target).__name__}")
    for item in items:
        _check_inert(item)


def _check_state(state: Any) -> None:
    """Refuse attributes that are classes or functions, or whose names begin with ``__``."""
    for part in state if isinstance(state, tuple) and len(state) == 2 else (state,):
        if isinstance(part, dict) and any(_text(name).startswith("__") for name in part):
            raise ValueError("it changes what an instance is")
        for value in part.values() if isinstance(part, dict) else (part,):
            _check_inert(value)


def _text(name: Any) -> str:
    return name.decode("latin1") if isinstance(name, bytes) else str(name)


def _check_inert(value: Any) -> None:
    """Refuse a class or function as a value; lists and dictionaries are checked when filled."""
    if isinstance(value, type | _Function):
        raise ValueError("it keeps a class or function")
    if isinstance(value, tuple):
        for each in value:
            _check_inert(each)
