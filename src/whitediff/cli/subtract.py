"""``whitediff subtract``: two images in, a white difference out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .console import OUTPUT_FILE, common_options, log, stages
from .decorrelate import decorrelation_cards, mark_sources, noise_options, read_input

__all__ = ["run_subtraction", "subtract"]


@click.command(short_help="Match, subtract and decorrelate two images.")
@click.argument("science")
@click.argument("template")
@click.option("--output", required=True, type=OUTPUT_FILE, help="File to write.")
@click.option(
    "--convolved",
    type=click.Choice(["template", "science", "auto"]),
    default="auto",
    show_default=True,
    help="Which image to convolve; auto: the one with the narrower PSF.",
)
@click.option(
    "--kernel-order",
    type=int,
    default=1,
    show_default=True,
    help="Order of the kernel's variation over the field.",
)
@click.option(
    "--background-order",
    type=int,
    default=2,
    show_default=True,
    help="Order of the differential background.",
)
@click.option(
    "--basis",
    type=click.Choice(["gaussian", "delta"]),
    default="gaussian",
    show_default=True,
    help="Of the kernel.",
)
@click.option("--kernel-size", type=int, help="Odd side, pixels  [default: from the PSFs].")
@click.option(
    "--keep-variance",
    is_flag=True,
    help="Do not rescale the variance planes to the measured noise.",
)
@noise_options
@click.option("--science-psf", metavar="FILE", help="PSF of the science image.")
@click.option("--template-psf", metavar="FILE", help="PSF of the template.")
@click.option("--full-variance", is_flag=True, help="Propagate the variance of every pixel.")
@click.option("--compress", is_flag=True, help="Compress the output without loss; slow.")
@click.option("--overwrite", is_flag=True, help="Replace the output if it exists.")
@common_options
def subtract(**options: Any) -> None:
    """Match the PSFs of two aligned images, subtract and decorrelate them.

    SCIENCE and TEMPLATE are FITS files on the same pixels; FILE[EXT] names an extension.
    The output is science - template at the level of the science image.
    """
    run_subtraction(**options)


def run_subtraction(
    *,
    science: str,
    template: str,
    output: Path,
    convolved: Any = "auto",
    kernel_order: int = 1,
    background_order: int = 2,
    basis: Any = "gaussian",
    kernel_size: int | None = None,
    keep_variance: bool = False,
    science_variance: float | str | None = None,
    template_variance: float | str | None = None,
    science_gain: float | None = None,
    science_read_noise: float | None = None,
    template_gain: float | None = None,
    template_read_noise: float | None = None,
    science_psf: str | None = None,
    template_psf: str | None = None,
    full_variance: bool = False,
    compress: bool = False,
    overwrite: bool = False,
) -> Any:
    """Read, match, subtract, decorrelate and write.

    Parameters
    ----------
    science, template, output, convolved, kernel_order, background_order, basis, kernel_size, \
    keep_variance, science_variance, template_variance, science_gain, science_read_noise, \
    template_gain, template_read_noise, science_psf, template_psf, full_variance, compress, \
    overwrite
        Options of the command.

    Returns
    -------
    result
        `whitediff.exposures.operations.Decorrelation`.
    """
    from .. import formats
    from ..errors import WhitediffError
    from ..exposures import matching, operations
    from ..matching.solve import FitOptions
    from ..outputs import check_output

    check_output(output, overwrite=overwrite)
    options = matching.MatchOptions(
        convolved=convolved,
        basis=basis,
        kernel_size=kernel_size,
        rescale_variance=not keep_variance,
        fit=FitOptions(kernel_order=kernel_order, background_order=background_order),
    )
    with stages("Subtracting", 5) as begin:
        begin("reading")
        inputs = {
            "science": read_input(
                "science", science, science_variance, science_gain, science_read_noise
            ),
            "template": read_input(
                "template", template, template_variance, template_gain, template_read_noise
            ),
        }
        for name, psf in (("science", science_psf), ("template", template_psf)):
            if psf is not None:
                inputs[name].psf = formats.read_psf(psf, bounds=inputs[name].bbox)
        begin("matching")
        try:
            match = matching.match(inputs["science"], inputs["template"], options)
        except WhitediffError as error:
            # Which of the two is at fault, the fit cannot know.
            if science in str(error) or template in str(error):
                raise
            raise type(error)(f"{science}, {template}: {error}") from error
        begin("subtraction")
        difference = operations.subtract(
            match.science,
            match.template,
            match.kernel,
            convolved=match.convolved,
            background=match.background,
        )
        if difference.psf is None:
            log.info("%s: no PSF is known, so the output has none.", output)
        begin("correction")
        decorrelation = operations.DecorrelationOptions(
            convolved=match.convolved, full_variance=full_variance
        )
        result = operations.decorrelate(
            match.science, match.template, difference, options=decorrelation
        )
        mark_sources(result.exposure, inputs)
        begin("writing")
        fit = match.fit
        cards: dict[str, tuple[Any, str]] = decorrelation_cards(result, decorrelation) | {
            "WDTASK": ("subtract", "made by"),
            "WDSCI": (science, "science image"),
            "WDTMPL": (template, "template"),
            "WDSVFAC": (match.science_variance_factor, "science variance multiplied by"),
            "WDTVFAC": (match.template_variance_factor, "template variance multiplied by"),
            "WDBASIS": (basis, "kernel basis"),
            "WDKORDER": (fit.kernel_coefficients.shape[1] - 1, "spatial order of the kernel"),
            "WDBORDER": (
                fit.background_coefficients.shape[0] - 1,
                "spatial order of the background",
            ),
            "WDSPSF": (match.candidates.science_sigma, "width of the science PSF, pixels"),
            "WDTPSF": (match.candidates.template_sigma, "width of the template PSF, pixels"),
            "WDNSTAR": (len(fit.used), "stars offered to the fit"),
            "WDNUSED": (int(fit.used.sum()), "stars used"),
            "WDKSERR": (fit.kernel_sum_error, "error of the kernel sum"),
            "WDCHI2": (fit.reduced_chi_square, "reduced chi-square of the fit"),
            "WDCOND": (fit.condition, "condition number of the fit"),
        }
        formats.write_exposure(
            result.exposure, output, overwrite=overwrite, compress=compress, provenance=cards
        )
    log.info(
        "%s: PSF widths %.2f (science) and %.2f (template) pixels; %s convolved; %d of %d stars"
        " used; kernel sum %.5g ± %.2g; variance planes times %.3f and %.3f; mean variance"
        " %.6g; %.1f%% of the pixels contaminated.",
        output,
        match.candidates.science_sigma,
        match.candidates.template_sigma,
        match.convolved,
        int(fit.used.sum()),
        len(fit.used),
        fit.kernel_sum,
        fit.kernel_sum_error,
        match.science_variance_factor,
        match.template_variance_factor,
        result.variance_mean_after,
        100 * result.contaminated_fraction,
    )
    return result
