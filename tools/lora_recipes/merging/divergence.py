"""How far a merged model is from its adapter: divergences of next-token distributions on real answers.

Every model is streamed from its files, so that neither time nor memory exceeds that of merging.
"""

from concurrent.futures import Executor
from pathlib import Path
from typing import Any

from lora_recipes.config.runfile import RunFile
from lora_recipes.data import prompts, rows
from lora_recipes.merging import merge_plan, streaming
from lora_recipes.merging.merge_plan import Plan
from lora_recipes.merging.streaming import Weights
from lora_recipes.models import loading, shards

import click

EXAMPLES = 8
_WORK, _TOKENS = 70_000_000_000, 32
"""Parameters times tokens, prompts and padding included, and the fewest tokens: what keeps the time below a merge's."""
_EPSILON = 1e-6
"""Nats; below it a divergence is float32's own rounding."""


def examples(run: RunFile) -> list[dict[str, list[int]]]:
    """The first test rows as prompt and answer tokens, of validation where the data set has no split named test.

    Raises click.ClickException when there are none.
    """
    tokenizer = loading.load_tokenizer(run)
    try:
        parts = rows.load_parts(run, "test")
    except click.ClickException as error:
        if not (parts := rows.load_parts(run, "validation")):
            raise click.ClickException(f"{error.message} Or merge with --no-verify, without test rows.") from None
    return [prompts.example(tokenizer, fmt, row) for found, fmt in parts for row in found[:EXAMPLES]]


def affordable(examples: list[dict[str, list[int]]], parameters: int) -> list[dict[str, list[int]]]:
    """As many examples, padded to the longest, as a model of that size gets through in bounded time.

    Of a large model it is a part of the first one, half prompt and half answer: noise floor and merge are
    measured on the same positions and after the same words, so few of them tell one from the other.
    """
    tokens = max(_TOKENS, _WORK // parameters)
    for count in range(len(examples), 1, -1):
        if count * max(len(example["input_ids"]) for example in examples[:count]) <= tokens:
            return examples[:count]
    begin = max(0, _first_label(examples[0]) - tokens // 2)
    return [{name: values[begin : begin + tokens] for name, values in examples[0].items()}]


def _first_label(example: dict[str, list[int]]) -> int:
    return next(n for n, label in enumerate(example["labels"]) if label != prompts.IGNORED)


def measure(run: RunFile, plan: Plan, folder: Path, examples: list[dict[str, list[int]]]) -> dict[str, float]:
    """Mean Kullback–Leibler divergences in nats over the next-token distributions at all answer positions.

    kl_adapter_merged: from the adapter on the base it is merged onto, in float32, to the merged
    model in the dtype it is stored in.
    kl_adapter_base: from the same to that base alone: how far the adapter moves the model.
    kl_noise_floor: from the same to itself in the coarser of the merged and the training dtype: the
    adapter as PEFT has it, not the merge's plan of it, is folded in float32, then weights and
    arithmetic are cast. What rounding costs any merge; 0 for float32.
    kl_trained_merged: from the adapter on the 4-bit base that it was trained on to the merged model;
    only where it was merged onto another.
    Raises streaming.Unknown for a model whose files do not hold its weights under their own names.
    """
    with shards.workers() as pool:
        return _measure(run, plan, folder, examples, pool)


def _measure(
    run: RunFile, plan: Plan, folder: Path, examples: list[dict[str, list[int]]], pool: Executor
) -> dict[str, float]:
    import torch

    trained = loading.dtype_of(run)
    coarse = max(plan.dtype, trained, key=lambda dtype: torch.finfo(dtype).eps)
    examples = affordable(examples, sum(entry.count for entry in plan.weights))
    click.echo("Verifying: the adapter on its base …", err=True)
    base = Weights(plan.base, pool, *((plan.quantized, trained) if plan.onto == "quantized" else ()))
    model = streaming.opened(base, torch.float32, plan.adapter)
    adapter, without = with_and_without(model, examples)
    result = {"kl_adapter_base": mean_divergence(adapter, without), "kl_noise_floor": 0.0}
    if coarse is not torch.float32:
        streaming.fold(base, model)
        result["kl_noise_floor"] = mean_divergence(adapter, log_probabilities(streaming.opened(base, coarse), examples))
    del model, base
    click.echo("Verifying: the merged model …", err=True)
    merged = log_probabilities(streaming.opened(Weights(folder, pool), plan.dtype), examples)
    result["kl_adapter_merged"] = mean_divergence(adapter, merged)
    if run.four_bit and plan.onto == "full":
        click.echo("Verifying: the adapter on the 4-bit base that it was trained on …", err=True)
        four_bit = Weights(plan.base, pool, merge_plan.quantized_weights(run), trained)
        model = streaming.opened(four_bit, torch.float32, plan.adapter)
        result["kl_trained_merged"] = mean_divergence(log_probabilities(model, examples), merged)
    return result


def with_and_without(model: Any, examples: list[dict[str, list[int]]]) -> tuple[list[Any], list[Any]]:
    """The log-probabilities of an adapted model and of its base; in one pass where PEFT can mix them."""
    name, count = streaming.ADAPTER, len(examples)
    if model.peft_config[name].use_dora or model.peft_config[name].modules_to_save:
        with model.disable_adapter():
            without = log_probabilities(model, examples)
        return log_probabilities(model, examples), without
    both = log_probabilities(model, 2 * examples, adapter_names=count * [name] + count * ["__base__"])
    return both[:count], both[count:]


def log_probabilities(model: Any, examples: list[dict[str, list[int]]], **more: Any) -> list[Any]:
    """For each example the log-probabilities, (answer tokens, vocabulary) in float32, on the CPU; of one batch.

    `more` goes to the model's call.
    """
    import torch

    lengths = [len(example["input_ids"]) for example in examples]
    first = [_first_label(example) - 1 for example in examples]
    ids = torch.zeros(len(examples), max(lengths), dtype=torch.long)
    for n, example in enumerate(examples):
        ids[n, : lengths[n]] = torch.tensor(example["input_ids"])
    seen = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    asked = torch.arange(min(first), max(lengths) - 1)
    given = {"input_ids": ids, "attention_mask": seen, "logits_to_keep": asked}
    with torch.no_grad():
        logits = model(**{name: tensor.to(model.device) for name, tensor in given.items()}, **more).logits
    parts = [
        logits[n, begin - asked[0] : end - 1 - asked[0]]
        for n, (begin, end) in enumerate(zip(first, lengths, strict=True))
    ]
    return [part.float().log_softmax(-1).cpu() for part in parts]


def mean_divergence(true: list[Any], other: list[Any]) -> float:
    """The mean over all positions of Σ p·(log p − log q), in nats."""
    each = [(p.double().exp() * (p.double() - q.double())).sum(-1) for p, q in zip(true, other, strict=True)]
    mean = float(sum(part.sum() for part in each) / sum(part.numel() for part in each))
    return max(mean, 0.0)  # in this order NaN stays NaN


def verdict(kl: dict[str, float]) -> str:
    """`verified`, `inconclusive` or `failed`.

    A right merge differs from its adapter by the noise floor; three are allowed. Where the base
    without the adapter would pass too, the test shows nothing, and only the tensors speak.
    """
    allowed = max(3 * kl["kl_noise_floor"], _EPSILON)
    if not kl["kl_adapter_merged"] <= allowed:  # NaN fails
        return "failed"
    return "verified" if kl["kl_adapter_base"] > allowed else "inconclusive"
