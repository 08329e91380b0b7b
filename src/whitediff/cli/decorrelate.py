"""``whitediff decorrelate``: whiten a difference that somebody made."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ..reading import (
    ReadingOptions,
    VarianceSource,
    file_options,
    option_cards,
    reading_options,
)
from .console import INPUT_FILE, OUTPUT_FILE, Size, common_options, limited_memory, log, stages
from .detectors import each_detector, hdu_option
from .reading import input_options, limit_options

__all__ = [
    "complete_planes",
    "correction_options",
    "decorrelate",
    "run_decorrelation",
    "whitening_options",
    "with_options",
]


_NOISE = click.option(
    "--noise",
    type=click.Choice(["auto", "white", "measured"]),
    default="auto",
    show_default=True,
    help="Whether the images' own noise is correlated: measured between the sources, and"
    " used always, or (auto) where it is significant; or taken as white.",
)
_CONSTANT = click.option(
    "--constant",
    is_flag=True,
    help="One kernel and one noise level for the whole image; else the correction follows both.",
)
_MEMORY = click.option(
    "--memory",
    type=Size(),
    help="Memory to use, such as 500MB: planes that are large for that live in temporary"
    " files beside the output. The result is the same  [default: what the machine has].",
)
_FILL = click.option(
    "--fill",
    type=click.Choice(["mean", "interpolate"]),
    default="interpolate",
    show_default=True,
    help="What stands in for bad and missing pixels while their neighbours are filtered:"
    " the image's mean, or what the neighbours say.",
)


def correction_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say what the correction knows of the noise.

    Parameters
    ----------
    command
        Function of the command; it gets ``noise``, ``constant``, ``fill`` and ``memory``.

    Returns
    -------
    command
        Decorated.
    """
    return with_options(command, (_NOISE, _CONSTANT, _MEMORY, _FILL))


