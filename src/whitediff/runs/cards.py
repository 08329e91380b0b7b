"""Header cards and log messages that tell how a product was made."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..exposures.psf import Light
from ..numerics.covariance import FLOOR

if TYPE_CHECKING:
    from ..decorrelation.exposures import Decorrelation
    from ..detection.depth import Depth
    from ..noise.widths import SignificanceWidth
    from ..numerics.covariance import NoiseCovariance

__all__ = [
    "Cards",
    "decorrelation_cards",
    "depth_cards",
    "report_inputs_floor",
    "report_noise_floor",
    "significance_cards",
    "values_of",
]

type Cards = dict[str, tuple[Any, str]]

log = logging.getLogger("whitediff.runs")

_MOST_WITHOUT_NOISE = 0.15
"""Share of the frequencies without noise that is still harmless.  With 10 % (an image shifted by
half a pixel) differences were white; with 20 % (an image averaged with a Gaussian) their filtered
variance ratio was 1.16."""


def values_of(cards: Cards) -> dict[str, object]:
    """Values of cards.

    Parameters
    ----------
    cards
        Keyword → (value, comment).

    Returns
    -------
    values
        Keyword → value.
    """
    return {keyword: value for keyword, (value, _) in cards.items()}


def decorrelation_cards(result: Decorrelation) -> Cards:
    """Cards of the primary header that describe a decorrelation.

    Parameters
    ----------
    result
        Result of the decorrelation.

    Returns
    -------
    cards
        Keyword → (value, comment).
    """
    options = result.options
    return {
        "WDTASK": ("decorrelate", "made by"),
        "WDVERS": (__version__, "version of whitediff"),
        "WDCONV": (options.convolved, "exposure that was convolved"),
        "WDSCORE": (options.score, "is a score image"),
        "WDFULLV": (options.full_variance, "variance propagated pixel by pixel"),
        "WDTRANSF": (options.transform, "transform"),
        "WDIGNORE": (",".join(options.ignore_mask_planes), "planes not in means"),
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
        "WDFILL": (options.fill, "what stands in for missing pixels"),
        "WDSPAT": (options.spatially_varying, "correction follows kernel and noise"),
        **_psf_cards(result.exposure.psf),
        **_noise_cards(result),
    }


def depth_cards(depth: Depth | None, zero_point: float | None) -> Cards:
    """Cards of the depth of a product, its faintest point source.

    Parameters
    ----------
    depth
        Depth of the product; None if unknown.
    zero_point
        Magnitude of a flux of 1, if given.

    Returns
    -------
    cards
        Keyword → (value, comment).
    """
    cards: Cards = {"WDZERO": (zero_point, "zero point that was given")}
    if depth is None:
        return cards
    return cards | {
        "WDDEPTH": (depth.flux, "flux of a 5 sigma point source"),
        "WDMAGLIM": (depth.magnitude, "its magnitude"),
    }


def significance_cards(width: SignificanceWidth | None) -> Cards:
    """Cards of the scatter of a product's significances between the sources.

    Parameters
    ----------
    width
        Measured scatter; None if unknown.

    Returns
    -------
    cards
        Keyword → (value, comment).
    """
    if width is None:
        return {}
    said = width.text or "significances are right"
    return {
        "WDSGWID": (width.width, said),
        "WDSGERR": (width.error, "error of the width of significances"),
        "WDSGOFF": (width.is_off, "significances are to be divided by WDSGWID"),
    }


def _psf_cards(psf: Any) -> Cards:
    """Cards of the share of a source's light in the PSF's images, and of its flux error."""
    if psf is None:
        return {}
    light = Light.of(psf)
    return {
        "WDPSFENC": (light.enclosed, "share of a source's light in the PSF's images"),
        "WDPSFERR": (light.error, "relative error of all fluxes from the PSF"),
    }


def _noise_cards(result: Decorrelation) -> Cards:
    """Cards of a correction that varies, and of inputs whose noise is not white."""
    cards: Cards = {}
    if result.local is not None:
        cards |= {
            "WDNIMG": (len(result.local.filter.images), "images that the correction is made of"),
            "WDSPERR": (result.local.filter.error, "error of the compression, sigma of a pixel"),
        }
    for name, noise, (power, error, significance, floored) in (
        ("science", result.science_noise, ("WDSNOI0", "WDSNERR", "WDSNSIG", "WDSNFLR")),
        ("template", result.template_noise, ("WDTNOI0", "WDTNERR", "WDTNSIG", "WDTNFLR")),
    ):
        if noise is None:
            continue
        cards["WDFLXERR"] = (result.flux_error, "relative error of fluxes from these")
        cards[power] = (noise.zero_frequency, f"{name} noise power at low frequencies")
        cards[error] = (noise.zero_frequency_error, "its error")
        if math.isfinite(noise.significance):
            cards[significance] = (noise.significance, f"{name} noise is not white, sigma")
        cards[floored] = (noise.floored_fraction, f"fraction of {name} frequencies floored")
    return cards


def report_noise_floor(
    noises: Iterable[tuple[str, NoiseCovariance | None]], unconvolved: str | None = None
) -> None:
    """Log inputs that at some frequencies have too little noise to be made white.

    Parameters
    ----------
    noises
        Name of each input, and its noise covariance or None.
    unconvolved
        Name of the input that was not convolved: at frequencies at which it has no noise, the
        difference may have none either.
    """
    for name, noise in noises:
        if noise is None or noise.floored_fraction == 0:
            continue
        if name == unconvolved and noise.floored_fraction > _MOST_WITHOUT_NOISE:
            log.warning(
                "%s: has next to no noise at %.2g%% of the frequencies, and there the convolution"
                " takes away that of the other image: the difference is not white. If it was"
                " resampled, interpolate it, from pixels that are not larger.",
                name,
                100 * noise.floored_fraction,
            )
        else:
            log.info(
                "%s: at %.2g%% of the frequencies its noise has less than %g of its mean power;"
                " the correction takes it for that.",
                name,
                100 * noise.floored_fraction,
                FLOOR,
            )


def report_inputs_floor(result: Decorrelation, science: str, template: str) -> None:
    """Log science and template by `report_noise_floor`.

    Parameters
    ----------
    result
        Result of the decorrelation.
    science, template
        Names of the two images in messages.
    """
    report_noise_floor(
        ((science, result.science_noise), (template, result.template_noise)),
        unconvolved=science if result.options.convolved == "template" else template,
    )
