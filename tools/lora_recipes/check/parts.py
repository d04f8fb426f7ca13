"""The rows of a run file's data sets as they are trained on, whoever defines the prompt.

A prompt spelled out as a mapping is tokenized by lora_recipes.data.prompts; one of Axolotl's own types by Axolotl
(validation.py). Where the rows cannot be read, one made-up row shows the prompt.
"""

import functools
import json
from dataclasses import dataclass, field
from typing import Any

from lora_recipes.check import conversations
from lora_recipes.check.checked_run import CheckedRun
from lora_recipes.config.runfile import RunFile
from lora_recipes.data import prompts, rows, special_tokens

import click

_TURNS = [{"role": "user", "content": "What is asked?"}, {"role": "assistant", "content": "This is answered."}]
_PROBE = {
    **dict.fromkeys(("question", "instruction", "prompt", "query"), _TURNS[0]["content"]),
    **dict.fromkeys(("answer", "output", "response", "completion", "text"), _TURNS[1]["content"]),
    **dict.fromkeys(("messages", "conversations"), _TURNS),
    "input": "",
}

COLUMNS = tuple(_PROBE)
"""Where rows of Axolotl's own types have their texts."""


@dataclass
class Part:
    """One data set of the run file."""

    key: str
    """Its place, as `datasets.0`."""
    entry: dict[str, Any]
    rows: list[dict[str, Any]]
    made_up: bool = False
    """The rows could not be read: one made-up row stands for them."""
    format: prompts.PromptFormat | None = None
    """None for a type that Axolotl defines."""
    examples: list[dict[str, list[int]]] = field(default_factory=list)
    """`input_ids` and `labels` a row, in the order of the rows; empty where they cannot be tokenized."""
    blank_examples: list[dict[str, list[int]]] = field(default_factory=list)
    """The same of the rows of `blank`."""

    @functools.cached_property
    def blank(self) -> tuple[list[dict[str, Any]], list[int]]:
        """The distinct rows with one letter for each text, and of each row the number of its own among them."""
        names = self.entry.get("message_property_mappings")
        role = (names.get("role") if isinstance(names, dict) else None) or self.entry.get("message_field_role")
        roles = {*special_tokens.ROLES, str(role)}
        numbers: dict[str, int] = {}
        texts = [json.dumps(special_tokens.blanked(row, roles), default=str) for row in self.rows]
        own = [numbers.setdefault(text, len(numbers)) for text in texts]
        return [json.loads(text) for text in numbers], own

    @functools.cached_property
    def questions(self) -> list[str]:
        """What each row asks: instruction and input, or the turns before the last answer, without the system's."""
        if self.format is None:
            return [conversations.question(self.entry, row) for row in self.rows]
        names = (self.format.field_instruction, self.format.field_input)
        return ["\n".join(str(row[name]) for name in names if row.get(name)) for row in self.rows]


def load(checked: CheckedRun, key: str, tokenized: bool = False) -> list[Part]:
    """The data sets under `datasets` or `test_datasets`; tokenized as they are trained, but for Axolotl's own types."""
    found = [_load(checked, f"{key}.{index}", index, entry) for index, entry in enumerate(checked.entries(key))]
    parts = [part for part in found if part]
    on_prompt = bool(checked.config.get("train_on_inputs"))
    for part in parts if tokenized and checked.tokenizer is not None else ():
        if part.format:
            part.examples = prompts.examples(checked.tokenizer, part.format, part.rows, on_prompt)
            part.blank_examples = prompts.examples(checked.tokenizer, part.format, part.blank[0], on_prompt)
    return parts


def load_test(checked: CheckedRun) -> list[Part]:
    """The test rows that belong to the first training set; none where there is no such split."""
    entries = checked.entries("datasets")[:1]
    if not entries or not isinstance(entries[0].get("type"), dict) or not checked.local(entries[0]["path"]):
        return []
    try:
        found = rows.load_parts(_readable(checked), "test")
    except Exception:  # a data set without a test split is no finding
        return []
    return [Part("datasets.0", entries[0], part_rows, format=fmt) for part_rows, fmt in found]


def _readable(checked: CheckedRun) -> RunFile:
    """The run with the keys of its data sets that say where the rows are, and no others."""
    entries = {
        key: [{name: entry[name] for name in entry if name in rows.UNDERSTOOD} for entry in checked.entries(key)]
        for key in ("datasets", "test_datasets")
    }
    return checked.run.replaced(**entries)


def _load(checked: CheckedRun, key: str, index: int, entry: dict[str, Any]) -> Part | None:
    run, name = _readable(checked), key.partition(".")[0]
    where = run.config[name][index]
    spelled_out, fmt = isinstance(entry.get("type"), dict), None
    try:
        if spelled_out:
            fmt = prompts.prompt_format(run, index, name)
            return Part(key, entry, rows.load_entry(run, name, index, where)[0], format=fmt)
        return Part(key, entry, rows.read(run, name, index, where).rows)
    except click.ClickException as error:
        place, _, words = error.message.partition(": ")[2].partition(": ")
        if any(one.check == "reader" and one.key.startswith(f"{key}.") for one in checked.report.findings):
            return None  # said
        if spelled_out and not fmt:
            checked.error("prompt-format", place, words, "a prompt that is filled with the row's columns", "correct it")
            return None
        if checked.local(entry["path"]):
            fix = "correct the file or the row, or name another split or type"
            checked.error("data", place, words, "rows that can be read and trained on", fix)
            return None
        checked.report.skip(f"{key} rows", words)
    row = dict(_PROBE)
    if fmt:
        row |= {fmt.field_instruction: _TURNS[0]["content"], fmt.field_output: _TURNS[1]["content"]}
    return Part(key, entry, [row], made_up=True, format=fmt)
