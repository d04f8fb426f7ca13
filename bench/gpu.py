#!/usr/bin/env python3
"""LoRA on Phi-4-mini's dimensions on one GPU: the reference projects' way against the plain trainer's parts.

Needs torch, transformers, peft and this checkout; no weights, no tokenizer, no network. The weights are random, the
rows have the lengths of the embedded African-history set, so speed and memory are those of the real thing, and the
answers are not.
"""

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

from lora_recipes import ROOT

import click
import measuring

PHI4_MINI: dict[str, Any] = dict(
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
)
"""config.json of microsoft/Phi-4-mini-instruct; the long-context scaling of its RoPE is left out."""

CHARACTERS = 4.17
"""Of the embedded questions and answers a token, by SmolLM2's tokenizer."""

SYSTEM = 23
"""Tokens of the recipes' system prompt and of the turns' special tokens."""

GLOBAL_BATCH = 8
WAYS = {
    "reference": "micro batches of 2 in file order, padded to the longest, logits for every position",
    "plain": "micro batches of 8 without padding, logits in chunks where a label is",
    "plain-compiled": "the same with torch_compile",
    "reference-answers": "questions answered one at a time",
    "answers": "questions answered in batches, what they share read once",
}


def rows(count: int) -> list[tuple[int, int]]:
    """Lengths of prompts and answers in tokens, of the training rows in file order."""
    lines = (ROOT / "data" / "african_history" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    found = [json.loads(line) for line in lines[:count]]
    return [(SYSTEM + _tokens(row["question"]), 1 + _tokens(row["answer"])) for row in found]


def _tokens(text: str) -> int:
    return round(len(text) / CHARACTERS)


def made(dimensions: dict[str, Any], device: str) -> Any:
    """A model with random bf16 weights and a LoRA adapter of rank 8 on its attention."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, Phi3Config

    torch.manual_seed(0)
    with torch.device(device):
        base = AutoModelForCausalLM.from_config(Phi3Config(**dimensions), dtype=torch.bfloat16)
    base.config.use_cache = False
    return get_peft_model(base, LoraConfig(r=8, lora_alpha=16, target_modules=["qkv_proj", "o_proj"]))


def examples(lengths: list[tuple[int, int]], vocabulary: int) -> list[dict[str, list[int]]]:
    """Random tokens of these lengths, the prompt without loss."""
    from lora_recipes import prompts

    import torch

    generator = torch.Generator().manual_seed(0)
    found = []
    for prompt, answer in lengths:
        ids = torch.randint(10, vocabulary, (prompt + answer,), generator=generator).tolist()
        found.append({"input_ids": ids, "labels": [prompts.IGNORED] * prompt + ids[prompt:]})
    return found


def reference(model: Any, batch: list[dict[str, list[int]]]) -> None:
    """One step's gradients as the reference projects made them: a mask by a Python loop, the model's own loss."""
    from lora_recipes import prompts

    import torch

    for start in range(0, len(batch), 2):
        pair = batch[start : start + 2]
        width = max(len(one["input_ids"]) for one in pair)
        ids = [one["input_ids"] + [0] * (width - len(one["input_ids"])) for one in pair]
        labels = [one["labels"] + [prompts.IGNORED] * (width - len(one["labels"])) for one in pair]
        mask = [[int(place < len(one["input_ids"])) for place in range(width)] for one in pair]
        made = {"input_ids": ids, "labels": labels, "attention_mask": mask}
        with torch.autocast(model.device.type, torch.bfloat16):
            loss = model(**{name: torch.tensor(part, device=model.device) for name, part in made.items()}).loss
        (loss * len(pair) / len(batch)).backward()


def plain(model: Any, batch: list[dict[str, list[int]]], head: Any) -> None:
    """One step's gradients as lora_recipes.trainer makes them."""
    from lora_recipes import headloss, paddingfree, prompts

    import torch

    inputs = paddingfree.Collator()(batch)
    inputs = {name: part.to(model.device) if torch.is_tensor(part) else part for name, part in inputs.items()}
    targets = inputs.pop("labels")[0, 1:]
    kept = (targets != prompts.IGNORED).nonzero().squeeze(1)
    with torch.autocast(model.device.type, torch.bfloat16):
        hidden = model(**inputs, logits_to_keep=kept, use_cache=False).logits[0]
    headloss.loss(hidden, head, targets[kept]).backward()


def trained(way: str, model: Any, batches: list[list[dict[str, list[int]]]]) -> dict[str, Any]:
    """Tokens and samples a second, peak memory and the model's floating-point operations a second, of one way."""
    from lora_recipes import headloss, paddingfree

    import rates
    import torch
    from peft.helpers import disable_input_dtype_casting

    head = None
    if way != "reference":
        if not paddingfree.is_exact(model):
            raise click.ClickException("rows laid end to end are not exact on this machine; the plain trainer pads.")
        head = headloss.detach(model)
    if way == "plain-compiled":
        for layer in model.get_base_model().model.layers:
            layer.compile(dynamic=True)
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=1e-4)
    counts = rates.of_model(model)

    def step(batch: list[dict[str, list[int]]]) -> None:
        reference(model, batch) if head is None else plain(model, batch, head)
        optimizer.step()
        optimizer.zero_grad()

    with disable_input_dtype_casting(model, active=head is not None):
        seconds, peak = _timed(step, batches, warm_up=3)
    tokens = sum(len(one["input_ids"]) for batch in batches for one in batch)
    labelled = sum(label >= 0 for batch in batches for one in batch for label in one["labels"])
    return {
        "tokens_per_second": round(tokens / seconds, 1),
        "samples_per_second": round(sum(map(len, batches)) / seconds, 2),
        "model_tflops": round(counts.of(tokens, labelled) / seconds / 1e12, 1),
        "peak_memory_mb": peak,
    }


