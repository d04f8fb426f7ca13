"""The contenders that train inside the process: the reference projects' and TRL's."""

import time
from pathlib import Path
from typing import Any

from lora_recipes.config import runfile
from lora_recipes.data import prompts, rows
from lora_recipes.models import loading
from lora_recipes.training import lora_model

import torch
from datasets import Dataset
from timed import Trained
from transformers import Trainer, TrainerCallback, TrainingArguments
from trl import SFTConfig, SFTTrainer


class StepTimes(TrainerCallback):
    """Notes when each optimizer step ends."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.times.append(time.monotonic())


def reference(run: runfile.RunFile, folder: Path, sequence_len: int) -> Trained:
    """From the description of the published runs: batches of 2 in file order, padded to the longest, a mask
    found by a loop in the collator, logits and loss over every position."""
    tokenizer = loading.load_tokenizer(run)
    header = tokenizer("### Response:\n")["input_ids"]
    texts = [_ids(tokenizer, fmt, row, sequence_len) for part, fmt in rows.load_parts(run, "train") for row in part]

    def collate(batch: list[dict[str, list[int]]]) -> dict[str, Any]:
        ids = [torch.tensor(one["input_ids"]) for one in batch]
        padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=tokenizer.pad_token_id)
        labels = padded.clone()
        for n, one in enumerate(padded.tolist()):
            starts = range(len(one) - len(header) + 1)
            at = next((start for start in starts if one[start : start + len(header)] == header), None)
            labels[n, : at + len(header) if at is not None else len(one)] = prompts.IGNORED
            labels[n, len(ids[n]) :] = prompts.IGNORED
        mask = torch.tensor([[n < len(one) for n in range(padded.shape[1])] for one in ids]).long()
        return {"input_ids": padded, "labels": labels, "attention_mask": mask}

    class InOrder(Trainer):
        def _get_train_sampler(self, *args: Any) -> Any:
            return torch.utils.data.SequentialSampler(texts)

    arguments = TrainingArguments(
        **_arguments(run, folder), per_device_train_batch_size=2, gradient_accumulation_steps=4
    )
    made = InOrder(model=lora_model.attach_lora(run), args=arguments, train_dataset=texts, data_collator=collate)
    return _trained(made, folder)


def _ids(tokenizer: Any, fmt: prompts.PromptFormat, row: dict[str, Any], limit: int) -> dict[str, list[int]]:
    return {"input_ids": prompts.example(tokenizer, fmt, row)["input_ids"][:limit]}


def trl(run: runfile.RunFile, folder: Path, sequence_len: int, **more: Any) -> Trained:
    """As TRL's documentation has it for prompt-completion data; `more` goes to its SFTConfig.

    Packed and padding-free rows are kept apart by their positions: with SDPA transformers makes the
    mask for that. TRL recomputes activations by default to save memory, which is off here for speed.
    """
    tokenizer = loading.load_tokenizer(run)
    pairs = [
        {"prompt": fmt.prompt(row), "completion": row[fmt.field_output] + tokenizer.eos_token}
        for part, fmt in rows.load_parts(run, "train")
        for row in part
    ]
    settings = {
        **_arguments(run, folder),
        "per_device_train_batch_size": 8,
        "train_sampling_strategy": "group_by_length",
        "gradient_checkpointing": False,
        "max_length": sequence_len,
        "completion_only_loss": True,
    }
    config = SFTConfig(**settings | more)
    made = SFTTrainer(
        model=lora_model.attach_lora(run),
        args=config,
        train_dataset=Dataset.from_list(pairs),
        processing_class=tokenizer,
    )
    return _trained(made, folder)


def _arguments(run: runfile.RunFile, folder: Path) -> dict[str, Any]:
    return {
        "output_dir": str(folder),
        "num_train_epochs": 1,
        "learning_rate": run.config["learning_rate"],
        "lr_scheduler_type": "cosine",
        "bf16": bool(run.config["bf16"]),
        "use_cpu": True,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "logging_steps": 1,
        "include_num_input_tokens_seen": "non_padding",
        "seed": 42,
        "remove_unused_columns": False,
        "dataloader_pin_memory": False,
    }


def _trained(made: Any, folder: Path) -> Trained:
    times = StepTimes()
    made.add_callback(times)
    seconds = made.train().metrics["train_runtime"]
    made.model.save_pretrained(folder)
    return Trained(float(seconds), times.times, made.state.log_history)
