"""``whitediff decorrelate``: whiten a difference that somebody made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .console import OUTPUT_FILE, Number, common_options, log, stages

__all__ = ["decorrelate", "run_decorrelation"]


@click.command(short_help="Whiten the noise of a difference image.")
@click.argument("science")
@click.argument("template")
@click.argument("difference")
@click.argument("kernel", required=False)
@click.option("--output", required=True, type=OUTPUT_FILE, help="File to write.")
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
@click.option(
    "--science-variance",
    type=Number(),
    help="Mean variance of the science image, or"
    " a file with its variance plane (KIND:FILE for KIND sigma or weight).",
)
@click.option("--template-variance", type=Number(), help="The same of the template.")
@click.option(
    "--science-gain",
    type=float,
    help="Electrons per count, for a science image without a variance plane  [default: GAIN].",
)
@click.option("--science-read-noise", type=float, help="Electrons  [default: RDNOISE].")
@click.option("--template-gain", type=float, help="The same of the template.")
@click.option("--template-read-noise", type=float, help="The same of the template.")
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
def decorrelate(**options: Any) -> None:
    """Whiten a difference image, and give it a variance, mask and PSF to match.

    SCIENCE and TEMPLATE are the images before any convolution, DIFFERENCE is what was
    made of them with the matching kernel KERNEL; a difference that carries its kernel
    needs no KERNEL. All are FITS files; FILE[EXT] names an extension.
    """
    run_decorrelation(**options)


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
    science_variance: float | str | None = None,
    template_variance: float | str | None = None,
    science_gain: float | None = None,
    science_read_noise: float | None = None,
    template_gain: float | None = None,
    template_read_noise: float | None = None,
    score: bool = False,
    preconvolution_kernel: str | None = None,
    psf: str | None = None,
    full_variance: bool = False,
    ignore_mask_planes: str | None = None,
    transform: Any = "fast",
    compress: bool = False,
    overwrite: bool = False,
) -> Any:
    """Read, decorrelate and write.

    Parameters
    ----------
    science, template, difference, output, kernel, convolved, x_center, y_center, \
    science_variance, template_variance, science_gain, science_read_noise, template_gain, \
    template_read_noise, score, preconvolution_kernel, psf, full_variance, ignore_mask_planes, \
    transform, compress, overwrite
        Options of the command.

    Returns
    -------
    result
        `whitediff.exposures.operations.Decorrelation`.
    """
    from .. import formats
    from ..errors import ArgumentError
    from ..exposures import masks, operations
    from ..sources import detect_sources

    formats.check_output(output, overwrite=overwrite)
    if preconvolution_kernel is not None and not score:
        raise ArgumentError(
            f"{preconvolution_kernel}: a pre-convolution kernel is used in score mode only;"
            " add --score or leave it out."
        )
    with stages("Decorrelating", 5) as begin:
        begin("reading")
        exposures = {}
        means: dict[str, float | None] = {}
        for name, path, variance, gain, read_noise in (
            ("science", science, science_variance, science_gain, science_read_noise),
            ("template", template, template_variance, template_gain, template_read_noise),
        ):
            _check_variance(name, variance)
            means[name] = variance if isinstance(variance, float) else None
            exposures[name] = formats.read_exposure(
                path,
                variance=(
                    formats.VarianceSource.parse(variance)
                    if isinstance(variance, str)
                    else variance
                ),
                gain=gain,
                read_noise=read_noise,
            )
        given = formats.read_exposure(difference, needs_variance=False)
        box = given.bbox
        if kernel is not None:
            given.kernel = formats.read_kernel(kernel, bounds=box)
        if given.kernel is None:
            raise ArgumentError(
                f"{difference}: carries no kernel (no KERNEL extension); name the kernel's file"
                " as fourth argument."
            )
        for name, position, interval in (
            ("--x-center", x_center, box.x),
            ("--y-center", y_center, box.y),
        ):
            if position is not None and not interval.start <= position <= interval.stop:
                raise ArgumentError(
                    f"{difference}: {name} {position:g} is outside the image, whose pixels run from"
                    f" {interval.start} to {interval.stop - 1}."
                )
        direction = convolved or _direction(difference) or "template"
        _take_psf(given, psf, exposures["science" if direction == "template" else "template"])
        if given.wcs is None:
            _take_wcs(given, exposures["science"])

        begin("correction")
        result = operations.decorrelate(
            exposures["science"],
            exposures["template"],
            given,
            preconvolution_kernel=(
                None
                if preconvolution_kernel is None
                else _kernel_image(formats.read_psf(preconvolution_kernel, bounds=box), box)
            ),
            x=x_center,
            y=y_center,
            science_variance=means["science"],
            template_variance=means["template"],
            options=operations.DecorrelationOptions(
                convolved=direction,  # type: ignore[arg-type]
                score=score,
                full_variance=full_variance,
                ignore_mask_planes=(
                    None
                    if ignore_mask_planes is None
                    else tuple(p.strip() for p in ignore_mask_planes.split(",") if p.strip())
                ),
                transform=transform,
            ),
        )
        begin("sources")
        exposure = result.exposure
        sources = [
            detect_sources(e.image.array, masks.flagged(e.mask, masks.UNTRUSTED_MASK_PLANES))
            for e in exposures.values()
        ]
        exposure.masked_image.mask = masks.with_plane(
            exposure.mask, masks.SOURCE, sources[0] | sources[1]
        )
        begin("writing")
        files = {
            "WDSCI": (science, "science image"),
            "WDTMPL": (template, "template"),
            "WDDIFF": (difference, "difference before decorrelation"),
            "WDKERN": (kernel or difference, "matching kernel from"),
        }
        provenance = _provenance(result, direction, score, full_variance, transform)
        provenance["WDIGNORE"] = (
            ignore_mask_planes or ",".join(masks.DEFAULT_IGNORE_MASK_PLANES),
            "not in means",
        )
        formats.write_exposure(
            exposure,
            output,
            overwrite=overwrite,
            compress=compress,
            provenance=files | provenance,
        )
    log.info(
        "%s: kernel sum %.6g; mean variances: science %.6g, template %.6g, difference %.6g;"
        " %.2g%% of the pixels contaminated.",
        output,
        result.kernel_sum,
        result.science_variance,
        result.template_variance,
        result.variance_mean_after,
        100 * result.contaminated_fraction,
    )
    return result


def _check_variance(name: str, variance: float | str | None) -> None:
    from ..errors import ArgumentError

    if isinstance(variance, float) and not 0 < variance < float("inf"):
        raise ArgumentError(
            f"--{name}-variance must be a positive number or a file; got {variance:g}."
        )


def _direction(difference: str) -> str | None:
    """Direction that a difference's own header records."""
    from ..formats.files import opened, split_extension

    with opened(split_extension(difference)[0]) as hdus:
        value = hdus[0].header.get("WDCONV")
    return value if value in ("template", "science") else None


