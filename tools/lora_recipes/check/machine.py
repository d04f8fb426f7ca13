"""Keys that this machine cannot follow, or only slowly: the one that checks is often not the one that trains."""

import importlib.util
from collections.abc import Iterator
from typing import Any

from lora_recipes.check.checked_run import CheckedRun
from lora_recipes.check.traps import OLD_ATTENTION
from lora_recipes.support import processes

_CPU_ATTENTION = ("sdpa", "eager")
_KERNELS = ("lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel", "lora_embedding_kernel")


def check(checked: CheckedRun) -> None:
    """Keys that need a GPU, and bf16 on a processor without it; errors and warnings in a file for a CPU only."""
    if importlib.util.find_spec("torch") is None:
        checked.report.skip("keys that need a GPU", "torch is not installed here")
        return
    _needs_gpu(checked)
    _emulated_bf16(checked)


def _needs_gpu(checked: CheckedRun) -> None:
    for_cpu = processes.meant_for_cpu(checked.config.get("plugins"))
    found = [f"{key}: {str(value).lower()}" for key, value in _gpu_keys(checked.config, for_cpu)]
    if not found or not processes.on_cpu():
        return
    checked.find(
        "error" if for_cpu else "note",
        "needs-gpu",
        found[0].partition(":")[0],
        ", ".join(found),
        "on a CPU none of them: they fail, or train in fp16 some ten times slower"
        if for_cpu
        else "a machine with a GPU",
        "write attn_implementation: sdpa, bf16: true or false, and leave the others out"
        if for_cpu
        else "train it on one; this machine has none",
    )


def _emulated_bf16(checked: CheckedRun) -> None:
    if (
        checked.config.get("bf16") is not True
        or not processes.meant_for_cpu(checked.config.get("plugins"))
        or processes.has_bf16()
    ):
        return
    checked.warning(
        "emulated-bf16",
        "bf16",
        "true, which this processor emulates, many times slower than float32",
        "bf16: false on this machine",
        "write bf16: false, or render with --set bf16=false",
    )


def _gpu_keys(config: dict[str, Any], for_cpu: bool) -> Iterator[tuple[str, Any]]:
    attention = config.get("attn_implementation")
    if isinstance(attention, str) and attention and attention not in _CPU_ATTENTION:
        yield "attn_implementation", attention
    for key in (*OLD_ATTENTION, *_KERNELS, "load_in_8bit", "fp8", "fp16", "tf32"):
        if config.get(key) is True and key not in ("sdp_attention", "eager_attention"):
            yield key, True
    bf16 = config.get("bf16")
    if bf16 == "auto" or (bf16 is True and not for_cpu):
        yield "bf16", bf16
    optimizer = str(config.get("optimizer"))
    if optimizer.endswith("_fp8") or optimizer.startswith("flash_"):
        yield "optimizer", optimizer
