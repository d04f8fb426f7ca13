"""A run file's keys as the plain trainer takes them. A key that it does not support is an error."""

import os
from typing import Annotated, Any, Literal

from lora_recipes.config import values
from lora_recipes.config.runfile import RunFile
from lora_recipes.support import libraries, processes

import click
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
Off = Literal[False]


def _own(plugin: str) -> str:
    if not plugin.startswith("lora_recipes.plugin."):
        raise ValueError(f"{plugin} changes Axolotl's training, which this is not; train it with Axolotl.")
    return plugin


class Settings(BaseModel):
    """The keys that the plain trainer takes, and the values of each; None stands for a key that is absent."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    base_model: str
    special_tokens: dict[str, Any] | None = None
    chat_template: str | None = None
    chat_template_jinja: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    attn_implementation: str | None = None

    adapter: Literal["lora", "qlora"] | None = None
    load_in_4bit: bool = False
    lora_r: Count
    lora_alpha: Positive
    lora_dropout: Share = 0.0
    lora_target_modules: list[str] | str | None = None
    lora_target_linear: bool = False
    peft_use_dora: bool = False
    peft_use_rslora: bool = False
    lora_mlp_kernel: Off = False
    lora_qkv_kernel: Off = False
    lora_o_kernel: Off = False
    lora_embedding_kernel: Off = False

    datasets: list[dict[str, Any]]
    test_datasets: list[dict[str, Any]] | None = None
    val_set_size: Literal[0] = 0
    dataset_prepared_path: str | None = None
    train_on_inputs: bool = False
    sequence_len: Count = 512
    excess_length_strategy: Literal["drop", "raise"] = "drop"
    shuffle_merged_datasets: bool = True
    sample_packing: Off = False
    eval_sample_packing: Off = False
    pad_to_sequence_len: Off = False
    group_by_length: Off = False

    num_epochs: Positive = 1.0
    max_steps: Annotated[int, Field(ge=0)] = 0
    micro_batch_size: Count
    gradient_accumulation_steps: Count = 1
    eval_batch_size: Count | None = None
    optimizer: str = "adamw_torch_fused"
    learning_rate: Positive
    lr_scheduler: str = "cosine"
    warmup_ratio: Share | None = None
    warmup_steps: NotNegative | None = None
    weight_decay: NotNegative = 0.0
    max_grad_norm: NotNegative = 1.0
    adam_beta1: Share = 0.9
    adam_beta2: Share = 0.999
    adam_epsilon: Positive = 1e-8
    seed: Annotated[int, Field(ge=0)] = 42

    bf16: Literal[True, False, "auto"] | None = None
    fp16: bool | None = None
    tf32: bool | None = None
    gradient_checkpointing: bool = False
    torch_compile: Literal[True, False, "auto"] = False
    deepspeed: str | dict[str, Any] | None = None

    output_dir: str
    logging_steps: Count | None = None
    eval_strategy: str = "no"
    eval_steps: Positive | None = None
    evals_per_epoch: Count | None = None
    save_strategy: str = "epoch"
    save_steps: Positive | None = None
    saves_per_epoch: Count | None = None
    save_total_limit: Count = 4
    auto_resume_from_checkpoints: bool = False
    wandb_project: str | None = None
    wandb_name: str | None = None
    wandb_mode: str | None = None
    plugins: list[Annotated[str, AfterValidator(_own)]] = []


_SAME = {
    *("learning_rate", "weight_decay", "max_grad_norm", "adam_beta1", "adam_beta2", "adam_epsilon", "seed"),
    *("gradient_accumulation_steps", "gradient_checkpointing", "save_total_limit"),
}
"""Keys that have the same name and meaning among transformers' TrainingArguments."""

_MESSAGES = {
    "extra_forbidden": "the plain trainer does not support this key; delete it or train with Axolotl.",
    "literal_error": "the plain trainer supports {expected} only, not {input!r}; train it with Axolotl.",
    "greater_than": "expected a number above {gt}, found {input!r}.",
    "greater_than_equal": "expected a number from {ge}, found {input!r}.",
    "less_than": "expected a number below {lt}, found {input!r}.",
    "finite_number": "expected a finite number, found {input!r}.",
    "value_error": "{error}",
}
"""Of the kinds of error that pydantic tells apart; others have its own words."""


