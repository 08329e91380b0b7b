"""Packages that only some uses need: those of the extras with which whitediff is installed."""

from __future__ import annotations

import importlib.util

from .errors import ArgumentError

__all__ = [
    "check_adaptive",
    "check_drawing",
    "check_extra",
    "check_pillow",
    "is_installed",
    "missing_extra",
]


def is_installed(module: str) -> bool:
    """Whether a module can be imported; it is not.

    Parameters
    ----------
    module
        Its full name.

    Returns
    -------
    installed
        True or False.
    """
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:  # not even what it is a part of
        return False


def missing_extra(extra: str, module: str, *, needs: str) -> ArgumentError:
    """Error of what needs an extra that is missing.

    Parameters
    ----------
    extra, needs
        As for `check_extra`.
    module
        What is missing of it.

    Returns
    -------
    error
        To be raised.
    """
    # No format: names of files may have braces.
    what = needs.replace("{module}", module)
    return ArgumentError(f"{what}; install it with: pip install 'whitediff[{extra}]'.")


def check_extra(extra: str, *modules: str, needs: str) -> None:
    """Refuse what cannot be done without an extra, before any work.

    Parameters
    ----------
    extra
        Name of the extra.
    *modules
        What is needed of it.
    needs
        What needs it, without a full stop; ``{module}`` stands for the first that is missing.

    Raises
    ------
    ArgumentError
        If one of the modules is not installed.

    Examples
    --------
    >>> check_extra("plot", "email", needs="Pictures need {module}")
    >>> check_extra("plot", "no_such_module", needs="Pictures need {module}")
    Traceback (most recent call last):
        ...
    whitediff.errors.ArgumentError: Pictures need no_such_module; install it with: pip install \
'whitediff[plot]'.
    """
    for module in modules:
        if not is_installed(module):
            raise missing_extra(extra, module, needs=needs)


def check_adaptive(method: str) -> None:
    """Refuse the adaptive method of resampling where the package for it is missing.

    Parameters
    ----------
    method
        Any that a template may be resampled with; ``auto`` passes.

    Raises
    ------
    ArgumentError
        If it is ``adaptive``, and reproject is not installed.
    """
    if method == "adaptive":
        check_extra("align", "reproject", needs="The adaptive method averages with {module}")


def check_drawing() -> None:
    """Make sure that pictures can be drawn.

    Raises
    ------
    ArgumentError
        If matplotlib is not installed.
    """
    check_extra("plot", "matplotlib", needs="Pictures need {module}")


def check_pillow() -> None:
    """Make sure that a report's pictures can be made.

    Raises
    ------
    ArgumentError
        If Pillow is not installed.
    """
    check_extra("plot", "PIL", needs="A report needs Pillow for its pictures")
