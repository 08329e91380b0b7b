"""Lists of the classes, functions and settings that files of Piff may name."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from typing import Any

from ...errors import FileFormatError

__all__ = ["CLASSES", "FUNCTIONS", "check_struct", "literal"]

CLASSES: frozenset[tuple[str, str]] = frozenset(
    [
        *(
            ("galsim.wcs", name)
            for name in (
                *("PixelScale", "ShearWCS", "JacobianWCS"),
                *("OffsetWCS", "OffsetShearWCS", "AffineTransform"),
            )
        ),
        ("galsim.fitswcs", "GSFitsWCS"),
        ("galsim.fitswcs", "AstropyWCS"),
        ("galsim.fits", "FitsHeader"),
        ("galsim.position", "PositionD"),
        ("galsim.position", "PositionI"),
        ("galsim.shear", "Shear"),
        ("coord.angle", "Angle"),
        ("coord.angleunit", "AngleUnit"),
        ("coord.celestial", "CelestialCoord"),
        ("astropy.io.fits.header", "Header"),
        ("astropy.io.fits.card", "Card"),
        ("collections", "OrderedDict"),
        ("collections", "defaultdict"),
        ("builtins", "object"),
        ("builtins", "list"),
        ("builtins", "dict"),
        ("builtins", "set"),
        ("builtins", "tuple"),
        ("builtins", "float"),
        ("builtins", "int"),
        ("builtins", "complex"),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
    ]
)
"""Classes whose instances may be made by name, without their constructors.

Classes of GalSim that evaluate strings (UVFunction, RaDecFunction) or start programs
(WcsToolsWCS) are left out.
"""

FUNCTIONS: frozenset[tuple[str, str]] = frozenset(
    [
        *(
            (module, name)
            for module in ("numpy.core.multiarray", "numpy._core.multiarray")
            for name in ("_reconstruct", "scalar")
        ),
        *((module, "_frombuffer") for module in ("numpy.core.numeric", "numpy._core.numeric")),
        ("_codecs", "encode"),
        ("copyreg", "_reconstructor"),
        ("copy_reg", "_reconstructor"),
    ]
)
"""Functions that are called by pickles of NumPy's arrays and numbers, and of old classes."""

_TYPES = frozenset(
    [
        *("Simple", "SingleChip", "Sum", "Convolve"),
        *("PixelGrid", "GSObject", "GSObjectModel", "Gaussian", "Kolmogorov", "Moffat"),
        *("Mean", "Polynomial", "BasisPolynomial", "KNN", "KNearestNeighbors", "kNNInterp"),
        *("GP", "GPInterp", "GaussianProcess"),
        *("Chisq", "MAD"),
    ]
)
"""Kinds of parts of a model; optical models are left out, as their settings name files to read."""

_PROFILES = frozenset(
    [
        *("Gaussian", "Kolmogorov", "Moffat", "Airy", "VonKarman", "Exponential", "Sersic"),
        *("Sum", "Add", "Convolution", "Convolve", "Transformation", "Transform", "GSParams"),
        *("PositionD", "Lanczos", "Linear", "Cubic", "Quintic", "Nearest", "SincInterpolant"),
        *("Delta",),
    ]
)
_KERNELS = frozenset(
    [
        *("RBF", "ConstantKernel", "WhiteKernel", "Matern", "RationalQuadratic", "DotProduct"),
        *("Sum", "Product", "Exponentiation"),
        *("AnisotropicRBF", "VonKarman", "AnisotropicVonKarman", "array"),
    ]
)
"""With `_PROFILES`, names that may be called in the texts that Piff and treegp evaluate."""

_LARGEST = {"size": 2001, "order": 20, "n_neighbors": 10_000, "max_order": 20}
_WORD = re.compile(r"[A-Za-z][A-Za-z0-9_-]*|[0-9][0-9A-Za-z.+-]*|")
_LONGEST, _LARGEST_POWER = 20_000, 10