def answered(way: str, model: Any, lengths: list[tuple[int, int]], new_tokens: int) -> dict[str, Any]:
    """Tokens a second of greedy answers; random weights never end one, so each has new_tokens."""
    from lora_recipes import generating
    from lora_recipes.questions import Question

    model.eval()
    common = examples([(SYSTEM, 0)], 1000)[0]["input_ids"]
    asked = []
    for number, one in enumerate(examples([(prompt - SYSTEM, 0) for prompt, _ in lengths], 1000)):
        asked.append(Question(number, "", "", common + one["input_ids"], [1, 2]))
    one_by_one = way == "reference-answers"
    batches = [[question] for question in asked] if one_by_one else [asked]
    decode = generating.Decoder(model, common, 0, [-1], new_tokens)

    def run(batch: list[Question]) -> None:
        if one_by_one:
            generating.generate(model, 0, [question.prompt_ids for question in batch], [-1], new_tokens)
        else:
            decode(batch)

    seconds, peak = _timed(run, batches, warm_up=1)
    speed = len(asked) * new_tokens / seconds
    return {
        "tokens_per_second": round(speed, 1),
        "questions_per_second": round(len(asked) / seconds, 2),
        "peak_memory_mb": peak,
    }


def _timed(run: Callable[[Any], Any], batches: list[Any], warm_up: int) -> tuple[float, int]:
    """Seconds for all batches after some that do not count, and the peak of the GPU's memory in MB."""
    import torch

    for batch in batches[:warm_up]:
        run(batch)
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    begun = time.perf_counter()
    for batch in batches:
        run(batch)
    if on_gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - begun, torch.cuda.max_memory_allocated() // 2**20 if on_gpu else 0


def _measured(way: str, device: str, steps: int) -> dict[str, Any]:
    import torch

    model = made(PHI4_MINI, device)
    lengths = rows(steps * GLOBAL_BATCH)
    if "answers" in way:
        found = answered(way, model, lengths[: 10 if way.startswith("reference") else 100], 64)
    else:
        data = examples(lengths, PHI4_MINI["vocab_size"])
        found = trained(way, model, list(_split(data)))
    del model
    torch.cuda.empty_cache()
    return found


def _split(data: list[Any]) -> Iterator[list[Any]]:
    for start in range(0, len(data), GLOBAL_BATCH):
        yield data[start : start + GLOBAL_BATCH]


@click.command()
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1), help="runs of each way, in turn")
@click.option("--steps", default=20, show_default=True, type=click.IntRange(4, 60), help="timed training steps")
def main(rounds: int, steps: int) -> None:
    """Train and answer on a GPU with random weights of Phi-4-mini's shape, each way in turn.

    \b
    Example:
      bench/gpu.py --rounds 1
    """
    import torch

    if not torch.cuda.is_available():
        raise click.ClickException("no CUDA GPU here; bench/training.py and bench/evaluation.py measure on a CPU.")
    import rates

    measured: dict[str, list[dict[str, Any]]] = {name: [] for name in WAYS}
    peak = rates.matrix_rate(size=8192, device="cuda")
    for number in range(rounds):
        for way in WAYS:
            measured[way].append(found := _measured(way, "cuda", steps))
            if "model_tflops" in found:
                found["steady_rate_share"] = round(found["model_tflops"] * 1e12 / peak, 3)
            click.echo(f"round {number + 1} of {rounds}: {way} {json.dumps(found)}", err=True)
    ways = [measuring.Way(name, words, measuring.python("gpu.py")) for name, words in WAYS.items()]
    name = torch.cuda.get_device_name().replace(" ", "-").lower()
    settings = {"steps": steps, "global_batch": GLOBAL_BATCH, "bf16_gflops": round(peak / 1e9)}
    click.echo(measuring.save(f"gpu-{name}", ways, measured, **settings), err=True)


if __name__ == "__main__":
    main()
