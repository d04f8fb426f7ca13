"""The rows of a run file's data sets as they are trained on, whoever defines the prompt.

A prompt spelled out as a mapping is tokenized by lora_recipes.data.prompts; one of Axolotl's own types by
Axolotl. Where the rows cannot be had, a made-up one shows the prompt all the same.
"""

import functools
import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_recipes.check.subject import Subject
from lora_recipes.check.validation import Axolotl
from lora_recipes.data import prompts, rows
from lora_recipes.support import libraries

import click

_TURNS = [{"role": "user", "content": "What is asked?"}, {"role": "assistant", "content": "This is answered."}]
_PROBE = {
    **dict.fromkeys(("question", "instruction", "prompt", "query"), _TURNS[0]["content"]),
    **dict.fromkeys(("answer", "output", "response", "completion", "text"), _TURNS[1]["content"]),
    **dict.fromkeys(("messages", "conversations"), _TURNS),
    "input": "",
}
_ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}


@dataclass
class Part:
    """One data set of the run file."""

    key: str
    """Its place, as `datasets.0`."""
    entry: dict[str, Any]
    rows: list[dict[str, Any]]
    made_up: bool = False
    """The rows could not be had: one made-up row stands for them."""
    format: prompts.PromptFormat | None = None
    """None for a type that Axolotl defines."""
    examples: list[dict[str, list[int]]] = field(default_factory=list)
    """`input_ids` and `labels` a row, in the order of the rows; empty where they cannot be had."""

    @functools.cached_property
    def questions(self) -> list[str]:
        """What each row asks: instruction and input, or the turns before the last answer."""
        if self.format is None:
            return ["\n".join(turn["content"] for turn in messages(self, row)) for row in self.rows]
        names = (self.format.field_instruction, self.format.field_input)
        return ["\n".join(str(row[name]) for name in names if row.get(name)) for row in self.rows]


def load(subject: Subject, key: str, axolotl: Axolotl | None = None) -> list[Part]:
    """The data sets under `datasets` or `test_datasets`; with `axolotl`, tokenized as they are trained."""
    found = []
    for index, entry in enumerate(subject.entries(key)):
        part = _load(subject, f"{key}.{index}", index, entry)
        if part and axolotl and subject.tokenizer is not None:
            _tokenize(subject, part, axolotl)
        if part:
            found.append(part)
    return found


def load_test(subject: Subject) -> list[Part]:
    """The test rows that belong to the first training set; none where there is no such split."""
    entries = subject.entries("datasets")[:1]
    if not entries or not isinstance(entries[0].get("type"), dict) or not subject.local(entries[0]["path"]):
        return []
    try:
        found = rows.load_parts(_readable(subject), "test")
    except Exception:  # a data set without a test split is no finding
        return []
    return [Part("datasets.0", entries[0], part_rows, format=fmt) for part_rows, fmt in found]


def _readable(subject: Subject) -> Any:
    """The run with the keys of its data sets that say where the rows are, and no others."""
    import dataclasses

    run = subject.run
    data = dict(run.config)
    for key in ("datasets", "test_datasets"):
        data[key] = [{name: entry[name] for name in entry if name in rows.UNDERSTOOD} for entry in subject.entries(key)]
    return dataclasses.replace(run, document=dataclasses.replace(run.document, data=data))


def _load(subject: Subject, key: str, index: int, entry: dict[str, Any]) -> Part | None:
    run, name = _readable(subject), key.partition(".")[0]
    entry = run.config[name][index]
    fmt = None
    try:
        if isinstance(entry.get("type"), dict):
            fmt = prompts.prompt_format(run, index, name)
            return Part(key, entry, rows.load_entry(run, name, index, entry)[0], format=fmt)
        data = rows.read(run, entry, entry.get("split") or "train")
        return Part(key, entry, data.to_list())
    except click.ClickException as error:
        message = error.message.partition(": ")[2]
        if subject.local(entry["path"]) and fmt:
            place, _, words = message.partition(": ")
            subject.error("data", place, words, "rows that can be trained on", "see the text before")
            return None
        if _is_file(subject, entry):
            _unreadable(subject, key, error.message)
            return None
        subject.report.skip(f"{key} rows", message)
    except Exception as error:
        words = f"{entry['path']} cannot be read ({libraries.reason(error.__cause__ or error)})"
        if _is_file(subject, entry):
            _unreadable(subject, key, words)
            return None
        subject.report.skip(f"{key} rows", words)
    row = dict(_PROBE)
    if fmt:
        row |= {fmt.field_instruction: _TURNS[0]["content"], fmt.field_output: _TURNS[1]["content"]}
    elif isinstance(entry.get("type"), dict):
        return None
    return Part(key, entry, [row], made_up=True, format=fmt)


