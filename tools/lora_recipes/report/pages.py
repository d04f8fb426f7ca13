"""Pages out of templates/: Markdown and self-contained HTML in which every value is escaped."""

import re
from typing import Any

from lora_recipes import ROOT

import jinja2
from markupsafe import Markup

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_MARKDOWN = {
    **{mark: "\\" + mark for mark in "\\`*_{}[]~$#!"},
    # An entity holds where some readers count backslashes in a table their own way.
    "|": "&#124;",
    "<": "&lt;",
    ">": "&gt;",
    "&": "&amp;",
    "\n": "<br>",
}


def clean(text: str) -> str:
    """Text that any page can hold: control characters and lone surrogates become U+FFFD."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return _CONTROL.sub("�", text)


def markdown(value: Any) -> str:
    """A value as text on one line of Markdown, also inside a table; Markup stays as it is."""
    if isinstance(value, Markup):
        return str(value)
    return "".join(_MARKDOWN.get(character, character) for character in clean(str(value)).strip())


def render(template: str, **context: Any) -> str:
    """A template of templates/: `*.html.j2` with HTML escaping, `*.md.j2` with Markdown escaping."""
    html = template.endswith(".html.j2")
    env = jinja2.Environment(
        loader=jinja2.FileSystemLoader(ROOT / "templates"),
        undefined=jinja2.StrictUndefined,
        autoescape=html,
        finalize=None if html else markdown,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return env.get_template(template).render(**context)
