"""One way of training or answering on a GPU, run by bench/gpu.py: prints its measurements as JSON.

A process of its own, so that a way starts with the GPU's memory empty, whatever the one before it kept.
"""

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import click
import gpu
import gpu_models
import rates
from gpu_models import Example

WARM_UP = 3
"""Steps that do not count: they compile, and choose the kernels of their shapes."""


def batches(setting: gpu.Setting, steps: int) -> list[list[Example]]:
    """The rows of each step."""
    count, words = steps * setting.rows, gpu_models.SHAPES[setting.shape].dimensions["vocab_size"]
    lengths = [(0, setting.length)] * count if setting.length else gpu_models.history(count)
    data = gpu_models.examples(lengths, words)
    return [data[start : start + setting.rows] for start in range(0, count, setting.rows)]


def padded(model: Any, batch: list[Example], micro: int) -> None:
    """One step's gradients as the reference projects made them: a mask by a Python loop, the model's own loss."""
    from lora_recipes.data import prompts

    import torch

    for start in range(0, len(batch), micro):
        part = batch[start : start + micro]
        width = max(len(one["input_ids"]) for one in part)
        ids = [one["input_ids"] + [0] * (width - len(one["input_ids"])) for one in part]
        labels = [one["labels"] + [prompts.IGNORED] * (width - len(one["labels"])) for one in part]
        mask = [[int(place < len(one["input_ids"])) for place in range(width)] for one in part]
        made = {"input_ids": ids, "labels": labels, "attention_mask": mask}
        with torch.autocast(model.device.type, torch.bfloat16):
            loss = model(**{name: torch.tensor(part, device=model.device) for name, part in made.items()}).loss
        (loss * len(part) / len(batch)).backward()


def plain(model: Any, batch: list[Example], micro: int, head: Any) -> None:
    """One step's gradients as lora_recipes.training.trainer makes them."""
    from lora_recipes.training import chunked_loss, padding_free

    import torch

    collate = padding_free.Collator()
    for start in range(0, len(batch), micro):
        part = batch[start : start + micro]
        inputs = collate(part)
        inputs = {name: one.to(model.device) if torch.is_tensor(one) else one for name, one in inputs.items()}
        _, columns, kept, targets = (inputs.pop(name) for name in ("labels", "columns", "kept", "targets"))
        with torch.autocast(model.device.type, torch.bfloat16):
            hidden = model(**inputs, logits_to_keep=columns, use_cache=False).logits.flatten(0, 1)[kept]
        (chunked_loss.loss(hidden, head, targets) * len(part) / len(batch)).backward()


def fuse(model: Any) -> None:
    """Put Axolotl's LoRA kernels into a model, as `lora_qkv_kernel`, `lora_o_kernel` and `lora_mlp_kernel` do."""
    import tempfile

    from axolotl.monkeypatch import lora_kernels
    from axolotl.utils.dict import DictDefault

    with tempfile.TemporaryDirectory() as folder:
        model.config.save_pretrained(folder)
        wanted = DictDefault(base_model=folder, lora_qkv_kernel=True, lora_o_kernel=True, lora_mlp_kernel=True)
        lora_kernels.patch_self_attn_lora(wanted)
    lora_kernels.apply_lora_kernel_patches(model, wanted)


def trained(setting: gpu.Setting, model: Any, given: list[list[Example]]) -> dict[str, Any]:
    """Tokens and samples a second, peak memory and the model's floating-point operations a second, of one way."""
    import torch
    from peft.helpers import disable_input_dtype_casting

    counts, ours = rates.of_model(model), setting.how in ("plain", "compiled")
    run: Callable[..., None] = padded
    more: tuple[Any, ...] = ()
    if ours:
        run, more = plain, (_prepared(model, compiled=setting.how == "compiled"),)
    elif setting.how == "axolotl":
        fuse(model)
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=1e-4)

    def step(batch: list[Example]) -> None:
        run(model, batch, setting.micro, *more)
        optimizer.step()
        optimizer.zero_grad()

    with disable_input_dtype_casting(model, active=ours):
        seconds, peak = timed(step, given, WARM_UP)
    tokens = sum(len(one["input_ids"]) for batch in given for one in batch)
    labelled = sum(label >= 0 for batch in given for one in batch for label in one["labels"])
    return {
        "tokens_per_second": round(tokens / seconds, 1),
        "samples_per_second": round(sum(map(len, given)) / seconds, 2),
        "tokens_a_step": round(tokens / len(given)),
        "model_tflops": round(counts.of(tokens, labelled) / seconds / 1e12, 4),
        "peak_memory_mb": peak,
    }


def _prepared(model: Any, compiled: bool) -> Any:
    """Switch a model to rows laid end to end; gives its head. Raises click.ClickException where they are not exact."""
    from lora_recipes.training import chunked_loss, padding_free

    if not padding_free.is_exact(model):
        raise click.ClickException("rows laid end to end are not exact on this machine; the plain trainer pads.")
    for layer in model.get_base_model().model.layers if compiled else ():
        layer.compile(dynamic=True)
    return chunked_loss.bypass_lm_head(model)


def answered(setting: gpu.Setting, model: Any, new_tokens: int) -> dict[str, Any]:
    """Tokens a second of greedy answers; random weights never end one, so each has new_tokens."""
    from lora_recipes.data.questions import Question
    from lora_recipes.inference import decoding

    model.eval()
    common = gpu_models.examples([(gpu_models.SYSTEM, 0)], 1000)[0]["input_ids"]
    own = [(prompt - gpu_models.SYSTEM, 0) for prompt, _ in gpu_models.history(setting.rows)]
    asked = [
        Question(number, "", "", common + one["input_ids"], [1, 2])
        for number, one in enumerate(gpu_models.examples(own, 1000))
    ]
    decode = decoding.Decoder(model, common, 0, [-1], new_tokens)

    def run(batch: list[Question]) -> None:
        if setting.how == "one-by-one":
            decoding.generate(model, 0, [question.prompt_ids for question in batch], [-1], new_tokens)
        else:
            decode(batch)

    groups = [asked[start : start + setting.micro] for start in range(0, len(asked), setting.micro)]
    seconds, peak = timed(run, groups, warm_up=1)
    return {
        "tokens_per_second": round(len(asked) * new_tokens / seconds, 3),
        "questions_per_second": round(len(asked) / seconds, 3),
        "peak_memory_mb": peak,
    }


def timed(run: Callable[[Any], Any], batches: list[Any], warm_up: int) -> tuple[float, int]:
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


def measure(setting: gpu.Setting, steps: int, device: str = "cuda") -> dict[str, Any]:
    """All of one way. Raises click.ClickException where the GPU's memory does not suffice."""
    import torch

    try:
        model = gpu_models.made(gpu_models.SHAPES[setting.shape], device)
        if setting.how in ("one-by-one", "answers"):
            return answered(setting, model, new_tokens=64)
        return trained(setting, model, batches(setting, steps))
    except torch.OutOfMemoryError as error:
        raise click.ClickException(f"the GPU's memory does not suffice: {' '.join(str(error).split())[:120]}") from None


def run() -> None:
    name, steps = sys.argv[1], int(sys.argv[2])
    if name == gpu.MATRIX:
        print(json.dumps({"gflops": round(rates.matrix_rate(size=8192, device="cuda") / 1e9)}))
        return
    try:
        print(json.dumps(measure(gpu.SETTINGS[name], steps)))
    except click.ClickException as error:
        sys.exit(error.message)


if __name__ == "__main__":
    run()
