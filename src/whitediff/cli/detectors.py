"""Option ``--hdu``: one run for each detector of a camera."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from ..options import declarations, from_words, words_of
from ..reading import VarianceSource
from .command import Option
from .startup import spare_imports

__all__ = ["each_detector", "hdu_option", "named_output"]

log = logging.getLogger("whitediff.cli")

hdu_option = click.option(
    "--hdu",
    "hdus",
    multiple=True,
    metavar="NAME|all",
    group="Inputs",
    cls=Option,
    help="Extension of all files with several detectors; may be repeated, or all. With more than"
    " one each output's name gets the extension's: out.NAME.fits.",
)

_KERNELS = ("kernel", "psf", "preconvolution_kernel", "science_psf", "template_psf")
"""Options whose files hold kernels or PSFs: one image for all detectors, or one for each."""


def named_output(path: Path, name: str) -> Path:
    """Output of one of several detectors.

    Parameters
    ----------
    path
        Output that the user named.
    name
        Name of the detector.

    Returns
    -------
    path
        Output with the detector's name before its suffix.

    Examples
    --------
    >>> str(named_output(Path("night1/out.fits"), "SCI,2"))
    'night1/out.SCI2.fits'
    """
    safe = "".join(c if c.isalnum() or c in "-_+" else "" for c in name)
    return path.with_name(f"{path.stem}.{safe}{path.suffix}")


def each_detector(
    run: Callable[..., object],
    options: object,
    wanted: tuple[str, ...],
    *,
    files: Mapping[str, str | None],
) -> None:
    """Run a command once, or for each detector that ``--hdu`` names.

    Parameters
    ----------
    run
        Function of the options and, as keyword arguments, the files.
    options
        Options of the command.
    wanted
        Values of ``--hdu``.
    files
        Role → file, for the arguments of the command.  ``all`` means all detectors of the first.

    Raises
    ------
    ArgumentError
        If the outputs of two detectors would have the same name.
    """
    spare_imports()
    if not wanted:
        run(options, **files)
        return
    from ..errors import ArgumentError, WhitediffError, sentence
    from ..formats.detectors import detectors

    names = list(dict.fromkeys(wanted))
    if "all" in names:
        names = detectors(str(next(iter(files.values()))))
    if len({named_output(Path("a.fits"), name) for name in names}) < len(names):
        raise ArgumentError(f"--hdu: outputs for {', '.join(names)} would have the same names.")
    failed = []
    for name in names:
        try:
            if len(names) > 1:
                log.info("Detector %s:", name)
            own = _options_of(options, name, several=len(names) > 1)
            run(own, **{role: _file_of(role, file, name) for role, file in files.items()})
        except WhitediffError as error:
            if len(names) == 1:
                raise
            click.echo(f"whitediff: {sentence(error)}", err=True)
            failed.append(name)
    if failed:
        click.echo(
            f"whitediff: {len(failed)} of {len(names)} detectors failed: {', '.join(failed)}.",
            err=True,
        )
        raise click.exceptions.Exit(1)


def _options_of(options: Any, name: str, *, several: bool) -> Any:
    """Options for one detector, with its outputs and its parts of files."""
    words = words_of(options)
    for key, each in declarations(type(options)).items():
        value = words[key]
        if value is None or value == each.default:
            continue
        if each.is_output and several and str(value) != "-":
            words[key] = named_output(value, name)
        elif each.is_file and each.several:
            words[key] = tuple(_file_of(key, one, name) for one in value)
        elif each.is_file:
            words[key] = _file_of(key, value, name)
    return from_words(type(options), words)


def _file_of(role: str, file: Any, name: str) -> Any:
    """File, or its part, that belongs to a detector."""
    from ..formats.detectors import kernel_of_detector, of_detector

    if isinstance(file, VarianceSource):
        return dataclasses.replace(file, path=of_detector(file.path, name))
    if not isinstance(file, str):
        return file
    return kernel_of_detector(file, name) if role in _KERNELS else of_detector(file, name)
