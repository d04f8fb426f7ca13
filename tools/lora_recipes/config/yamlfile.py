"""Strict YAML in, readable YAML out.

PyYAML accepts a key twice (the last wins) and reads ``1e-4`` as text. Both have made people train the wrong thing, so
both are errors here. Every key has its line and its comment.
"""

import re
from dataclasses import dataclass, field
from typing import Any

from lora_recipes.config import yamlloader

import click
import yaml

Path = tuple[str | int, ...]

_TEXT_NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+")
_COMMENT = re.compile(r":?\s*(?:&\S+\s+)?#(.*)")
_WIDTH = 96


@dataclass(frozen=True)
class Problem:
    """A mistake that YAML accepts."""

    kind: str
    """`duplicate-key`, `text-number`, `unknown-key` or `wrong-type`."""
    path: Path
    line: int
    found: str
    fix: str

    def error(self, name: str) -> click.ClickException:
        return click.ClickException(f"{name}, line {self.line}: {dotted(self.path)}: {self.found}; {self.fix}.")


@dataclass
class Document:
    """A YAML mapping with the line (from 1) and the trailing comment of each of its keys."""

    name: str
    data: dict[str, Any]
    lines: dict[Path, int] = field(default_factory=dict)
    comments: dict[Path, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def line(self, path: Path) -> int:
        """The line of a key, or of the nearest enclosing one in the file."""
        return next((self.lines[path[:n]] for n in range(len(path), 0, -1) if path[:n] in self.lines), 1)

    def error(self, path: Path, message: str) -> click.ClickException:
        """An error that names the file, the line and the key."""
        return click.ClickException(f"{self.name}, line {self.line(path)}: {dotted(path)}: {message}")


def _unshared(value: Any) -> Any:
    """A copy in which aliases are copies of their anchor: changing one leaves the others."""
    if isinstance(value, dict):
        return {str(key): _unshared(item) for key, item in value.items()}
    return [_unshared(item) for item in value] if isinstance(value, list) else value


def dotted(path: Path) -> str:
    return ".".join(str(part) for part in path)


def load(text: str, name: str) -> Document:
    """Read one YAML mapping.

    Raises click.ClickException, naming the line, as `read` does and for its first problem.
    """
    document = read(text, name)
    for problem in document.problems:
        raise problem.error(name)
    return document


def read(text: str, name: str) -> Document:
    """Read one YAML mapping; duplicate keys and numbers that YAML 1.1 reads as text are among its problems.

    Raises click.ClickException, naming the line, for invalid YAML and a document that is empty or no mapping.
    """
    document = Document(name, {})
    if len(text) > yamlloader.BYTES:
        raise too_long(name)
    try:
        loader = yamlloader.Loader(text)
        node = loader.get_single_node()
        if node is None:
            raise click.ClickException(f"{name} is empty: expected a YAML mapping of Axolotl keys.")
        if not isinstance(node, yaml.MappingNode):
            raise click.ClickException(
                f"{name}, line 1: expected a YAML mapping of Axolotl keys, found another kind of value."
            )
        _walk(node, (), document, text.splitlines())
        document.data = _unshared(loader.construct_document(node))
    except yaml.YAMLError as error:
        raise _invalid(name, text, error) from None
    except (ValueError, OverflowError) as error:  # of a \\U escape beyond Unicode
        raise click.ClickException(f"{name}: invalid YAML: {error}; mend the file.") from None
    return document


def too_long(name: str) -> click.ClickException:
    return click.ClickException(f"{name}: more than {yamlloader.BYTES:,} bytes; a run file has a few thousand, cut it.")


def _invalid(name: str, text: str, error: yaml.YAMLError) -> click.ClickException:
    mark = getattr(error, "problem_mark", None)
    where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    if isinstance(error, yaml.reader.ReaderError):
        where = f", line {text.count(chr(10), 0, error.position) + 1}"
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
    return click.ClickException(f"{name}{where}: invalid YAML: {problem}; mend the file there.")


def _walk(node: yaml.Node, path: Path, document: Document, lines: list[str]) -> None:
    if isinstance(node, yaml.ScalarNode):
        if mistake := _mistaken(node):
            kind, *words = mistake
            document.problems.append(Problem(kind, path, document.line(path), *words))
        return
    if len(path) > yamlloader.DEPTH:
        raise document.error(path[:3], "nested too deep, or an anchor that contains itself.")
    for part, key, value in _children(node):
        here = (*path, part)
        line = key.start_mark.line
        if here in document.lines:
            found = f"duplicate key, first on line {document.lines[here]}; YAML takes the last"
            document.problems.append(Problem("duplicate-key", here, line + 1, found, "delete one"))
        document.lines[here] = line + 1
        if key is not value:
            _walk(key, here, document, lines)
        if len(document.lines) > yamlloader.NODES:
            raise document.error(path[:3], f"aliases make more than {yamlloader.NODES:,} values; write them out.")
        if comment := _comment(key, value, lines):
            document.comments[here] = comment
        _walk(value, here, document, lines)


def _children(node: yaml.Node) -> list[tuple[str | int, yaml.Node, yaml.Node]]:
    """Key or index, the node of the key, and that of the value."""
    if isinstance(node, yaml.SequenceNode):
        return [(index, item, item) for index, item in enumerate(node.value)]
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise yaml.MarkedYAMLError(problem="a list or mapping as a key", problem_mark=key.start_mark)
    return [(key.value, key, value) for key, value in node.value]


def _mistaken(node: yaml.ScalarNode) -> tuple[str, str, str] | None:
    """The kind of mistake, what is found and the remedy, of a scalar that YAML does not read as it looks."""
    if not node.style and node.tag == f"{yamlloader.TAG}str" and _TEXT_NUMBER.fullmatch(node.value):
        number = yaml.safe_dump(float(node.value)).split()[0]
        return "text-number", f"YAML reads {node.value} as text", f"write {number}, or quote it if text is meant"
    if node.tag == f"{yamlloader.TAG}timestamp":
        return "wrong-type", f"expected text, found {node.value}, which YAML reads as a date", "quote it"
    if not node.value.isascii() and re.search("[\ud800-\udfff]", node.value):
        problem = "half of a surrogate pair, which is no character"
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
    return None


def _comment(key: yaml.Node, value: yaml.Node, lines: list[str]) -> str:
    block = isinstance(value, yaml.CollectionNode) and not value.flow_style
    mark = key.end_mark if block else value.end_mark
    if (block and key is value) or mark.line >= len(lines):
        return ""
    found = _COMMENT.match(lines[mark.line][mark.column :])
    return found.group(1).strip() if found else ""


def scalar(value: Any) -> str:
    """One value as YAML on one line, which YAML 1.1 and 1.2 read back as the same value."""
    text = yaml.safe_dump(value, width=10**9, allow_unicode=True, default_flow_style=True, sort_keys=False)
    text = text.removesuffix("...\n").strip("\n")
    if isinstance(value, str) and (text[:1] == "'" or not value.isprintable() or _TEXT_NUMBER.fullmatch(value)):
        text = yaml.safe_dump(value, width=10**9, allow_unicode=True, default_style='"').strip("\n")
    return text


def entry(key: str, value: Any, comments: dict[Path, str], path: Path = (), indent: int = 0) -> str:
    """``key: value  # comment`` as lines; nested mappings and lists of mappings in block style."""
    here = (*path, key)
    pad, note = " " * indent, comments.get(here, "")
    if isinstance(value, dict) and value:
        body = "".join(entry(str(k), v, comments, here, indent + 2) for k, v in value.items())
        return _line(f"{pad}{scalar(key)}:", note) + body
    if isinstance(value, list) and any(isinstance(item, dict) and item for item in value):
        body = "".join(_item(item, comments, (*here, n), indent + 2) for n, item in enumerate(value))
        return _line(f"{pad}{scalar(key)}:", note) + body
    if isinstance(value, list):
        flow = f"{pad}{scalar(key)}: [{', '.join(_in_flow(item) for item in value)}]"
        if len(flow) <= _WIDTH:
            return _line(flow, note)
        return _line(f"{pad}{scalar(key)}:", note) + "".join(f"{pad}  - {scalar(item)}\n" for item in value)
    return _line(f"{pad}{scalar(key)}: {scalar(value)}", note)


def _item(item: Any, comments: dict[Path, str], path: Path, indent: int) -> str:
    pad = " " * indent
    if not (isinstance(item, dict) and item):
        return f"{pad}- {scalar(item)}\n"
    body = "".join(entry(str(k), v, comments, path, indent + 2) for k, v in item.items())
    return f"{pad}- {body[indent + 2 :]}"


def _in_flow(item: Any) -> str:
    """An item of a flow list, quoted where a comma or a bracket in it would split it."""
    text = yaml.safe_dump([item], width=10**9, allow_unicode=True, default_flow_style=True).strip()[1:-1]
    plain = isinstance(item, str) and (text[:1] == "'" or not item.isprintable() or _TEXT_NUMBER.fullmatch(item))
    return scalar(item) if plain and scalar(item)[:1] == '"' else text


def _line(text: str, comment: str) -> str:
    return f"{text:<42} # {comment}\n" if comment else f"{text}\n"
