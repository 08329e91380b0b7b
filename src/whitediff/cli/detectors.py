"""The option ``--hdu``: one run for each of a camera's detectors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from .console import log

__all__ = ["each_detector", "hdu_option", "named_output"]

hdu_option = click.option(
    "--hdu",
    "hdus",
    multiple=True,
    metavar="NAME|all",
    help="Extension of all files with several detectors; may be repeated, or all. With more than"
    " one each output's name gets the extension's: out.NAME.fits.",
)


def named_output(path: Path, name: str) -> Path:
    """Output of one of several detectors.

    Parameters
    ----------
    path
        Output as it was named.
    name
        Detector.

    Returns
    -------
    path
        With the detector's name before its suffix.

    Examples
    --------
    >>> str(named_output(Path("night1/out.fits"), "SCI,2"))
    'night1/out.SCI2.fits'
    """
    safe = "".join(c if c.isalnum() or c in "-_+" else "" for c in name)
    return path.with_name(f"{path.stem}.{safe}{path.suffix}")


def each_detector(
    run: Callable[..., Any],
    options: dict[str, Any],
    *,
    files: tuple[str, ...],
    kernels: tuple[str, ...] = (),
    outputs: tuple[str, ...],
) -> None:
    """Run a command once, or for each detector that ``--hdu`` names.

    Parameters
    ----------
    run
        Function of the command.
    options
        Its options, with ``hdus``.
    files
        Options that are files with an image of each detector, the first of which says what
        ``all`` are; numbers and those that were not given stay as they are.
    kernels
        Options that are files with a kernel or PSF: the detector's where they have several images.
    outputs
        Options that are outputs.
    """
    wanted = options.pop("hdus")
    if not wanted:
        run(**options)
        return
    from ..errors import ArgumentError, WhitediffError, sentence
    from ..formats.detectors import detectors, kernel_of_detector, of_detector

    names = list(dict.fromkeys(wanted))
    if "all" in names:
        names = detectors(options[files[0]])
    if len({named_output(Path("a.fits"), name) for name in names}) < len(names):
        raise ArgumentError(f"--hdu: outputs for {', '.join(names)} would have the same names.")
    failed = []
    for name in names:
        try:
            own = dict(options)
            for key in files:
                if isinstance(own.get(key), str):
                    own[key] = of_detector(own[key], name)
            for key in kernels:
                if isinstance(own.get(key), str):
                    own[key] = kernel_of_detector(own[key], name)
            for key in outputs:
                if own.get(key) is not None and len(names) > 1:
                    own[key] = named_output(own[key], name)
            if len(names) > 1:
                log.info("Detector %s:", name)
            run(**own)
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
