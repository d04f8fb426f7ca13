"""What reaches a terminal: texts of users shown as they are, and the one way out of every tool.

A name in a file may hold the escapes by which a terminal is steered, or be a megabyte long.
"""

import contextlib
import os
import re
import sys
from collections.abc import Iterator
from typing import Any

import click

_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters but tab and line end, what turns the direction of writing round, and lone surrogates."""

_SENTENCE = 1000
"""Characters of an error: its beginning names the place and its end the remedy."""


def visible(text: str) -> str:
    r"""The text with `\x1b` and its like in place of characters that steer a terminal."""
    return _UNSEEN.sub(lambda found: found.group().encode("unicode_escape").decode(), text)


def shown(value: object, length: int = 200) -> str:
    """A user's value for a sentence: as Python writes it, so on one line, of at most `length` characters."""
    return shortened(repr(value), length)


def shortened(text: str, length: int = _SENTENCE) -> str:
    """The beginning and the end of a text that is longer than so many characters."""
    end = length // 4
    return text if len(text) <= length else f"{text[: length - end - 3]} … {text[-end:]}"


class Tool(click.Command):
    """A command whose errors are sentences that any terminal can show."""

    def main(self, *args: Any, **options: Any) -> Any:
        standard_streams()
        return super().main(*args, **options)

    def make_context(self, *args: Any, **options: Any) -> click.Context:
        with plainly():
            return super().make_context(*args, **options)

    def invoke(self, ctx: click.Context) -> Any:
        with plainly():
            return super().invoke(ctx)


class Tools(Tool, click.Group):
    """A tool of several."""

    command_class = Tool


@contextlib.contextmanager
def plainly() -> Iterator[None]:
    """Make an error's words visible and short, and an operating system's error a click.ClickException."""
    try:
        yield
    except click.ClickException as error:
        raise _plain(error) from None
    except BrokenPipeError:
        raise  # click ends in silence: who read the output has seen enough
    except OSError as error:
        if error.filename is None:
            _give_up_stdout()
        what = visible(str(error.filename or "the output"))
        words = f"{what}: {error.strerror or error}; mend that and run the same command again."
        raise click.ClickException(words) from None


def _plain(error: click.ClickException) -> click.ClickException:
    error.message = shortened(visible(error.message))  # type: ignore[misc]  # click's classes all read it when shown
    return error


def show(error: click.ClickException) -> None:
    """Print an error where no command of click's does."""
    _plain(error).show()


def _give_up_stdout() -> None:
    """Where stdout takes no more, what it still holds must not fail once more at the process's end."""
    try:
        sys.stdout.flush()
    except OSError:
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def standard_streams() -> None:
    """Let stdin, stdout and stderr be there, and take every character whatever the locale is.

    What a process opens next would take the number of a closed one, and the place of its output.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        stream = getattr(sys, name)
        if stream is None:
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, number)
            setattr(sys, name, os.fdopen(number, "w" if number else "r", encoding="utf-8", closefd=False))
        elif number and hasattr(stream, "reconfigure"):
            with contextlib.suppress(OSError):  # a stream that cannot tell where it is
                stream.reconfigure(encoding="utf-8", errors="backslashreplace")
