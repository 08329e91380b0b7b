"""Whether a difference can be trusted: numbers, their accepted ranges, and the verdict."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

__all__ = ["Check", "Limits", "Verdict", "judged", "verdict"]

type Status = Literal["good", "doubtful", "bad", "unknown"]

_ERRORS = 4.0
"""Sampling errors by which a range is widened: a number may leave it by chance."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """Accepted ranges of a number.

    Attributes
    ----------
    good, doubtful
        Smallest and largest good value, and smallest and largest doubtful value; beyond is bad.
    """

    good: tuple[float, float]
    doubtful: tuple[float, float]


LIMITS = {
    # A noise variance that is 3 % larger gives 40 % more false sources at 5 sigma.
    "whiteness": Limits((0.97, 1.03), (0.9, 1.1)),
    "variance": Limits((0.97, 1.03), (0.9, 1.1)),
    "worst cell": Limits((0.9, 1.1), (0.8, 1.25)),
    "significance width": Limits((0.975, 1.025), (0.9, 1.1)),
    "score mean": Limits((-0.05, 0.05), (-0.2, 0.2)),
    "stars": Limits((10, math.inf), (3, math.inf)),
    "rejected": Limits((0, 0.3), (0, 0.6)),
    "chi-square": Limits((0, 1.2), (0, 2.0)),
    # The photometric scale of all fluxes.
    "kernel sum error": Limits((0, 0.01), (0, 0.03)),
    "star residuals": Limits((-0.01, 0.01), (-0.03, 0.03)),
    "star scatter": Limits((0, 1.5), (0, 3.0)),
    "contaminated": Limits((0, 0.25), (0, 0.5)),
    "coverage": Limits((0.9, 1), (0.2, 1)),
    "dipoles": Limits((0, 0.15), (0, 0.4)),
    # Extended residuals come from galaxies and bright stars, or from a remaining background.
    "extended": Limits((0, 0.15), (0, 0.4)),
    "flagged": Limits((0, 0.5), (0, 0.85)),
    # Density of sources in the border over the density elsewhere: tens if they are false.
    "edges": Limits((0, 2.0), (0, 5.0)),
    "warnings": Limits((0, 0), (0, math.inf)),
}


@dataclasses.dataclass(frozen=True)
class Check:
    """One number of a difference, judged.

    Attributes
    ----------
    name
        Name of the number.
    value
        The number as text.
    accepted
        The good range as text.
    status
        ``good``, ``doubtful``, ``bad``, or ``unknown`` if the number could not be measured.
    reason
        Meaning of the number, and remedy if it is not good.
    """

    name: str
    value: str
    accepted: str
    status: Status
    reason: str


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Verdict of all checks together.

    Attributes
    ----------
    status
        Worst status of a check; unknown checks count only if no check is known.
    headline, text
        The verdict in a few words, and in a sentence.
    """

    status: Status
    headline: str
    text: str


def judged(
    name: str,
    key: str,
    value: float | None,
    reason: str,
    *,
    error: float = 0.0,
    form: str = ".3f",
    percent: bool = False,
) -> Check:
    """Judge a number.

    Parameters
    ----------
    name
        Name of the number.
    key
        Key in `LIMITS`.
    value, error
        The number, None or NaN if unknown, and its sampling error; the ranges are widened by
        four errors.
    reason
        Meaning of the number.
    form
        Format specification of the number.
    percent
        Whether to show it as a percentage.

    Returns
    -------
    check
        `Check`.
    """
    limits = LIMITS[key]

    def text(number: float) -> str:
        if math.isinf(number):
            return "∞"
        return f"{100 * number if percent else number:g}".replace("-", "−")

    low, high = limits.good
    accepted = (
        f"at least {text(low)}"
        if math.isinf(high)
        else f"at most {text(high)}"
        if low == 0 and high > 0
        else f"{text(low)}"
        if low == high
        else f"{text(low)} … {text(high)}"
    )
    accepted += " %" if percent else ""
    if value is None or not math.isfinite(value):
        return Check(name, "–", accepted, "unknown", reason)
    shown = format(100 * value if percent else value, form)
    if error > 0 and math.isfinite(error):
        shown += f" ± {format(100 * error if percent else error, form)}"
    shown = shown.replace("-", "−") + (" %" if percent else "")
    status: Status = "bad"
    for candidate, (smallest, largest) in (("good", limits.good), ("doubtful", limits.doubtful)):
        if smallest - _ERRORS * error <= value <= largest + _ERRORS * error:
            status = candidate  # type: ignore[assignment]
            break
    return Check(name, shown, accepted, status, reason)


def verdict(checks: Sequence[Check]) -> Verdict:
    """Judge a difference by all of its numbers.

    Parameters
    ----------
    checks
        All judged numbers.

    Returns
    -------
    verdict
        `Verdict`.
    """
    by_status: dict[str, list[Any]] = {"bad": [], "doubtful": [], "good": [], "unknown": []}
    for check in checks:
        by_status[check.status].append(check.name)
    known = len(checks) - len(by_status["unknown"])
    fine = f"{len(by_status['good'])} of {known} numbers are in their range"
    if by_status["bad"]:
        return Verdict("bad", "Do not trust this blindly", _listed(fine, by_status))
    if by_status["doubtful"]:
        return Verdict("doubtful", "Look before you trust it", _listed(fine, by_status))
    if not by_status["good"]:
        return Verdict("unknown", "Nothing could be measured", "No number is known.")
    return Verdict("good", "This can be trusted", _listed(fine, by_status))


def _listed(fine: str, by_status: dict[str, list[str]]) -> str:
    parts = [fine]
    for status, words in (
        ("bad", "far outside"),
        ("doubtful", "worth a look"),
        ("unknown", "not known"),
    ):
        if by_status[status]:
            parts.append(f"{words}: {', '.join(by_status[status])}")
    return "; ".join(parts) + "."
