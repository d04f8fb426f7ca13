"""Keys that are computed from a recipe and a variant: accumulation, the data cache, the output folder."""

import hashlib
import math
from pathlib import Path
from typing import Any

from lora_recipes import ROOT
from lora_recipes.config import values, yamlfile
from lora_recipes.rendering.ingredients import Rendered

import click


def derive(made: Rendered) -> None:
    """Add the keys that follow from the others, where the recipe does not set them."""
    run = made.run
    if "gradient_accumulation_steps" not in made.set_keys and "gradient_accumulation_steps" not in run:
        _share_batch(made)
    if "dataset_prepared_path" not in run:
        digest = data_digest(run)
        run["dataset_prepared_path"] = f".cache/prepared/{made.name}{digest and '-' + digest}"
        if digest:
            made.comments["dataset_prepared_path",] = "a hash of the rows: Axolotl's cache ignores them"
    if "output_dir" not in run:
        run["output_dir"] = f"outputs/{made.name}/{made.variant}"


def _share_batch(made: Rendered) -> None:
    """Set the accumulation that makes the global batch; several GPUs may need a smaller micro batch."""
    run, facts = made.run, made.facts
    gpus, batch = facts["gpus"], facts["global_batch"]
    micro = 1 if run.get("micro_batch_size") is None else run["micro_batch_size"]
    fitting = math.gcd(micro, batch // gpus)
    if fitting != micro and batch % gpus == 0 and "micro_batch_size" not in made.set_keys:
        micro = run["micro_batch_size"] = fitting
        forget_comments(made, ("micro_batch_size",))
    steps, rest = divmod(batch, micro * gpus) if micro > 0 else (0, 0)
    if rest or not steps:
        raise click.UsageError(
            f"a global batch of {batch} cannot be made of {gpus} x micro_batch_size {micro}; "
            "--set micro_batch_size, gpus or global_batch so that it divides."
        )
    run["gradient_accumulation_steps"] = steps
    where = f"{gpus} processes" if gpus > 1 else "one process" if facts["cpu"] else "one GPU"
    more = "" if gpus > 1 else "; render --set gpus=2 keeps it"
    made.comments["gradient_accumulation_steps",] = f"global batch {batch} on {where}{more}"


def data_digest(run: dict[str, Any], root: Path = ROOT) -> str:
    """Eight hex digits of a hash of the local data files; '' when all data are on the Hub."""
    digest = hashlib.sha256()
    found = False
    for entry in [*(run.get("datasets") or []), *(run.get("test_datasets") or [])]:
        path = root / str(entry.get("path"))
        for file in sorted(path.rglob("*.*")) if path.is_dir() else [path]:
            if file.is_file() and file.suffix in (".json", ".jsonl", ".csv", ".parquet"):
                found = True
                digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:8] if found else ""


def inline_deepspeed(made: Rendered) -> None:
    """Put the DeepSpeed file into the run file; does nothing to one without."""
    if isinstance(made.run.get("deepspeed"), str):
        made.run["deepspeed"] = values.deepspeed_settings(made.run["deepspeed"], ROOT)
        forget_comments(made, ("deepspeed",))


def zero_stage(run: dict[str, Any]) -> int:
    """DeepSpeed's ZeRO stage; 0 without DeepSpeed, and where its file is not to be had."""
    named = run.get("deepspeed")
    there = not isinstance(named, str) or (ROOT / named).is_file()
    return values.zero_stage(values.deepspeed_settings(named, ROOT)) if there else 0


def forget_comments(made: Rendered, path: yamlfile.Path) -> None:
    for old in [p for p in made.comments if p[: len(path)] == path]:
        del made.comments[old]
