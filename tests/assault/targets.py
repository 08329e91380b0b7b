"""Whole files, and what is read from them as numbers."""

from __future__ import annotations

import dataclasses
import gzip
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import astropy.table
import numpy as np
from astropy.io import fits

import test_damaged_files as damaged
from scenes import gaussian, moffat_kernel
from whitediff.exposures.boxes import Box
from whitediff.exposures.kernels import constant_kernel
from whitediff.exposures.psf import KernelPointSpreadFunction
from whitediff.formats import (
    read_any,
    read_exposure,
    read_psf,
    read_solution,
    write_exposure,
    write_solution,
)
from whitediff.formats.catalogs import read_catalog, write_catalog
from whitediff.formats.finished import finish
from whitediff.subtraction.solution import Solution

SEED = 20260801
SHAPE = (40, 44)
BOX = Box.from_shape(SHAPE)


@dataclasses.dataclass(frozen=True)
class Target:
    """A whole file.

    Attributes
    ----------
    name
        Of the target.
    path
        The file.
    read
        Reads such a file; what it gives must not change without a word.
    whole, said
        What the whole file gives, and the warnings that reading it gives.
    has_sums
        It has a checksum of each part and the list of its parts: any damage can be noticed.
    """

    name: str
    path: Path
    read: Callable[[Path], dict[str, Any]]
    whole: dict[str, Any] = dataclasses.field(default_factory=dict)
    said: frozenset[str] = frozenset()
    has_sums: bool = True


def _finished(case: damaged.Case) -> damaged.Case:
    finish(case.path)
    return case


def _case(name: str) -> Callable[[Path], damaged.Case]:
    def make(directory: Path) -> damaged.Case:
        case = damaged.CASES[name](np.random.default_rng(SEED), directory)
        return case if name == "archive" else _finished(case)

    return make


def _tiles(kind: str) -> Callable[[Path], damaged.Case]:
    def make(directory: Path) -> damaged.Case:
        rng = np.random.default_rng(SEED)
        image = rng.integers(0, 999, SHAPE).astype(np.int16)
        hdus = [
            fits.PrimaryHDU(),
            fits.CompImageHDU(image, name="SCI", compression_type=kind, tile_shape=(8, 44)),
            fits.CompImageHDU(
                (rng.random(SHAPE) > 0.9).astype(np.int16), name="DQ", compression_type=kind
            ),
        ]
        path = directory / "tiles.fits"
        fits.HDUList(hdus).writeto(path)
        return _finished(damaged.Case(path, damaged.read_image))

    return make


def _packed(directory: Path) -> damaged.Case:
    case = _case("plain")(directory)
    path = directory / "plain.fits.gz"
    path.write_bytes(gzip.compress(case.path.read_bytes()))
    return damaged.Case(path, damaged.read_image)


def _product(directory: Path) -> damaged.Case:
    exposure = damaged.rich_exposure(np.random.default_rng(SEED))
    path = directory / "product.fits"
    cards: dict[str, Any] = {
        "WDTASK": ("decorrelate", "made by"),
        "WDCONV": ("template", "exposure that was convolved"),
        "WDSCI": ("science.fits", "science image"),
    }
    write_exposure(exposure, path, provenance=cards, extras={"FLUX": exposure.data})

    def read(path: Path) -> dict[str, Any]:
        found = read_any(path)
        return damaged.numbers_of(found.exposure) | {"directions": str(found.directions)}

    return damaged.Case(path, read)


def _solution(directory: Path) -> damaged.Case:
    path = directory / "solution.fits"
    solution = Solution(
        kernel=constant_kernel(moffat_kernel(7), BOX),
        background=2.0,
        convolved="template",
        box=BOX,
        psf=KernelPointSpreadFunction(constant_kernel(gaussian(9, 1.5), BOX)),
    )
    write_solution(solution, path)

    def read(path: Path) -> dict[str, Any]:
        found = read_solution(path)
        numbers: dict[str, Any] = {"kernel": found.kernel.at(x=3.0, y=5.0)}
        if found.psf is not None:
            numbers["psf"] = found.psf.at(x=3.0, y=5.0)
        return numbers | {"what": f"{found.convolved} {found.box} {found.background}"}

    return damaged.Case(path, read)