def read(run: RunFile) -> Settings:
    """The settings of a run file. Raises click.ClickException, naming the line, for a key or value not supported."""
    given = {key: value for key, value in run.config.items() if value is not None}
    try:
        settings = Settings.model_validate(given)
    except ValidationError as error:
        raise _first(run, error) from None
    if (settings.adapter == "qlora") != settings.load_in_4bit:
        raise run.error("adapter", "adapter: qlora and load_in_4bit: true go together; set both or neither.")
    if not settings.lora_target_modules and not settings.lora_target_linear:
        raise click.ClickException(f"{run.name}: lora_target_modules: missing; name the modules to adapt.")
    return settings


def _first(run: RunFile, error: ValidationError) -> click.ClickException:
    """The error that stands first in the file."""
    found = min(error.errors(), key=lambda each: run.document.line(each["loc"]))
    key = found["loc"][0]
    if found["type"] == "missing":
        return click.ClickException(f"{run.name}: {key}: missing; training needs it.")
    message = _MESSAGES.get(found["type"], "{msg}, found {input!r}.")
    path = [part for part in found["loc"] if isinstance(part, int) or part == key]
    own_words = found["msg"].replace("Input should be", "expected")
    words = message.format(msg=own_words, input=found["input"], **found.get("ctx", {}))
    return run.document.error(tuple(path), words)


_FIXED: dict[str, Any] = {
    "gradient_checkpointing_kwargs": {"use_reentrant": False},
    "average_tokens_across_devices": False,
    "remove_unused_columns": False,
    "label_names": ["labels"],
    "prediction_loss_only": True,
    "logging_nan_inf_filter": False,  # it waits for the GPU twice a micro batch, to log another loss than NaN
    "disable_tqdm": True,
    "ddp_find_unused_parameters": False,
}
"""TrainingArguments that are the same for every run."""


def training_arguments(run: RunFile, n_rows: int, validated: bool) -> Any:
    """transformers' TrainingArguments with the meaning that the keys have in Axolotl 0.19."""
    from transformers import TrainingArguments

    given, steps = read(run), run.steps(n_rows, processes.world_size())
    bf16, fp16 = run.dtype_name == "bfloat16", run.dtype_name == "float16"
    # Accelerate would take another run's precision from the environment before this one's.
    os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16" if bf16 else "fp16" if fp16 else "no"
    try:
        return TrainingArguments(
            output_dir=str(run.output_dir),
            num_train_epochs=given.num_epochs,
            max_steps=given.max_steps or -1,
            per_device_train_batch_size=given.micro_batch_size,
            per_device_eval_batch_size=given.eval_batch_size or given.micro_batch_size,
            optim=given.optimizer,
            lr_scheduler_type=given.lr_scheduler,
            warmup_steps=values.warmup_steps(steps, given.warmup_steps, given.warmup_ratio),
            bf16=bf16,
            fp16=fp16,
            tf32=given.tf32 or None,
            deepspeed=run.deepspeed or None,
            use_cpu=processes.on_cpu() and not run.deepspeed,
            logging_steps=given.logging_steps or max(min(int(0.005 * steps), 10), 1),
            report_to=["wandb"] if given.wandb_project else [],
            run_name=given.wandb_name,
            dataloader_pin_memory=not processes.on_cpu(),
            **_FIXED,
            **given.model_dump(include=_SAME),
            **_saving(given),
            **(_evaluating(given) if validated else {"eval_strategy": "no"}),
        )
    except (ValueError, TypeError) as error:
        raise click.ClickException(
            f"{run.name}: transformers refuses these settings: {libraries.reason(error, 300)}; change them."
        ) from None


def _saving(given: Settings) -> dict[str, Any]:
    steps = 1.0 / (given.saves_per_epoch * given.num_epochs) if given.saves_per_epoch else given.save_steps
    return {"save_strategy": "steps", "save_steps": steps} if steps else {"save_strategy": given.save_strategy}


def _evaluating(given: Settings) -> dict[str, Any]:
    steps = 1.0 / (given.evals_per_epoch * given.num_epochs) if given.evals_per_epoch else given.eval_steps
    if steps:
        return {"eval_strategy": "steps", "eval_steps": steps, "eval_on_start": True}
    return {"eval_strategy": given.eval_strategy, "eval_on_start": given.eval_strategy != "no"}
