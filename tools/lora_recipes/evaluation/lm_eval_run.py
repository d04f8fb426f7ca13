"""Systems scored on tasks by lm-eval: each base model loaded once, the adapters switched on it.

A finished task is written at once to benchmark-<task>.json beside the system's results, and used
again as long as adapter, model, task and settings are the same.
"""

import contextlib
import functools
import json
import logging
import operator
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from lora_recipes.data import questions
from lora_recipes.evaluation.tasks import Task
from lora_recipes.inference import decoding, loglikelihood, shared_base
from lora_recipes.inference.shared_base import SharedBase
from lora_recipes.models import loading
from lora_recipes.results import intervals
from lora_recipes.results.systems import System, model_identity
from lora_recipes.support import files, processes

import click

Scores = dict[System, dict[str, dict[str, Any]]]
"""System -> task -> inputs, metrics, outcomes, seconds: see `measure`."""

_BOOTSTRAPS = 1000
"""For the standard errors that lm-eval has no formula for; no accuracy needs them."""
_SEED = 1234
"""lm-eval's own for few-shot examples."""


def inputs(system: System, task: Task, limit: int | None) -> dict[str, Any]:
    """All that a score depends on; the batch size changes the last digits of a likelihood only."""
    base = asdict(shared_base.loaded(system))
    return {
        **base,
        "own": base["own"] is not None,
        "model": model_identity(base["model"]),
        "adapter": questions.adapter_identity(system.adapter) if system.adapter else None,
        "task": task.name,
        "task_sha256": task.sha256,
        "limit": limit,
        "lm_eval": metadata.version("lm_eval"),
    }


def _path(system: System, task: Task) -> Path:
    return system.folder / f"benchmark-{task.name}.json"


def _kept(system: System, task: Task, wanted: dict[str, Any]) -> dict[str, Any] | None:
    """The score on file, if it is of just these inputs."""
    try:
        found = files.read_json(_path(system, task))
        return _with_intervals(found) if found["inputs"] == wanted else None
    except (click.ClickException, KeyError, TypeError):
        return None


def score(systems: list[System], ready: list[Task], limit: int | None, batch_size: int | None) -> Scores:
    """The scores of all systems, from their files or measured now; those on one base next to each other.

    Raises click.ClickException when the memory is too small.
    """
    import torch

    size = batch_size or (16 if processes.on_cpu() else 32)
    found: Scores = {}
    try:
        for group in shared_base.groups(systems):
            found |= _on_one_base(group, ready, limit, size)
            shared_base.release()
    except torch.OutOfMemoryError:
        raise click.ClickException(
            f"out of memory with batches of {size}; run the same command with a smaller --batch-size, "
            "the finished tasks are kept."
        ) from None
    return found


def _on_one_base(systems: list[System], ready: list[Task], limit: int | None, batch_size: int) -> Scores:
    wanted = {(system, task): inputs(system, task, limit) for system in systems for task in ready}
    known = {key: found for key, given in wanted.items() if (found := _kept(*key, given))}
    waiting = [system for system in systems if any((system, task) not in known for task in ready)]
    if waiting:
        shared = SharedBase(waiting)
        lm = wrapped(shared.base, loading.load_tokenizer(waiting[0].run), batch_size)
    for (system, task), given in wanted.items():
        if (system, task) in known:
            click.echo(f"{system.label}, {task.name}: measured before", err=True)
            continue
        click.echo(f"{system.label}, {task.name} …", err=True)
        with shared.active(system):
            known[system, task] = {"inputs": given, **measure(lm, task, limit)}
        files.write_text(_path(system, task), json.dumps(known[system, task], indent=1) + "\n")
    return {system: {task.name: known[system, task] for task in ready} for system in systems}