def _psf(path: Path) -> dict[str, Any]:
    psf = read_psf(path, bounds=BOX)
    return {f"psf {x}": psf.at(x=x, y=y) for x, y in damaged.PLACES}


def _piff(directory: Path) -> damaged.Case:
    import galsim
    import piff

    model, mean = piff.PixelGrid(scale=1.0, size=7, centered=False), piff.Mean()
    wcs = galsim.PixelScale(1.0)
    psf = piff.SimplePSF(model, mean)
    rng = np.random.default_rng(SEED)
    stars = []
    for x, y in rng.uniform((8, 8), (36, 32), (6, 2)):
        star = piff.Star.makeTarget(x=x, y=y, stamp_size=15, wcs=wcs)
        fit = piff.StarFit(params=gaussian(7, 1.2).ravel(), flux=1e4, center=(0, 0))
        stars.append(model.draw(piff.Star(star.data, fit)))
    psf.fit(stars, {0: wcs}, None, logger=logging.getLogger("quiet"))
    path = directory / "model.piff"
    psf.write(str(path))
    return _finished(damaged.Case(path, _psf))


def _catalogue(kind: str) -> Callable[[Path], damaged.Case]:
    def make(directory: Path) -> damaged.Case:
        rng = np.random.default_rng(SEED)
        table = astropy.table.QTable(
            {"id": np.arange(12), "x": rng.uniform(0, 99, 12), "y": rng.uniform(0, 99, 12)}
        )
        table["name"] = [f"source {i}" for i in range(12)]
        table.meta["x0"] = 3
        path = directory / f"catalogue.{kind}"
        if kind == "csv":
            table.write(path, format="ascii.csv")
        else:
            write_catalog(table, path)

        def read(path: Path) -> dict[str, Any]:
            found = read_catalog(path)
            return {
                name: np.asarray(found[name]) if found[name].dtype.kind in "fiu"
                else str(list(found[name]))
                for name in found.colnames
            }  # fmt: skip

        return damaged.Case(path, read)

    return make


MAKERS: dict[str, Callable[[Path], damaged.Case]] = {
    **{name: _case(name) for name in damaged.CASES},
    "rice": _tiles("RICE_1"),
    "gzip tiles": _tiles("GZIP_2"),
    "hcompress": _tiles("HCOMPRESS_1"),
    "gz": _packed,
    "product": _product,
    "solution": _solution,
    "piff": _piff,
    "fits catalogue": _catalogue("fits"),
    "parquet": _catalogue("parquet"),
    "ecsv": _catalogue("ecsv"),
    "csv": _catalogue("csv"),
}
_TEXTS = ("ecsv", "csv")
MAKERS |= {f"bare {name}": make for name, make in MAKERS.items() if name not in _TEXTS}
"""Those that are bare are read without their checksums, as files of others are."""

_made: dict[str, Target] = {}


def target(name: str, directory: Path) -> Target:
    """Whole file of a name, made once.

    Parameters
    ----------
    name
        One of `MAKERS`.
    directory
        Where files are made.
    """
    from .outcomes import listening

    if name not in _made or not _made[name].path.exists():
        own = directory / name.replace(" ", "-")
        shutil.rmtree(own, ignore_errors=True)
        own.mkdir(parents=True)
        case = MAKERS[name](own)
        with listening() as said:
            whole = case.read(case.path)
        sums = not name.startswith("bare ") and name not in _TEXTS
        _made[name] = Target(name, case.path, case.read, whole, frozenset(said), has_sums=sums)
    return _made[name]


__all__ = ["MAKERS", "Target", "read_exposure", "target"]
