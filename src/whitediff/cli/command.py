"""Commands made from options classes, with grouped help and errors in one sentence."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import click

from ..options import Declaration, declarations, from_words
from ..runs.refusals import check_given
from .console import Terminal, fail, set_up_logging

__all__ = ["Option", "command", "given", "with_options"]

_VERBOSITY = "Running"
_PLAIN_TYPES = {str: click.STRING, int: click.INT, float: click.FLOAT}


class _Parsed(click.ParamType):
    """Type of an option that has a parser of its own."""

    def __init__(self, declaration: Declaration) -> None:
        self.name = (declaration.metavar or "text").lower()
        self._parse = declaration.parse

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        if not isinstance(value, str):
            return value
        assert self._parse is not None
        try:
            return self._parse(value)
        except ValueError as error:
            self.fail(f"{error}", param, ctx)


class Option(click.Option):
    """Option that the help lists under a heading."""

    def __init__(self, *arguments: Any, group: str = "", **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.group = group


class _Command(click.Command):
    """Command whose help has headings and examples."""

    def __init__(self, *arguments: Any, examples: Sequence[str] = (), **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.examples = examples

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write options under their headings, in the order in which the headings first occur."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None and isinstance(param, click.Option):
                groups.setdefault(getattr(param, "group", ""), []).append(record)
        for group in sorted(groups, key=lambda each: each in ("", _VERBOSITY)):
            with formatter.section(group or "Options"):
                formatter.write_dl(groups[group])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write examples."""
        if self.examples:
            with formatter.section("Examples"):
                for example in self.examples:
                    formatter.write(f"{'':{formatter.current_indent}}{example}\n")


def with_options(
    kind: type, function: Callable[..., Any], *, only: Iterable[str] | None = None
) -> Callable[..., Any]:
    """Add the options of an options class to a function of a command.

    Parameters
    ----------
    kind
        Options class.
    function
        Function of a command; it gets the values of the options as keyword arguments.
    only
        Names of the options to add; all if not given.

    Returns
    -------
    function
        Decorated function.
    """
    names = None if only is None else set(only)
    chosen = [each for name, each in declarations(kind).items() if names is None or name in names]
    for each in reversed(chosen):
        function = _option(each)(function)
    return function


def _option(each: Declaration) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator that adds one option of the command line."""
    flag = f"--{each.name.replace('_', '-')}"
    spellings = [f"-{each.short}", flag] if each.short else [flag]
    settings: dict[str, Any] = {"help": each.help, "group": each.group, "cls": Option}
    if each.is_flag:
        if each.default is True:
            spellings = [f"{flag}/--no-{flag.removeprefix('--')}"]
        return click.option(*spellings, each.name, is_flag=True, default=each.default, **settings)
    settings |= {"type": _type(each), "multiple": each.several, "required": each.required}
    settings["metavar"] = each.metavar
    width = _width(each)
    if width > 1:
        settings["nargs"] = width
    if not each.required and each.default not in (None, ()):
        settings |= {"default": each.default, "show_default": "[default:" not in each.help}
    return click.option(*spellings, each.name, **settings)


def _type(each: Declaration) -> Any:
    """Type of an option in click's terms."""
    if each.parse is not None:
        return _Parsed(each)
    if each.choices:
        return click.Choice(list(each.choices))
    if each.is_output:
        return click.Path(
            dir_okay=each.is_directory, file_okay=not each.is_directory, path_type=Path
        )
    if each.least is not None:
        return click.IntRange(min=each.least)
    kinds = [kind for hint, kind in _PLAIN_TYPES.items() if hint in _flat(each)]
    return kinds[0] if kinds else click.STRING


def _flat(each: Declaration) -> set[Any]:
    """All types that occur within the type hint of an option."""
    found: set[Any] = set()
    rest = [each.hint]
    while rest:
        hint = rest.pop()
        found.add(hint)
        rest += getattr(hint, "__args__", ())
    return found


