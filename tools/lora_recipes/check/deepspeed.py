"""DeepSpeed settings that disagree with the run file, or buy nothing."""

import importlib.util
import shutil
from typing import Any

from lora_recipes.check import inputs
from lora_recipes.check.checked_run import CheckedRun
from lora_recipes.support import libraries, processes


def check(checked: CheckedRun, micro: int, accumulation: int, ranks: int) -> None:
    """Batch sizes and precision against the run file's; offload, overlap, ZeRO on one process, ZeRO-3 with 4-bit."""
    settings = inputs.deepspeed_config(checked)
    if settings is None:
        return
    wanted = {
        "train_micro_batch_size_per_gpu": (micro, f"micro_batch_size is {micro}"),
        "gradient_accumulation_steps": (accumulation, f"gradient_accumulation_steps is {accumulation}"),
        "train_batch_size": (micro * accumulation * ranks, f"{micro} x {accumulation} x {_count(ranks)}"),
    }
    for name, (value, why) in wanted.items():
        found = settings.get(name)
        if isinstance(found, int) and not isinstance(found, bool) and found != value:
            checked.error(
                "deepspeed-batch",
                "deepspeed",
                f"{name} is {found} there, and {value} here ({why}); training stops once the model is loaded",
                f'"auto", or {value}',
                f'write "{name}": "auto"',
            )
    for name in ("bf16", "fp16"):
        _precision(checked, name, settings)
    _zero(checked, settings, ranks)


def _count(ranks: int) -> str:
    return f"{ranks} process{'' if ranks == 1 else 'es'}"


def _section(settings: dict[str, Any], name: str) -> dict[str, Any]:
    value = settings.get(name)
    return value if isinstance(value, dict) else {}


def _precision(checked: CheckedRun, name: str, settings: dict[str, Any]) -> None:
    there, here = _section(settings, name).get("enabled"), checked.config.get(name)
    if isinstance(there, bool) and isinstance(here, bool) and there != here:
        checked.error(
            "deepspeed-precision",
            "deepspeed",
            f"{name}.enabled is {str(there).lower()} there, and {name}: {str(here).lower()} here",
            '"auto", or the same in both',
            f'write "{name}": {{"enabled": "auto"}}',
        )


def _zero(checked: CheckedRun, settings: dict[str, Any], ranks: int) -> None:
    zero = _section(settings, "zero_optimization")
    stage = zero.get("stage")
    offload = [name for name in ("offload_optimizer", "offload_param") if _offloads(zero, name)]
    if stage == 3 and checked.config.get("load_in_4bit") is True:
        checked.error(
            "deepspeed-four-bit",
            "deepspeed",
            "ZeRO-3 with load_in_4bit: it shards the base weights, which 4-bit storage does not allow",
            "ZeRO-2 for a 4-bit base",
            "take deepspeed_configs/zero2.json, or train unquantized weights",
        )
    if stage in (1, 2) and zero.get("overlap_comm") is True:
        checked.warning(
            "deepspeed-overlap",
            "deepspeed",
            f"overlap_comm: true under ZeRO-{stage}: on a GPU DeepSpeed 0.18.9 may read a gradient after its memory "
            "was given away (its #7965, a loss of nan) or before it is written (its #8061)",
            "false: an adapter's gradients are a few MB, and overlapping their exchange gains nothing",
            'write "overlap_comm": false',
        )
    if "offload_optimizer" in offload:
        _compiled(checked)
    if checked.config.get("adapter") and offload:
        _offload(checked, stage, offload)
    elif isinstance(stage, int) and stage > 0 and ranks == 1 and not offload:
        checked.note(
            "deepspeed-one-gpu",
            "deepspeed",
            f"ZeRO-{stage} on one process: there is nothing to shard between",
            "two processes or more",
            "leave DeepSpeed out on one GPU, or start it on several",
        )


def _offloads(zero: dict[str, Any], name: str) -> bool:
    return _section(zero, name).get("device") in ("cpu", "nvme")


def _compiled(checked: CheckedRun) -> None:
    """DeepSpeed's CPU Adam is no binary: it is compiled when training begins (deepspeed/ops/op_builder)."""
    if importlib.util.find_spec("torch") is None:
        return checked.report.skip("compilers for DeepSpeed's CPU Adam", "torch is not installed here")
    missing = _missing_compilers()
    here = processes.meant_for_cpu(checked.config.get("plugins")) or not processes.on_cpu()
    if here and not missing:
        return None
    lacks = f"; this machine lacks {' and '.join(missing)}" if missing else ""
    return checked.find(
        "warning" if here else "note",
        "deepspeed-compiler",
        "deepspeed",
        f"offload_optimizer: DeepSpeed compiles its CPU Adam when training begins{lacks}",
        "where it trains g++ and ninja, and on a GPU nvcc of the CUDA release that PyTorch was built for",
        "install them there, or take deepspeed_configs/zero2.json, which compiles nothing",
    )


def _missing_compilers() -> list[str]:
    """Asked of torch and DeepSpeed, for its builder's is_compatible() says yes anywhere."""
    import torch
    from torch.utils import cpp_extension

    missing = [] if shutil.which(cpp_extension.get_cxx_compiler()) else ["g++"]
    missing += [] if cpp_extension.is_ninja_available() else ["ninja"]
    if torch.version.cuda and not processes.on_cpu():
        from deepspeed.ops.op_builder.builder import assert_no_cuda_mismatch

        try:
            assert_no_cuda_mismatch()
        except Exception as error:  # it raises Exception itself, and what running nvcc raises
            missing.append(f"that nvcc ({libraries.reason(error)})")
    return missing


def _offload(checked: CheckedRun, stage: Any, offload: list[str]) -> None:
    known = checked.report.facts.get("target_modules")
    trainable = known.get("trainable") if isinstance(known, dict) else None
    if "offload_optimizer" in offload:
        size = f": {trainable * 8 / 1e6:,.0f} MB for {trainable:,} trained parameters" if trainable else ""
        checked.warning(
            "deepspeed-offload",
            "deepspeed",
            f"offload_optimizer with an adapter, whose Adam state is small{size}",
            "the optimizer on the GPU: offload frees next to nothing and copies in every step",
            "take deepspeed_configs/zero2.json",
        )
    if "offload_param" in offload:
        found = "moves the base weights over the bus in every step" if stage == 3 else "acts with ZeRO-3 only"
        checked.note(
            "deepspeed-offload",
            "deepspeed",
            f"offload_param {found}",
            "offload_param only where the base model fits no GPU",
            "delete it if the weights fit, or quantize them with adapter: qlora",
        )
