"""The plain trainer: transformers' Trainer and PEFT on a run file, with Axolotl's meaning of its keys.

The loss is the mean over a micro batch's trained tokens, and micro batches weigh the same under
gradient accumulation and across processes, as Axolotl has it for adapters.
"""

import re
from pathlib import Path
from typing import Any

from lora_recipes import (
    batches,
    files,
    headloss,
    models,
    paddingfree,
    processes,
    prompts,
    results,
    settings,
    tracking,
)
from lora_recipes.progress import StepLines
from lora_recipes.runfile import RunFile

import click
import torch
from peft.helpers import disable_input_dtype_casting
from transformers import Trainer


class PlainTrainer(Trainer):
    """transformers' Trainer with logits only where a label is, and never many of them at a time."""

    def __init__(
        self,
        *args: Any,
        head: Any = None,
        bench_data_collator: Any = None,
        eval_data_collator: Any = None,
        dataset_tags: Any = None,
        **kwargs: Any,
    ) -> None:
        # The three named arguments are Axolotl's own, which transformers does not know.
        super().__init__(*args, **kwargs)
        self.head = head
        """The output layer, when it was taken out of the model's forward pass (headloss.detach)."""
        self.model_accepts_loss_kwargs = False  # a mean a micro batch, see the module's docstring

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Mean cross-entropy in nats over the labels that are not IGNORED.

        `labels` is [rows, length]; logits are made for the columns in which any row has a label.
        """
        labels = inputs["labels"][:, 1:]
        columns = (labels != prompts.IGNORED).any(dim=0).nonzero().squeeze(1)
        given = {name: part for name, part in inputs.items() if name != "labels"}
        outputs = model(**given, logits_to_keep=columns, use_cache=False)
        targets, found = labels[:, columns].flatten(), outputs.logits.flatten(0, 1)
        if self.head is not None:
            kept = (targets != prompts.IGNORED).nonzero().squeeze(1)
            loss = headloss.loss(found[kept], self.head, targets[kept])
        else:
            loss = torch.nn.functional.cross_entropy(found.float(), targets, ignore_index=prompts.IGNORED)
        return (loss, outputs) if return_outputs else loss


def train(run: RunFile) -> None:
    """Train the run file's adapter and save it, checked, under its output_dir.

    A finished run is left as it is; an interrupted one goes on from its last whole checkpoint when
    the run file has auto_resume_from_checkpoints. Raises click.ClickException.
    """
    settings.require_supported(run)
    if results.finished(run):
        click.echo(f"{run.output_dir}: this run file was trained to its end; nothing to do.", err=True)
        return
    tracking.require_login(run)
    tracking.name_project(run)
    if processes.is_main():
        run.keep()
    processes.reuse_memory()
    processes.join(deepspeed=bool(run.config.get("deepspeed")))
    watch = results.Stopwatch()
    tokenizer = models.load_tokenizer(run)
    train_rows, eval_rows = (batches.tokenize(run, tokenizer, part) for part in ("train", "validation"))
    assert train_rows is not None
    report_rows(train_rows, eval_rows)
    # Before the model: DeepSpeed ZeRO-3 shards it while it loads.
    arguments = settings.training_arguments(run, len(train_rows.dataset), eval_rows is not None)
    model = adapted(run)
    collator = paddingfree.use(run, model) or batches.Collator(tokenizer.pad_token_id)
    compile_layers(run, model)
    trainer = PlainTrainer(
        model=model,
        args=arguments,
        train_dataset=train_rows.dataset,
        eval_dataset=eval_rows.dataset if eval_rows else None,
        data_collator=collator,
        head=None if settings.zero_stage(run) == 3 else headloss.detach(model),
        processing_class=tokenizer,
        callbacks=[StepLines()],
    )
    _quiet(trainer)
    files.require_space(run.output_dir, _checkpoint_bytes(trainer.model))
    processes.require_world(trainer.args.world_size)
    # Under autocast the adapter's products are in bf16 whether or not PEFT casts their input up before.
    autocast = trainer.args.bf16 and not run.config.get("deepspeed")
    with files.clear_errors(run.output_dir), disable_input_dtype_casting(model, active=autocast):
        trainer.train(resume_from_checkpoint=last_checkpoint(run))
        trainer.save_model(str(run.output_dir))
    if processes.is_main():
        models.require_adapter(run.output_dir, run)
        results.update(run, "training", section(run, trainer, watch, train_rows, eval_rows))
        click.echo(f"adapter saved in {run.output_dir}", err=True)


def _checkpoint_bytes(model: Any) -> int:
    """Of one checkpoint and the final adapter: the trained weights twice, and Adam's two moments, in float32."""
    return 4 * 4 * sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def _quiet(trainer: Any) -> None:
    from transformers.trainer_callback import PrinterCallback

    trainer.remove_callback(PrinterCallback)  # it prints dictionaries to stdout, which is for data


