"""Peak device memory of training an adapter, estimated from the base model's dimensions for the headers.

An upper estimate, with rows padded to the longest and no fused kernels. What a layer keeps for the backward pass was
counted from the tensors that autograd saves; tests/rendering/test_memory_model.py compares the two.
"""

import functools
from dataclasses import dataclass
from typing import Any

from lora_recipes import ROOT
from lora_recipes.rendering import computed_keys
from lora_recipes.rendering.ingredients import Rendered
from lora_recipes.support import files

import yaml

MODELS = ROOT / "templates" / "models.yaml"

_LOGIT = 12
"""Bytes a logit: in 16 bit, its float32 copy, and both their gradients; or three times float32."""

_CHUNK = 2**26
"""Logits at a time in tools/train.py (training/chunked_loss.py)."""

_FOUR_BIT = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Bytes a weight of NF4 with double quantization: a code, a scale for 64 codes, a scale for 256 scales."""

_GATHERED = 1e9
"""Weights that ZeRO-3 holds gathered at a time: DeepSpeed's default of stage3_max_live_parameters."""


@dataclass(frozen=True)
class Model:
    """A base model as templates/models.yaml has it; all sizes in numbers."""

    layers: int
    hidden: int
    heads: int
    mlp: int
    kept: int
    normed: int
    words: int
    tied: bool
    linear: dict[str, list[int]]

    @property
    def inner(self) -> int:
        """Weights of the layers' linear modules."""
        return self.layers * sum(inputs * outputs for inputs, outputs in self.linear.values())

    @property
    def outer(self) -> int:
        """Weights of the embedding and the head."""
        return self.words * self.hidden * (1 if self.tied else 2)


