"""Reading of SFFT solutions, and of differences that were made with them."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import astropy.io.fits
import numpy as np
import numpy.typing as npt

from ...direction import Direction
from ...errors import FileFormatError
from ...exposures.model import Exposure
from ...formats import plain
from ..difference import Difference, Remade
from ..files import Extension, opened
from .recognise import recognise
from .solution import SfftSolution

__all__ = ["read", "read_difference", "read_solution"]

type Array = npt.NDArray[Any]

_log = logging.getLogger("whitediff.formats")

_DIRECTIONS: dict[str, Direction] = {"REF": "template", "SCI": "science"}
_HIGHEST_ORDER = 10


def read(path: Path, extension: Extension = None, **options: Any) -> Exposure:
    """Read a difference as a plain image, without its kernel, which is in another file.

    Parameters
    ----------
    path, extension, **options
        As in `whitediff.formats.plain.read`.

    Returns
    -------
    exposure
        Exposure at the level of the image that was not convolved.
    """
    return plain.read(path, extension, **options)


def read_solution(path: Path, *, shape: tuple[int, int] | None = None) -> SfftSolution:
    """Read a solution.

    Parameters
    ----------
    path
        File.
    shape
        ``(ny, nx)`` of the images, which older files do not state.

    Returns
    -------
    solution
        Solution, free of contradictions.

    Raises
    ------
    FileFormatError
        If the file is no solution, its numbers do not fit together, or it is for another shape.
    """
    with opened(path) as hdus:
        header, data = hdus[0].header, hdus[0].data
        if recognise(hdus) != "kernel" or data is None:
            raise FileFormatError.of(path, "is no solution of SFFT.")
        names = ("DK", "DB", "L0", "L1", "FIJ", "FAB", "FPQ", "FIJAB")
        numbers = {name: _integer(header, name, path) for name in names}
        own = None
        if "N0" in header or "N1" in header:
            own = (_integer(header, "N1", path), _integer(header, "N0", path))
        solution = np.array(data, dtype=np.float64).ravel()
    order, background_order = numbers["DK"], numbers["DB"]
    terms, background_terms = ((n + 1) * (n + 2) // 2 for n in (order, background_order))
    kx, ky = numbers["L0"], numbers["L1"]
    consistent = (
        0 <= order <= _HIGHEST_ORDER
        and 0 <= background_order <= _HIGHEST_ORDER
        and kx > 0 and ky > 0 and kx % 2 == ky % 2 == 1
        and numbers["FIJ"] == terms
        and numbers["FPQ"] == background_terms
        and numbers["FAB"] == kx * ky
        and numbers["FIJAB"] == terms * kx * ky
        and len(solution) == terms * kx * ky + background_terms
    )  # fmt: skip
    if not consistent:
        given = ", ".join(f"{name} = {value}" for name, value in numbers.items())
        raise FileFormatError.of(
            path, f"{given} and {len(solution)} numbers do not fit together; is the file whole?"
        )
    shape = own if shape is None else shape
    if shape is None:
        raise FileFormatError.of(path, "does not say the shape of its images (N0, N1).")
    if own is not None and own != shape:
        raise FileFormatError.of(
            path,
            f"is a solution for {own[0]} x {own[1]} pixels, but the image has {shape[0]} x"
            f" {shape[1]}; is it the right file?",
        )
    if ky > shape[0] or kx > shape[1]:
        raise FileFormatError.of(
            path, f"its kernel {(ky, kx)} is larger than the image {shape}; is it the right file?"
        )
    if not np.isfinite(solution).all():
        raise FileFormatError.of(path, "its coefficients are not all finite; is the file whole?")
    free = solution[: terms * kx * ky].reshape(terms, kx, ky) / (shape[0] * shape[1])
    pixels = np.ascontiguousarray(free.transpose(0, 2, 1))
    # In SFFT's basis, all pixels but the middle one come with -1 in the middle.
    pixels[:, ky // 2, kx // 2] = 2 * pixels[:, ky // 2, kx // 2] - pixels.sum(axis=(1, 2))
    return SfftSolution(
        shape=shape,
        order=order,
        background_order=background_order,
        coefficients=pixels,
        background=solution[terms * kx * ky :],
    )


def _integer(header: astropy.io.fits.Header, name: str, path: Path) -> int:
    value = header.get(name)
    if isinstance(value, bool) or not isinstance(value, int):
        raise FileFormatError.of(
            path, f"{name} must be a whole number; got {value!r}. Is the file whole?"
        )
    return value


def read_difference(
    path: Path,
    *,
    solution_path: Path,
    convolved: Direction | None = None,
    **options: Any,
) -> Difference:
    """Read a difference, with the solution that made it.

    Parameters
    ----------
    path
        Difference.
    solution_path
        Solution.
    convolved
        Which image was convolved; None: as the difference's header states.
    **options
        Options of `whitediff.formats.plain.read`.

    Returns
    -------
    difference
        Difference at the level of the science image.

    Raises
    ------
    FileFormatError
        If the solution cannot be read or belongs to another difference, or it is contradictory or
        unknown which image was convolved.
    """
    with opened(path) as hdus:
        header = hdus[0].header
        cards = {name: header.get(name) for name in ("CONVD", "KERHW", "KERORDER", "BGORDER")}
    exposure = read(path, None, **options)
    solution = read_solution(solution_path, shape=exposure.shape)
    half = solution.coefficients.shape[2] // 2
    for name, value in (
        ("KERHW", half),
        ("KERORDER", solution.order),
        ("BGORDER", solution.background_order),
    ):
        if cards[name] is not None and cards[name] != value:
            raise FileFormatError.of(
                solution_path,
                f"is a solution with {name} = {value}, but {path} was made with"
                f" {cards[name]!r}; is it the right file?",
            )
    said = None if cards["CONVD"] is None else _DIRECTIONS.get(str(cards["CONVD"]).strip())
    if cards["CONVD"] is not None and said is None:
        raise FileFormatError.of(path, f"CONVD must be REF or SCI; got {cards['CONVD']!r}.")
    if said is not None and convolved is not None and said != convolved:
        raise FileFormatError.of(
            path,
            f"its header says that the {said} image was convolved, not the {convolved}"
            " image; leave out --convolved.",
        )
    direction = said or convolved
    if direction is None:
        raise FileFormatError.of(
            path, "does not say which image was convolved (CONVD); give --convolved."
        )
    exposure.kernel = solution.kernel
    level = None
    if direction == "science":
        # SFFT leaves the difference at the level of the reference.
        level = sum(
            float(image.sum()) * field.on(exposure.bbox)
            for image, field in zip(solution.kernel.basis, solution.kernel.fields, strict=True)
        )
        with np.errstate(divide="ignore", invalid="ignore"):
            exposure = exposure.replaced(
                data=(exposure.data / level).astype(exposure.data.dtype),
                variance=(exposure.variance / level**2).astype(exposure.variance.dtype),
            )
        _log.info("%s: is brought to the science image's level, by the kernel's sum.", path)
    return Difference(
        exposure,
        directions=((exposure.bbox, direction),),
        software="SFFT",
        remade=_remade(solution, direction, level),
        margin=max(solution.coefficients.shape[1:]) // 2,
    )


def _remade(solution: SfftSolution, direction: str, level: Any) -> Remade:
    half_y, half_x = (n // 2 for n in solution.coefficients.shape[1:])

    def remade(science: Array, template: Array, x: int, y: int) -> float:
        convolved, other = (template, science) if direction == "template" else (science, template)
        rows = slice(y - half_y, y + half_y + 1)
        columns = slice(x - half_x, x + half_x + 1)
        kernel = solution.kernel.at(x=x, y=y)
        part = convolved[rows, columns].astype(float)[::-1, ::-1]
        value = float((part * kernel).sum()) + solution.background_at(x=x, y=y)
        value = float(other[y, x]) - value
        if direction == "template":
            return value
        return -value / float(level[y, x]) if level[y, x] else math.nan

    return remade
