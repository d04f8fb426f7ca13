"""Finding tokens, keys and passwords in a text, so that no message repeats them."""

import re
from collections.abc import Iterator

_KINDS = {
    "a Hugging Face token": r"(?<!\w)(hf_[A-Za-z0-9]{20,})",
    "a Weights & Biases key": r"(?<!\w)(wandb_v1_[\w-]{20,})",
    "an API key": r"(?<![\w-])(sk-[\w-]{20,})",
    "a GitHub token": r"(?<!\w)(gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{22,})",
    "an AWS access key": r"(?<!\w)((?:AKIA|ASIA)[A-Z0-9]{16})(?!\w)",
    "a Google API key": r"(?<!\w)(AIza[\w-]{35})(?![\w-])",
    "a Slack token": r"(?<!\w)(xox[abeoprs]-[\w-]{10,})",
    "a signed web token (JWT)": r"(?<!\w)(eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]{8,})",
    "a private key": r"(-----BEGIN [A-Z ]*PRIVATE KEY-----)",
    "a password in an address": r"\w://[^/\s:@]*:([^/\s@<>${}]{3,})@",
}
_HEX_KEY = re.compile(r"(?<![\w@/.-])([0-9a-f]{40})(?![\w-])")
_HEX_IS_NO_KEY = re.compile(r"revision|commit|sha|hash|digest|checksum|\brev\b|dataset_prepared_path", re.IGNORECASE)


def secrets_in(text: str) -> Iterator[tuple[str, str]]:
    """The kind and the text of each token-like part of a line."""
    for kind, pattern in _KINDS.items():
        for match in re.finditer(pattern, text):
            if len(set(match.group(1)[6:])) > 4 or "password" in kind:  # hf_xxxxxxxx stands for one
                yield kind, match.group(1)
    if not _HEX_IS_NO_KEY.search(text):
        for match in _HEX_KEY.finditer(text):
            yield "what looks like a Weights & Biases key", match.group(1)


def scrubbed(text: str) -> str:
    """The text with … in place of each secret, for messages that quote what a user wrote."""
    for _, secret in list(secrets_in(text)):
        text = text.replace(secret, "…")
    return text