def adapted(run: RunFile) -> Any:
    """The base model with a fresh adapter, seeded: the same run file gives the same adapter.

    Raises click.ClickException when a name under lora_target_modules matches no module.
    """
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import set_seed

    config, dtype = run.config, models.dtype_of(run)
    model = models.load_base(run)
    model.config.use_cache = False
    if config.get("load_in_4bit"):
        checkpointing = bool(config.get("gradient_checkpointing"))
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=checkpointing)
        _back_to(model, dtype)
    elif config.get("gradient_checkpointing"):
        model.enable_input_require_grads()
    targets: Any = "all-linear" if config.get("lora_target_linear") else config["lora_target_modules"]
    if isinstance(targets, list):
        _require_targets(run, model, targets)
    lora = LoraConfig(
        r=config["lora_r"],
        lora_alpha=config["lora_alpha"],
        lora_dropout=config.get("lora_dropout") or 0.0,
        target_modules=targets,
        use_dora=bool(config.get("peft_use_dora")),
        use_rslora=bool(config.get("peft_use_rslora")),
        bias="none",
        task_type="CAUSAL_LM",
    )
    set_seed(int(config.get("seed") or 42))
    return get_peft_model(model, lora)


def compile_layers(run: RunFile, model: Any) -> None:
    """Compile each decoder layer in place, where the run file says torch_compile; all share what is compiled.

    Raises click.ClickException without a C++ compiler, which PyTorch needs for it on a CPU.
    """
    if not run.config.get("torch_compile"):
        return
    if processes.on_cpu():
        from torch._inductor import cpp_builder, exc

        try:
            cpp_builder.get_cpp_compiler()
        except exc.InvalidCxxCompiler:
            raise run.error("torch_compile", "needs a C++ compiler; install g++ or delete the key.") from None
    lists = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList)]
    for layer in max(lists, key=len):
        layer.compile(dynamic=True)


def _back_to(model: Any, dtype: Any) -> None:
    """prepare_model_for_kbit_training leaves norms and embeddings in float32; Axolotl trains them in dtype."""
    for name, module in model.named_modules():
        if "norm" in name or isinstance(module, torch.nn.Embedding):
            module.to(dtype)
    model.get_output_embeddings().to(dtype)


def _require_targets(run: RunFile, model: Any, targets: list[str]) -> None:
    linear = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    for index, target in enumerate(targets):
        if not any(name == target or name.endswith(f".{target}") for name in linear):
            there = sorted({re.sub(r".*\.", "", name) for name in linear} - {"lm_head"})
            raise run.error(
                f"lora_target_modules.{index}",
                f"no module of {run.config['base_model']} is named {target}; it has {', '.join(there)}.",
            )


def report_rows(train_rows: batches.TokenRows, eval_rows: batches.TokenRows | None) -> None:
    """Say what is trained on before it is trained on."""
    if not processes.is_main():
        return
    share = train_rows.trained_tokens / train_rows.tokens
    click.echo(
        f"{len(train_rows.dataset)} rows, {train_rows.tokens:,} tokens, {share:.0%} of them trained; "
        f"{train_rows.dropped} rows over the length limit left out",
        err=True,
    )
    if eval_rows and eval_rows.dropped:
        click.echo(f"{eval_rows.dropped} validation rows over the length limit left out", err=True)


def last_checkpoint(run: RunFile) -> str | None:
    """The newest whole checkpoint, when the run file resumes; broken ones are named and passed over."""
    if not run.config.get("auto_resume_from_checkpoints"):
        return None
    found = [path for path in run.output_dir.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    for path in sorted(found, key=lambda p: int(p.name.split("-")[1]), reverse=True):
        if _whole(path):
            if processes.is_main():
                click.echo(f"going on from {path}", err=True)
            return str(path)
        if processes.is_main():
            click.echo(f"{path} is not whole and is passed over", err=True)
    return None


def _whole(checkpoint: Path) -> bool:
    """transformers writes trainer_state.json last; DeepSpeed keeps the optimizer in global_step*."""
    names = ("trainer_state.json", "adapter_model.safetensors", "adapter_config.json")
    optimizer = (checkpoint / "optimizer.pt").is_file() or any(checkpoint.glob("global_step*/*optim_states.pt"))
    return optimizer and all((checkpoint / name).is_file() and (checkpoint / name).stat().st_size for name in names)


def section(
    run: RunFile, trainer: Any, watch: results.Stopwatch, train_rows: Any = None, eval_rows: Any = None
) -> dict[str, Any]:
    """The `training` section of result.json."""
    history = trainer.state.log_history
    losses = [entry["eval_loss"] for entry in history if "eval_loss" in entry]
    train_losses = [entry["loss"] for entry in history if "loss" in entry]
    counted: dict[str, Any] = {}
    if train_rows is not None:
        counted = {
            "rows": len(train_rows.dataset),
            "rows_too_long": train_rows.dropped,
            "tokens_an_epoch": train_rows.tokens,
            "trained_tokens_an_epoch": train_rows.trained_tokens,
        }
    metrics = {
        "steps": trainer.state.global_step,
        "first_train_loss": train_losses[0] if train_losses else None,
        "last_train_loss": train_losses[-1] if train_losses else None,
        "first_eval_loss": losses[0] if losses else None,
        "last_eval_loss": losses[-1] if losses else None,
        "trainable_parameters": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        **counted,
    }
    return results.section(
        run, metrics, watch, trainer=type(trainer).__name__, processes=processes.world_size(), log_history=history
    )
