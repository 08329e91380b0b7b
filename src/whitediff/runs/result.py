"""Result of a subtraction, in memory."""

from __future__ import annotations

import dataclasses
import functools
import html
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from astropy.table import Table

from ..decorrelation.exposures import Decorrelation
from ..detection.exposures import DetectionOptions, detect
from ..diagnostics.measure import ScoreNoise, Whiteness
from ..diagnostics.report import ReportInput
from ..errors import ArgumentError, DataError
from ..exposures.kernels import ConvolutionKernel
from ..exposures.model import Exposure
from ..formats.catalogs import write_catalog
from ..formats.own.write import cards_as_header
from ..noise.exposures import without_sentinels
from ..paths import check_suffix, split_name
from ..progress import stages
from ..reading import options_of_cards
from ..subtraction.cutouts import Cutout, CutoutFlux
from ..subtraction.pipeline import Kind
from ..subtraction.solution import Solution
from .cards import values_of
from .inputs import Kept, name_of, path_of, read_image
from .numbers import noise_of, numbers_of, write_numbers
from .options import ReportOptions, SubtractOptions
from .picture import draw
from .refusals import check_given
from .report import report_on
from .running import on_machine, running
from .subtract import (
    Finished,
    check_has_psf,
    finished_products,
    outputs_of,
    read_solutions,
    solutions_by_kind,
)

if TYPE_CHECKING:
    import matplotlib.figure

__all__ = ["Quality", "Result", "subtract_in_memory"]


@dataclasses.dataclass(frozen=True)
class Quality:
    """How good a difference or score is.

    Attributes
    ----------
    numbers
        Name → number, if known: ``kernel_sum``, ``kernel_sum_error``, ``science_fwhm``, ``depth``
        and so on.
    noise
        Whiteness between the sources; None if it cannot be measured.
    warnings
        Warnings while it was made.
    problems
        Reasons to distrust the difference of a cut-out.
    """

    numbers: Mapping[str, Any]
    noise: Whiteness | ScoreNoise | None
    warnings: tuple[str, ...]
    problems: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return "\n".join(f"{name}: {value}" for name, value in self._rows())

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th style='text-align:left'>{html.escape(name)}</th>"
            f"<td style='text-align:left'>{html.escape(value)}</td></tr>"
            for name, value in self._rows()
        )
        return f"<table>{rows}</table>"

    def _rows(self) -> list[tuple[str, str]]:
        rows = []
        for name, value in self.numbers.items():
            if name.endswith("_error"):
                continue
            text = f"{value:.5g}" if isinstance(value, float) else str(value)
            error = self.numbers.get(f"{name}_error")
            rows.append((name, text if error is None else f"{text} ± {error:.2g}"))
        if self.noise is not None:
            for name in ("pixel_variance_ratio", "filtered_variance_ratio"):
                value = getattr(self.noise, name, None)
                if value is not None:
                    error = getattr(self.noise, f"{name}_error")
                    rows.append((name, f"{value:.4f} ± {error:.4f}"))
        rows += [("warning", text) for text in self.warnings]
        return rows + [("problem", text) for text in self.problems]


