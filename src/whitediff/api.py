"""One call for each command: images or files in, results out.

Images are files, `whitediff.Exposure`, astropy CCDData, NDData or HDUList, objects of lsst.images,
or arrays.  Keywords are the options of the command of the same name, with underscores, and have
the same defaults.  Outputs that are not named are not written.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from .errors import ArgumentError
from .options import declarations, from_words
from .paths import check_suffix
from .reading import ReadingOptions
from .runs.options import (
    AlignOptions,
    CheckOptions,
    DecorrelateOptions,
    DetectOptions,
    EvaluateOptions,
    InjectOptions,
    MeasureOptions,
    ReportOptions,
    SubtractOptions,
)
from .runs.refusals import check_given

if TYPE_CHECKING:
    from astropy.io.fits import HDUList
    from astropy.nddata import CCDData
    from astropy.table import Table
    from photutils.psf import GriddedPSFModel

    from .alignment.resampling import Resampled
    from .decorrelation.exposures import Decorrelation
    from .exposures.model import Exposure
    from .runs.check import Checked
    from .runs.evaluate import Evaluated
    from .runs.inject import Injected
    from .runs.result import Result

__all__ = [
    "align",
    "check",
    "decorrelate",
    "detect",
    "evaluate",
    "inject",
    "measure",
    "read",
    "report",
    "subtract",
    "to_ccddata",
    "to_gridded_psf_model",
    "to_hdulist",
    "write",
]


def _taking[**P, R](kind: type) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorator that lists the options of a class in a function's signature and docstring."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def call(*arguments: P.args, **words: P.kwargs) -> R:
            return function(*arguments, **words)

        signature = inspect.signature(function)
        own = [
            each
            for each in signature.parameters.values()
            if each.kind is not inspect.Parameter.VAR_KEYWORD
        ]
        taken = {each.name for each in own}
        keywords = [
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=each.default, annotation=each.hint
            )
            for name, each in declarations(kind).items()
            if name not in taken
        ]
        # Notebooks and help show the signature.
        call.__signature__ = signature.replace(parameters=[*own, *keywords])  # type: ignore[attr-defined]
        lines = [
            f"{name}\n    {' '.join(each.help.split())}"
            for name, each in declarations(kind).items()
            if name not in taken
        ]
        listed = "\n".join(lines)
        call.__doc__ = inspect.cleandoc(function.__doc__ or "").replace("**options", listed)
        return call

    return decorate


def _options[T](kind: type[T], words: dict[str, object], **files: object) -> T:
    """Options from keywords; files are the images that they belong to."""
    named = {
        role: os.fspath(file) if isinstance(file, str | os.PathLike) else f"the {role}"
        for role, file in files.items()
    }
    options = from_words(kind, words, named)
    check_given(options, *files.values())
    return options


@_taking(SubtractOptions)
def subtract(science: object, template: object, **options: object) -> Result:
    """Match the PSFs of two images, subtract and decorrelate them.

    Parameters
    ----------
    science, template
        Images on the same pixels; a template on other pixels is resampled with ``align=True``.
    **options

    Returns
    -------
    result
        `whitediff.runs.result.Result`: ``difference``, ``score``, ``sources``, ``kernel``,
        ``quality``; it can be drawn (``plot``), reported on (``report``) and written (``write``).

    Raises
    ------
    WhitediffError
        One of its subclasses; the message names the image at fault.

    Examples
    --------
    >>> import whitediff
    >>> from whitediff.evaluation.simulation import SimulationOptions, simulate
    >>> from whitediff.evaluation.simulated import simulated_exposure
    >>> scene = simulate(SimulationOptions(shape=(256, 256), stars=60, seed=3))
    >>> science, template = (simulated_exposure(scene, n) for n in ("science", "template"))
    >>> result = whitediff.subtract(science, template)
    >>> result.difference.shape
    (256, 256)
    >>> abs(result.quality.numbers["kernel_sum"] - 1) < 0.02
    True
    """
    from .runs.result import subtract_in_memory

    chosen = _options(SubtractOptions, options, science=science, template=template)
    return subtract_in_memory(science, template, chosen)


@_taking(DecorrelateOptions)
def decorrelate(
    science: object,
    template: object,
    difference: object,
    kernel: object = None,
    **options: object,
) -> Decorrelation:
    """Whiten the noise of a difference that another program made.

    Parameters
    ----------
    science, template
        Images before any convolution.
    difference
        Difference that was made from them.
    kernel
        Matching kernel: a file, a kernel of whitediff, or an image ``(ky, kx)``; None if the
        difference holds it.
    **options

    Returns
    -------
    result
        `whitediff.decorrelation.exposures.Decorrelation`: ``exposure`` is the white difference.

    Raises
    ------
    WhitediffError
        One of its subclasses; the message names the image at fault.

    Examples
    --------
    >>> import numpy as np
    >>> import whitediff
    >>> rng = np.random.default_rng(1)
    >>> science, template = rng.normal(0, 3, (2, 64, 64))
    >>> kernel = np.zeros((5, 5))
    >>> kernel[1:4, 1:4] = 1 / 9
    >>> from scipy.ndimage import correlate
    >>> difference = science - correlate(template, kernel)
    >>> white = whitediff.decorrelate(
    ...     science, template, difference, kernel, science_variance=9.0, template_variance=9.0
    ... )
    >>> white.exposure.shape
    (64, 64)
    """
    from .runs.decorrelate import run_decorrelation

    chosen = _options(DecorrelateOptions, options, science=science, template=template)
    return run_decorrelation(science, template, difference, kernel, chosen)


@_taking(DetectOptions)
def detect(difference: object, **options: object) -> Table:
    """Find and measure the sources on a difference whose noise is white.

    Parameters
    ----------
    difference
        Difference.
    **options

    Returns
    -------
    catalogue
        Table with a row for each source; docs/detection.md describes the columns.

    Raises
    ------
    WhitediffError
        One of its subclasses; the message names the image at fault.

    Examples
    --------
    >>> import numpy as np
    >>> import whitediff
    >>> y, x = np.mgrid[-12:13, -12:13]
    >>> psf = np.exp(-(x**2 + y**2) / 8)
    >>> image = np.random.default_rng(1).normal(0, 1, (64, 64))
    >>> image[20:45, 10:35] += 20 * psf
    >>> sources = whitediff.detect(image, psf=psf, variance=1.0)
    >>> [(round(x), round(y)) for x, y in zip(sources["x"].value, sources["y"].value)]
    [(22, 32)]
    """
    from .runs.detect import run_detection

    return run_detection(difference, _options(DetectOptions, options, difference=difference))


@_taking(MeasureOptions)
def measure(difference: object, at: object, **options: object) -> Table:
    """Measure fluxes on a difference at given positions, whether or not anything is there.

    Parameters
    ----------
    difference
        Difference.
    at
        Table of positions, x and y (pixels) or ra and dec (degrees), the file of such a table, or
        a mapping from column names to columns.
    **options

    Returns
    -------
    catalogue
        Table with a row for each position.

    Raises
    ------
    WhitediffError
        One of its subclasses; the message names the image at fault.

    Examples
    --------
    >>> import numpy as np
    >>> import whitediff
    >>> y, x = np.mgrid[-12:13, -12:13]
    >>> psf = np.exp(-(x**2 + y**2) / 8)
    >>> image = np.random.default_rng(1).normal(0, 1, (64, 64))
    >>> image[20:45, 10:35] += 20 * psf
    >>> places = {"x": [22.0, 50.0], "y": [32.0, 12.0]}
    >>> fluxes = whitediff.measure(image, places, psf=psf, variance=1.0)
    >>> [bool(abs(row["psf_flux"]) > 5 * row["psf_flux_err"]) for row in fluxes]
    [True, False]
    """
    from .runs.detect import run_measurement

    chosen = _options(MeasureOptions, options, difference=difference)
    return run_measurement(difference, at, chosen)


@_taking(AlignOptions)
def align(template: object, science: object, **options: object) -> Resampled:
    """Resample a template onto a science image's pixels, by sky coordinates and stars.

    Parameters
    ----------
    template
        Image to resample.
    science
        Image whose pixel grid it is resampled to.
    **options

    Returns
    -------
    result
        `whitediff.alignment.resampling.Resampled`: ``exposure`` is the resampled template.

    Raises
    ------
    WhitediffError
        One of its subclasses; the message names the image at fault.

    Examples
    --------
    >>> import whitediff
    >>> from whitediff.evaluation.flaws import Grid
    >>> from whitediff.evaluation.simulation import SimulationOptions, simulate
    >>> from whitediff.evaluation.simulated import simulated_exposure
    >>> options = SimulationOptions(
    ...     shape=(256, 256), stars=60, seed=3, template_grid=Grid(shift=(3.4, -2.2), rotation=2.0)
    ... )
    >>> scene = simulate(options)
    >>> science, template = (simulated_exposure(scene, n) for n in ("science", "template"))
    >>> aligned = whitediff.align(template, science)
    >>> aligned.exposure.shape
    (256, 256)
    """
    from .runs.align import run_alignment

    chosen = _options(AlignOptions, options, template=template, science=science)
    return run_alignment(template, science, chosen)


@_taking(CheckOptions)
def check(image: object, **options: object) -> Checked:
    """Measure how white the noise of a difference or score is, on source-free pixels.

    Parameters
    ----------
    image
        Difference or score.
    **options

    Returns
    -------
    checked
        `whitediff.runs.check.Checked`: ``after.filtered_variance_ratio`` is 1 if the noise is
        white.

    Raises
    ------
    WhitediffError
        One of its subclasses; the message names the image at fault.

    Examples
    --------
    >>> import numpy as np
    >>> import whitediff
    >>> image = np.random.default_rng(1).normal(0, 1, (128, 128))
    >>> exposure = whitediff.Exposure.from_arrays(image, variance=1.0)
    >>> noise = whitediff.check(exposure, sigma=2.0, map=None).after
    >>> abs(noise.filtered_variance_ratio - 1) < 4 * noise.filtered_variance_ratio_error
    True
    """
    from .runs.check import run_check

    return run_check(image, _options(CheckOptions, options, image=image))


@_taking(InjectOptions)
def inject(science: object, **options: object) -> Injected:
    """Add point sources of known flux and position to an image.

    Parameters
    ----------
    science
        Image.
    **options

    Returns
    -------
    injected
        `whitediff.runs.inject.Injected`: ``exposure``, and the table ``sources`` of added sources.

    Raises
    ------
    WhitediffError
        One of its subclasses; the message names the image at fault.

    Examples
    --------
    >>> import numpy as np
    >>> import whitediff
    >>> y, x = np.mgrid[-12:13, -12:13]
    >>> psf = np.exp(-(x**2 + y**2) / 8)
    >>> image = np.random.default_rng(1).normal(0, 1, (128, 128))
    >>> places = {"x": [40.0], "y": [70.0], "flux": [500.0]}
    >>> found = whitediff.inject(image, sources=places, science_psf=psf, science_variance=1.0)
    >>> round(float((found.exposure.data - image).sum()))
    500
    """
    from .runs.inject import run_injection

    return run_injection(science, _options(InjectOptions, options, science=science))


@_taking(EvaluateOptions)
def evaluate(science: object = None, template: object = None, **options: object) -> Evaluated:
    """Inject sources, subtract, detect and compare with the injected sources, many times.

    Parameters
    ----------
    science, template
        Images; None with ``simulate=True``.
    **options

    Returns
    -------
    evaluated
        `whitediff.runs.evaluate.Evaluated`: ``numbers`` (completeness, purity, biases) and the
        table ``sources``.

    Raises
    ------
    WhitediffError
        One of its subclasses; the message names the image at fault.

    Examples
    --------
    >>> import whitediff
    >>> scene = {"shape": (200, 200), "stars": 40}
    >>> found = whitediff.evaluate(simulate=True, set=scene, realizations=1, no_score=True)
    >>> found.numbers["realizations"]["done"]
    1
    """
    from .runs.evaluate import run_evaluation

    scene = options.pop("set", None) or {}
    if not isinstance(scene, dict):
        raise ArgumentError(
            f"set must be a dictionary of options of a simulation; got {type(scene).__name__}."
        )
    chosen = _options(EvaluateOptions, options, science=science, template=template)
    missing = {science is None, template is None}
    if missing != {chosen.simulate} or (scene and not chosen.simulate):
        raise ArgumentError(
            "Give science and template, or simulate=True, with set for options of the simulation."
        )
    return run_evaluation(science, template, chosen, scene if chosen.simulate else None)


@_taking(ReportOptions)
def report(image: str, **options: object) -> dict[str, object]:
    """Write a web page for judging a difference or score that whitediff made.

    Parameters
    ----------
    image
        File with the difference or score; for one in memory use ``result.report``.
    **options

    Returns
    -------
    data
        Numbers of the page.

    Raises
    ------
    WhitediffError
        One of its subclasses; the message names the image at fault.
    """
    from .runs.report import run_report

    return run_report(os.fspath(image), _options(ReportOptions, options, image=image))


@_taking(ReadingOptions)
def read(image: object, **options: object) -> Exposure:
    """Read an image with its variance, mask, PSF and sky coordinates.

    Parameters
    ----------
    image
        File of any format that docs/formats.md lists, or an image in memory.
    **options

    Returns
    -------
    exposure
        Image; its variance is measured if the input and the options give none.

    Raises
    ------
    WhitediffError
        One of its subclasses; the message names the image at fault.

    Examples
    --------
    >>> import numpy as np
    >>> import whitediff
    >>> whitediff.read(np.ones((3, 4)), variance=2.0).variance.mean()
    np.float32(2.0)
    """
    from .runs.inputs import read_image

    chosen = _options(ReadingOptions, options, image=image)
    return read_image(image, "image", chosen, needs_variance=True)


def _check_exposure(given: object) -> None:
    """Refuse all but exposures."""
    from .exposures.model import Exposure

    if not isinstance(given, Exposure):
        raise ArgumentError(
            f"A whitediff.Exposure is wanted; got {type(given).__name__}. whitediff.read makes one"
            " of files, arrays, CCDData and HDU lists; a result has it as its difference."
        )


def write(
    exposure: Exposure,
    path: str | os.PathLike[str],
    *,
    compress: bool = False,
    overwrite: bool = False,
) -> None:
    """Write an exposure to a FITS file, which appears complete or not at all.

    Parameters
    ----------
    exposure
        Image.
    path
        FITS file; docs/file-format.md describes it.
    compress
        Compress the planes without loss.
    overwrite
        Whether an existing file may be replaced.

    Raises
    ------
    OutputExistsError
        If the file exists and may not be replaced.
    FileFormatError
        If the file cannot be written.

    Examples
    --------
    >>> import os, tempfile
    >>> import numpy as np
    >>> import whitediff
    >>> exposure = whitediff.Exposure.from_arrays(np.ones((3, 4)), variance=2.0)
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     path = os.path.join(directory, "a.fits")
    ...     whitediff.write(exposure, path)
    ...     whitediff.read(path).shape
    (3, 4)
    """
    from .formats import write_exposure

    _check_exposure(exposure)
    check_suffix(Path(path), "FITS file")
    write_exposure(exposure, os.fspath(path), compress=compress, overwrite=overwrite)


def to_ccddata(
    exposure: Exposure, *, uncertainty: Literal["variance", "sigma", "weight"] = "variance"
) -> CCDData:
    """Make astropy's CCDData of an exposure; `read` takes it back.

    Parameters
    ----------
    exposure
        Image.
    uncertainty
        Kind of uncertainty that is made of the variance: variance, standard deviation, or inverse
        variance.

    Returns
    -------
    data
        Its ``mask`` has the pixels without a measurement, its ``flags`` all mask planes by name,
        its ``psf`` the PSF in the middle of the frame; its unit is adu where the exposure has none.
        Kernel and background have no place in it.

    Raises
    ------
    ArgumentError
        If the uncertainty is of an unknown kind.

    Examples
    --------
    >>> import numpy as np
    >>> import whitediff
    >>> exposure = whitediff.Exposure.from_arrays(np.ones((3, 4)), variance=2.0)
    >>> whitediff.to_ccddata(exposure, uncertainty="sigma").uncertainty.array[0, 0].round(3)
    np.float64(1.414)
    """
    from .formats.ccddata import to_ccddata

    _check_exposure(exposure)
    return to_ccddata(exposure, uncertainty=uncertainty)


def to_hdulist(exposure: Exposure) -> HDUList:
    """Make HDUs of an exposure, the same as `write` writes; `read` takes them back.

    Parameters
    ----------
    exposure
        Image.

    Returns
    -------
    hdus
        Planes, PSF, kernel and background, as docs/file-format.md describes them; copies.

    Examples
    --------
    >>> import numpy as np
    >>> import whitediff
    >>> exposure = whitediff.Exposure.from_arrays(np.ones((3, 4)), variance=2.0)
    >>> [hdu.name for hdu in whitediff.to_hdulist(exposure)]
    ['PRIMARY', 'IMAGE', 'MASK', 'VARIANCE']
    """
    from .formats.own.write import hdus_of

    _check_exposure(exposure)
    return hdus_of(exposure)


def to_gridded_psf_model(exposure: Exposure, *, grid: int | None = None) -> GriddedPSFModel:
    """Make photutils' model of an exposure's PSF; options such as ``science_psf`` take it back.

    Parameters
    ----------
    exposure
        Image with a PSF.
    grid
        How many positions along each side of the frame hold an image: 1, or 3 and more.  If not
        given, as few as keep what photutils interpolates between them within a thousandth of the
        brightest pixel, 17 at most.

    Returns
    -------
    model
        ``photutils.psf.GriddedPSFModel`` of flux 1; its positions are pixel coordinates.

    Raises
    ------
    ArgumentError
        If the exposure has no PSF, photutils is not installed, or the grid is less than 1, or 2.

    Examples
    --------
    >>> import whitediff
    >>> exposure = whitediff.read("image.fits")  # doctest: +SKIP
    >>> model = whitediff.to_gridded_psf_model(exposure)  # doctest: +SKIP
    """
    from .exposures.psf_models import to_gridded_psf_model

    _check_exposure(exposure)
    if exposure.psf is None:
        raise ArgumentError("The exposure has no PSF to make a model of.")
    return to_gridded_psf_model(exposure.psf, grid=grid)
