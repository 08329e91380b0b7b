"""Run of ``whitediff info``: describe files."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from ..formats.describe import Description, describe
from .numbers import write_numbers
from .options import InfoOptions
from .refusals import check_given
from .running import running

__all__ = ["run_description"]


def run_description(files: Sequence[str], options: InfoOptions) -> list[Description]:
    """Describe files.

    Parameters
    ----------
    files
        Files of any format.
    options
        Options of ``whitediff info``.

    Returns
    -------
    descriptions
        One for each file.

    Raises
    ------
    FileFormatError
        If nothing in a file can be understood.
    """
    check_given(options, *files)
    logger = logging.getLogger("whitediff")
    reading = logging.getLogger("whitediff.formats")
    muted = [(handler, _is_of_others) for handler in logger.handlers]
    with running(options.running):
        # Messages of the readers are part of the description, so users do not see them twice.
        reading.propagate = True
        for handler, each in muted:
            handler.addFilter(each)
        try:
            found = [describe(file, kernel=options.kernel) for file in files]
        finally:
            for handler, each in muted:
                handler.removeFilter(each)
        if options.json is not None:
            write_numbers(
                options.json, [one.to_dict() for one in found], overwrite=options.overwrite
            )
    return found


def _is_of_others(record: logging.LogRecord) -> bool:
    return not record.name.startswith("whitediff.formats")
