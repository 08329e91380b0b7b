"""Run of ``whitediff check``: measure how white the noise of an image is."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import formats
from ..diagnostics.measure import (
    MINIMUM_CELL,
    ScoreNoise,
    VarianceMap,
    Whiteness,
    gaussian_filter,
    score_noise,
    score_noise_map,
    whiteness,
    whiteness_with_map,
)
from ..diagnostics.plots import MeasuredImage, plot_whiteness
from ..errors import ArgumentError, DataError, WhitediffError
from ..exposures import masks
from ..exposures.model import Exposure
from ..exposures.psf import KernelPointSpreadFunction, PointSpreadFunction
from ..formats.files import opened, split_extension
from ..formats.headers import unescaped
from ..formats.limits import leads_to
from ..formats.record import is_score
from ..noise.sources import detect_sources
from ..progress import stages
from .inputs import name_of, read_image
from .numbers import write_numbers
from .options import CheckOptions
from .refusals import check_given, is_stream
from .running import running

__all__ = ["Checked", "run_check"]

type Array = npt.NDArray[Any]

log = logging.getLogger("whitediff.runs")

_DEFAULT_SIGMA = 1.8


@dataclasses.dataclass(frozen=True)
class Checked:
    """How white the noise of an image is.

    Attributes
    ----------
    name
        Name of the image.
    is_score
        Whether the image is a score, whose noise is correlated by design.
    filter
        Filter in words; None for a score.
    sources
        How sources were found, in words.
    after, before
        Noise of the image, and of the difference before decorrelation if known: `Whiteness`, or
        `ScoreNoise` for a score.
    map, before_map
        Noise cell by cell, of the same two images; None if no map was asked for.
    """

    name: str
    is_score: bool
    filter: str | None
    sources: str
    after: Whiteness | ScoreNoise
    before: Whiteness | ScoreNoise | None = None
    map: VarianceMap | None = None
    before_map: VarianceMap | None = None

    def to_dict(self) -> dict[str, object]:
        """Plain numbers and strings, for JSON.

        Returns
        -------
        values
            Ready for a JSON file.
        """

        def plain(one: Any) -> Any:
            return None if one is None else one.to_dict()

        maps = {"after": plain(self.map), "before": plain(self.before_map)}
        return {
            "file": self.name,
            "kind": "score" if self.is_score else "difference",
            "filter": self.filter,
            "sources": self.sources,
            "after": plain(self.after),
            "before": plain(self.before),
            "map": None if self.map is None else maps,
        }


@dataclasses.dataclass(frozen=True)
class _Filter:
    """Filter: a PSF at the middle of the image, in words, and as a function of x and y."""

    psf: Array
    description: str
    local: Callable[[float, float], Array | None] | None = None


@dataclasses.dataclass(frozen=True)
class _Image:
    """An image and its source-free pixels."""

    name: str
    pixels: Array
    good: Array


def run_check(image: object, options: CheckOptions) -> Checked:
    """Read an image, measure how white its noise is, and write what was asked for.

    Parameters
    ----------
    image
        Difference or score: a file, or an object that `whitediff.runs.inputs.read_image` takes.
    options
        Options of ``whitediff check``.

    Returns
    -------
    checked
        `Checked`.

    Raises
    ------
    WhitediffError
        A subclass whose message names the file at fault.
    """
    check_given(options, image)
    name = name_of(image, "image")
    with running(options.running), stages("Checking", 4) as begin:
        begin("reading")
        exposure = read_image(image, "image", needs_variance=True)
        exposure.is_score = exposure.is_score or _is_file_of_score(image)
        chosen = _filter(exposure, name, options)
        begin("sources")
        sources, how = _sources(exposure, name, options)
        begin("measuring")
        images = [_Image(name, exposure.data, ~(_bad(exposure) | sources))]
        earlier = _before(image, options.before, exposure.shape)
        if earlier is not None:
            # The same pixels and variance plane, so that only the correction makes a change.
            good = images[0].good & np.isfinite(earlier.data)
            images.append(_Image(str(earlier.source), earlier.data, good))
        measured = [_measured(each, exposure, chosen, options) for each in images]
        results = [each.noise for each in measured]
        maps = [each.cells for each in measured]
        checked = Checked(
            name=name,
            is_score=exposure.is_score,
            filter=None if exposure.is_score else chosen.description,
            sources=how,
            after=results[0],
            before=results[1] if len(results) > 1 else None,
            map=maps[0],
            before_map=maps[1] if len(maps) > 1 else None,
        )
        if options.plot is not None:
            begin("drawing")
            _draw(options.plot, exposure, images, measured, Path(name).name)
        if options.json is not None:
            write_numbers(options.json, checked.to_dict(), overwrite=options.overwrite)
    for output in (options.json, options.plot):
        if output is not None and not is_stream(output):
            log.info("%s: written.", output)
    return checked


def _is_file_of_score(image: object) -> bool:
    return isinstance(image, str | Path) and is_score(image)


def _bad(exposure: Exposure) -> Array:
    """Pixels that are left out of all measurements."""
    planes = (*masks.DEFAULT_IGNORE_MASK_PLANES, masks.CONTAMINATED, "SUSPECT")
    return masks.flagged(exposure.mask, planes)


def _filter(exposure: Exposure, name: str, options: CheckOptions) -> _Filter:
    """Filter that detection would use, or the Gaussian that was asked for."""
    sigma, box = options.sigma, exposure.bbox
    if sigma is not None and exposure.is_score:
        raise ArgumentError.of(
            name, "is a score image, which is filtered already; leave out --sigma."
        )
    if sigma is not None and 10 * sigma > min(exposure.shape):
        raise ArgumentError.of(
            name,
            f"--sigma {sigma:g} is too wide for {exposure.shape[0]} x"
            f" {exposure.shape[1]} pixels; a tenth of the smaller side is the most.",
        )
    if sigma is not None:
        return _Filter(gaussian_filter(sigma), f"Gaussian of sigma {sigma:g} pixels")
    if exposure.psf is None:
        description = f"Gaussian of sigma {_DEFAULT_SIGMA} pixels"
        if not exposure.is_score:
            log.info("%s: has no PSF; filtered with a %s.", name, description)
        return _Filter(gaussian_filter(_DEFAULT_SIGMA), description)
    try:
        psf = exposure.psf.at(x=box.x.center, y=box.y.center)
    except ArgumentError as error:
        raise ArgumentError.of(name, f"{error}") from error
    return _Filter(psf, "the file's PSF", _local_psf(exposure.psf))


def _local_psf(psf: PointSpreadFunction) -> Callable[[float, float], Array | None] | None:
    """PSF as a function of x and y; None if it is the same everywhere."""
    if isinstance(psf, KernelPointSpreadFunction) and psf.kernel.is_constant:
        return None

    def local(x: float, y: float) -> Array | None:
        try:
            return psf.at(x=x, y=y)
        except ArgumentError as error:
            log.info("%s", error)
            return None

    return local


def _sources(exposure: Exposure, name: str, options: CheckOptions) -> tuple[Array, str]:
    """Pixels with sources, and how they were found."""
    given = [
        (each, role)
        for each, role in ((options.science, "science image"), (options.template, "template"))
        if each is not None
    ]
    if given:
        sources = np.zeros(exposure.shape, dtype=bool)
        for each, role in given:
            sources |= _sources_on(each, role, exposure, name)
        return sources, "found on " + " and ".join(name_of(each, role) for each, role in given)
    if masks.find_plane(exposure.mask, masks.SOURCE) is not None:
        return masks.flagged(exposure.mask, [masks.SOURCE]), "from the mask plane SOURCE"
    log.warning(
        "%s: neither --science nor --template is given, and it has no mask plane SOURCE, so the"
        " residuals of sources count as noise.",
        name,
    )
    return np.zeros(exposure.shape, dtype=bool), "unknown"


def _sources_on(given: object, role: str, exposure: Exposure, name: str) -> Array:
    other = read_image(given, role)
    if other.shape != exposure.shape:
        raise ArgumentError.of(
            other.source, f"has the shape {other.shape}, but {name} {exposure.shape}."
        )
    untrusted = masks.flagged(other.mask, masks.UNTRUSTED_MASK_PLANES)
    try:
        return detect_sources(other.data, untrusted)
    except DataError as error:
        raise DataError.of(other.source, f"{error}") from error


def _before(image: object, before: object, shape: tuple[int, int]) -> Exposure | None:
    """Difference before decorrelation: the given one, else the file that the header names."""
    name = name_of(image, "image")
    if before is not None:
        exposure = read_image(before, "difference before")
        if exposure.shape != shape:
            raise ArgumentError.of(
                exposure.source, f"has the shape {exposure.shape}, but {name} has {shape}."
            )
        return exposure
    if not isinstance(image, str | Path):
        return None
    out = split_extension(image)[0]
    with opened(out) as hdus:
        recorded = hdus[0].header.get("WDDIFF")
    if not isinstance(recorded, str):
        return None
    found, is_elsewhere = leads_to(unescaped(recorded), out)
    if found is None:
        if is_elsewhere:
            log.info(
                "%s: the difference that it was made from does not lie beside it; name it with"
                " --before, or allow the paths in headers (--follow-paths).",
                name,
            )
        return None
    try:
        exposure = formats.read_exposure(found, needs_variance=False)
    except WhitediffError as error:
        log.info("%s", error)
        return None
    return exposure if exposure.shape == shape else None


@dataclasses.dataclass(frozen=True)
class _Measured:
    """Noise of an image: on the frame, cell by cell, and as the picture draws it."""

    noise: Whiteness | ScoreNoise
    cells: VarianceMap | None
    drawn: Whiteness | None


def _measured(
    image: _Image, exposure: Exposure, chosen: _Filter, options: CheckOptions
) -> _Measured:
    """Measure an image with the variance plane of the exposure."""
    cells = _cells(options.map, exposure.shape)
    values = (image.pixels, exposure.variance, image.good)
    grid: dict[str, Any] = {"cells": cells, "origin": exposure.origin}
    try:
        if exposure.is_score:
            noise = score_noise(*values)
            by_cell = None if cells is None else score_noise_map(*values, noise, **grid)
            drawn = None if options.plot is None else whiteness(*values, chosen.psf)
            return _Measured(noise, by_cell, drawn)
        if cells is None:
            frame = whiteness(*values, chosen.psf)
            return _Measured(frame, None, frame)
        frame, by_cell = whiteness_with_map(*values, chosen.psf, local_psf=chosen.local, **grid)
        return _Measured(frame, by_cell, frame)
    except (ArgumentError, DataError) as error:
        raise type(error)(f"{image.name}: {error}") from error


def _cells(wanted: tuple[int, int] | None, shape: tuple[int, int]) -> tuple[int, int] | None:
    if wanted is None or wanted != CheckOptions.map:
        return wanted
    # The default map, which the user did not ask for, must not fail on a small image.
    rows, columns = (
        max(1, min(n, size // MINIMUM_CELL)) for n, size in zip(wanted, shape, strict=True)
    )
    return rows, columns


def _draw(
    path: Path,
    exposure: Exposure,
    images: list[_Image],
    measured: list[_Measured],
    title: str,
) -> None:
    variance = exposure.variance
    usable = np.isfinite(exposure.data) & np.isfinite(variance) & (variance > 0)
    after, *before = (_drawn(image, each) for image, each in zip(images, measured, strict=True))
    plot_whiteness(
        path,
        dataclasses.replace(after, good=after.good & usable),
        variance,
        before=before[0] if before else None,
        title=title,
    )


def _drawn(image: _Image, measured: _Measured) -> MeasuredImage:
    assert measured.drawn is not None
    return MeasuredImage(
        image.pixels,
        image.good,
        measured.drawn,
        score_noise=measured.noise if isinstance(measured.noise, ScoreNoise) else None,
        variance_map=measured.cells,
    )
