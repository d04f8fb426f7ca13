"""Special tokens inside rows: Axolotl and the plain trainer take them for structure, whoever wrote them."""

import json
from collections import Counter
from collections.abc import Iterable
from typing import Any

ROLES = ("role", "from")
"""Keys of a message that hold a word of the chat template's, not text."""


def ids(tokenizer: Any) -> set[int]:
    """The ids of the special tokens, which begin or end texts and turns."""
    return {number for number, token in tokenizer.added_tokens_decoder.items() if token.special} | set(
        tokenizer.all_special_ids
    )


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


def beyond(tokenizer: Any, special: set[int], row: dict[str, Any], made: list[int], blank: list[int]) -> Counter[int]:
    """The `special` tokens of a row's ids `made`, counted by id, beyond those of its blanked copy.

    The unknown token counts only where its text is in the row: it stands for rare characters, too.
    """
    counts, own = (Counter(token for token in tokens if token in special) for tokens in (made, blank))
    counts -= own
    if counts[tokenizer.unk_token_id] and tokenizer.unk_token not in json.dumps(row, ensure_ascii=False, default=str):
        del counts[tokenizer.unk_token_id]
    return counts


def escaped(tokenizer: Any, text: str) -> str:
    """The text with a space after the first character of each special token, so that it is read as text.

    A token that a space does not hold apart, because the tokenizer drops spaces or it has one character, is removed.
    """
    space, special = " ", ids(tokenizer)
    while spans := _spans(tokenizer, special, text):
        for start, end in reversed(spans):
            instead = f"{text[start]}{space}{text[start + 1 : end]}" if space and end - start > 1 else ""
            text = text[:start] + instead + text[end:]
        space = ""
    return text


def _spans(tokenizer: Any, special: set[int], text: str) -> list[tuple[int, int]]:
    """The places of special tokens in a text, as the tokenizer finds them after its own normalization."""
    made = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return [
        (start, end)
        for token, (start, end) in zip(made["input_ids"], made["offset_mapping"], strict=True)
        if token in special and start < end
        if token != tokenizer.unk_token_id or text[start:end] == tokenizer.unk_token
    ]
