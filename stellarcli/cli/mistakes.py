"""What is wrong with a command line, in one sentence like all other errors."""

from __future__ import annotations

import re
from typing import Any

import typer

from stellarcli.errors import unknown

Mistake = typer.BadParameter.__base__  # of everything that parsing finds

# what a value must be, by the kind of error that pydantic reports
WANTED = {
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_parsing": "a number",
    "greater_than_equal": "at least {ge}",
    "less_than_equal": "at most {le}",
}


def explain(mistake: Exception, called: str) -> str:
    """Say what is wrong, what would be right, and where to read on.

    Parameters
    ----------
    mistake : Mistake
    called : str
        The command as far as it was understood, such as ``stellar predict``.
    """
    context = getattr(mistake, "ctx", None)
    if context is not None:
        called = context.command_path
    return f"{_sentence(mistake, context, called)} See '{called} --help'."


def _sentence(mistake: Any, context: Any, called: str) -> str:
    kind, message = type(mistake).__name__, mistake.format_message()
    if kind == "NoSuchOption":
        return _no_option(mistake, context)
    if kind == "MissingParameter" and mistake.param is not None:
        return f"{_shown(mistake.param)} is missing: {_help(mistake.param)}"
    if kind == "BadParameter" and mistake.__cause__ is not None:
        return _bad_value(mistake)
    if found := re.match(r"No such command '(.*?)'", message):
        return str(unknown("command", found[1], context.command.commands))
    if found := re.search(r"unexpected extra arguments?.*\((.*)\)", message):
        taken = [p for p in context.command.params if p.param_type_name == "argument"]
        names = " ".join(_shown(param) for param in taken) or "options only"
        return f"{found[1]!r} is too much: '{called}' takes {names}."
    return message[0].lower() + message[1:]


def _no_option(mistake: Any, context: Any) -> str:
    options = [
        name for p in context.command.params for name in p.opts if name[0] == "-"
    ]
    return str(unknown("option", mistake.option_name, options))


def _bad_value(mistake: Any) -> str:
    first = mistake.__cause__.errors()[0]
    wanted = WANTED.get(first["type"], "").format(**first.get("ctx", {}))
    what = f"must be {wanted}" if wanted else f"is wrong ({first['msg']})"
    shown = _shown(mistake.param)
    return f"{shown} {what}, not {first['input']!r}: {_help(mistake.param)}"


def _shown(param: Any) -> str:
    """Return a parameter as the help shows it: ``--output FILE``, ``PATHS...``."""
    metavar = str(param.metavar or param.name.upper())
    if param.param_type_name == "argument":
        return metavar
    return f"{param.opts[0]} {metavar}"


def _help(param: Any) -> str:
    """Return what the help says about a parameter, to stand after a colon."""
    text = " ".join(str(param.help or "see below.").split())
    return text[0].lower() + text[1:] if text[1:2].islower() else text
