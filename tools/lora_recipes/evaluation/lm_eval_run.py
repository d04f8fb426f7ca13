"""Systems scored on tasks by lm-eval: each base model loaded once, the adapters switched on it.

A finished task is written at once to benchmark-<task>.json beside the system's results, and used
again as long as adapter, model, task and settings are the same.
"""

import contextlib
import functools
import io
import json
import logging
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from lora_recipes.config.runfile import RunFile
from lora_recipes.data import questions
from lora_recipes.evaluation import evaluate
from lora_recipes.evaluation.tasks import Task
from lora_recipes.inference import decoding, grouped_query, loglikelihood
from lora_recipes.models import loading
from lora_recipes.results import result_files
from lora_recipes.support import files

import click


@dataclass(frozen=True, eq=False)
class Candidate:
    """A run's adapter on the run's base model, or with adapter None the full-precision base alone."""

    run: RunFile
    adapter: Path | None

    @property
    def name(self) -> str:
        return self.run.variant if self.adapter else "base"

    @property
    def folder(self) -> Path:
        return result_files.folder(self.run, base=self.adapter is None)

    @property
    def in_4bit(self) -> bool:
        return self.adapter is not None and bool(self.run.config.get("load_in_4bit"))

    @property
    def base(self) -> dict[str, Any]:
        """What tells one base model in memory from another."""
        dtype = str(loading.dtype_of(self.run)).removeprefix("torch.")
        attention = self.run.config.get("attn_implementation")
        return {"model": self.run.model(), "dtype": dtype, "in_4bit": self.in_4bit, "attention": attention}


def candidates(runs: list[RunFile], base: bool, adapter: Path | None) -> list[Candidate]:
    """The systems of a call, those on the same base model next to each other, so that each is loaded once.

    Raises click.ClickException for a missing, damaged or foreign adapter.
    """
    found = [Candidate(run, folder) for run, folder in evaluate.choose(runs, base, adapter)]
    order = [candidate.base for candidate in found]
    return sorted(found, key=lambda candidate: order.index(candidate.base))


@functools.cache
def _identity(model: str) -> str:
    """Of the base model; cached, since it reads all of a local model's files."""
    return questions.model_identity(model)


def inputs(candidate: Candidate, task: Task, limit: int | None) -> dict[str, Any]:
    """All that a score depends on; the batch size changes the last digits of a likelihood only."""
    base = candidate.base
    return {
        **base,
        "model": _identity(base["model"]),
        "adapter": questions.adapter_identity(candidate.adapter) if candidate.adapter else None,
        "task": task.name,
        "task_sha256": task.sha256,
        "limit": limit,
        "lm_eval": metadata.version("lm_eval"),
    }


def kept(candidate: Candidate, task: Task, wanted: dict[str, Any]) -> dict[str, Any] | None:
    """The score on file, if it is of just these inputs."""
    try:
        found = json.loads(_path(candidate, task).read_text(encoding="utf-8"))
        return dict(found) if found["inputs"] == wanted else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _path(candidate: Candidate, task: Task) -> Path:
    return candidate.folder / f"benchmark-{task.name}.json"


