"""One way of training, run by bench/training.py: trains, scores the adapter, prints the measurements as JSON.

The time is that of the training loop alone (transformers' train_runtime); start-up is another benchmark.
"""

import json
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from lora_recipes import libraries, models, processes, prompts, results, rows, runfile

import training


def reference(run: runfile.RunFile, folder: Path, sequence_len: int, packing: bool) -> float:
    """From the description of the published runs: batches of 2 in file order, padded to the longest, a mask
    found by a loop in the collator, logits and loss over every position."""
    from lora_recipes import trainer

    import torch
    from transformers import Trainer, TrainingArguments

    tokenizer = models.load_tokenizer(run)
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
    made = InOrder(model=trainer.adapted(run), args=arguments, train_dataset=texts, data_collator=collate)
    return _trained(made, folder)


def _ids(tokenizer: Any, fmt: prompts.PromptFormat, row: dict[str, Any], limit: int) -> dict[str, list[int]]:
    return {"input_ids": prompts.example(tokenizer, fmt, row)["input_ids"][:limit]}


def trl(run: runfile.RunFile, folder: Path, sequence_len: int, packing: bool) -> float:
    """As TRL's documentation has it for prompt-completion data; like lengths together, no padding to speak of."""
    from lora_recipes import trainer

    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    tokenizer = models.load_tokenizer(run)
    pairs = [
        {"prompt": fmt.prompt(row), "completion": row[fmt.field_output] + tokenizer.eos_token}
        for part, fmt in rows.load_parts(run, "train")
        for row in part
    ]
    config = SFTConfig(
        **_arguments(run, folder),
        per_device_train_batch_size=1 if packing else 8,
        gradient_accumulation_steps=4 if packing else 1,
        train_sampling_strategy="random" if packing else "group_by_length",
        max_length=sequence_len,
        completion_only_loss=True,
        packing=packing,
    )
    made = SFTTrainer(
        model=trainer.adapted(run), args=config, train_dataset=Dataset.from_list(pairs), processing_class=tokenizer
    )
    return _trained(made, folder)


def _arguments(run: runfile.RunFile, folder: Path) -> dict[str, Any]:
    return {
        "output_dir": str(folder),
        "num_train_epochs": 1,
        "learning_rate": run.config["learning_rate"],
        "lr_scheduler_type": "cosine",
        "bf16": True,
        "use_cpu": True,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "logging_steps": 1,
        "seed": 42,
        "remove_unused_columns": False,
        "dataloader_pin_memory": False,
    }


def _trained(made: Any, folder: Path) -> float:
    seconds = made.train().metrics["train_runtime"]
    made.model.save_pretrained(folder)
    return float(seconds)


def from_run_file(command: list[str], run: runfile.RunFile) -> float:
    """A command that trains a run file and notes it in result.json."""
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr[-2000:])
    history = results.read(run.output_dir / "result.json")["training"]["log_history"]
    return float(next(entry["train_runtime"] for entry in history if "train_runtime" in entry))


def score(run: runfile.RunFile, folder: Path) -> float:
    """Mean cross-entropy in nats over the answer tokens of the validation rows, in float32."""
    import torch

    tokenizer = models.load_tokenizer(run)
    model = models.load_adapter(models.load_base(run, torch.float32), folder).eval()
    total = count = 0.0
    for part, fmt in rows.load_parts(run, "validation"):
        for example in prompts.examples(tokenizer, fmt, part):
            ids, labels = (torch.tensor([example[name]]) for name in ("input_ids", "labels"))
            kept = (labels[:, 1:] != prompts.IGNORED).squeeze(0).nonzero().squeeze(1)
            with torch.no_grad():
                logits = model(input_ids=ids, logits_to_keep=kept).logits[0]
            total += torch.nn.functional.cross_entropy(logits, labels[0, 1:][kept], reduction="sum").item()
            count += len(kept)
    return total / count


def main() -> None:
    way, tokens, sequence_len = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    libraries.quiet()
    name = way if way in ("plain", "axolotl", "axolotl-packed") else "plain"
    run = runfile.load(training.WORK / f"{name}.yaml")
    folder = training.WORK / "out" / way
    shutil.rmtree(folder, ignore_errors=True)
    begun = time.monotonic()
    if way == "plain":
        seconds = from_run_file([sys.executable, str(training.ROOT / "tools" / "train.py"), run.name], run)
    elif way.startswith("axolotl"):
        axolotl = str(Path(sys.executable).parent / "axolotl")
        seconds = from_run_file([axolotl, "train", run.name, "--launcher", "python"], run)
    else:
        processes.share_cores()
        train = reference if way == "reference" else trl
        seconds = train(run, folder, sequence_len, way.endswith("packed"))
    whole = time.monotonic() - begun
    usage = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    peak_mb = max(usage) // 1024  # before the adapter is scored
    measured = {
        "tokens_per_second": round(tokens / seconds, 1),
        "seconds": round(seconds, 1),
        "with_start_up": round(whole, 1),
        "peak_memory_mb": peak_mb,
        "validation_loss": round(score(run, folder), 4),
    }
    print(json.dumps(measured))


if __name__ == "__main__":
    main()
