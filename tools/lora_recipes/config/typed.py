"""The keys of a run file under their types, with the meaning that Axolotl gives to an absent one."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_recipes.config import values, yamlfile

import click


@dataclass(frozen=True)
class Typed:
    """A run file as read, with the folder from which its relative paths count."""

    document: yamlfile.Document
    text: str
    anchor: Path

    @property
    def config(self) -> dict[str, Any]:
        return self.document.data

    def error(self, key: str, message: str) -> click.ClickException:
        path = tuple(int(part) if part.isdigit() else part for part in key.split("."))
        return self.document.error(path, message)

    @property
    def base_model(self) -> str:
        """As the file writes it; `model` has the path of a local one."""
        return str(self.config["base_model"])

    @property
    def datasets(self) -> list[dict[str, Any]]:
        return self.config.get("datasets") or []

    @property
    def test_datasets(self) -> list[dict[str, Any]]:
        return self.config.get("test_datasets") or []

    @property
    def special_tokens(self) -> dict[str, Any]:
        """Role -> token, as in `eos_token: <|im_end|>`."""
        return self.config.get("special_tokens") or {}

    @property
    def chat_template_kwargs(self) -> dict[str, Any]:
        """What the chat template takes beside the turns."""
        return self.config.get("chat_template_kwargs") or {}

    @property
    def trains_on_prompt(self) -> bool:
        return bool(self.config.get("train_on_inputs"))

    @property
    def sequence_len(self) -> int:
        """The most tokens of a row."""
        return int(self.config.get("sequence_len") or 512)

    @property
    def four_bit(self) -> bool:
        """Whether the base weights are stored in 4 bit."""
        return bool(self.config.get("load_in_4bit"))

    @property
    def dtype_name(self) -> str:
        """The dtype of the base weights: "bfloat16", "float16" or "float32", as Axolotl takes it from bf16 and fp16.

        `bf16: auto` is bfloat16 on a GPU that has it, float16 on another GPU, and on a CPU float32.
        """
        bf16 = self.config.get("bf16")
        if bf16 == "auto":
            import torch

            if not torch.accelerator.is_available():
                bf16 = False
            elif not torch.cuda.is_available() or torch.cuda.is_bf16_supported():
                bf16 = True
            elif self.config.get("fp16") is None:
                return "float16"
        if bf16 in (True, "full"):
            return "bfloat16"
        return "float16" if self.config.get("fp16") is True else "float32"

    @property
    def attention(self) -> str | None:
        """The implementation of attention that the file names."""
        return self.config.get("attn_implementation")

    @property
    def gradient_checkpointing(self) -> bool:
        return bool(self.config.get("gradient_checkpointing"))

    @property
    def seed(self) -> int:
        """42 where the file has none, as in Axolotl; 0 is a seed."""
        value = self.config.get("seed")
        return 42 if value is None else int(value)

    @property
    def micro_batch(self) -> int:
        """Rows of a forward pass on each device."""
        return int(self.config.get("micro_batch_size") or 1)

    @property
    def accumulation(self) -> int:
        """Micro batches of an optimizer step."""
        return int(self.config.get("gradient_accumulation_steps") or 1)

    @property
    def epochs(self) -> float:
        return float(self.config.get("num_epochs") or 1)

    def steps(self, rows: int, processes: int = 1) -> int:
        """Optimizer steps of the training on so many rows."""
        if most := self.config.get("max_steps"):
            return int(most)
        return math.ceil(values.steps_per_epoch(rows, self.micro_batch * processes, self.accumulation) * self.epochs)

    @property
    def resumes(self) -> bool:
        """Whether training goes on from the newest checkpoint under output_dir."""
        return bool(self.config.get("auto_resume_from_checkpoints"))

    @property
    def plugins(self) -> list[str]:
        return self.config.get("plugins") or []

    def require_plugins(self) -> None:
        """Raises click.ClickException for a plugin that Axolotl would not find, and train without."""
        for index, name in enumerate(self.plugins):
            if not isinstance(name, str):
                raise self.error(f"plugins.{index}", f"expected the name of a plugin, found {name!r}.")
            if not values.plugin_is_there(name, self.anchor):
                raise self.error(f"plugins.{index}", f"{name} cannot be imported here; install it or delete the line.")

    @property
    def deepspeed(self) -> dict[str, Any]:
        """DeepSpeed's settings, of the file or inline; empty without DeepSpeed. Raises click.ClickException."""
        try:
            return values.deepspeed_settings(self.config.get("deepspeed"), self.anchor)
        except click.ClickException as error:
            raise self.error("deepspeed", error.message) from None

    @property
    def zero_stage(self) -> int:
        """DeepSpeed's ZeRO stage; 0 without DeepSpeed. Raises click.ClickException, as `deepspeed` does."""
        return values.zero_stage(self.deepspeed)

    @property
    def wandb_project(self) -> str | None:
        return self.config.get("wandb_project")
