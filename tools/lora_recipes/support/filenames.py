"""Names that are read from files or given as options, and become part of a path."""

from lora_recipes.support import terminal

import click

_BYTES = 120
"""Of a name, which gets a word before it and an ending; file systems take 255."""

EXPECTED = f"expected up to {_BYTES} printable characters, no slash, and no dot at the beginning"


def is_safe(name: object) -> bool:
    """Whether a file of this name lies in the folder that it is put into."""
    if not isinstance(name, str) or not name or name[0] == "." or not name.isprintable():
        return False
    return not {"/", "\\"} & set(name) and len(name.encode()) <= _BYTES


def option(_context: click.Context, parameter: click.Parameter, value: str) -> str:
    """Of click's callbacks, for an option that becomes part of a path. Raises click.UsageError."""
    if not is_safe(value):
        raise click.UsageError(f"--{parameter.name} {terminal.shown(value)} becomes part of a file's name: {EXPECTED}.")
    return value
