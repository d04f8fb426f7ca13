"""A run file's keys as the plain trainer takes them. A key that it does not support is an error."""

import json
import math
import os
from pathlib import Path
from typing import Any

from lora_recipes.config.runfile import RunFile
from lora_recipes.support import processes

import click

_TAKEN = {
    *("base_model", "special_tokens", "attn_implementation", "adapter", "load_in_4bit"),
    *("chat_template", "chat_template_jinja", "chat_template_kwargs"),
    *("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "lora_target_linear"),
    *("peft_use_dora", "peft_use_rslora", "datasets", "test_datasets", "train_on_inputs", "sequence_len"),
    *("excess_length_strategy", "shuffle_merged_datasets", "num_epochs", "max_steps", "micro_batch_size"),
    *("gradient_accumulation_steps", "eval_batch_size", "optimizer", "learning_rate", "lr_scheduler"),
    *("warmup_ratio", "warmup_steps", "weight_decay", "max_grad_norm", "adam_beta1", "adam_beta2", "adam_epsilon"),
    *("seed", "bf16", "fp16", "tf32", "gradient_checkpointing", "deepspeed", "output_dir", "logging_steps"),
    *("torch_compile", "dataset_prepared_path"),
    *("eval_strategy", "eval_steps", "evals_per_epoch", "save_strategy", "save_steps", "saves_per_epoch"),
    *("save_total_limit", "auto_resume_from_checkpoints", "wandb_project", "wandb_name", "wandb_mode"),
}
_ONLY = {
    "lora_mlp_kernel": (False,),
    "lora_qkv_kernel": (False,),
    "lora_o_kernel": (False,),
    "lora_embedding_kernel": (False,),
    "sample_packing": (False,),
    "eval_sample_packing": (False,),
    "pad_to_sequence_len": (False,),
    "group_by_length": (False,),
    "val_set_size": (0, 0.0),
    "excess_length_strategy": ("drop", "raise"),
    "adapter": ("lora", "qlora"),
    "bf16": (True, False, "auto"),
    "torch_compile": (True, False, "auto"),
}


_FROM_1 = (
    *("lora_r", "micro_batch_size", "gradient_accumulation_steps", "eval_batch_size", "sequence_len", "logging_steps"),
    *("save_total_limit", "saves_per_epoch", "evals_per_epoch"),
)
_ABOVE_0 = ("learning_rate", "lora_alpha", "num_epochs", "adam_epsilon", "save_steps", "eval_steps")
_FROM_0 = ("weight_decay", "max_grad_norm", "warmup_steps", "seed", "max_steps", "lora_dropout", "warmup_ratio")
_BELOW_1 = ("lora_dropout", "warmup_ratio", "adam_beta1", "adam_beta2")


def require_supported(run: RunFile) -> None:
    """Raises click.ClickException, naming the line, for a key or value the plain trainer would ignore."""
    for key, value in run.config.items():
        if key == "plugins":
            _require_own_plugins(run, value)
        elif key in _ONLY:
            if value is not None and value not in _ONLY[key]:
                wanted = " or ".join(str(v) for v in _ONLY[key])
                raise run.error(key, f"the plain trainer supports {wanted} only, not {value!r}; train it with Axolotl.")
        elif key not in _TAKEN:
            raise run.error(key, "the plain trainer does not support this key; delete it or train with Axolotl.")
    _require_ranges(run)
    for key in ("learning_rate", "micro_batch_size", "lora_r", "lora_alpha"):
        if run.config.get(key) is None:
            raise click.ClickException(f"{run.name}: {key}: missing; training needs it.")
    if (run.config.get("adapter") == "qlora") != bool(run.config.get("load_in_4bit")):
        raise run.error("adapter", "adapter: qlora and load_in_4bit: true go together; set both or neither.")
    if not run.config.get("lora_target_modules") and not run.config.get("lora_target_linear"):
        raise click.ClickException(f"{run.name}: lora_target_modules: missing; name the modules to adapt.")


def _require_ranges(run: RunFile) -> None:
    """Numbers that transformers, PEFT or torch would take and then fail on, or train nothing with."""
    ranges = (
        (_FROM_1, "a whole number from 1", lambda number: number >= 1),
        (_ABOVE_0, "a number above 0", lambda number: 0 < number < math.inf),
        (_FROM_0, "a number from 0", lambda number: 0 <= number < math.inf),
        (_BELOW_1, "a number below 1", lambda number: number < 1),
    )
    for keys, wanted, fits in ranges:
        for key in keys:
            value = run.config.get(key)
            if isinstance(value, (int, float)) and not fits(value):
                raise run.error(key, f"expected {wanted}, found {value!r}.")


def _require_own_plugins(run: RunFile, names: list[str]) -> None:
    for index, name in enumerate(names or []):
        if not isinstance(name, str):
            raise run.error(f"plugins.{index}", f"expected the name of a plugin, found {name!r}.")
        if not name.startswith("lora_recipes.plugin."):
            raise run.error(
                f"plugins.{index}", f"{name} changes Axolotl's training, which this is not; train it with Axolotl."
            )


def seed(run: RunFile) -> int:
    """42 without one, as in Axolotl; 0 is a seed."""
    value = run.config.get("seed")
    return 42 if value is None else int(value)


def total_steps(run: RunFile, n_rows: int) -> int:
    """Optimizer steps, as transformers counts them: whole batches a process, a short one at the end."""
    config = run.config
    if config.get("max_steps"):
        return int(config["max_steps"])
    batches = math.ceil(n_rows / (int(config["micro_batch_size"]) * processes.world_size()))
    per_epoch = max(1, math.ceil(batches / int(config.get("gradient_accumulation_steps") or 1)))
    return math.ceil(per_epoch * float(config.get("num_epochs") or 1))


def training_arguments(run: RunFile, n_rows: int, validated: bool) -> Any:
    """transformers' TrainingArguments with the meaning that the keys have in Axolotl 0.19."""
    from transformers import TrainingArguments

    config, steps = run.config, total_steps(run, n_rows)
    names = ("learning_rate", "weight_decay", "max_grad_norm", "adam_beta1", "adam_beta2", "adam_epsilon", "seed")
    plain = {name: config[name] for name in names if config.get(name) is not None}
    bf16 = config.get("bf16") is True or (config.get("bf16") == "auto" and not processes.on_cpu())
    # Accelerate would take another run's precision from the environment before this one's.
    os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16" if bf16 else "fp16" if config.get("fp16") is True else "no"
    try:
        return TrainingArguments(
            output_dir=str(run.output_dir),
            num_train_epochs=config.get("num_epochs") or 1,
            max_steps=config.get("max_steps") or -1,
            per_device_train_batch_size=config["micro_batch_size"],
            per_device_eval_batch_size=config.get("eval_batch_size") or config["micro_batch_size"],
            gradient_accumulation_steps=config.get("gradient_accumulation_steps") or 1,
            optim=config.get("optimizer") or "adamw_torch_fused",
            lr_scheduler_type=config.get("lr_scheduler") or "cosine",
            warmup_steps=warmup_steps(config, steps),
            bf16=bf16,
            fp16=config.get("fp16") is True and not bf16,
            tf32=True if config.get("tf32") else None,
            gradient_checkpointing=bool(config.get("gradient_checkpointing")),
            gradient_checkpointing_kwargs={"use_reentrant": False},
            deepspeed=_deepspeed(run),
            use_cpu=processes.on_cpu() and not config.get("deepspeed"),
            logging_steps=config.get("logging_steps") or max(min(int(0.005 * steps), 10), 1),
            average_tokens_across_devices=False,
            remove_unused_columns=False,
            label_names=["labels"],
            prediction_loss_only=True,
            logging_nan_inf_filter=False,  # it waits for the GPU twice a micro batch, to log another loss than NaN
            report_to=["wandb"] if config.get("wandb_project") else [],
            run_name=config.get("wandb_name"),
            disable_tqdm=True,
            dataloader_pin_memory=not processes.on_cpu(),
            ddp_find_unused_parameters=False,
            **_saving(config),
            **(_evaluating(config) if validated else {"eval_strategy": "no"}),
            **plain,
        )
    except (ValueError, TypeError) as error:
        raise click.ClickException(
            f"{run.name}: transformers refuses these settings: {' '.join(str(error).split())[:300]}; change them."
        ) from None


def warmup_steps(config: dict[str, Any], steps: int) -> int:
    """Of `steps` in all, as Axolotl 0.19 counts them: warmup_steps, or a share of the whole, or 3 % up to 100."""
    if config.get("warmup_steps") is not None:
        warmup = int(config["warmup_steps"])
    elif config.get("warmup_ratio") is not None:
        warmup = int(config["warmup_ratio"] * steps)
    else:
        warmup = min(int(0.03 * steps), 100)
    return 2 if warmup == 1 else warmup  # as Axolotl: one step of warm-up would start at the full rate


def _deepspeed(run: RunFile) -> Any:
    value = run.config.get("deepspeed")
    if isinstance(value, str):
        path = run.path(value)
        if not path.is_file():
            raise run.error("deepspeed", f"there is no file {value}; take one of deepspeed_configs/.")
        return str(path)
    return value


def zero_stage(run: RunFile) -> int:
    """The ZeRO stage of a run file's DeepSpeed configuration; 0 without one."""
    found = _deepspeed(run)
    if isinstance(found, str):
        found = json.loads(Path(found).read_text(encoding="utf-8"))
    return int(((found or {}).get("zero_optimization") or {}).get("stage") or 0)


def _saving(config: dict[str, Any]) -> dict[str, Any]:
    steps = config.get("save_steps")
    if config.get("saves_per_epoch"):
        steps = 1.0 / (config["saves_per_epoch"] * (config.get("num_epochs") or 1))
    limit = {"save_total_limit": config.get("save_total_limit") or 4}
    if steps:
        return {"save_strategy": "steps", "save_steps": steps, **limit}
    return {"save_strategy": config.get("save_strategy") or "epoch", **limit}


def _evaluating(config: dict[str, Any]) -> dict[str, Any]:
    steps = config.get("eval_steps")
    if config.get("evals_per_epoch"):
        steps = 1.0 / (config["evals_per_epoch"] * (config.get("num_epochs") or 1))
    if steps:
        return {"eval_strategy": "steps", "eval_steps": steps, "eval_on_start": True}
    strategy = config.get("eval_strategy") or "no"
    return {"eval_strategy": strategy, "eval_on_start": strategy != "no"}