@dataclass(frozen=True)
class Memory:
    """What a training step needs on each device in bytes, without the device's own overhead."""

    fixed: float
    """Independent of the rows."""
    token: float
    """For each token of a micro batch, padding included."""

    def bytes(self, tokens: int) -> float:
        return self.fixed + self.token * tokens

    def tokens(self, room: float) -> int:
        """Tokens of a micro batch that fit into as many bytes; negative where not even the weights do."""
        return int((room - self.fixed) // self.token)


@functools.cache
def models() -> dict[str, Model]:
    """Name of the base model -> its dimensions."""
    return {name: Model(**facts) for name, facts in yaml.safe_load(files.read_text(MODELS)).items()}


def estimate(run: dict[str, Any], model: Model, gpus: int = 1, chunked: bool = False) -> Memory:
    """The memory that a run file needs on each GPU; chunked: with logits in chunks, as in tools/train.py."""
    size = 2 if run.get("bf16") or run.get("fp16") else 4
    adapted = _adapted(run, model)
    weights = model.inner * (_FOUR_BIT if run.get("load_in_4bit") else size) + model.outer * size
    if computed_keys.zero_stage(run) == 3:
        weights = weights / gpus + min(model.inner + model.outer, _GATHERED) * size
    trained = model.layers * sum(run["lora_r"] * (inputs + outputs) for inputs, outputs in adapted.values())
    fixed = weights + 16 * trained  # float32: the weight, its gradient, Adam's two moments
    layer = _kept(bool(run.get("lora_dropout")), adapted, model, size)
    if run.get("load_in_4bit"):
        fixed += size * max(inputs * outputs for inputs, outputs in model.linear.values())  # one, dequantized
    if run.get("peft_use_dora"):
        fixed += _dora_weights(model.layers if run.get("lora_dropout") else 0, adapted, size)
        layer += size * 2 * sum(outputs for _, outputs in adapted.values())  # the base's output and the adapter's
    token: float = model.layers * layer
    if run.get("gradient_checkpointing"):
        token = model.layers * size * model.hidden + layer  # what enters each layer, and one layer made again
    if chunked:
        return Memory(fixed + (size + 4) * _CHUNK, token)
    return Memory(fixed, token + _LOGIT * model.words)


def _adapted(run: dict[str, Any], model: Model) -> dict[str, tuple[int, int]]:
    """Inputs and outputs of the linear modules that get an adapter; all of them where a pattern selects them."""
    targets = run.get("lora_target_modules")
    if run.get("lora_target_linear") or not isinstance(targets, list):
        targets = list(model.linear)
    return {name: (shape[0], shape[1]) for name, shape in model.linear.items() if name in targets}


def _kept(dropout: bool, adapted: dict[str, tuple[int, int]], model: Model, size: int) -> int:
    """Bytes that a layer keeps of a token for the backward pass.

    The float32 input of every norm; queries, keys and values, repeated for all heads, and the attention's output; the
    MLP's activation; and what enters each A matrix: under dropout its mask and a copy, else in 16 bit the copy of a
    cast. In float32 without dropout there is no copy: modules that read the same share it.
    """
    if dropout or size == 2:
        entering = (size + dropout) * sum(inputs for inputs, _ in adapted.values())
    else:
        readers = ({"q_proj", "k_proj", "v_proj", "qkv_proj"}, {"gate_proj", "up_proj", "gate_up_proj", "fc1"})
        entering = size * sum(model.hidden for names in readers if names & adapted.keys())
        entering += size * model.mlp * bool({"down_proj", "fc2"} & adapted.keys())
    return 4 * model.normed + size * (4 * model.heads + model.kept * model.mlp) + entering


def _dora_weights(copies: int, adapted: dict[str, tuple[int, int]], size: int) -> int:
    """DoRA under dropout keeps a copy of every adapted weight; the lengths of its rows are measured in float32."""
    kept = copies * size * sum(inputs * outputs for inputs, outputs in adapted.values())
    return kept + max((6 * inputs**2 + 10 * inputs * outputs for inputs, outputs in adapted.values()), default=0)


_CARDS = (8, 12, 16, 24, 40, 48, 80)
"""What GPUs are sold with, in GB."""

_USABLE = 0.93 * 2**30
"""Bytes for each GB of a card's name: a T4 of 16 GB has 15.0 GiB, an L4 of 24 has 22.5, an A40 of 48 has 45.0."""

_OVERHEAD = 2**30
"""Bytes of the CUDA context, of libraries and of what lies between tensors."""

_LONG = 3
"""Rows of as many times the average length have to fit: a micro batch is padded to its longest."""


def hardware(made: Rendered, plain: bool = False) -> list[str]:
    """The hardware that a run file needs, in one line or two; plain: tools/train.py takes the file as well.

    These are the recipe's own words for a CPU, and where the base model's dimensions are not known.
    """
    run, facts = made.run, made.facts
    model = models().get(str(run.get("base_model")))
    if facts["cpu"] or model is None or run.get("adapter") not in ("lora", "qlora") or not run.get("lora_r"):
        own = "for the recipe's own base model: " if "base_model" in made.set_keys else ""
        return [own + facts["hardware"]]
    memory = estimate(run, model, facts["gpus"])
    micro, limit = run.get("micro_batch_size") or 1, run.get("sequence_len") or 512
    average = 0 if run.get("sample_packing") or run.get("pad_to_sequence_len") else facts["row_tokens"]
    row = min(limit, _LONG * average or limit)
    card = _card(memory, micro * row)
    lines = [_rows(memory, card, facts["gpus"], micro, row, limit)]
    if row < limit:
        lines[0] += f"; the data's have {average} on average"
    single, whole = _card(memory, row), f"{_card(memory, limit) or 'over 80'} GB for rows of {limit:,} tokens"
    alone = [f"{single} GB"] * (single is not None and single != card) + [whole] * (row < limit)
    if micro > 1 and alone:
        lines.append(f"render --set micro_batch_size=1: {', and '.join(alone)}")
    if plain and (less := _card(estimate(run, model, facts["gpus"], chunked=True), micro * row)) != card:
        lines.append(f"tools/train.py, which makes its logits in chunks: {less} GB")
    return lines


def _rows(memory: Memory, card: int | None, gpus: int, micro: int, row: int, limit: int) -> str:
    """The card, and the longest rows that fit on it."""
    what = f"{micro} rows a pass" if micro > 1 else "one row a pass"
    where = f"{gpus} GPUs with {card or 'over 80'} GB each" if gpus > 1 else f"one GPU with {card or 'over 80'} GB"
    if card is None:
        return f"{where}: {what} of {row:,} tokens"
    most = memory.tokens(card * _USABLE - _OVERHEAD) // micro
    return f"{where}: {what} of up to " + (
        f"{most:,} tokens" if most < limit else f"{limit:,} tokens, its sequence_len"
    )


def _card(memory: Memory, tokens: int) -> int | None:
    """The smallest card for a micro batch of as many tokens; None when none of _CARDS is large enough."""
    return next((card for card in _CARDS if memory.bytes(tokens) + _OVERHEAD <= card * _USABLE), None)
