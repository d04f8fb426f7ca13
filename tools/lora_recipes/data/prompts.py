"""The one definition of prompt and mask: what a model reads, what it is asked, which tokens carry loss.

A data set's `type:` in the run file is Axolotl's mapping of formats and columns. For one row it gives
the prompt text; the answer follows and is closed by the tokenizer's end token. The prompt and the
answer are tokenized apart, so that the prompt at evaluation is the same tokens as in training.
"""

import string
from dataclasses import dataclass
from typing import Any

from lora_recipes.config.runfile import RunFile

IGNORED = -100
"""The label of a token without loss, as in torch's cross-entropy."""

_DEFAULTS = {  # of axolotl 0.19, prompt_strategies/user_defined.py
    "system_prompt": "",
    "field_system": "system",
    "field_instruction": "instruction",
    "field_input": "input",
    "field_output": "output",
    "format": "{instruction} {input} ",
    "no_input_format": "{instruction} ",
    "system_format": "{system}",
}

_COLUMNS = {"format": ("instruction", "input"), "no_input_format": ("instruction",), "system_format": ("system",)}
"""What Axolotl fills into each format; {{ and }} are braces."""


@dataclass(frozen=True)
class PromptFormat:
    """How the columns of a row become the text before the answer."""

    system_prompt: str
    field_system: str
    field_instruction: str
    field_input: str
    field_output: str
    format: str
    no_input_format: str
    system_format: str

    def prompt(self, row: dict[str, Any]) -> str:
        """The text before the answer, as Axolotl builds it."""
        system = row.get(self.field_system, self.system_prompt)
        before = _filled(self.system_format, system=system) if system else ""
        if extra := row.get(self.field_input):
            return before + _filled(self.format, instruction=row[self.field_instruction], input=extra)
        return before + _filled(self.no_input_format, instruction=row[self.field_instruction])

    def messages(self, row: dict[str, Any]) -> list[dict[str, str]]:
        """The same question for a chat template: the user turn runs from the first column to the last."""
        system = row.get(self.field_system, self.system_prompt)
        turns = [{"role": "system", "content": system}] if system else []
        extra = row.get(self.field_input)
        pieces = list(string.Formatter().parse(self.format if extra else self.no_input_format))
        named = [number for number, (_, name, _, _) in enumerate(pieces) if name]
        values = {"instruction": row[self.field_instruction], "input": extra}
        turn = ""
        for number in range(named[0], named[-1] + 1) if named else ():
            text, name, _, _ = pieces[number]
            turn += (text if number > named[0] else "") + (f"{values[name]}" if name else "")
        return [*turns, {"role": "user", "content": turn}]

    @property
    def columns(self) -> tuple[str, str]:
        """The columns that every row must have."""
        return self.field_instruction, self.field_output


def _filled(text: str, **values: Any) -> str:
    """A format with the values of its columns; unlike str.format it knows no attributes, numbers or widths."""
    return "".join(plain + (f"{values[name]}" if name else "") for plain, name, _, _ in string.Formatter().parse(text))


def _no_text(value: Any) -> str:
    return "" if isinstance(value, str) else f"expected a text, found {value!r}; put it in quotes"


def _problem(text: Any, names: tuple[str, ...]) -> str:
    """Why Axolotl could not fill a format, or not with the columns alone; '' where it can."""
    if not isinstance(text, str):
        return _no_text(text)
    known = " and ".join(f"{{{name}}}" for name in names)
    try:
        pieces = list(string.Formatter().parse(text))
    except ValueError as error:
        return f"{error}; write {known} for the columns, and {{{{ or }}}} for a brace"
    strange = [piece for piece in pieces if piece[1] is not None and (piece[1] not in names or piece[2] or piece[3])]
    if strange:
        _, name, spec, conversion = strange[0]
        shown = f"{name}{f'!{conversion}' if conversion else ''}{f':{spec}' if spec else ''}"[:40]
        return f"{{{shown}}} stands for no column; write {known} alone, and {{{{ or }}}} for a brace"
    return ""


