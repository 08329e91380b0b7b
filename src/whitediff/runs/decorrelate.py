"""Run of ``whitediff decorrelate``: whiten the noise of a difference made elsewhere."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Mapping
from typing import Any

from .. import formats
from ..decorrelation.exposures import (
    Decorrelation,
    DecorrelationOptions,
    decorrelate,
    refuse_decorrelated,
    refuse_white,
)
from ..decorrelation.regions import Region, decorrelate_regions
from ..direction import Direction, opposite
from ..errors import ArgumentError, naming
from ..exposures import masks
from ..exposures.model import Exposure
from ..formats import Difference
from ..formats.headers import wcs_cards
from ..noise.exposures import InputNoise, pair_sources
from ..progress import stages
from ..reading import ReadingOptions, VarianceSource, option_cards
from ..subtraction.pipeline import mark_sources
from .cards import Cards, decorrelation_cards, report_inputs_floor
from .inputs import check_usable, name_of, path_of, read_image, read_input, read_kernel, read_psf
from .options import DecorrelateOptions
from .refusals import check_given
from .running import running

__all__ = ["complete_planes", "run_decorrelation"]


log = logging.getLogger("whitediff.runs")


@dataclasses.dataclass(frozen=True)
class _Names:
    """Names of the inputs, for messages."""

    science: str
    template: str
    difference: str
    kernel: str | None


def run_decorrelation(
    science: object,
    template: object,
    difference: object,
    kernel: object,
    options: DecorrelateOptions,
) -> Decorrelation:
    """Read a difference and the images that it was made of, decorrelate it and write it.

    Parameters
    ----------
    science, template, difference
        Files, or objects that `whitediff.runs.inputs.read_image` takes.
    kernel
        Matching kernel: a file, a kernel or an image of it; None if the difference has it.
    options
        Options of ``whitediff decorrelate``; without an output nothing is written.

    Returns
    -------
    result
        Decorrelated difference, and the numbers of the correction.

    Raises
    ------
    WhitediffError
        A subclass whose message names the file at fault.
    """
    paths = [path_of(each) for each in (science, template, difference, kernel)]
    check_given(options, science, template, difference, kernel)
    names = _Names(
        name_of(science, "science image"),
        name_of(template, "template"),
        name_of(difference, "difference"),
        None if kernel is None else name_of(kernel, "kernel"),
    )
    if options.preconvolution_kernel is not None and not options.score:
        raise ArgumentError.of(
            name_of(options.preconvolution_kernel, "pre-convolution kernel"),
            "a pre-convolution kernel is used in score mode only; add --score or leave it out.",
        )
    with running(options.running, options.output), stages("Decorrelating", 5) as begin:
        begin("reading")
        given = _difference(difference, kernel, options)
        refuse_decorrelated(given.exposure)
        regions = [Region(box, side) for box, side in given.directions]
        direction = given.convolved or ("template" if not regions else None)
        how = _options(names, options, direction)
        levels = _levels(given, {"science": science, "template": template}, options)
        inputs = {
            "science": read_input(science, levels["science"], "science image"),
            "template": read_input(template, levels["template"], "template"),
        }
        if not options.score:
            formats.check_reproduced(given, inputs["science"], inputs["template"])
        whole = _complete(given.exposure, inputs, direction, names, options)
        check_usable(whole, masks.DEFAULT_IGNORE_MASK_PLANES)
        if given.remade is None and direction is not None and not options.score:
            whole = _checked(whole, inputs, direction, names)
        _check_position(whole, options.x_center, options.y_center)
        begin("sources")
        sources = None
        if _on_one_grid(inputs, whole):
            sources = pair_sources([inputs["science"]], [inputs["template"]])
        begin("correction")
        common: dict[str, Any] = {
            "noise": InputNoise(
                science_variance=_number(options.science.variance),
                template_variance=_number(options.template.variance),
            ),
            "sources": None if sources is None else sources.either,
            "options": how,
        }
        exposures = (inputs["science"], inputs["template"], whole)
        # An error of a kernel or PSF names no file: it concerns the difference.
        with naming(names.difference):
            at_one_place = options.x_center is not None or options.y_center is not None
            if len(regions) > 1 and not at_one_place and not options.score:
                result = decorrelate_regions(*exposures, regions, **common)
            else:
                preconvolution = None
                if options.preconvolution_kernel is not None:
                    preconvolution = read_psf(
                        options.preconvolution_kernel, whole.bbox, "pre-convolution kernel"
                    )
                result = decorrelate(
                    *exposures,
                    preconvolution_kernel=preconvolution,
                    **common,
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
                provenance=_cards_of_inputs(paths, options)
                | decorrelation_cards(result)
                | _cards_of_software(given, regions, direction),
            )
    _describe(str(options.output or names.difference), result)
    report_inputs_floor(result, names.science, names.template)
    return result


def _difference(given: object, kernel: object, options: DecorrelateOptions) -> Difference:
    """Difference with its kernel, and with the regions' directions of convolution if known."""
    files = (str, os.PathLike)
    if isinstance(given, files) and (kernel is None or isinstance(kernel, files)):
        return formats.read_difference(
            os.fspath(given),
            kernel=None if kernel is None else os.fspath(kernel),
            convolved=options.convolved,
        )
    exposure = read_image(given, "difference")
    if kernel is not None:
        exposure = exposure.replaced()
        exposure.kernel = read_kernel(kernel, exposure.bbox)
    directions = () if options.convolved is None else ((exposure.bbox, options.convolved),)
    return Difference(exposure, directions=directions)