def whitening_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of `correction_options`, but for the memory.

    Parameters
    ----------
    command
        Function of the command; it gets ``noise``, ``constant`` and ``fill``.

    Returns
    -------
    command
        Decorated.
    """
    return with_options(command, (_NOISE, _CONSTANT, _FILL))


def with_options(command: Callable[..., Any], options: tuple[Any, ...]) -> Callable[..., Any]:
    """Add some options to a command.

    Parameters
    ----------
    command
        Function of the command.
    options
        Decorators, in the order of the help.

    Returns
    -------
    command
        Decorated.
    """
    for option in reversed(options):
        command = option(command)
    return command


@click.command(short_help="Whiten the noise of a difference image.")
@click.argument("science", type=INPUT_FILE)
@click.argument("template", type=INPUT_FILE)
@click.argument("difference", type=INPUT_FILE)
@click.argument("kernel", type=INPUT_FILE, required=False)
@click.option("--output", required=True, type=OUTPUT_FILE, help="File to write.")
@hdu_option
@click.option(
    "--convolved",
    type=click.Choice(["template", "science"]),
    help="Which image was convolved with the kernel"
    "  [default: as the difference's header says, else template].",
)
@click.option(
    "--x-center",
    type=float,
    help="Column at which the kernel is taken, in pixel coordinates  [default: the middle].",
)
@click.option("--y-center", type=float, help="Row at which the kernel is taken.")
@input_options("science", "template")
@click.option(
    "--score",
    is_flag=True,
    help="The difference is a score image: its science image"
    " was correlated with the pre-convolution kernel.",
)
@click.option(
    "--preconvolution-kernel",
    metavar="FILE",
    help="PSF that the science image was correlated with  [default: the science PSF].",
)
@click.option(
    "--psf",
    metavar="FILE",
    help="PSF of the difference  [default: its own, else that"
    " of the image that was not convolved].",
)
@click.option("--full-variance", is_flag=True, help="Propagate the variance of every pixel.")
@correction_options
@click.option(
    "--ignore-mask-planes",
    metavar="A,B",
    help="Pixels left out of mean variances"
    "  [default: the documented planes, where the files have them].",
)
@click.option(
    "--transform",
    type=click.Choice(["fast", "documented"]),
    default="fast",
    show_default=True,
    help="Grid and precision of the transforms.",
)
@click.option("--compress", is_flag=True, help="Compress the output without loss; slow.")
@click.option("--overwrite", is_flag=True, help="Replace the output if it exists.")
@common_options
@limit_options
def decorrelate(**options: Any) -> None:
    """Whiten a difference image, and give it a variance, mask and PSF to match.

    SCIENCE and TEMPLATE are the images before any convolution, DIFFERENCE is what was
    made of them with the matching kernel KERNEL; a difference that carries its kernel, such as one
    of HOTPANTS (-hki), needs no KERNEL, and for one of SFFT it is the solution. All are FITS
    files, or addresses of such; FILE[EXT] names an extension.
    """
    source = click.get_current_context().get_parameter_source("fill")
    if options["transform"] == "documented" and source is click.core.ParameterSource.DEFAULT:
        # Which knows no other.
        options["fill"] = "mean"
    with limited_memory(options.pop("memory"), options["output"].absolute().parent):
        each_detector(
            run_decorrelation,
            options,
            files=("science", "template", "difference", *file_options("science", "template")),
            kernels=("kernel", "psf", "preconvolution_kernel"),
            outputs=("output",),
        )


def run_decorrelation(
    *,
    science: str,
    template: str,
    difference: str,
    output: Path,
    kernel: str | None = None,
    convolved: str | None = None,
    x_center: float | None = None,
    y_center: float | None = None,
    score: bool = False,
    preconvolution_kernel: str | None = None,
    psf: str | None = None,
    full_variance: bool = False,
    noise: Any = "auto",
    constant: bool = False,
    fill: Any = "interpolate",
    ignore_mask_planes: str | None = None,
    transform: Any = "fast",
    compress: bool = False,
    overwrite: bool = False,
    **reading: Any,
) -> Any:
    """Read, decorrelate and write.

    Parameters
    ----------
    science, template, difference, output, kernel, convolved, x_center, y_center, \
    score, preconvolution_kernel, psf, full_variance, noise, constant, fill, ignore_mask_planes, \
    transform, compress, overwrite
        Options of the command.
    **reading
        How the images are read: ``science_gain`` and so on, as `whitediff.reading` declares them.

    Returns
    -------
    result
        `whitediff.exposures.decorrelation.Decorrelation`.
    """
    from .. import formats
    from ..errors import ArgumentError
    from ..exposures import decorrelation, masks
    from ..exposures.noise import pair_sources
    from ..exposures.pipeline import mark_sources
    from ..exposures.regions import Region, decorrelate_regions
    from ..outputs import check_output
    from ..runs.cards import decorrelation_cards, report_inputs_floor
    from ..runs.inputs import check_usable, read_input

    check_output(output, overwrite=overwrite, inputs=(science, template, difference, kernel))
    if preconvolution_kernel is not None and not score:
        raise ArgumentError(
            f"{preconvolution_kernel}: a pre-convolution kernel is used in score mode only;"
            " add --score or leave it out."
        )
    named_planes = None
    if ignore_mask_planes is not None:
        named_planes = tuple(p.strip() for p in ignore_mask_planes.split(",") if p.strip())
    given = formats.read_difference(difference, kernel=kernel, convolved=convolved)  # type: ignore[arg-type]
    decorrelation.refuse_decorrelated(given.exposure)
    regions = [Region(box, side) for box, side in given.directions]
    direction = given.convolved or ("template" if not regions else None)
    if direction is None and (x_center is not None or y_center is not None):
        raise ArgumentError(
            f"{difference}: its regions were convolved in different directions; leave out"
            " --x-center and --y-center."
        )
    options = decorrelation.DecorrelationOptions(
        convolved=direction or "template",
        score=score,
        full_variance=full_variance,
        noise=noise,
        fill=fill,
        score_filter="documented" if transform == "documented" else "compact",
        # At one place, or on the documented grid, means one correction for all of the image.
        spatially_varying=not (
            constant or x_center is not None or y_center is not None or transform == "documented"
        ),
        ignore_mask_planes=(
            masks.DEFAULT_IGNORE_MASK_PLANES if named_planes is None else named_planes
        ),
        required_mask_planes=named_planes or (),
        transform=transform,
    )
    paths = {"science": science, "template": template}
    how_read = reading_options(reading, **paths)
    with stages("Decorrelating", 5) as begin:
        begin("reading")
        levels = how_read | _noise_of_software(given, paths, how_read)
        inputs = {name: read_input(path, levels[name]) for name, path in paths.items()}
        if not score:
            formats.check_reproduced(given, inputs["science"], inputs["template"])
        whole = _complete(given.exposure, inputs, direction, kernel, psf)
        check_usable(whole, masks.DEFAULT_IGNORE_MASK_PLANES)
        if given.remade is None and direction is not None and not score:
            # Before it is compared with what the kernel makes, which a white one is not.
            decorrelation.refuse_white(
                inputs["science"], inputs["template"], whole, whole.kernel, convolved=direction
            )
            scale, doubt = formats.kernel_doubt(
                whole, inputs["science"], inputs["template"], direction
            )
            if doubt:
                log.warning("%s: %s.", difference, doubt)
            if scale != 1:
                whole = _on_level(whole, scale, paths["science"])
        _check_position(whole, x_center, y_center)
        preconvolution = None
        if preconvolution_kernel is not None:
            preconvolution = formats.read_psf(preconvolution_kernel, bounds=whole.bbox)
        begin("sources")
        sources = None
        if _on_one_grid(inputs, whole):
            sources = pair_sources([inputs["science"]], [inputs["template"]])
        begin("correction")
        means = {
            name: each.variance if isinstance(each.variance, float) else None
            for name, each in how_read.items()
        }
        try:
            common: dict[str, Any] = {
                "science_variance": means["science"],
                "template_variance": means["template"],
                "sources": None if sources is None else sources.either,
                "options": options,
            }
            exposures = (inputs["science"], inputs["template"], whole)
            if len(regions) > 1 and x_center is None and y_center is None and not score:
                result = decorrelate_regions(*exposures, regions, **common)
            else:
                result = decorrelation.decorrelate(
                    *exposures,
                    preconvolution_kernel=preconvolution,
                    x=x_center,
                    y=y_center,
                    **common,
                )
        except ArgumentError as error:
            # What is wrong with kernels and PSFs is wrong with the difference's.
            named = any(path in str(error) for path in (science, template, difference))
            raise error if named else ArgumentError(f"{difference}: {error}") from error
        assert sources is not None
        mark_sources(result.exposure, sources)
        begin("writing")
        parameters: dict[str, tuple[Any, str]] = {
            "WDSCI": (science, "science image"),
            "WDTMPL": (template, "template"),
            "WDDIFF": (difference, "difference before decorrelation"),
            "WDKERN": (kernel or difference, "matching kernel from"),
            "WDPSF": (psf, "PSF of the difference from"),
            "WDPRECON": (preconvolution_kernel, "pre-convolution kernel from"),
            **option_cards(reading, "science", "template"),
        }
        formats.write_exposure(
            result.exposure,
            output,
            overwrite=overwrite,
            compress=compress,
            provenance=parameters
            | decorrelation_cards(result)
            | _cards_of_software(given, regions, direction),
        )
    log.info(
        "%s: kernel sum %.6g; mean variances: science %.6g, template %.6g, difference %.6g;"
        " %.1f%% of the pixels contaminated.",
        output,
        result.kernel_sum,
        result.science_variance,
        result.template_variance,
        result.variance_mean_after,
        100 * result.contaminated_fraction,
    )
    report_inputs_floor(result, science, template)
    return result


def _on_level(difference: Any, scale: float, science: str) -> Any:
    """Difference on the level of the science image."""
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


def _noise_of_software(
    given: Any, paths: dict[str, str], levels: dict[str, ReadingOptions]
) -> dict[str, ReadingOptions]:
    """Noise that the software was given, for inputs that come without and nobody gave."""
    from .. import formats

    found: dict[str, ReadingOptions] = {}
    for name, file in given.variance_files.items():
        own = levels[name]
        unsaid = own.variance is own.gain is own.read_noise is None
        if unsaid and not formats.has_variance(paths[name]):
            log.info(
                "%s: its noise is that which %s was given, %s.", paths[name], given.software, file
            )
            found[name] = dataclasses.replace(own, variance=VarianceSource.parse(file))
    return found


def _cards_of_software(
    given: Any, regions: list[Any], direction: str | None
) -> dict[str, tuple[Any, str]]:
    cards: dict[str, tuple[Any, str]] = {}
    if given.software not in (None, "whitediff"):
        cards["WDSOFTW"] = (given.software, "made the difference")
    if len(regions) > 1:
        cards["WDNREG"] = (len(regions), "regions with kernels of their own")
    if direction is None:
        cards["WDCONV"] = ("mixed", "exposure that was convolved, by region")
    return cards


def _complete(
    difference: Any,
    inputs: dict[str, Any],
    direction: str | None,
    kernel: str | None,
    psf: str | None,
) -> Any:
    """Give a difference the PSF, WCS and mask that its file lacks."""
    from .. import formats
    from ..errors import ArgumentError

    if difference.kernel is None:
        raise ArgumentError(
            f"{difference.source}: carries no kernel (no KERNEL extension); name the kernel's"
            " file as fourth argument."
        )
    formats.check_kernel(
        difference.kernel, difference.bbox, difference.source if kernel is None else kernel
    )
    # With both directions in one frame, neither PSF is the difference's.
    unconvolved = inputs["template" if direction == "science" else "science"]
    if psf is not None:
        difference.psf = formats.read_psf(psf, bounds=difference.bbox)
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


def complete_planes(difference: Any, inputs: dict[str, Any], *, wcs_from: Any) -> Any:
    """Give a difference the mask and WCS that its file lacks.

    Parameters
    ----------
    difference
        Exposure.
    inputs
        Exposures that it was made of, on the same pixels: the planes of all masks are united.
    wcs_from
        That whose WCS it shares.

    Returns
    -------
    difference
        Exposure; its header is changed in place.
    """
    from ..exposures import masks
    from ..formats.headers import wcs_cards

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


def _check_position(difference: Any, x: float | None, y: float | None) -> None:
    from ..errors import ArgumentError

    box = difference.bbox
    for name, position, interval in (("--x-center", x, box.x), ("--y-center", y, box.y)):
        if position is not None and not interval.start <= position <= interval.stop:
            raise ArgumentError(
                f"{difference.source}: {name} {position:g} is outside the image, whose pixels run"
                f" from {interval.start} to {interval.stop - 1}."
            )


def _on_one_grid(inputs: dict[str, Any], difference: Any) -> bool:
    return all(exposure.shape == difference.shape for exposure in inputs.values())
