"""Packages that only some uses need: the extras that whitediff can be installed with."""

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
    """Whether a module can be imported.  It is only looked for, not imported.

    Parameters
    ----------
    module
        Full name of the module.

    Returns
    -------
    installed
        True or False.
    """
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:  # its parent package is missing
        return False


def missing_extra(extra: str, module: str, *, needs: str) -> ArgumentError:
    """Error about an extra that is needed but missing.

    Parameters
    ----------
    extra, needs
        As for `check_extra`.
    module
        Module that is missing.

    Returns
    -------
    error
        Error for the caller to raise.
    """
    # Not str.format: names of files in the text may have braces.
    what = needs.replace("{module}", module)
    return ArgumentError(f"{what}; install it with: pip install 'whitediff[{extra}]'.")


def check_extra(extra: str, *modules: str, needs: str) -> None:
    """Refuse work that needs an extra that is not installed, before it begins.

    Parameters
    ----------
    extra
        Name of the extra.
    *modules
        Modules of the extra that are needed.
    needs
        Start of the message, without a full stop; ``{module}`` stands for the first missing module.

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
    """Refuse the adaptive method of resampling if its package is missing.

    Parameters
    ----------
    method
        Any method of resampling a template; ``auto`` passes.

    Raises
    ------
    ArgumentError
        If the method is ``adaptive`` and reproject is not installed.
    """
    if method == "adaptive":
        check_extra("align", "reproject", needs="The adaptive method averages with {module}")


def check_drawing() -> None:
    """Check that pictures can be drawn.

    Raises
    ------
    ArgumentError
        If matplotlib is not installed.
    """
    check_extra("plot", "matplotlib", needs="Pictures need {module}")


def check_pillow() -> None:
    """Check that a report's pictures can be made.

    Raises
    ------
    ArgumentError
        If Pillow is not installed.
    """
    check_extra("plot", "PIL", needs="A report needs Pillow for its pictures")
