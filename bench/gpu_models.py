"""What bench/gpu.py trains: models of true dimensions with random weights, and rows of true lengths without text."""

import json
from dataclasses import dataclass
from typing import Any

from lora_recipes import ROOT

CHARACTERS = 4.17
"""Of the embedded questions and answers a token, by SmolLM2's tokenizer."""

SYSTEM = 23
"""Tokens of the recipes' system prompt and of the turns' special tokens."""

Example = dict[str, list[int]]
"""`input_ids` and `labels` of one row."""


@dataclass(frozen=True)
class Shape:
    """A model's configuration in transformers, and the LoRA adapter on it."""

    kind: str
    """The prefix of its configuration's class."""
    dimensions: dict[str, Any]
    rank: int
    targets: tuple[str, ...]


SHAPES = {
    # config.json of microsoft/Phi-4-mini-instruct; the long-context scaling of its RoPE is left out.
    "phi4-mini": Shape(
        "Phi3",
        dict(
            num_hidden_layers=32,
            hidden_size=3072,
            intermediate_size=8192,
            num_attention_heads=24,
            num_key_value_heads=8,
            vocab_size=200064,
            tie_word_embeddings=True,
            max_position_embeddings=131072,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.75},
            pad_token_id=199999,
        ),
        rank=8,
        targets=("qkv_proj", "o_proj"),
    ),
    # config.json of meta-llama/Llama-3.1-8B; the long-context scaling of its RoPE is left out.
    "llama3.1-8b": Shape(
        "Llama",
        dict(
            num_hidden_layers=32,
            hidden_size=4096,
            intermediate_size=14336,
            num_attention_heads=32,
            num_key_value_heads=8,
            vocab_size=128256,
            tie_word_embeddings=False,
            max_position_embeddings=131072,
            rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
        ),
        rank=16,
        targets=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    ),
}


def made(shape: Shape, device: str) -> Any:
    """A model with random bf16 weights and a fresh adapter."""
    import torch
    import transformers
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    config = getattr(transformers, f"{shape.kind}Config")(**shape.dimensions)
    with torch.device(device):
        base = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    base.config.use_cache = False
    lora = LoraConfig(
        r=shape.rank, lora_alpha=16, target_modules=list(shape.targets), bias="none", task_type="CAUSAL_LM"
    )
    return get_peft_model(base, lora)


def history(count: int) -> list[tuple[int, int]]:
    """Tokens of prompts and answers of the embedded African-history set's training rows, in file order, and again."""
    lines = (ROOT / "data" / "african_history" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    found = [json.loads(lines[number % len(lines)]) for number in range(count)]
    return [(SYSTEM + _tokens(row["question"]), 1 + _tokens(row["answer"])) for row in found]


def _tokens(text: str) -> int:
    return round(len(text) / CHARACTERS)


def examples(lengths: list[tuple[int, int]], vocabulary: int) -> list[Example]:
    """Random tokens of these lengths, the prompt without loss."""
    from lora_recipes.data import prompts

    import torch

    generator = torch.Generator().manual_seed(0)
    found = []
    for prompt, answer in lengths:
        ids = torch.randint(10, vocabulary, (prompt + answer,), generator=generator).tolist()
        found.append({"input_ids": ids, "labels": [prompts.IGNORED] * prompt + ids[prompt:]})
    return found
