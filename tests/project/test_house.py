"""The size of the house: short functions, short files, nothing written twice."""

import ast
import statistics
from collections import defaultdict
from pathlib import Path

from lora_recipes import ROOT

FILES = sorted([*(ROOT / "tools").rglob("*.py"), *(ROOT / "bench").glob("*.py")])
ALIKE = 6
"""Lines in a row that are the same in two places: one function could serve both."""


def functions():
    """(lines, file, name) of every function, its docstring left out: of a command it is the help text."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                first = node.body[0]
                documented = ast.get_docstring(node) is not None
                told = first.end_lineno - first.lineno + 1 if documented else 0
                yield node.end_lineno - node.lineno + 1 - told, path.name, node.name


def code(path: Path) -> list[tuple[int, str]]:
    """Line numbers and texts of statements: without blanks, comments, imports, docstrings and lone brackets."""
    text = path.read_text(encoding="utf-8")
    skipped = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Import, ast.ImportFrom)) or (
            isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        ):
            skipped |= set(range(node.lineno, node.end_lineno + 1))
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1) if number not in skipped]
    return [(number, line) for number, line in lines if line.strip("()[]{},: ") and not line.startswith("#")]


def test_functions_can_be_read_without_scrolling():
    found = sorted(functions(), reverse=True)
    assert found[0][0] <= 40, found[:5]
    assert statistics.quantiles([lines for lines, *_ in found], n=10)[-1] <= 20


def test_files_are_short():
    assert [
        (path.name, len(path.read_text().splitlines())) for path in FILES if len(path.read_text().splitlines()) > 250
    ] == []


def test_nothing_is_written_twice():
    seen = defaultdict(set)
    for path in FILES:
        lines = code(path)
        for start in range(len(lines) - ALIKE + 1):
            part = lines[start : start + ALIKE]
            seen["\n".join(line for _, line in part)].add((path.relative_to(ROOT).as_posix(), part[0][0]))
    twice = {text: places for text, places in seen.items() if len(places) > 1}
    assert not twice, "\n\n".join(f"{sorted(places)}\n{text}" for text, places in twice.items())