def _width(each: Declaration) -> int:
    """Number of values that follow the option once."""
    return len(each.metavar.split()) if each.metavar else 1


def command(
    kind: type, *, examples: Sequence[str] = (), **settings: Any
) -> Callable[[Callable[..., Any]], click.Command]:
    """Make a command of a function that takes an options class.

    Parameters
    ----------
    kind
        Options class; each of its options becomes an option of the command line.
    examples
        Calls that the help shows.
    **settings
        Settings of `click.Command`.

    Returns
    -------
    decorator
        Decorator of a function, which gets the options object, and arguments and further options
        as keyword arguments.
    """

    def decorate(function: Callable[..., Any]) -> click.Command:
        @click.pass_context
        @functools.wraps(function)
        def run(context: click.Context, /, **values: Any) -> Any:
            verbose, quiet = values.pop("verbose"), values.pop("quiet")
            if verbose and quiet:
                raise click.UsageError("-v and -q contradict each other.")
            context.obj = {"verbose": verbose, "quiet": quiet}
            set_up_logging(logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO)
            words = {name: values.pop(name) for name in declarations(kind) if name in values}
            words = {name: words[name] for name in given(context, words)}

            def call() -> Any:
                options: Any = from_words(kind, words, values)
                # With several detectors the outputs get other names, checked later.
                files = [values[name] for name in _files(function)]
                check_given(options, *files, outputs=not values.get("hdus"))
                return function(options, **values)

            return _guarded(context, call)

        own = list(getattr(function, "__click_params__", ()))
        # functools.wraps has copied the function's own parameters, which are added again below.
        run.__click_params__ = []  # type: ignore[attr-defined]
        run = with_options(kind, run)
        for flags, text in (
            (("-q", "--quiet"), "Say only what is wrong."),
            (("-v", "--verbose"), "Say more."),
        ):
            run = click.option(*flags, is_flag=True, help=text, group=_VERBOSITY, cls=Option)(run)
        # click keeps parameters in reverse order; the function's own come first in the help.
        run.__click_params__ = _verbosity_last(run.__click_params__, own)  # type: ignore[attr-defined]
        return click.command(cls=_Command, examples=examples, **settings)(run)

    return decorate


def _files(function: Callable[..., Any]) -> list[str]:
    """Names of the parameters of a command that are files: its arguments, and ``--to``."""
    params = getattr(function, "__click_params__", ())
    named = [each for each in params if isinstance(each, click.Argument) or each.name == "science"]
    # click keeps parameters in reverse order.
    return [str(each.name) for each in reversed(named) if each.name not in _NO_FILES]


_NO_FILES = ("repo", "manifest")


def _verbosity_last(params: list[Any], own: list[Any]) -> list[Any]:
    """Parameters in the order of the help, reversed as click keeps them."""
    verbosity = [each for each in params if each.name in ("quiet", "verbose")]
    rest = [each for each in params if each not in verbosity]
    return [*verbosity[::-1], *rest, *own]


def _guarded(context: click.Context, call: Callable[[], Any]) -> Any:
    """Call a function; an error is reported in one sentence."""
    from ..interruptions import heed, interruptible
    from ..progress import showing

    # A terminated run removes its temporary files as an interrupted run does.
    with interruptible(), showing(Terminal(quiet=context.obj["quiet"])):
        try:
            return call()
        except (click.ClickException, click.exceptions.Exit, click.Abort, KeyboardInterrupt):
            raise
        except Exception as error:
            heed()
            fail(error, verbose=context.obj["verbose"])


def given(context: click.Context, names: Iterable[str]) -> list[str]:
    """Names of parameters that were given on the command line.

    Parameters
    ----------
    context
        Context of the command.
    names
        Names of parameters.

    Returns
    -------
    given
        Names of the parameters that were given.
    """
    source = click.core.ParameterSource.COMMANDLINE
    return [name for name in names if context.get_parameter_source(name) is source]
