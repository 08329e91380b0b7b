"""``whitediff decorrelate-stack``: whiten a difference of stacks that somebody made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .console import (
    INPUT_FILE,
    OUTPUT_FILE,
    UNCONVOLVED,
    common_options,
    limited_memory,
    log,
    stages,
)
from .decorrelate import complete_planes, correction_options
from .reading import limit_options

__all__ = ["decorrelate_stack", "run_stack_decorrelation", "stack_cards"]


class Weights(click.ParamType):
    """Numbers with commas between them."""

    name = "W1,W2,…"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, ...]:
        """Parse what stands on the command line."""
        if isinstance(value, tuple):
            return value
        try:
            return tuple(float(part) for part in value.split(","))
        except ValueError:
            self.fail(f"{value!r} is not a list of numbers with commas between them.", param, ctx)


def _member_option(name: str, text: str) -> Any:
    return click.option(
        f"--{name}",
        nargs=2,
        multiple=True,
        required=True,
        type=INPUT_FILE,
        metavar="FILE KERNEL",
        help=text,
    )


@click.command(name="decorrelate-stack", short_help="Whiten the noise of a difference of stacks.")
@click.argument("difference", type=INPUT_FILE)
@_member_option(
    "science",
    "Image of the science stack before any convolution, and the kernel that it was convolved with"
    " before it was stacked (- for none); once for every image.",
)
@_member_option("template", "The same of the template stack.")
@click.option(
    "--kernel",
    metavar="FILE",
    help="Kernel that one stack was convolved with as a whole"
    "  [default: the difference's own, else none].",
)
@click.option(
    "--convolved",
    type=click.Choice(["template", "science"]),
    default="template",
    show_default=True,
    help="Which stack that is.",
)
@click.option("--output", required=True, type=OUTPUT_FILE, help="File to write.")
@click.option(
    "--science-weights",
    type=Weights(),
    help="Weights of the science images in their stack, in their order  [default: all equal].",
)
@click.option("--template-weights", type=Weights(), help="The same of the template stack.")
@click.option("--median", is_flag=True, help="The stacks are medians, not means.")
@click.option(
    "--floor",
    type=float,
    default=1e-3,
    show_default=True,
    help="Where all images were convolved: noise power, relative to that at large scales, below"
    " which the correction rises no more.",
)
@click.option(
    "--divisor",
    type=float,
    default=1.0,
    show_default=True,
    help="Number by which the difference was divided as a whole.",
)
@click.option(
    "--psf",
    metavar="FILE",
    help="PSF of the difference  [default: its own].",
)
@correction_options
@click.option("--compress", is_flag=True, help="Compress the output without loss; slow.")
@click.option("--overwrite", is_flag=True, help="Replace the output if it exists.")
@common_options
@limit_options
def decorrelate_stack(**options: Any) -> None:
    """Whiten a difference of stacks, and give it a variance, mask and PSF to match.

    DIFFERENCE is science stack - template stack. Every image of the two stacks was convolved
    with a kernel of its own, or with none, and one of the stacks, as a whole, with the kernel
    --kernel. All are FITS files; FILE[EXT] names an extension.
    """
    with limited_memory(options.pop("memory"), options["output"].absolute().parent):
        run_stack_decorrelation(**options)


def run_stack_decorrelation(
    *,
    difference: str,
    science: tuple[tuple[str, str], ...],
    template: tuple[tuple[str, str], ...],
    output: Path,
    kernel: str | None = None,
    convolved: Any = "template",
    science_weights: tuple[float, ...] | None = None,
    template_weights: tuple[float, ...] | None = None,
    median: bool = False,
    floor: float = 1e-3,
    divisor: float = 1.0,
    psf: str | None = None,
    noise: Any = "auto",
    constant: bool = False,
    fill: Any = "interpolate",
    compress: bool = False,
    overwrite: bool = False,
) -> Any:
    """Read, decorrelate and write.

    Parameters
    ----------
    difference, science, template, output, kernel, convolved, science_weights, template_weights, \
    median, floor, divisor, psf, noise, constant, fill, compress, overwrite
        Options of the command.

    Returns
    -------
    result
        `whitediff.exposures.stacks.StackDecorrelation`.
    """
    from .. import formats
    from ..errors import ArgumentError
    from ..exposures import stacks
    from ..exposures.noise import pair_sources
    from ..exposures.pipeline import mark_sources
    from ..outputs import check_output
    from ..reading import ReadingOptions
    from ..runs.cards import report_noise_floor
    from ..runs.inputs import read_input

    read = [difference, kernel, *(name for pair in (*science, *template) for name in pair)]
    check_output(output, overwrite=overwrite, inputs=read)
    options = stacks.StackOptions(
        convolved=convolved,
        combine="median" if median else "mean",
        floor=floor,
        divisor=divisor,
        spatially_varying=not constant,
        fill=fill,
        noise=noise,
    )
    given = {"science": science_weights, "template": template_weights}
    named = {"science": science, "template": template}
    for name, weights in given.items():
        if weights is None:
            continue
        if median:
            raise click.UsageError(f"--{name}-weights: a median knows no weights; leave them out.")
        if len(weights) != len(named[name]):
            raise click.UsageError(
                f"--{name}-weights: {len(weights)} weights for {len(named[name])} images; every"
                f" --{name} needs one."
            )
    with stages("Decorrelating", 5) as begin:
        begin("reading")
        exposure = formats.read_exposure(difference, needs_variance=False)
        box = exposure.bbox
        if kernel is not None:
            exposure.kernel = formats.read_kernel(kernel, bounds=box)
        elif exposure.kernel is None:
            log.info("%s: no --kernel; neither stack was convolved as a whole.", difference)
        if psf is not None:
            exposure.psf = formats.read_psf(psf, bounds=box)
        elif exposure.psf is None:
            log.info("%s: no PSF is known, so the output has none.", difference)
        sides = {
            name: [
                stacks.StackMember(
                    exposure=read_input(path, ReadingOptions()),
                    kernel=(
                        None
                        if member_kernel == UNCONVOLVED
                        else formats.read_kernel(member_kernel, bounds=box)
                    ),
                    weight=weight,
                )
                for (path, member_kernel), weight in zip(
                    members, given[name] or (1.0,) * len(members), strict=True
                )
            ]
            for name, members in named.items()
        }
        inputs = {
            f"{name} {i}": member.exposure
            for name, members in sides.items()
            for i, member in enumerate(members, 1)
        }
        sources = None
        if all(each.shape == exposure.shape for each in inputs.values()):
            exposure = complete_planes(exposure, inputs, wcs_from=sides["science"][0].exposure)
            begin("sources")
            sources = pair_sources(
                *([member.exposure for member in sides[name]] for name in ("science", "template"))
            )
        begin("correction")
        try:
            result = stacks.decorrelate_stack(
                exposure,
                sides["science"],
                sides["template"],
                sources=None if sources is None else sources.either,
                options=options,
            )
        except ArgumentError as error:
            paths = (difference, *(path for path, _ in (*science, *template)))
            if any(path in str(error) for path in paths):
                raise
            raise ArgumentError(f"{difference}: {error}") from error
        assert sources is not None
        mark_sources(result.exposure, sources)
        begin("writing")
        parameters: dict[str, tuple[Any, str]] = {
            "WDDIFF": (difference, "difference before decorrelation"),
            "WDKERN": (kernel, "matching kernel from"),
            "WDPSF": (psf, "PSF of the difference from"),
            "WDSCI": ("; ".join(path for path, _ in science), "images of the science stack"),
            "WDTMPL": ("; ".join(path for path, _ in template), "images of the template stack"),
            "WDSKERN": ("; ".join(each for _, each in science), "kernels of the science stack"),
            "WDTKERN": ("; ".join(each for _, each in template), "kernels of the template stack"),
        }
        formats.write_exposure(
            result.exposure,
            output,
            overwrite=overwrite,
            compress=compress,
            provenance=parameters | stack_cards(result, given),
        )
    log.info(
        "%s: %d and %d images; mean variance of a pixel %.6g, of the plane %.6g; %.1f%% of the"
        " frequencies floored, %.1f%% of the pixels contaminated.",
        output,
        len(science),
        len(template),
        result.pixel_variance,
        result.white_variance,
        100 * result.floored_fraction,
        100 * result.contaminated_fraction,
    )
    paths = tuple(path for path, _ in (*science, *template))
    noises = (*result.science_noises, *result.template_noises)
    report_noise_floor(zip(paths, noises, strict=True))
    return result


def stack_cards(
    result: Any, weights: dict[str, tuple[float, ...] | None]
) -> dict[str, tuple[Any, str]]:
    """Cards of the primary header that say what was done.

    Parameters
    ----------
    result
        `whitediff.exposures.stacks.StackDecorrelation`.
    weights
        ``science`` and ``template`` → weights of the members, if given.

    Returns
    -------
    cards
        Keyword → (value, comment).
    """
    from .. import __version__

    options = result.options
    cards: dict[str, tuple[Any, str]] = {
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


def _noise_cards(result: Any) -> dict[str, tuple[Any, str]]:
    """Cards of members that are not white, a value for each, - for those that are."""
    cards: dict[str, tuple[Any, str]] = {}
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