def _take_psf(difference: Any, psf: str | None, unconvolved: Any) -> None:
    from .. import formats

    if psf is not None:
        difference.psf = formats.read_psf(psf, bounds=difference.bbox)
    elif difference.psf is None and unconvolved.psf is not None:
        difference.psf = unconvolved.psf
        log.info(
            "%s: has no PSF; that of %s, which was not convolved, is used.",
            difference.source,
            unconvolved.source,
        )
    elif difference.psf is None:
        log.info("%s: no PSF is known, so the output has none.", difference.source)


def _take_wcs(difference: Any, science: Any) -> None:
    from lsst.images import MaskedImage

    from ..formats.headers import wcs_cards

    if science.wcs is None or science.shape != difference.shape:
        return
    difference.header.extend(wcs_cards(science.header), unique=True)
    planes = difference.masked_image
    difference.replace_planes(
        MaskedImage(
            planes.image,
            mask=planes.mask,
            variance=planes.variance,
            sky_projection=science.sky_projection,
        )
    )
    log.info("%s: has no WCS; that of %s is used.", difference.source, science.source)


def _kernel_image(psf: Any, box: Any) -> Any:
    from ..exposures.psf import psf_image

    return psf_image(psf, x=box.x.center, y=box.y.center)


def _provenance(
    result: Any, direction: str, score: bool, full_variance: bool, transform: str
) -> dict[str, tuple[Any, str]]:
    """Cards of the primary header that say what was done."""
    import math

    from .. import __version__

    cards: dict[str, tuple[Any, str]] = {
        "WDTASK": ("decorrelate", "made by"),
        "WDVERS": (__version__, "version of whitediff"),
        "WDCONV": (direction, "exposure that was convolved"),
        "WDSCORE": (score, "is a score image"),
        "WDFULLV": (full_variance, "variance propagated pixel by pixel"),
        "WDTRANSF": (transform, "transform"),
        "WDXCEN": (result.x, "column at which the kernel was taken"),
        "WDYCEN": (result.y, "row at which the kernel was taken"),
        "WDKSUM": (result.kernel_sum, "sum of the matching kernel"),
        "WDSVAR": (result.science_variance, "mean variance of science"),
        "WDTVAR": (result.template_variance, "mean variance of template"),
        "WDVUNC": (result.variance_weights[0], "variance weight, unconvolved"),
        "WDVCON": (result.variance_weights[1], "variance weight, convolved"),
        "WDVBEF": (result.variance_mean_before, "mean of the variance plane before"),
        "WDVAFT": (result.variance_mean_after, "mean of the variance plane after"),
        "WDGRIDX": (result.grid[1], "transform grid"),
        "WDGRIDY": (result.grid[0], "transform grid"),
        "WDCONTAM": (result.contaminated_fraction, "fraction of pixels CONTAMINATED"),
    }
    # FITS has no NaN: an unknown mean is left out.
    return {
        key: card
        for key, card in cards.items()
        if not (isinstance(card[0], float) and not math.isfinite(card[0]))
    }