def _options(
    names: _Names, options: DecorrelateOptions, direction: Direction | None
) -> DecorrelationOptions:
    at_one_place = options.x_center is not None or options.y_center is not None
    if direction is None and at_one_place:
        raise ArgumentError.of(
            names.difference,
            "its regions were convolved in different directions; leave out"
            " --x-center and --y-center.",
        )
    planes = None
    if options.ignore_mask_planes is not None:
        planes = tuple(p.strip() for p in options.ignore_mask_planes.split(",") if p.strip())
    is_documented = options.transform == "documented"
    return DecorrelationOptions(
        convolved=direction or "template",
        score=options.score,
        full_variance=options.full_variance,
        noise=options.whitening.noise,
        fill=options.whitening.fill,
        score_filter="documented" if is_documented else "compact",
        # A kernel at one place, or the documented grid, means one correction for the whole image.
        spatially_varying=not (options.whitening.constant or at_one_place or is_documented),
        ignore_mask_planes=masks.DEFAULT_IGNORE_MASK_PLANES if planes is None else planes,
        required_mask_planes=planes or (),
        transform=options.transform,
        x=options.x_center,
        y=options.y_center,
    )


def _number(variance: VarianceSource | float | None) -> float | None:
    return variance if isinstance(variance, float) else None


def _levels(
    given: Difference, inputs: Mapping[str, object], options: DecorrelateOptions
) -> dict[str, ReadingOptions]:
    """Reading options of the inputs, with the other software's noise files if none are given."""
    levels = {"science": options.science, "template": options.template}
    for name, file in given.variance_files.items():
        own, path = levels[name], inputs[name]
        unsaid = own.variance is own.gain is own.read_noise is None
        if unsaid and isinstance(path, str | os.PathLike) and not formats.has_variance(str(path)):
            log.info("%s: its noise is that which %s was given, %s.", path, given.software, file)
            levels[name] = dataclasses.replace(own, variance=VarianceSource.parse(file))
    return levels


def _checked(
    whole: Exposure, inputs: Mapping[str, Exposure], direction: Direction, names: _Names
) -> Exposure:
    """Difference at the science image's flux level; warn if the kernel may be another's."""
    images = inputs["science"], inputs["template"]
    # First, since a white difference would not agree with the one that its kernel makes.
    refuse_white(*images, whole, whole.kernel, convolved=direction)
    scale, doubt = formats.kernel_doubt(whole, *images, direction)
    if doubt:
        log.warning("%s: %s.", names.difference, doubt)
    return whole if scale == 1 else _on_level(whole, scale, names.science)


def _cards_of_inputs(paths: list[str | None], options: DecorrelateOptions) -> Cards:
    science, template, difference, kernel = paths
    return {
        "WDSCI": (science, "science image"),
        "WDTMPL": (template, "template"),
        "WDDIFF": (difference, "difference before decorrelation"),
        "WDKERN": (kernel or difference, "matching kernel from"),
        "WDPSF": (path_of(options.psf), "PSF of the difference from"),
        "WDPRECON": (path_of(options.preconvolution_kernel), "pre-convolution kernel from"),
        **option_cards(science=options.science, template=options.template),
    }


