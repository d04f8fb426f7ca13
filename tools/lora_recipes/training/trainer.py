"""The plain trainer: transformers' Trainer and PEFT on a run file, with Axolotl's meaning of its keys.

The loss is the mean over a micro batch's trained tokens, and micro batches weigh the same under
gradient accumulation and across processes, as Axolotl has it for adapters.
"""

import contextlib
from typing import Any

from lora_recipes.config.runfile import RunFile
from lora_recipes.data import rows
from lora_recipes.models import adapters, loading
from lora_recipes.results import result_files, systems, tracking
from lora_recipes.support import files, processes
from lora_recipes.training import (
    batches,
    checkpoints,
    chunked_loss,
    lora_model,
    memory,
    padding_free,
    progress,
    settings,
)

import click
import torch
from peft.helpers import disable_input_dtype_casting
from transformers import Trainer


class PlainTrainer(Trainer):
    """transformers' Trainer that computes logits only where a label is, and a chunk of them at a time."""

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
        """The output layer, where chunked_loss.bypass_lm_head took it out of the forward pass."""
        self.model_accepts_loss_kwargs = False  # a mean a micro batch, see the module's docstring

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Mean cross-entropy in nats over the labels that are not IGNORED.

        Logits are made for the columns in which any row has a label: `inputs` holds what batches.targets gives.
        """
        given = {name: part for name, part in inputs.items() if name != "labels"}
        columns, kept, targets = (given.pop(name) for name in ("columns", "kept", "targets"))
        outputs = model(**given, logits_to_keep=columns, use_cache=False)
        found = outputs.logits.flatten(0, 1)[kept]
        if self.head is not None:
            loss = chunked_loss.loss(found, self.head, targets)
        else:
            loss = torch.nn.functional.cross_entropy(found.float(), targets)
        return (loss, outputs) if return_outputs else loss


def train(run: RunFile, overwrite: bool = False) -> None:
    """Train the run file's adapter, check it, and save it under output_dir. Raises click.ClickException.

    A finished run is left as it is. An interrupted one resumes from its last complete checkpoint where the run file
    has auto_resume_from_checkpoints. `overwrite` removes both first.
    """
    settings.read(run)
    processes.require_accelerator(run.name, run.plugins)
    tracking.require_login(run)
    tracking.name_project(run)
    with run.claimed() if processes.is_main() else contextlib.nullcontext():
        if overwrite and processes.is_main():
            loading.load_tokenizer(run)  # a run file that cannot be trained replaces nothing
            for part in ("train", "validation"):
                rows.load_rows(run, part)
            checkpoints.remove(run)
        if processes.is_main():
            run.keep()
        if not overwrite and result_files.finished(run):
            click.echo(f"{run.output_dir}: this run file was trained to its end; nothing to do.", err=True)
            return
        if processes.is_main():
            checkpoints.set_aside_incomplete(run)
            checkpoints.require_as_many_processes(run)
        watch = result_files.Stopwatch()
        memory.reuse()
        processes.join(deepspeed=bool(run.deepspeed))
        tokenizer = loading.load_tokenizer(run)
        train_rows, eval_rows = (batches.tokenize(run, tokenizer, part) for part in ("train", "validation"))
        assert train_rows is not None
        report_rows(train_rows, eval_rows)
        with processes.enough_memory(memory.for_training(run)):
            trainer = _trainer(run, tokenizer, train_rows, eval_rows)
            files.require_space(run.output_dir, _checkpoint_bytes(trainer.model))
            processes.require_world(trainer.args.world_size)
            _train(run, trainer)
        if processes.is_main():
            adapters.require(run.output_dir, run)
            trained = section(run, trainer, watch, train_rows, eval_rows)
            systems.of_run(run, run.output_dir).record("training", trained)
            click.echo(f"adapter saved in {run.output_dir}", err=True)


def _trainer(
    run: RunFile, tokenizer: Any, train_rows: batches.TokenRows, eval_rows: batches.TokenRows | None
) -> PlainTrainer:
    # Before the model: DeepSpeed ZeRO-3 shards it while it loads.
    arguments = settings.training_arguments(run, len(train_rows.dataset), eval_rows is not None)
    model = lora_model.attach_lora(run)
    collator = padding_free.use(run, model) or batches.Collator(tokenizer)
    lora_model.compile_layers(run, model)
    trainer = PlainTrainer(
        model=model,
        args=arguments,
        train_dataset=train_rows.dataset,
        eval_dataset=eval_rows.dataset if eval_rows else None,
        data_collator=collator,
        head=None if run.zero_stage == 3 else chunked_loss.bypass_lm_head(model),
        processing_class=tokenizer,
        callbacks=[progress.StepLines(), memory.TrimWhenGrown(), progress.Speed()],
    )
    processes.one_device(trainer)
    _quiet(trainer)
    checkpoints.make_interruptible(trainer)
    return trainer


def _train(run: RunFile, trainer: Any) -> None:
    """Train to the end, and save the adapter atomically."""
    # Under autocast the adapter's products are in bf16 whether or not PEFT casts their input up before.
    autocast = trainer.args.bf16 and not run.deepspeed
    written = run.output_dir / ".adapter"
    with files.as_click_errors(run.output_dir), disable_input_dtype_casting(trainer.model, active=autocast):
        trainer.train(resume_from_checkpoint=_resumed(run))
        trainer.save_model(str(written))  # by all processes: ZeRO-3 gathers the weights
        if processes.is_main():
            files.move_all(written, run.output_dir)


def _resumed(run: RunFile) -> str | None:
    newest = checkpoints.newest(run)
    if newest and processes.is_main():
        click.echo(f"going on from {newest}", err=True)
    return newest


def _checkpoint_bytes(model: Any) -> int:
    """The size of one checkpoint and the final adapter: trained weights twice and Adam's two moments, in float32."""
    return 4 * 4 * sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def _quiet(trainer: Any) -> None:
    from transformers.trainer_callback import PrinterCallback

    trainer.remove_callback(PrinterCallback)  # it prints dictionaries to stdout, which is for data


def report_rows(train_rows: batches.TokenRows, eval_rows: batches.TokenRows | None) -> None:
    """Print what is trained on, before training."""
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


def section(
    run: RunFile, trainer: Any, watch: result_files.Stopwatch, train_rows: Any = None, eval_rows: Any = None
) -> dict[str, Any]:
    """The `training` section of result.json."""
    history = trainer.state.log_history
    losses = [entry["eval_loss"] for entry in history if "eval_loss" in entry]
    train_losses = [entry["loss"] for entry in history if "loss" in entry]
    counted: dict[str, Any] = _speed(trainer, train_rows)
    if train_rows is not None:
        counted |= {
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
    return result_files.section(
        run, metrics, watch, trainer=type(trainer).__name__, processes=processes.world_size(), log_history=history
    )


def _speed(trainer: Any, train_rows: batches.TokenRows | None) -> dict[str, float]:
    """Metrics of the trainer's progress.Speed callback, if it has one; Axolotl's rows are counted here."""
    found = [each for each in trainer.callback_handler.callbacks if isinstance(each, progress.Speed)]
    if not found:
        return {}
    if train_rows is not None:
        return found[0].metrics(trainer, train_rows.tokens, train_rows.trained_tokens)
    if "labels" not in (getattr(trainer.train_dataset, "column_names", None) or ()):
        return {}
    lengths, trained = batches.counts(trainer.train_dataset)
    return found[0].metrics(trainer, sum(lengths), sum(trained))