class Result:
    """Result of `whitediff.subtract`.

    Attributes
    ----------
    difference
        `whitediff.Exposure`: science - template at the level of the science image, with white
        noise, its variance, mask and PSF.
    """

    def __init__(
        self, science: object, template: object, options: SubtractOptions, made: list[Finished]
    ) -> None:
        self._given = science, template
        self._options = options
        # What is in memory is kept as it was; files are read again.
        names = [path_of(each) for each in self._given if not isinstance(each, Kept)]
        states = {name: _state(name) for name in names if name is not None}
        self._files = {name: state for name, state in states.items() if state is not None}
        self._made: dict[Kind, Finished] = {each.made.kind: each for each in made}

    @property
    def _first(self) -> Finished:
        return self._made["difference"]

    @property
    def difference(self) -> Exposure:
        """Difference, science - template."""
        return self._first.made.exposure

    @functools.cached_property
    def score(self) -> Exposure:
        """Detection score of the same images; made when first used."""
        return self._product("score").made.exposure

    @functools.cached_property
    def matched(self) -> Exposure:
        """Template as subtracted, at the level of the science image."""
        return self._first.made.matched_template()

    @functools.cached_property
    def sources(self) -> Table:
        """Sources found on the difference, or on the score if that was made first."""
        score = self._made.get("score")
        options = DetectionOptions(
            threshold=self._options.threshold, zero_point=self._options.zero_point
        )
        catalog = detect(self.difference, None if score is None else score.made.exposure, options)
        catalog.meta["image"] = self.difference.source or "difference"
        return catalog

    @property
    def kernel(self) -> ConvolutionKernel:
        """Matching kernel."""
        return self.solution.kernel

    @property
    def solution(self) -> Solution:
        """Everything needed to make the difference again (``kernel=`` of `subtract`)."""
        return self._first.made.solution

    @property
    def decorrelation(self) -> Decorrelation | None:
        """Numbers that describe the decorrelation."""
        return self._first.made.decorrelation

    @property
    def cutout(self) -> Cutout | None:
        """How the kernel was found without stars; None otherwise."""
        return self._first.made.cutout

    @property
    def flux(self) -> CutoutFlux | None:
        """Flux of the transient in a cut-out."""
        return self._first.made.flux

    @property
    def problems(self) -> tuple[str, ...]:
        """Reasons to distrust the difference of a cut-out."""
        return self._first.made.problems

    @functools.cached_property
    def quality(self) -> Quality:
        """Quality of the difference: numbers, noise, warnings and problems."""
        try:
            noise = noise_of(self.difference, score=False)
        except DataError:
            noise = None
        entries = self._first.record.entries
        return Quality(
            numbers_of(values_of(self._first.cards)),
            noise,
            tuple(dict.fromkeys(text for _, kind, text in entries if kind == "warning")),
            self._first.made.problems,
        )

    def plot(
        self, path: str | Path | None = None, *, overwrite: bool = False
    ) -> matplotlib.figure.Figure:
        """Draw science image, template and difference, with the sources found.

        Parameters
        ----------
        path
            PNG to write; None to write nothing.
        overwrite
            Whether an existing file may be replaced.

        Returns
        -------
        figure
            `matplotlib.figure.Figure`, which notebooks show.
        """
        if path is not None:
            check_suffix(Path(path), "picture (PNG)")
        made = self._first.made
        return draw(
            made.science,
            made.template,
            self.difference,
            sources=None if self.difference.psf is None else self.sources,
            path=None if path is None else Path(path),
            overwrite=overwrite,
        )

    def report(self, path: str | Path, *, overwrite: bool = False) -> dict[str, Any]:
        """Write a web page on which to judge the difference.

        Parameters
        ----------
        path
            Page (HTML).
        overwrite
            Whether an existing file may be replaced.

        Returns
        -------
        data
            Numbers, texts and pictures of the page.
        """
        options = ReportOptions(output=Path(path), overwrite=overwrite)
        check_given(options)
        self._check_files()
        science, template = self._given
        read = [options_of_cards(self.history, side) for side in ("science", "template")]
        score = self._made.get("score")
        files = {"science image": path_of(science), "template": path_of(template)}
        made = ReportInput(
            name="difference",
            product=self.difference,
            is_score=False,
            header=cards_as_header(self._first.cards),
            solution=self.solution,
            science=without_sentinels(read_image(science, "science image", read[0])),
            template=without_sentinels(read_image(template, "template", read[1])),
            score=None if score is None else score.made.exposure,
            catalog=None if self.difference.psf is None else self.sources,
            stars=self._first.extras.get("STARS"),
            log=self._first.record.table(),
            files={what: name for what, name in files.items() if name is not None},
        )
        return report_on(made, options)

    def write(self, path: str | Path, *, compress: bool = False, overwrite: bool = False) -> None:
        """Write the difference as ``whitediff subtract`` does.

        Parameters
        ----------
        path
            FITS file.
        compress
            Compress the planes without loss.
        overwrite
            Whether an existing file may be replaced.

        Raises
        ------
        OutputExistsError, FileFormatError
            If it cannot be written.
        """
        check_suffix(Path(path), "FITS file")
        with on_machine(self._options.running):
            self._first.write(Path(path), compress=compress, overwrite=overwrite)

    @property
    def history(self) -> dict[str, object]:
        """Values of the cards that tell in a file of the difference how it was made."""
        return values_of(self._first.cards)

    def _product(self, kind: Kind) -> Finished:
        """Product of a kind, made when first used."""
        if kind not in self._made:
            self._check_files()
            found = _products(*self._given, _with_kernels_of(self._options, [kind]), [kind])
            self._made[kind] = found[0]
        return self._made[kind]

    def _check_files(self) -> None:
        """Refuse to read images again that are others now."""
        for name, state in self._files.items():
            now = _state(name)
            if now is None:
                raise DataError.of(
                    name, "is not there any more, and is needed again; subtract before it goes."
                )
            if now != state:
                raise DataError.of(
                    name, "has changed since the difference was made of it; subtract again."
                )

    def __repr__(self) -> str:
        ny, nx = self.difference.shape
        names = [name_of(each, role) for each, role in zip(self._given, _ROLES, strict=True)]
        return f"<Result: {names[0]} - {names[1]}, {ny} x {nx} pixels>\n{self.quality!r}"

    def _repr_html_(self) -> str:
        return self.difference._repr_html_() + self.quality._repr_html_()