def wrapped(model: Any, tokenizer: Any, batch_size: int) -> Any:
    """lm-eval's view of a loaded model, with questions read once for all their options; no bars in a log."""
    for name in ("lm_eval", "transformers", "datasets"):
        logging.getLogger(name).setLevel(logging.ERROR)
    from lm_eval.models.huggingface import HFLM
    from tqdm import tqdm

    class ReadsOnce(HFLM):
        def _loglikelihood_tokens(self, requests: Any, disable_tqdm: bool = False, override_bs: Any = None) -> Any:
            pairs = [(context, option) for _, context, option in requests]
            longest = max(len(context) + len(option) for context, option in pairs)
            if longest > self.max_length or not decoding.keeps_everything(self.model.config, longest):
                return super()._loglikelihood_tokens(requests, disable_tqdm, override_bs)
            with tqdm(total=len(pairs), disable=disable_tqdm, desc="Running loglikelihood requests") as bar:
                pad = tokenizer.pad_token_id or 0
                return loglikelihood.log_likelihoods(self.model, pairs, pad, self.batch_size, bar.update)

    lm = ReadsOnce(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
    for name in ("loglikelihood", "loglikelihood_rolling", "generate_until"):
        setattr(lm, name, functools.partial(getattr(lm, name), disable_tqdm=not sys.stderr.isatty()))
    return lm


def measure(lm: Any, task: Task, limit: int | None) -> dict[str, Any]:
    """`metrics` of a task (mean, stderr, 95 % interval, n), `outcomes` a question as text of 0 and 1, `seconds`.

    Metrics and standard errors are lm-eval's; outcomes are there for a metric that is their mean.
    lm_eval.evaluate and not simple_evaluate, which lists every package of the machine.
    """
    from lm_eval import evaluate

    begun = time.monotonic()
    task.loaded.set_fewshot_seed(seed=_SEED)
    with _working_in(task.folder):
        found: Any = evaluate(lm, {task.name: task.loaded}, limit=limit, bootstrap_iters=_BOOTSTRAPS, log_samples=True)
    samples = sorted(found["samples"][task.name], key=operator.itemgetter("doc_id"))
    metrics, outcomes = {}, {}
    for key, value in found["results"][task.name].items():
        metric, _, filtered = key.partition(",")
        if not filtered or metric.endswith("_stderr") or not isinstance(value, (int, float)):
            continue
        name = metric if filtered == "none" else f"{metric}_{filtered}"
        asked = [sample for sample in samples if sample["filter"] == filtered]
        stderr = found["results"][task.name].get(f"{metric}_stderr,{filtered}")
        metrics[name] = {"mean": float(value), "n": len(asked), "stderr": stderr if isinstance(stderr, float) else None}
        if text := _outcomes(task, metric, asked):
            outcomes[name] = text
    seconds = round(time.monotonic() - begun, 1)
    return _with_intervals({"metrics": metrics, "outcomes": outcomes, "seconds": seconds})


def _outcomes(task: Task, metric: str, samples: list[dict[str, Any]]) -> str:
    """One digit a question, of a metric that is the mean of 0 and 1; '' for others, such as an estimate."""
    from lm_eval.api.metrics import mean

    values = [sample.get(metric) for sample in samples]
    is_share = task.loaded.aggregation().get(metric) is mean and all(value in (0, 1) for value in values)
    return "".join(str(int(bool(value))) for value in values) if is_share else ""


@contextlib.contextmanager
def _working_in(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def _with_intervals(found: dict[str, Any]) -> dict[str, Any]:
    """A score with a 95 % interval of each metric: Wilson's of a share, else the normal one by lm-eval's error."""
    metrics = {}
    for name, told in found["metrics"].items():
        low = high = None
        if outcomes := found["outcomes"].get(name):
            low, high = intervals.share(outcomes.count("1"), len(outcomes))
        elif told["stderr"] is not None:
            low, high = (told["mean"] + sign * 1.96 * told["stderr"] for sign in (-1, 1))
        metrics[name] = {"mean": told["mean"], "low": low, "high": high, "n": told["n"], "stderr": told["stderr"]}
    return {**found, "metrics": metrics}
