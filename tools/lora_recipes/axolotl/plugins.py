"""Axolotl plugins: runs that survive, CPU support for recipes that name it, and the plain trainer inside Axolotl."""

import sys
from typing import Any

from lora_recipes.config import runfile
from lora_recipes.results import result_files, systems
from lora_recipes.support import files, processes, signals, terminal
from lora_recipes.training import settings

import click
from axolotl.integrations.base import BasePlugin

_KERNELS = ("lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel", "lora_embedding_kernel")


class RunPlugin(BasePlugin):
    """What makes a run repeatable, resumable and recorded; `axolotl train` adds it to every run file.

    A seed that covers the adapter, a checkpoint before a signal ends it, errors as sentences, step lines, the check of
    the saved adapter, and result.json.
    """

    def register(self, cfg: Any) -> None:
        if signals.launched():
            signals.begin()
        _say_errors_in_a_sentence()
        if processes.is_main():
            from lora_recipes.training import checkpoints

            checkpoints.set_aside_incomplete(_run_file(cfg))
            checkpoints.require_as_many_processes(_run_file(cfg))

    def pre_lora_load(self, cfg: Any, model: Any) -> None:
        """Axolotl seeds after the adapter is made, so that two runs of one file would differ."""
        from transformers import set_seed

        set_seed(_run_file(cfg).seed)

    def add_callbacks_post_trainer(self, cfg: Any, trainer: Any) -> list[Any]:
        from lora_recipes.training import progress

        return [progress.StepLines(), progress.Speed()]

    def post_trainer_create(self, cfg: Any, trainer: Any) -> None:
        from lora_recipes.training import checkpoints, memory

        import axolotl.train

        axolotl.train.setup_signal_handler = lambda *_: None  # it saves what is not trained and exits with 0
        processes.one_device(trainer)
        checkpoints.make_interruptible(trainer)
        trainer.train = processes.enough_memory(memory.for_training(_run_file(cfg)))(trainer.train)
        processes.require_world(trainer.args.world_size)
        self.trainer, self.watch = trainer, result_files.Stopwatch()

    def post_train_unload(self, cfg: Any) -> None:
        """The adapter is saved: check it, and note how it was trained."""
        from lora_recipes.models import adapters
        from lora_recipes.training import trainer

        if processes.is_main():
            run = _run_file(cfg)
            adapters.require(run.output_dir, run)
            systems.of_run(run, run.output_dir).record("training", trainer.section(run, self.trainer, self.watch))


class CpuPlugin(RunPlugin):
    """Lets Axolotl train on a CPU, in one process or several, with and without DeepSpeed.

    It rehearses a run on a GPU. Where Axolotl would use its fused LoRA kernels, it rewrites the attention for them on
    the CPU too, and fails there too where it cannot; only the kernels themselves are left out. On a GPU it is
    RunPlugin.
    """

    def register(self, cfg: Any) -> None:
        """Join the processes over gloo, before Axolotl validates the run file."""
        super().register(cfg)
        if not processes.on_cpu():
            return
        if cfg.get("bf16") is True:
            processes.warn_of_emulated_bf16()
        processes.join(deepspeed=bool(cfg.get("deepspeed")))

    def load_datasets(self, cfg: Any, preprocess: bool = False) -> None:
        """Set device_map, which Axolotl sets to the rank: this is the last hook before the model loader reads it."""
        if processes.on_cpu():
            cfg.device_map = {"": "cpu"}

    def post_lora_load(self, cfg: Any, model: Any) -> None:
        """Give layers with rewritten attention the projections that Axolotl has for them without its kernels."""
        if processes.on_cpu() and any(cfg.get(kernel) for kernel in _KERNELS):
            from axolotl.monkeypatch.lora_kernels import apply_lora_kernel_patches

            cfg.update(dict.fromkeys(_KERNELS, False))
            apply_lora_kernel_patches(model, cfg)

    def get_training_args(self, cfg: Any) -> dict[str, Any]:
        """transformers takes bf16 on a CPU with use_cpu only, which DeepSpeed refuses."""
        return {"use_cpu": True} if processes.on_cpu() and not cfg.deepspeed and processes.world_size() == 1 else {}


class PlainTrainerPlugin(BasePlugin):
    """The plain trainer inside Axolotl: its rows, masks, batches and loss with Axolotl's model and saving.

    Axolotl logs a plugin that it cannot import and goes on with its own trainer. That this one trained is seen in the
    line of rows and tokens, and in result.json (`trainer: PlainTrainer`).
    """

    def register(self, cfg: Any) -> None:
        _say_errors_in_a_sentence()
        settings.read(_run_file(cfg))

    def load_datasets(self, cfg: Any, preprocess: bool = False) -> Any:
        from lora_recipes.models import loading
        from lora_recipes.training import batches, trainer

        from axolotl.common.datasets import TrainDatasetMeta

        if processes.on_cpu():
            cfg.device_map = {"": "cpu"}  # Axolotl asks no further plugin after the first that answers
        run = _run_file(cfg)
        tokenizer = loading.load_tokenizer(run)
        self.train_rows = batches.tokenize(run, tokenizer, "train")
        self.eval_rows = batches.tokenize(run, tokenizer, "validation")
        assert self.train_rows is not None
        trainer.report_rows(self.train_rows, self.eval_rows)
        return TrainDatasetMeta(
            train_dataset=self.train_rows.dataset,
            eval_dataset=self.eval_rows.dataset if self.eval_rows else None,
            total_num_steps=run.steps(len(self.train_rows.dataset), processes.world_size()),
        )

    def get_collator_cls_and_kwargs(self, cfg: Any, is_eval: bool = False) -> Any:
        from lora_recipes.training import batches

        return batches.Collator, {}

    def get_trainer_cls(self, cfg: Any) -> Any:
        from lora_recipes.training import trainer

        return trainer.PlainTrainer

    def get_training_args(self, cfg: Any) -> dict[str, Any]:
        return {"label_names": ["labels"], "prediction_loss_only": True, "remove_unused_columns": False}


def _say_errors_in_a_sentence() -> None:
    """Print a user's mistake, or a full disk, as one sentence where Axolotl would print a traceback."""

    def hook(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        said = error if isinstance(error, click.ClickException) else files.sentence(error, "the output folder")
        if said:
            terminal.show(said)
        else:
            sys.__excepthook__(kind, error, trace)

    sys.excepthook = hook


def _run_file(cfg: Any) -> runfile.RunFile:
    return runfile.load(str(cfg.axolotl_config_path))