def literal(text: str, where: str) -> object:
    """Value of a Python literal, such as a number, text, list, tuple or dictionary.

    Parameters
    ----------
    text
        Literal.
    where
        File and part, for the message.

    Returns
    -------
    value
        Value; nothing is executed.

    Raises
    ------
    FileFormatError
        If the text is no literal, or too long.
    """
    try:
        if len(text) > _LONGEST:
            raise ValueError
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise FileFormatError(
            f"{where}: {_short(text)} is no plain value; whitediff executes nothing that a file"
            " holds."
        ) from error


def check_struct(struct: Mapping[str, object], where: str) -> None:
    """Make sure that Piff may be given the settings of one of its parts.

    Parameters
    ----------
    struct
        Name → value, as in the file.
    where
        File and part, for messages.

    Raises
    ------
    FileFormatError
        If the kind of part is not on the list, a text is neither a word nor an admitted
        expression, or a number is too large.
    """
    kind = struct.get("type")
    if kind is not None and str(kind).removesuffix("PSF") not in _TYPES:
        raise FileFormatError(
            f"{where}: is of the kind {_short(str(kind))}, which is not among those of Piff that"
            " whitediff admits; write it anew as a PixelGrid."
        )
    for name, value in struct.items():
        for each in _leaves(value):
            if isinstance(each, str):
                _check_text(name, each, where)
            elif name in _LARGEST and not -1 <= each <= _LARGEST[name]:
                raise FileFormatError(
                    f"{where}: {name} must be at most {_LARGEST[name]}; got {each}."
                )


def _leaves(value: Any) -> list[Any]:
    """Texts and numbers in a value."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return [leaf for pair in value.items() for part in pair for leaf in _leaves(part)]
    if isinstance(value, list | tuple):
        return [leaf for part in value for leaf in _leaves(part)]
    if isinstance(value, bytes):
        return [value.decode("latin1")]
    return [] if value is None else [value]


def _check_text(name: str, text: str, where: str) -> None:
    if _WORD.fullmatch(text.strip()):
        return
    try:
        if len(text) > _LONGEST:
            raise ValueError("it is too long")
        _check_node(ast.parse(text.strip(), mode="eval").body)
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        raise FileFormatError(
            f"{where}: its {name}, {_short(text)}, is no profile that whitediff admits; it executes"
            " nothing that a file holds."
        ) from error


def _check_node(node: ast.expr) -> None:
    """Refuse all but constants, lists, signs, sums, products, small powers and admitted calls."""
    match node:
        case ast.Constant(value=int() | float() | str() | None):
            return
        case ast.List(elts=parts) | ast.Tuple(elts=parts):
            for part in parts:
                _check_node(part)
        case ast.UnaryOp(op=ast.USub() | ast.UAdd(), operand=ast.Constant(value=int() | float())):
            return
        case ast.BinOp(
            left=left,
            op=ast.Pow(),
            right=ast.Constant(value=int() | float() as power),
        ) if abs(power) <= _LARGEST_POWER:
            _check_factor(left)
        case ast.BinOp(left=left, op=ast.Add() | ast.Mult(), right=right):
            _check_factor(left)
            _check_factor(right)
        case ast.Call(func=function, args=arguments, keywords=keywords):
            match function:
                case ast.Attribute(value=ast.Name(id="galsim"), attr=name) if name in _PROFILES:
                    pass
                case ast.Name(id=name) if name in _PROFILES | _KERNELS:
                    pass
                case _:
                    raise ValueError("it calls something else")
            for part in (*arguments, *(keyword.value for keyword in keywords)):
                _check_node(part)
        case _:
            raise ValueError("it is something else")


def _check_factor(node: ast.expr) -> None:
    """Refuse texts and lists, which a multiplication could make huge."""
    if not isinstance(node, ast.Call | ast.BinOp) and not (
        isinstance(node, ast.Constant) and isinstance(node.value, int | float)
    ):
        raise ValueError("it multiplies something else than numbers and kernels")
    _check_node(node)


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}...")
