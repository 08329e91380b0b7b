"""Run of ``whitediff decorrelate-stack``: whiten the noise of a difference of stacks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from .. import __version__, formats
from ..decorrelation.stacks import StackDecorrelation, StackMember, StackOptions, decorrelate_stack
from ..errors import UsageError, naming
from ..exposures.model import Exposure
from ..noise.exposures import PairSources, pair_sources
from ..progress import stages
from ..reading import ReadingOptions
from ..subtraction.pipeline import mark_sources
from .cards import Cards, report_noise_floor
from .decorrelate import complete_planes
from .inputs import name_of, path_of, read_image, read_input, read_kernel, read_psf
from .options import DecorrelateStackOptions
from .refusals import UNCONVOLVED, check_given
from .running import running

__all__ = ["run_stack_decorrelation"]

log = logging.getLogger("whitediff.runs")


def run_stack_decorrelation(
    difference: object, options: DecorrelateStackOptions
) -> StackDecorrelation:
    """Read a difference of stacks and their images, decorrelate it and write it.

    Parameters
    ----------
    difference
        File, or an object that `whitediff.runs.inputs.read_image` takes.
    options
        Options of ``whitediff decorrelate-stack``; without an output nothing is written.

    Returns
    -------
    result
        Decorrelated difference, and the numbers of the correction.

    Raises
    ------
    WhitediffError
        A subclass whose message names the file at fault.
    """
    members = (*options.science, *options.template)
    name = name_of(difference, "difference")
    paths = tuple(name_of(path, "image") for path, _ in members)
    check_given(options, difference)
    weights = {"science": options.science_weights, "template": options.template_weights}
    _check_weights(weights, options)
    how = StackOptions(
        convolved=options.convolved,
        combine="median" if options.median else "mean",
        floor=options.floor,
        divisor=options.divisor,
        spatially_varying=not options.whitening.constant,
        fill=options.whitening.fill,
        noise=options.whitening.noise,
    )
    with running(options.running, options.output), stages("Decorrelating", 5) as begin:
        begin("reading")
        exposure = _difference(difference, name, options)
        sides = {
            side: [
                _member(path, kernel, exposure, weight)
                for (path, kernel), weight in zip(
                    given, weights[side] or (1.0,) * len(given), strict=True
                )
            ]
            for side, given in (("science", options.science), ("template", options.template))
        }
        exposure, sources = _with_sources(exposure, sides, begin)
        begin("correction")
        # An error of a kernel or PSF names no file: it concerns the difference.
        with naming(name):
            result = decorrelate_stack(
                exposure,
                sides["science"],
                sides["template"],
                sources=None if sources is None else sources.either,
                options=how,
            )
        if sources is not None:
            mark_sources(result.exposure, sources)
        begin("writing")
        if options.output is not None:
            formats.write_exposure(
                result.exposure,
                options.output,
                overwrite=options.overwrite,
                compress=options.compress,
                provenance=_cards_of_inputs(difference, options) | _stack_cards(result, weights),
            )
    log.info(
        "%s: %d and %d images; mean variance of a pixel %.6g, of the plane %.6g; %.1f%% of the"
        " frequencies floored, %.1f%% of the pixels contaminated.",
        options.output or name,
        len(options.science),
        len(options.template),
        result.pixel_variance,
        result.white_variance,
        100 * result.floored_fraction,
        100 * result.contaminated_fraction,
    )
    noises = (*result.science_noises, *result.template_noises)
    report_noise_floor(zip(paths, noises, strict=True))
    return result


def _check_weights(
    weights: dict[str, tuple[float, ...] | None], options: DecorrelateStackOptions
) -> None:
    for name, given in weights.items():
        if given is None:
            continue
        if options.median:
            raise UsageError(f"--{name}-weights: a median knows no weights; leave them out.")
        images = options.science if name == "science" else options.template
        if len(given) != len(images):
            raise UsageError(
                f"--{name}-weights: {len(given)} weights for {len(images)} images; every --{name}"
                " needs one."
            )


def _difference(given: object, name: str, options: DecorrelateStackOptions) -> Exposure:
    exposure = read_image(given, "difference")
    if options.kernel is not None:
        exposure.kernel = read_kernel(options.kernel, exposure.bbox)
    elif exposure.kernel is None:
        log.info("%s: no --kernel; neither stack was convolved as a whole.", name)
    if options.psf is not None:
        exposure.psf = read_psf(options.psf, exposure.bbox)
    elif exposure.psf is None:
        log.info("%s: no PSF is known, so the output has none.", name)
    return exposure


def _member(path: object, kernel: object, exposure: Exposure, weight: float) -> StackMember:
    is_unconvolved = kernel is None or (isinstance(kernel, str) and kernel == UNCONVOLVED)
    return StackMember(
        exposure=read_input(path, ReadingOptions()),
        kernel=None if is_unconvolved else read_kernel(kernel, exposure.bbox),
        weight=weight,
    )


def _with_sources(
    exposure: Exposure, sides: dict[str, list[StackMember]], begin: Callable[[str], None]
) -> tuple[Exposure, PairSources | None]:
    """Difference with the mask and WCS that its file lacks, and the sources of its images."""
    inputs = {
        f"{name} {i}": member.exposure
        for name, members in sides.items()
        for i, member in enumerate(members, 1)
    }
    if any(each.shape != exposure.shape for each in inputs.values()):
        return exposure, None
    exposure = complete_planes(exposure, inputs, wcs_from=sides["science"][0].exposure)
    begin("sources")
    sources = pair_sources(
        *([member.exposure for member in sides[name]] for name in ("science", "template"))
    )
    return exposure, sources


def _cards_of_inputs(difference: object, options: DecorrelateStackOptions) -> Cards:
    def listed(given: Iterable[object]) -> str:
        return "; ".join(path_of(each) or "-" for each in given)

    return {
        "WDDIFF": (path_of(difference), "difference before decorrelation"),
        "WDKERN": (path_of(options.kernel), "matching kernel from"),
        "WDPSF": (path_of(options.psf), "PSF of the difference from"),
        "WDSCI": (listed(path for path, _ in options.science), "images of the science stack"),
        "WDTMPL": (listed(path for path, _ in options.template), "images of the template stack"),
        "WDSKERN": (listed(each for _, each in options.science), "kernels of the science stack"),
        "WDTKERN": (listed(each for _, each in options.template), "kernels of the template stack"),
    }


def _stack_cards(result: StackDecorrelation, weights: dict[str, tuple[float, ...] | None]) -> Cards:
    """Cards of the primary header that describe the decorrelation."""
    options = result.options
    cards: Cards = {
        "WDTASK": ("decorrelate-stack", "made by"),
        "WDVERS": (__version__, "version of whitediff"),
        "WDCONV": (options.convolved, "stack that was convolved as a whole"),
        "WDCOMB": (options.combine, "how the stacks were combined"),
        "WDSWGT": (_listed(weights["science"]), "weights of the science images"),
        "WDTWGT": (_listed(weights["template"]), "weights of the template images"),
        "WDDIVIS": (options.divisor, "by which the difference was divided"),
        "WDIGNORE": (",".join(options.ignore_mask_planes), "planes not in means"),
        "WDXCEN": (result.x, "column at which the kernels were taken"),
        "WDYCEN": (result.y, "row at which the kernels were taken"),
        "WDKSUM": (result.kernel_sum, "sum of the matching kernel"),
        "WDSVARS": (_listed(result.science_variances), "mean variances of science"),
        "WDTVARS": (_listed(result.template_variances), "mean variances of template"),
        "WDFLOOR": (options.floor, "relative noise power that bounds the correction"),
        "WDFLFRAC": (result.floored_fraction, "fraction of frequencies below that"),
        "WDCMAX": (result.largest_correction, "largest value of the correction"),
        "WDVPIX": (result.pixel_variance, "mean variance of a pixel"),
        "WDVWHITE": (result.white_variance, "mean of the plane: what a PSF filter sees"),
        "WDVBEF": (result.variance_mean_before, "mean of the variance plane before"),
        "WDVAFT": (result.variance_mean_after, "mean of the variance plane after"),
        "WDCONTAM": (result.contaminated_fraction, "fraction of pixels CONTAMINATED"),
        "WDFILL": (options.fill, "what stands in for missing pixels"),
        "WDSPAT": (options.spatially_varying, "correction follows the kernels"),
    }
    if not result.local.filter.is_constant:
        cards |= {
            "WDNIMG": (len(result.local.filter.images), "images that the correction is made of"),
            "WDSPERR": (result.local.filter.error, "error of the compression, sigma of a pixel"),
        }
    return cards | _noise_cards(result)


def _noise_cards(result: StackDecorrelation) -> Cards:
    """Cards of the noise of members: a list with one value for each, - for white noise."""
    cards: Cards = {}
    for name, noises in (
        ("science", result.science_noises),
        ("template", result.template_noises),
    ):
        if all(noise is None for noise in noises):
            continue
        cards["WDFLXERR"] = (result.flux_error, "relative error of fluxes from these")
        for suffix, attribute, comment in (
            ("NOI0", "zero_frequency", f"{name} noise power at low frequencies"),
            ("NERR", "zero_frequency_error", "its error"),
            ("NSIG", "significance", f"{name} noise is not white, sigma"),
            ("NFLR", "floored_fraction", f"fraction of {name} frequencies floored"),
        ):
            values = tuple(None if n is None else getattr(n, attribute) for n in noises)
            cards[f"WD{name[0].upper()}{suffix}"] = (_listed(values), comment)
    return cards


def _listed(values: tuple[float | None, ...] | None) -> str | None:
    if values is None:
        return None
    return ",".join("-" if value is None else f"{value:.9g}" for value in values)