def _describe(name: str, result: Decorrelation) -> None:
    log.info(
        "%s: kernel sum %.6g; mean variances: science %.6g, template %.6g, difference %.6g;"
        " %.1f%% of the pixels contaminated.",
        name,
        result.kernel_sum,
        result.science_variance,
        result.template_variance,
        result.variance_mean_after,
        100 * result.contaminated_fraction,
    )


def _on_level(difference: Exposure, scale: float, science: str) -> Exposure:
    """Difference divided by its scale, so that it has the science image's flux level."""
    log.warning(
        "%s: is on %.4g times the level of %s; it is multiplied by %.4g, so that its fluxes and"
        " errors are those of the science image.",
        difference.source,
        scale,
        science,
        1 / scale,
    )
    data = difference.data
    return difference.replaced(data=(data / scale).astype(data.dtype))


def _cards_of_software(given: Difference, regions: list[Region], direction: str | None) -> Cards:
    cards: Cards = {}
    if given.is_foreign:
        cards["WDSOFTW"] = (given.software, "made the difference")
    if len(regions) > 1:
        cards["WDNREG"] = (len(regions), "regions with kernels of their own")
    if direction is None:
        cards["WDCONV"] = ("mixed", "exposure that was convolved, by region")
    return cards


def _complete(
    difference: Exposure,
    inputs: Mapping[str, Exposure],
    direction: Direction | None,
    names: _Names,
    options: DecorrelateOptions,
) -> Exposure:
    """Give a difference the PSF, WCS and mask that its file lacks."""
    if difference.kernel is None:
        raise ArgumentError.of(
            difference.source,
            "carries no kernel (no KERNEL extension); name the kernel's file as fourth argument.",
        )
    formats.check_kernel(difference.kernel, difference.bbox, names.kernel or names.difference)
    # With both directions in one frame, neither input's PSF holds for the whole difference.
    unconvolved = inputs[opposite(direction or "template")]
    if options.psf is not None:
        difference.psf = read_psf(options.psf, difference.bbox, "PSF of the difference")
    elif difference.psf is None and unconvolved.psf is not None and direction is not None:
        difference.psf = unconvolved.psf
        log.info(
            "%s: has no PSF; that of %s, which was not convolved, is used.",
            difference.source,
            unconvolved.source,
        )
    elif difference.psf is None:
        log.info("%s: no PSF is known, so the output has none.", difference.source)
    if _on_one_grid(inputs, difference):
        return complete_planes(difference, inputs, wcs_from=inputs["science"])
    return difference


def complete_planes(
    difference: Exposure, inputs: Mapping[str, Exposure], *, wcs_from: Exposure
) -> Exposure:
    """Give a difference the mask and WCS that its file lacks.

    Parameters
    ----------
    difference
        Difference to complete; its header is changed in place.
    inputs
        Name → exposure that the difference was made of, on the same pixels.  The planes of all
        their masks are united.
    wcs_from
        Exposure whose WCS the difference gets.

    Returns
    -------
    difference
        Difference with the mask and WCS.
    """
    mask = difference.mask
    if not mask.names:
        for exposure in inputs.values():
            for name in exposure.mask.names:
                mask = masks.with_plane(mask, name, exposure.mask.get(name))
        if mask.names:
            log.info(
                "%s: has no mask; those of %s are used.",
                difference.source,
                " and ".join(str(exposure.source) for exposure in inputs.values()),
            )
    if difference.wcs is None and wcs_from.wcs is not None:
        difference.header.extend(wcs_cards(wcs_from.header), unique=True)
        log.info("%s: has no WCS; that of %s is used.", difference.source, wcs_from.source)
    return difference.replaced(mask=mask)


def _check_position(difference: Exposure, x: float | None, y: float | None) -> None:

    box = difference.bbox
    for name, position, interval in (("--x-center", x, box.x), ("--y-center", y, box.y)):
        if position is not None and not interval.start <= position <= interval.stop:
            raise ArgumentError.of(
                difference.source,
                f"{name} {position:g} is outside the image, whose pixels run"
                f" from {interval.start} to {interval.stop - 1}.",
            )


def _on_one_grid(inputs: Mapping[str, Exposure], difference: Exposure) -> bool:
    return all(exposure.shape == difference.shape for exposure in inputs.values())
