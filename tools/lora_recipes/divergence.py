"""How far a merged model is from its adapter: divergences of next-token distributions on real answers."""

import dataclasses
from pathlib import Path
from typing import Any

from lora_recipes import models, prompts, rows
from lora_recipes.mergeplan import Plan
from lora_recipes.runfile import RunFile

import click

EXAMPLES = 8
_EPSILON = 1e-6
"""Nats; below it a divergence is float32's own rounding."""


def examples(run: RunFile) -> list[dict[str, list[int]]]:
    """The first test rows as prompt and answer tokens. Raises click.ClickException when there are none."""
    tokenizer = models.load_tokenizer(run)
    try:
        parts = rows.load_parts(run, f"test[:{EXAMPLES}]")
    except click.ClickException as error:
        raise click.ClickException(f"{error.message} Or merge with --no-verify, without test rows.") from None
    return [prompts.example(tokenizer, fmt, row) for found, fmt in parts for row in found]


def measure(run: RunFile, plan: Plan, folder: Path, examples: list[dict[str, list[int]]]) -> dict[str, float]:
    """Mean Kullback–Leibler divergences in nats over the next-token distributions at all answer positions.

    kl_adapter_merged: from the adapter on the base it is merged onto, in float32, to the merged
    model in the dtype it is stored in.
    kl_adapter_base: from the same to that base alone: how far the adapter moves the model.
    kl_noise_floor: from the same to itself in the coarser of the merged and the training dtype: PEFT
    merges it in float32, then weights and arithmetic are cast. What rounding costs any merge; 0 for
    float32.
    kl_trained_merged: from the adapter on the 4-bit base that it was trained on to the merged model;
    only where it was merged onto another.
    """
    import torch

    coarse = max(plan.dtype, models.dtype_of(run), key=lambda dtype: torch.finfo(dtype).eps)
    run = changed(run, attn_implementation="sdpa", deepspeed=None)  # flash attention has no float32
    click.echo("Verifying: the adapter on its base …", err=True)
    model = adapted(run, plan, plan.onto == "quantized")
    adapter = log_probabilities(model, examples)
    with model.disable_adapter():
        result = {"kl_adapter_base": mean_divergence(adapter, log_probabilities(model, examples))}
    if coarse is torch.float32:
        result["kl_noise_floor"] = 0.0
    else:
        model = model.merge_and_unload()
        for parameter in model.parameters():  # not the buffers: rotary frequencies stay in float32
            parameter.data = parameter.data.to(coarse)
        result["kl_noise_floor"] = mean_divergence(adapter, log_probabilities(model, examples))
    del model
    click.echo("Verifying: the merged model …", err=True)
    merged = models.load_base(changed(run, base_model=str(folder)), plan.dtype, quantized=False).eval()
    found = log_probabilities(merged, examples)
    result["kl_adapter_merged"] = mean_divergence(adapter, found)
    del merged
    if run.config.get("load_in_4bit") and plan.onto == "full":
        click.echo("Verifying: the adapter on the 4-bit base that it was trained on …", err=True)
        result["kl_trained_merged"] = mean_divergence(log_probabilities(adapted(run, plan, True), examples), found)
    return result


def changed(run: RunFile, **keys: Any) -> RunFile:
    return dataclasses.replace(run, document=dataclasses.replace(run.document, data={**run.config, **keys}))


def adapted(run: RunFile, plan: Plan, quantized: bool) -> Any:
    """The adapter on its base in float32 arithmetic; a 4-bit base with the very weights of training.

    Those are dequantized once: on some CPUs bitsandbytes' own inference rounds block scales to
    bfloat16, which training does not.
    """
    import torch

    model = models.load_base(run, models.dtype_of(run) if quantized else torch.float32, quantized)
    if quantized:
        model = model.dequantize(dtype=torch.float32).float()
    if plan.untied:  # or PEFT's merge would write the head's change into the embeddings too
        head = model.get_output_embeddings()
        head.weight = torch.nn.Parameter(head.weight.detach().clone())
    return models.load_adapter(model, plan.adapter).eval()


def log_probabilities(model: Any, examples: list[dict[str, list[int]]]) -> list[Any]:
    """For each example the log-probabilities, (answer tokens, vocabulary) in float32, on the CPU."""
    import torch

    found = []
    with torch.no_grad():
        for example in examples:
            first = next(n for n, label in enumerate(example["labels"]) if label != prompts.IGNORED)
            ids = torch.tensor([example["input_ids"]], device=model.device)
            logits = model(input_ids=ids).logits[0, first - 1 : -1]
            found.append(logits.float().log_softmax(-1).cpu())
    return found


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
