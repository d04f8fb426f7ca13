"""The questions of an evaluation as tokens, and what identifies the answers to them."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_recipes.config.runfile import RunFile
from lora_recipes.data import prompts, rows
from lora_recipes.models import adapters
from lora_recipes.support import files, libraries

_NOT_ASKED = ("output_dir", "adapter", "plugins", "deepspeed", "load_in_4bit", "bf16", "fp16", "attn_implementation")
"""Keys in which run files may differ, beside those of LoRA and PEFT, that ask the same questions in the same tokens."""


@dataclass(frozen=True)
class Question:
    """One row of a split: its place from 0, its texts, its prompt and its reference answer as tokens."""

    row: int
    question: str
    reference: str
    prompt_ids: list[int]
    reference_ids: list[int]
    """With the end token."""


def load(run: RunFile, tokenizer: Any, split: str) -> tuple[list[Question], str]:
    """The questions of a split, and where asking differs from training: '' when it does not.

    Asked is through the model's chat template, trained through the run file's format (defect S3 of the
    reference projects): the second value shows the first row in which the tokens differ.
    Raises click.ClickException for rows that cannot be read and a template that refuses the prompt.
    """
    found: list[Question] = []
    mismatch = ""
    for part, fmt in rows.load_parts(run, split):
        for row in part:
            try:
                ids = prompts.asked_ids(tokenizer, fmt, row, run.chat_template_kwargs)
            except Exception as error:  # a template may raise anything about the turns that it is given
                words = f"the model's chat template refuses the prompt: {libraries.reason(error)}; change the prompt."
                raise run.error("datasets.0.type", words) from None
            trained = prompts.prompt_ids(tokenizer, fmt.prompt(row))
            if ids != trained and not mismatch:
                mismatch = f"asked {tokenizer.decode(ids)!r}, trained {tokenizer.decode(trained)!r}"
            reference_ids = prompts.answer_ids(tokenizer, row[fmt.field_output])
            found.append(Question(len(found), row[fmt.field_instruction], row[fmt.field_output], ids, reference_ids))
    if not found:
        raise run.error("test_datasets", f"missing: the run file has no {split} rows; name another --split.")
    return found, mismatch


def asked_alike(run: RunFile) -> str:
    """What is equal for run files whose questions have the same tokens: all but what trains or loads the model."""
    config = run.config.items()
    told = [(key, value) for key, value in config if key not in _NOT_ASKED and not key.startswith(("lora_", "peft_"))]
    return repr((run.anchor, sorted(told)))


def end_tokens(run: RunFile, tokenizer: Any) -> list[int]:
    """Every token that ends a turn: those of the model's generation config and the tokenizer's end token."""
    from transformers import AutoConfig, GenerationConfig

    try:
        named = GenerationConfig.from_pretrained(run.model()).eos_token_id
    except OSError:
        named = AutoConfig.from_pretrained(run.model(), trust_remote_code=False).eos_token_id
    ends = named if isinstance(named, list) else [named]
    return sorted({token for token in [*ends, tokenizer.eos_token_id] if token is not None})


def hashes(settings: dict[str, Any], questions: list[Question]) -> dict[int, str]:
    """Row -> a hash over everything that determines its answer: the settings, its prompt, its reference."""
    return {
        question.row: _digest([settings, question.prompt_ids, question.reference, question.reference_ids])[:16]
        for question in questions
    }


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def adapter_identity(folder: Path) -> str:
    """A hash of an adapter's weights and of the settings that they are applied with."""
    config = json.loads((folder / adapters.FILES[1]).read_text(encoding="utf-8"))
    applied = {
        key: sorted(value, key=str) if isinstance(value, list) else value
        for key, value in config.items()
        if key not in ("base_model_name_or_path", "revision", "peft_version", "inference_mode")
    }
    return _digest([files.sha256(folder / adapters.FILES[0]), applied])