def _is_file(subject: Subject, entry: dict[str, Any]) -> bool:
    """Whether Axolotl reads the rows as we do: a folder may be one that `datasets` saved, which only Axolotl reads."""
    path = subject.local(entry["path"])
    return path is not None and path.is_file()


def _unreadable(subject: Subject, key: str, words: str) -> None:
    subject.error("data", f"{key}.path", words, "rows that can be read", "mend the file, or name another split or type")


def _is_beside(subject: Subject, kind: str) -> bool:
    """Whether a type is a module in the working directory, as Axolotl would import it there."""
    path = subject.given.anchor / kind.partition(".")[0].partition(":")[0]
    return "." in kind and (path.is_dir() or path.with_suffix(".py").is_file())


def _tokenize(subject: Subject, part: Part, axolotl: Axolotl) -> None:
    on_prompt = bool(subject.config.get("train_on_inputs"))
    if part.format:
        part.examples = prompts.examples(subject.tokenizer, part.format, part.rows, on_prompt)
        return
    if not axolotl.installed or not isinstance(part.entry.get("type"), str):
        subject.report.skip(f"{part.key} prompt", "its type is Axolotl's own, and Axolotl is not installed here")
        return
    if _is_beside(subject, part.entry["type"]):
        subject.report.skip(
            f"{part.key} prompt", f"its type {part.entry['type']} is code beside the file: not run here"
        )
        return
    with tempfile.TemporaryDirectory() as folder:
        subject.tokenizer.save_pretrained(f"{folder}/tokenizer")
        lines = "".join(json.dumps(row, default=str) + "\n" for row in part.rows)
        Path(folder, "rows.jsonl").write_text(lines, encoding="utf-8")
        config = {"sequence_len": 512, "train_on_inputs": False, **subject.config}
        problem = axolotl.tokenize(subject, config, subject.entries("datasets")[int(part.key.split(".")[1])], folder)
        known = any(one.key == f"{part.key}.type" for one in subject.report.findings)
        if problem and (part.made_up or known):
            subject.report.skip(f"{part.key} prompt", f"Axolotl cannot tokenize the rows ({problem})")
            return
        if problem:
            subject.error(
                "data",
                f"{part.key}.type",
                f"Axolotl cannot tokenize the rows with this type ({problem})",
                "rows as the type expects them",
                "take the type that fits the rows, or change their columns",
            )
            return
        text = Path(folder, "examples.jsonl").read_text(encoding="utf-8")
    part.examples = [json.loads(line) for line in text.splitlines()]


def messages(part: Part, row: dict[str, Any]) -> list[dict[str, str]]:
    """The turns before the last answer, for a chat template."""
    if part.format:
        return part.format.messages(row)
    entry = part.entry
    turns = row.get(entry.get("field_messages") or "messages") or row.get("conversations")
    if isinstance(turns, list) and all(isinstance(turn, dict) for turn in turns):
        names = entry.get("message_property_mappings") or {}
        role = names.get("role") or entry.get("message_field_role") or "role"
        content = names.get("content") or entry.get("message_field_content") or "content"
        said = [
            {"role": _role(turn.get(role, turn.get("from"))), "content": str(turn.get(content, turn.get("value", "")))}
            for turn in turns
        ]
        last = max((n for n, turn in enumerate(said) if turn["role"] == "assistant"), default=len(said))
        return said[:last]
    asked = [str(row[name]) for name in ("question", "instruction", "prompt", "input") if row.get(name)]
    return [{"role": "user", "content": "\n".join(asked)}]


def _role(name: Any) -> str:
    return _ROLES.get(str(name), str(name))