class Bench:
    """The base model in memory, as lm-eval sees it, and the adapters that were put on it so far."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self.base: dict[str, Any] = {}
        self.model: Any = None
        self.adapters: dict[Path, str] = {}

    def score(self, candidate: Candidate, task: Task, limit: int | None) -> dict[str, Any]:
        """The score from the file, or measured now and written there: see `measure`."""
        wanted = inputs(candidate, task, limit)
        label = f"{candidate.run.recipe} {candidate.name}, {task.name}"
        if found := kept(candidate, task, wanted):
            click.echo(f"{label}: measured before", err=True)
            return found
        with self._switched(candidate) as lm:
            click.echo(f"{label} …", err=True)
            score = {"inputs": wanted, **measure(lm, task, limit, label)}
        files.write_text(_path(candidate, task), json.dumps(score, indent=1) + "\n")
        return score

    @contextlib.contextmanager
    def _switched(self, candidate: Candidate) -> Iterator[Any]:
        """lm-eval's model with the candidate's adapter active, or none."""
        if candidate.base != self.base:
            self._load(candidate)
        if candidate.adapter is None:
            with self.model.disable_adapter() if self.adapters else contextlib.nullcontext():
                yield self.lm
            return
        name = self.adapters.get(candidate.adapter) or f"adapter{len(self.adapters)}"
        if candidate.adapter not in self.adapters:
            self.model = loading.load_adapter(self.model, candidate.adapter, name)
            self.adapters[candidate.adapter] = name
        self.model.set_adapter(name)
        self.model.eval()
        yield self.lm

    def _load(self, candidate: Candidate) -> None:
        import torch

        self.model = self.lm = None  # first, so that two base models are never in memory at once
        self.adapters = {}
        model = loading.load_base(candidate.run, quantized=candidate.in_4bit)
        if model.device.type == "cpu" and torch.accelerator.is_available():
            model.to(torch.accelerator.current_accelerator())  # a DeepSpeed run file leaves it to DeepSpeed
        grouped_query.use()
        # The weights that PEFT puts into the base model act through this object too.
        self.lm = _wrapped(model, loading.load_tokenizer(candidate.run), self.batch_size)
        self.model, self.base = model, candidate.base


def _wrapped(model: Any, tokenizer: Any, batch_size: int) -> Any:
    """lm-eval's view of a loaded model: questions read once for all their options, and our progress bar."""
    for name in ("lm_eval", "transformers", "datasets"):
        logging.getLogger(name).setLevel(logging.ERROR)
    from lm_eval.models.huggingface import HFLM

    class Quiet(HFLM):
        bar: Any = None

        def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> Any:
            shown = sys.stderr if sys.stderr.isatty() else io.StringIO()
            with click.progressbar(length=len(requests), label=self.label, file=shown) as self.bar:
                return super().loglikelihood(requests, disable_tqdm=True)

        def _loglikelihood_tokens(self, requests: Any, disable_tqdm: bool = False, override_bs: Any = None) -> Any:
            pairs = [(context, option) for _, context, option in requests]
            longest = max(len(context) + len(option) for context, option in pairs)
            if longest > self.max_length or not decoding.keeps_everything(self.model.config, longest):
                return super()._loglikelihood_tokens(requests, disable_tqdm=True, override_bs=override_bs)
            pad = tokenizer.pad_token_id or 0
            return loglikelihood.log_likelihoods(self.model, pairs, pad, self.batch_size, self._advance)

        def _model_call(self, inps: Any, *args: Any, **kwargs: Any) -> Any:
            self._advance(len(inps))
            return super()._model_call(inps, *args, **kwargs)

        def _advance(self, requests: int) -> None:
            if self.bar is not None:
                self.bar.update(requests)

    return Quiet(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)


def measure(lm: Any, task: Task, limit: int | None, label: str) -> dict[str, Any]:
    """`metrics` of a task (mean, stderr, 95 % interval, n), `outcomes` a question as text of 0 and 1, `seconds`.

    The standard error is lm-eval's: of a mean, s/√n. An estimate has none and no outcomes.
    lm_eval.evaluate and not simple_evaluate, which first indexes 14,000 tasks and then lists every
    package of the machine.
    """
    from lm_eval import evaluate

    lm.label = label
    begun = time.monotonic()
    loaded = task.load()
    with _working_in(task.folder):
        found = evaluate(lm, loaded, limit=limit, bootstrap_iters=1, log_samples=True)
    samples = sorted(found["samples"][task.name], key=lambda sample: sample["doc_id"])
    outcomes = {name: "".join(str(int(sample[name])) for sample in samples) for name in task.metrics}
    return {
        "metrics": {name: _metric(found["results"][task.name], name, len(samples)) for name in task.metrics},
        "outcomes": {} if task.is_estimate else outcomes,
        "seconds": round(time.monotonic() - begun, 1),
    }


@contextlib.contextmanager
def _working_in(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def _metric(found: dict[str, Any], name: str, count: int) -> dict[str, Any]:
    """A score with its 95 % normal interval, cut to [0, 1]; lm-eval gives no error for a single question."""
    mean, stderr = float(found[f"{name},none"]), found[f"{name}_stderr,none"]
    if not isinstance(stderr, float):
        return {"mean": mean, "low": None, "high": None, "n": count, "stderr": None}
    low, high = max(0.0, mean - 1.96 * stderr), min(1.0, mean + 1.96 * stderr)
    return {"mean": mean, "low": low, "high": high, "n": count, "stderr": stderr}
