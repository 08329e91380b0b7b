"""Command that HOTPANTS was run with, which holds part of the solution."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

from ..limits import leads_to

__all__ = ["Command"]

_VALUES = {"gd": 4, "rkw": 2}
"""Number of values of options with more than one."""

_SWITCHES = ("sconv", "okn", "convvar", "nim", "ndm", "cim", "allm", "nc", "hki", "sht", "nsht")
_GAUSSIANS = ((6, 0.7), (4, 1.5), (2, 3.0))
"""HOTPANTS' default basis: degree of the polynomial and width of each Gaussian, pixels."""


@dataclasses.dataclass(frozen=True)
class Command:
    """Options of a run of HOTPANTS.

    Attributes
    ----------
    options
        Name without its dash, in lower case → its values, verbatim.
    """

    options: dict[str, tuple[str, ...]]

    @classmethod
    def parse(cls, text: str) -> Command:
        """Parse the card DIFFCMD.

        Parameters
        ----------
        text
            Command and options.

        Returns
        -------
        command
            Parsed command; words that cannot be understood are left out.
        """
        words, options = text.split()[1:], {}
        while words:
            word = words.pop(0)
            if not word.startswith("-"):
                continue
            name = word[1:].lower()
            number = 0 if name in _SWITCHES else _VALUES.get(name, 1)
            if words and name in ("ng", "pca"):
                number = 1
                if words[0].isdigit():
                    number += int(words[0]) * (2 if name == "ng" else 1)
            options[name], words = tuple(words[:number]), words[number:]
        return cls(options)

    def number(self, name: str, default: int) -> int:
        """Value of an option that takes a whole number.

        Parameters
        ----------
        name
            Option.
        default
            HOTPANTS' default.

        Returns
        -------
        value
            Value; the default if the option is missing or no number.
        """
        try:
            return int(self.options[name][0])
        except (KeyError, IndexError, ValueError):
            return default

    def numbers(self, name: str, defaults: tuple[float, ...]) -> tuple[float, ...]:
        """Values of an option that takes several numbers.

        Parameters
        ----------
        name
            Option.
        defaults
            HOTPANTS' defaults.

        Returns
        -------
        values
            Values; the defaults if the option is missing or has anything but numbers.
        """
        try:
            return tuple(float(value) for value in self.options[name]) or defaults
        except (KeyError, ValueError):
            return defaults

    def text(self, name: str) -> str | None:
        """Value of an option, as text.

        Parameters
        ----------
        name
            Option.

        Returns
        -------
        value
            First value; None without one.
        """
        return next(iter(self.options.get(name, ())), None)

    @property
    def gaussians(self) -> tuple[tuple[int, float], ...]:
        """Degrees and widths of the Gaussians of the basis."""
        values = self.numbers("ng", ())
        if not values:
            return _GAUSSIANS
        return tuple((int(d), s) for d, s in zip(values[1::2], values[2::2], strict=False))

    @property
    def limits(self) -> tuple[int, int, int, int]:
        """Limits of the run in x and y (``-gd``): x0, x1, y0, y1; 0 for no limit."""
        given = self.numbers("gd", ())
        x0, x1, y0, y1 = map(int, given[:4]) if len(given) >= 4 else (0, 0, 0, 0)
        return x0, x1, y0, y1

    def buffer(self, shape: tuple[int, int], kernel_width: int) -> int:
        """Margin by which HOTPANTS widens each of several regions, pixels.

        Parameters
        ----------
        shape
            ``(ny, nx)`` of the images.
        kernel_width
            Side of the kernel.

        Returns
        -------
        buffer
            Half the side of a stamp.
        """
        stamps_y, stamps_x = (self.number(name, 10) for name in ("nsy", "nsx"))
        regions_y, regions_x = (self.number(name, 1) for name in ("nry", "nrx"))
        if min(stamps_y, stamps_x, regions_y, regions_x) < 1:
            return 0
        substamp = 2 * self.number("rss", 15) + 1
        stamp = min(shape[1] // regions_x // stamps_x, shape[0] // regions_y // stamps_y)
        stamp = _odd(stamp - kernel_width)
        if stamp < substamp:
            stamp = _odd(substamp + kernel_width)
        return stamp // 2

    def beside(self, name: str, path: Path) -> Path | None:
        """File that an option names, if it may be read (`whitediff.formats.limits.leads_to`).

        Parameters
        ----------
        name
            Option.
        path
            Difference, beside which the file is searched for.

        Returns
        -------
        file
            File; None if the option is missing, or there is no such file that may be read.
        """
        value = self.text(name)
        if value is None:
            return None
        return leads_to(value, path)[0]

    def disagreement(
        self,
        gaussians: tuple[tuple[int, float], ...],
        kernel_width: int,
        orders: tuple[int, int],
        normalization: str,
    ) -> str | None:
        """Contradiction between a solution and this command.

        Parameters
        ----------
        gaussians
            Degrees and widths of the basis.
        kernel_width
            Side of the kernel.
        orders
            Polynomial orders of kernel and background.
        normalization
            Letter of the image whose level the difference has.

        Returns
        -------
        text
            Description; None if they agree.  With ``-ki``, the kernel was made by another command,
            and only the normalization is compared.
        """
        letter = (self.text("n") or "t")[:1]
        if letter != normalization:
            return f"PHOTNORM is {normalization!r}, but the command had -n {letter}"
        if "ki" in self.options:
            return None
        wanted = self.gaussians
        if len(gaussians) != len(wanted) or any(
            d != e or not math.isclose(s, t, rel_tol=1e-5)
            for (d, s), (e, t) in zip(gaussians, wanted, strict=False)
        ):
            return f"the table's Gaussians are {gaussians}, but the command's {wanted}"
        for option, value, default in (
            ("r", (kernel_width - 1) // 2, 10),
            ("ko", orders[0], 2),
            ("bgo", orders[1], 1),
        ):
            if self.number(option, default) != value:
                given = self.number(option, default)
                return f"the table's {option} is {value}, but the command's {given}"
        return None


def _odd(number: int) -> int:
    return number - 1 if number % 2 == 0 else number