_ROLES = ("science image", "template")


def _state(name: str) -> tuple[int, int] | None:
    """Size and time of a file's last change; None where there is none, as for addresses."""
    try:
        found = os.stat(split_name(name)[0])
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def _with_kernels_of(options: SubtractOptions, wanted: Sequence[Kind]) -> SubtractOptions:
    """Options with those earlier results alone that made the products that are wanted."""
    if not options.kernel:
        return options
    kinds = {"difference" if kind == "matched" else kind for kind in wanted}
    kept = tuple(each for each in options.kernel if kinds & set(_kinds_of(each)))
    if not kept:
        missing = " or ".join(sorted(kinds))
        raise ArgumentError(
            f"kernel: none of the earlier results is a {missing}; give that too, or subtract"
            " without kernel."
        )
    return dataclasses.replace(options, kernel=kept)


def _kinds_of(earlier: object) -> Iterable[Kind]:
    return solutions_by_kind(read_solutions([earlier]))


def _products(
    science: object, template: object, options: SubtractOptions, wanted: list[Kind]
) -> list[Finished]:
    with stages("Subtracting", 2 + 3 * len(wanted)) as begin:
        return list(finished_products(science, template, options, wanted, begin=begin))


def subtract_in_memory(science: object, template: object, options: SubtractOptions) -> Result:
    """Make a difference, and write the outputs that are asked for.

    Parameters
    ----------
    science, template
        Files, or objects that `whitediff.runs.inputs.read_image` takes.
    options
        Options of ``whitediff subtract``.

    Returns
    -------
    result
        `Result`.

    Raises
    ------
    WhitediffError
        A subclass whose message names the file at fault.
    """
    check_given(options, science, template)
    outputs = outputs_of(options)
    # A score that is asked for later is of the same pixels.
    science, template = Kept.of(science), Kept.of(template)
    wanted: list[Kind] = ["difference", *(kind for kind in outputs if kind != "difference")]
    with running(options.running, next(iter(outputs.values()), None)):
        first = _with_kernels_of(options, wanted)
        result = Result(science, template, options, _products(science, template, first, wanted))
        if options.catalog is not None:
            check_has_psf(result._first.made, name_of(science, "science image"))
        for kind, path in outputs.items():
            result._made[kind].write(path, compress=options.compress, overwrite=options.overwrite)
        if options.catalog is not None:
            write_catalog(result.sources, options.catalog, options.overwrite)
        if options.report is not None:
            result.report(options.report, overwrite=options.overwrite)
        if options.plot is not None:
            result.plot(options.plot, overwrite=options.overwrite)
        if options.json is not None:
            numbers = {
                kind: numbers_of(values_of(each.cards))
                for kind, each in result._made.items()
                if kind != "matched"
            }
            write_numbers(options.json, numbers, overwrite=options.overwrite)
    return result
