"""Special tokens inside rows: they end and begin turns as those of the prompt do, and are trained as such."""

from collections import Counter

from lora_recipes.check.checked_run import CheckedRun
from lora_recipes.check.parts import Part
from lora_recipes.data import special_tokens

_MEANT = ("completion", "input_output", "pretrain")
"""Types whose rows are the whole text, with the special tokens that it is to have."""
_SHOWN = 5


def check(checked: CheckedRun, training: list[Part]) -> None:
    """Count special tokens of the tokenized rows beyond those that the format or the chat template puts there."""
    for part in training:
        kind = str(part.entry.get("type")).partition(".")[0]
        if part.made_up or not part.examples or kind in _MEANT:
            continue
        blank, own = part.blank
        if len(part.examples) != len(part.rows) or len(part.blank_examples) != len(blank):
            checked.report.skip(f"{part.key} special tokens", "the rows and their tokenized form are not one for one")
            continue
        special = special_tokens.ids(checked.tokenizer)
        found = [
            special_tokens.beyond(
                checked.tokenizer, special, row, made["input_ids"], part.blank_examples[at]["input_ids"]
            )
            for row, made, at in zip(part.rows, part.examples, own, strict=True)
        ]
        _report(checked, part, found)


def _report(checked: CheckedRun, part: Part, found: list[Counter[int]]) -> None:
    rows = [number for number, tokens in enumerate(found, 1) if tokens]
    if not rows:
        return
    counts = sum(found, Counter[int]())
    tokens = ", ".join(f"{checked.tokenizer.convert_ids_to_tokens(token)} {n:,} x" for token, n in counts.most_common())
    shown = ", ".join(str(number) for number in rows[:_SHOWN]) + (", …" if len(rows) > _SHOWN else "")
    checked.error(
        "special-tokens",
        f"{part.key}.path",
        f"{len(rows):,} of {len(found):,} rows hold special tokens of the model ({tokens}; rows {shown}): "
        "training takes them for the ends and beginnings of turns",
        "special tokens from the prompt's format or the chat template alone",
        "build the data with tools/data.py build --special-tokens escape (or drop, for the rows) and this --tokenizer",
    )
