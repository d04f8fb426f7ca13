"""Several data sets made into one: question and answer, in order, split by seed into train, validation and test."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_recipes.data import sources, special_tokens
from lora_recipes.data.similarity import normalised
from lora_recipes.support import files

import click

if TYPE_CHECKING:
    from datasets import Dataset

PARTS = ("train", "validation", "test")
COLUMNS = ("question", "answer")
RECORD = "build.json"
_EXAMPLES = 5


@dataclass(frozen=True)
class Clean:
    """What is done with special tokens of a model inside rows: `escape` them, or `drop` the rows."""

    done: str
    tokenizer: Any

    def __call__(self, pairs: list[tuple[str, str]]) -> tuple[list[tuple[str, str]], int]:
        """The rows after it, and in how many of them there were special tokens."""
        made = [(self._escaped(asked), self._escaped(answered)) for asked, answered in pairs]
        held = [row for row, (old, new) in enumerate(zip(pairs, made, strict=True)) if old != new]
        if self.done == "drop":
            made = [pair for row, pair in enumerate(pairs) if row not in set(held)]
        return made, len(held)

    def _escaped(self, text: str) -> str:
        return special_tokens.escaped(self.tokenizer, text)


@dataclass(frozen=True)
class Build:
    """The splits, and what build.json records of how they came about."""

    parts: "dict[str, Dataset]"
    record: dict[str, Any]


def repeated(questions: Sequence[str]) -> dict[str, list[int]]:
    """The rows (from 0) of each question that is asked more than once, equal after normalisation."""
    rows: defaultdict[str, list[int]] = defaultdict(list)
    for row, question in enumerate(questions):
        if key := normalised(question):
            rows[key].append(row)
    return {key: found for key, found in rows.items() if len(found) > 1}


def consolidate(
    names: Sequence[str],
    question: str,
    answer: str,
    dedupe: bool,
    seed: int,
    test: float,
    validation: float,
    clean: Clean | None = None,
) -> Build:
    """Join the sources' rows and split them: the test rows first, then the validation rows of the rest.

    Raises click.ClickException for sources that cannot be read and for fractions that leave a split empty.
    """
    import datasets

    found = {name: _pairs(name, question, answer) for name in dict.fromkeys(names)}
    pairs, held = [pair for name in names for pair in found[name]], 0
    if clean:
        pairs, held = clean(pairs)
    twice = repeated([asked for asked, _ in pairs])
    removed = {row for rows in twice.values() for row in rows[1:]} if dedupe else set()
    kept = [pair for row, pair in enumerate(pairs) if row not in removed]
    data = datasets.Dataset.from_dict({name: [pair[n] for pair in kept] for n, name in enumerate(COLUMNS)})
    parts = _split(data, seed, test, validation)
    record = {
        "sources": [{"name": name, "rows": len(found[name])} for name in names],
        "columns": {"question": question, "answer": answer},
        "seed": seed,
        "fractions": {"test": test, "validation of the rest": validation},
        "repeated": {
            "questions": len(twice),
            "rows": sum(len(rows) - 1 for rows in twice.values()),
            "across splits": len(_across(parts)),
            "examples": [pairs[rows[0]][0] for rows in list(twice.values())[:_EXAMPLES]],
        },
        "removed": len(removed),
        "empty": sum(not (asked.strip() and answered.strip()) for asked, answered in kept),
    }
    if clean:
        record["special tokens"] = {"done": clean.done, "of": clean.tokenizer.name_or_path, "rows": held}
    return Build(parts, record)


def _pairs(name: str, question: str, answer: str) -> list[tuple[str, str]]:
    """Questions and answers of a source's rows."""
    data = sources.only(name, "name the one to take")
    asked = sources.texts(data, question, name, "choose a column with --question")
    return list(zip(asked, sources.texts(data, answer, name, "choose a column with --answer"), strict=True))


def _split(data: "Dataset", seed: int, test: float, validation: float) -> "dict[str, Dataset]":
    try:
        first = data.train_test_split(test_size=test, seed=seed)
        second = first["train"].train_test_split(test_size=validation, seed=seed)
    except ValueError:
        raise click.ClickException(
            f"{len(data)} rows are too few for --test {test} and --validation {validation}; give more rows."
        ) from None
    return {"train": second["train"], "validation": second["test"], "test": first["test"]}


def _across(parts: "dict[str, Dataset]") -> set[str]:
    """The questions that are asked in more than one split."""
    seen: set[str] = set()
    across: set[str] = set()
    for data in parts.values():
        asked = {normalised(question) for question in data["question"]} - {""}
        across |= asked & seen
        seen |= asked
    return across


def rows_of_build(folder: Path) -> dict[str, int]:
    """The files of the splits that a build wrote, each with its number of rows.

    Raises click.ClickException for a folder that lacks one, or the build's record.
    """
    names = [f"{part}.jsonl" for part in PARTS]
    for name in (RECORD, *names):
        if not (folder / name).is_file():
            raise click.ClickException(f"{folder} has no {name}; write it with `tools/data.py build`.")
    return {name: files.read_text(folder / name).count("\n") for name in names}


def write(build: Build, output: Path) -> None:
    """Write the splits as JSON lines and build.json with their hashes, all or nothing."""
    with files.locked(output), files.whole_folder(output) as folder:
        written = {}
        for part, data in build.parts.items():
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in data.to_list())
            files.write_text(folder / f"{part}.jsonl", text)
            written[f"{part}.jsonl"] = {"rows": len(data), "sha256": hashlib.sha256(text.encode()).hexdigest()}
        record = {**build.record, "files": written}
        files.write_text(folder / RECORD, json.dumps(record, indent=2, ensure_ascii=False) + "\n")
