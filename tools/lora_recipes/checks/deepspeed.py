"""DeepSpeed settings that disagree with the run file, or buy nothing."""

from typing import Any

from lora_recipes.checks import inputs
from lora_recipes.checks.subject import Subject


def check(subject: Subject, micro: int, accumulation: int, processes: int) -> None:
    """Batch sizes and precision against the run file's; offload, overlap, ZeRO on one process, ZeRO-3 with 4-bit."""
    settings = inputs.deepspeed_config(subject)
    if settings is None:
        return
    wanted = {
        "train_micro_batch_size_per_gpu": (micro, f"micro_batch_size is {micro}"),
        "gradient_accumulation_steps": (accumulation, f"gradient_accumulation_steps is {accumulation}"),
        "train_batch_size": (micro * accumulation * processes, f"{micro} x {accumulation} x {_count(processes)}"),
    }
    for name, (value, why) in wanted.items():
        found = settings.get(name)
        if isinstance(found, int) and not isinstance(found, bool) and found != value:
            subject.error(
                "deepspeed-batch",
                "deepspeed",
                f"{name} is {found} there, and {value} here ({why}); training stops once the model is loaded",
                f'"auto", or {value}',
                f'write "{name}": "auto"',
            )
    for name in ("bf16", "fp16"):
        _precision(subject, name, settings)
    _zero(subject, settings, processes)


def _count(processes: int) -> str:
    return f"{processes} process{'' if processes == 1 else 'es'}"


def _section(settings: dict[str, Any], name: str) -> dict[str, Any]:
    value = settings.get(name)
    return value if isinstance(value, dict) else {}


def _precision(subject: Subject, name: str, settings: dict[str, Any]) -> None:
    there, here = _section(settings, name).get("enabled"), subject.config.get(name)
    if isinstance(there, bool) and isinstance(here, bool) and there != here:
        subject.error(
            "deepspeed-precision",
            "deepspeed",
            f"{name}.enabled is {str(there).lower()} there, and {name}: {str(here).lower()} here",
            '"auto", or the same in both',
            f'write "{name}": {{"enabled": "auto"}}',
        )


def _zero(subject: Subject, settings: dict[str, Any], processes: int) -> None:
    zero = _section(settings, "zero_optimization")
    stage = zero.get("stage")
    offload = [name for name in ("offload_optimizer", "offload_param") if _offloads(zero, name)]
    if stage == 3 and subject.config.get("load_in_4bit") is True:
        subject.error(
            "deepspeed-four-bit",
            "deepspeed",
            "ZeRO-3 with load_in_4bit: it shards the base weights, which 4-bit storage does not allow",
            "ZeRO-2 for a 4-bit base",
            "take deepspeed_configs/zero2.json, or train unquantized weights",
        )
    if stage in (1, 2) and zero.get("overlap_comm") is True:
        subject.warning(
            "deepspeed-overlap",
            "deepspeed",
            f"overlap_comm: true under ZeRO-{stage}: on a GPU DeepSpeed 0.18.9 may read a gradient after its memory "
            "was given away (its #7965, a loss of nan) or before it is written (its #8061)",
            "false: an adapter's gradients are a few MB, and overlapping their exchange gains nothing",
            'write "overlap_comm": false',
        )
    if subject.config.get("adapter") and offload:
        _offload(subject, stage, offload)
    elif isinstance(stage, int) and stage > 0 and processes == 1 and not offload:
        subject.note(
            "deepspeed-one-gpu",
            "deepspeed",
            f"ZeRO-{stage} on one process: there is nothing to shard between",
            "two processes or more",
            "leave DeepSpeed out on one GPU, or start it on several",
        )


def _offloads(zero: dict[str, Any], name: str) -> bool:
    return _section(zero, name).get("device") in ("cpu", "nvme")


def _offload(subject: Subject, stage: Any, offload: list[str]) -> None:
    known = subject.report.facts.get("target_modules")
    trainable = known.get("trainable") if isinstance(known, dict) else None
    if "offload_optimizer" in offload:
        size = f": {trainable * 8 / 1e6:,.0f} MB for {trainable:,} trained parameters" if trainable else ""
        subject.warning(
            "deepspeed-offload",
            "deepspeed",
            f"offload_optimizer with an adapter, whose Adam state is small{size}",
            "the optimizer on the GPU: offload frees next to nothing and copies in every step",
            "take deepspeed_configs/zero2.json",
        )
    if "offload_param" in offload:
        found = "moves the base weights over the bus in every step" if stage == 3 else "acts with ZeRO-3 only"
        subject.note(
            "deepspeed-offload",
            "deepspeed",
            f"offload_param {found}",
            "offload_param only where the base model fits no GPU",
            "delete it if the weights fit, or quantize them with adapter: qlora",
        )