def prompt_format(run: RunFile, index: int = 0, key: str = "datasets") -> PromptFormat:
    """The format of one data set of a run file.

    Raises click.ClickException for a `type:` that is a name: only Axolotl itself knows those.
    """
    kind = run.config[key][index].get("type")
    if not isinstance(kind, dict):
        raise run.error(
            f"{key}.{index}.type",
            f"{kind!r} is a format built into Axolotl; spell the prompt out as a mapping "
            "(system_format, no_input_format, field_instruction, field_output), as the recipes do.",
        )
    if strange := set(kind) - set(_DEFAULTS):
        name = sorted(strange)[0]
        raise run.error(f"{key}.{index}.type.{name}", "not part of a question/answer prompt; delete it.")
    known = {name: value for name, value in kind.items() if value is not None}  # Axolotl drops null
    for name, value in known.items():
        if problem := _problem(value, _COLUMNS[name]) if name in _COLUMNS else _no_text(value):
            raise run.error(f"{key}.{index}.type.{name}", f"{problem}.")
    return PromptFormat(**{**_DEFAULTS, **known})


def prompt_ids(tokenizer: Any, text: str) -> list[int]:
    """The token ids of a prompt, without an end token."""
    return list(tokenizer(text)["input_ids"])


def answer_ids(tokenizer: Any, text: str) -> list[int]:
    """The token ids of an answer and the end token, without a begin token."""
    return _ended(tokenizer, tokenizer(text)["input_ids"])


def _ended(tokenizer: Any, ids: list[int]) -> list[int]:
    if not ids or ids[-1] != tokenizer.eos_token_id:
        ids = [*ids, tokenizer.eos_token_id]
    return ids[1:] if ids[0] == tokenizer.bos_token_id else ids


def example(tokenizer: Any, fmt: PromptFormat, row: dict[str, Any], on_prompt: bool = False) -> dict[str, list[int]]:
    """One row as `input_ids` and `labels` of equal length; the prompt carries loss only `on_prompt`."""
    return examples(tokenizer, fmt, [row], on_prompt)[0]


def examples(
    tokenizer: Any, fmt: PromptFormat, rows: list[dict[str, Any]], on_prompt: bool = False
) -> list[dict[str, list[int]]]:
    """As `example`, all rows at once: the tokenizer works on them in parallel."""
    if not rows:
        return []
    asked = tokenizer([fmt.prompt(row) for row in rows])["input_ids"]
    answers = tokenizer([row[fmt.field_output] for row in rows])["input_ids"]
    made = []
    for prompt, ids in zip(asked, answers, strict=True):
        answer = _ended(tokenizer, ids)
        labels = (prompt if on_prompt else [IGNORED] * len(prompt)) + answer
        made.append({"input_ids": prompt + answer, "labels": labels})
    return made


def chat_prompt(
    tokenizer: Any, fmt: PromptFormat, row: dict[str, Any], template_kwargs: dict[str, Any] | None = None
) -> str:
    """The prompt at evaluation: through the chat template, or the run file's format without one.

    `template_kwargs` is the run file's chat_template_kwargs: what the template takes beside the turns.
    """
    if not getattr(tokenizer, "chat_template", None):
        return fmt.prompt(row)
    options = {"tokenize": False, "add_generation_prompt": True, **(template_kwargs or {})}
    return str(tokenizer.apply_chat_template(fmt.messages(row), **options))


def asked_ids(
    tokenizer: Any, fmt: PromptFormat, row: dict[str, Any], template_kwargs: dict[str, Any] | None = None
) -> list[int]:
    """The prompt at evaluation as token ids. Raises what the chat template raises."""
    return text_ids(tokenizer, chat_prompt(tokenizer, fmt, row, template_kwargs))


def text_ids(tokenizer: Any, text: str) -> list[int]:
    """The token ids of what chat_prompt gives: a chat template writes the begin token itself where there is one."""
    return list(tokenizer(text, add_special_tokens=not tokenizer.chat_template)["input_ids"])
