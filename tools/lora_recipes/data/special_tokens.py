"""Special tokens inside rows: Axolotl and the plain trainer take them for structure, whoever wrote them."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

ROLES = ("role", "from")
"""Keys of a message that hold a word of the chat template's, not text."""


def ids(tokenizer: Any) -> set[int]:
    """The ids that begin or end texts and turns; not the unknown token's, which stands for rare characters."""
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    structure = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
    return (special | set(tokenizer.all_special_ids)) - ({tokenizer.unk_token_id} - structure)


def blanked(row: dict[str, Any], roles: Iterable[str] = ROLES) -> dict[str, Any]:
    """A row with one letter in place of each text: what it has of special tokens comes from the format or template.

    Empty texts, other types and the roles of messages stay, since a template may depend on them.
    """
    return {name: _blanked(value, name, {*roles}) for name, value in row.items()}


def _blanked(value: Any, key: str, roles: set[str]) -> Any:
    if isinstance(value, str):
        return value if not value.strip() or (key in roles and value.isidentifier()) else "a"
    if isinstance(value, dict):
        return {name if name.isidentifier() else "a": _blanked(one, name, roles) for name, one in value.items()}
    return [_blanked(one, key, roles) for one in value] if isinstance(value, list) else value


def beyond(tokenizer: Any, found: list[int], blank: list[int]) -> Counter[int]:
    """The special tokens of a tokenized row, counted by id, that its blanked copy has not."""
    special = ids(tokenizer)
    return Counter(token for token in found if token in special) - Counter(token for token in blank if token in special)


def escaped(tokenizer: Any, text: str) -> str:
    """The text with a space after the first character of each special token, so that it is read as text.

    A token that a space does not hold apart, because the tokenizer drops spaces or it has one character, is removed.
    """
    space = " "
    while spans := _spans(tokenizer, text):
        for start, end in reversed(spans):
            instead = f"{text[start]}{space}{text[start + 1 : end]}" if space and end - start > 1 else ""
            text = text[:start] + instead + text[end:]
        space = ""
    return text


def _spans(tokenizer: Any, text: str) -> list[tuple[int, int]]:
    """The places of special tokens in a text, as the tokenizer finds them after its own normalization."""
    special = ids(tokenizer)
    made = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    pairs = zip(made["input_ids"], made["offset_mapping"], strict=True)
    return [(start, end) for token, (start, end) in pairs if token in special and start < end]
