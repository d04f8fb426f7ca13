"""The tables of the report, out of result files and published figures and nothing else."""

from typing import Any

from lora_recipes.evaluation import metrics
from lora_recipes.report import inputs
from lora_recipes.results import intervals, tables
from lora_recipes.results.systems import BASE, System
from lora_recipes.results.tables import difference, duration, interval, number


def recipe_section(recipe: str, measured: list[System]) -> dict[str, Any]:
    """The tables of one recipe and the lines under them, ready for the templates."""
    published = inputs.published(recipe)
    made = [_metric_table(name, measured, published) for name in _metric_names(measured, published)]
    made += [_counts_table(measured), _training_table(measured, published)]
    return {
        "recipe": recipe,
        "tables": [table for table in made if table["rows"]],
        "made_with": _made_with(measured),
        "limits": _limits(measured),
    }


def _metric_names(measured: list[System], published: list[dict[str, Any]]) -> list[str]:
    """Those of evaluation in the order of their modules, then the benchmark's by name."""
    found = {name for row in published for name in row["metrics"]}
    for system in measured:
        benchmark = system.section("benchmark").get("metrics") or {}
        found |= {name for name, value in system.metrics.items() if isinstance(value, dict) or name in benchmark}
    known = metrics.titles()
    return [name for name in known if name in found] + sorted(found - set(known))


def _metric_table(name: str, measured: list[System], published: list[dict[str, Any]]) -> dict[str, Any]:
    title, note = metrics.titles().get(name, (name, "higher is better"))
    if name.startswith("bertscore"):
        note = f"{note}; {_scored_with(measured, published)}"
    rows = [_row(system.name, *_metric_cells(system, name)) for system in measured if name in system.metrics]
    rows += [
        _row(row["system"], number(row["metrics"][name]), "–", "–", by=row)
        for row in published
        if name in row["metrics"]
    ]
    return {"title": title, "note": note, "columns": ["score", "difference to base", "n"], "rows": rows}


def _metric_cells(system: System, name: str) -> tuple[str, str, str]:
    value = system.metrics[name]
    count = value.get("n") if isinstance(value, dict) else None
    return interval(value), difference(_to_base(system, name)), number(count)


def _scored_with(measured: list[System], published: list[dict[str, Any]]) -> str:
    """Which model computed BERTScore: figures of two models do not compare."""
    users: dict[str, list[str]] = {}
    for system in measured:
        if model := system.scored_with:
            users.setdefault(model, []).append(system.name)
    words = [f"{', '.join(names)} scored with {model}" for model, names in users.items()]
    if len(users) == 1:
        words = [f"scored with {next(iter(users))}"]
    theirs = sorted({row["bertscore_model"] for row in published if "bertscore_model" in row})
    return "; ".join([*words, *(f"published rows scored with {model}" for model in theirs)])


def _to_base(system: System, name: str) -> Any:
    """The paired difference of a system to the base in one metric, where it was measured."""
    evaluated, asked = (
        (system.section(kind).get("differences") or {}).get("base") or {} for kind in ("evaluation", "benchmark")
    )
    return evaluated if name == evaluated.get("metric") else evaluated.get(name, asked.get(name))


def _row(name: str, *cells: str, by: dict[str, Any] | None = None) -> dict[str, Any]:
    origin = f"published by {by['publisher']}" if by else "measured"
    return {"system": name, "origin": origin, "cells": list(cells), "source": by["source"] if by else None}


def _counts_table(measured: list[System]) -> dict[str, Any]:
    columns = {
        "mean_answer_tokens": "mean tokens",
        "empty_answers": "empty",
        "unfinished_answers": "cut off",
        "cut_texts": "cut for scoring",
    }
    rows = [
        _row(system.name, *(number(system.metrics.get(name)) for name in columns))
        for system in measured
        if system.section("evaluation")
    ]
    return {"title": "Answers", "note": "how they ended", "columns": list(columns.values()), "rows": rows}


def _training_table(measured: list[System], published: list[dict[str, Any]]) -> dict[str, Any]:
    columns = ["train loss", "eval loss", "steps", "trained tokens", "time", "trainable parameters", "peak memory"]
    rows = [
        _row(system.name, *_training_cells(system))
        for system in measured
        if system.section("training") or system.history
    ]
    for row in published:
        if known := row.get("training"):
            cells = [number(known.get(name)) for name in ("train_loss", "eval_loss", "steps", "trained_tokens")]
            cells += [duration(known.get("seconds")), number(known.get("trainable_parameters")), "–"]
            rows.append(_row(row["system"], *cells, by=row))
    note = "train loss is the mean over the run, eval loss the last one; nats a token"
    return {"title": "Training", "note": note, "columns": columns, "rows": rows}


def _training_cells(system: System) -> list[str]:
    training = system.section("training")
    metrics = training.get("metrics") or {}
    evaluated = system.losses("eval_loss")
    steps = [entry["step"] for entry in system.history]
    memory = training.get("peak_memory_mb")
    return [
        number(_mean_loss(system)),
        number(evaluated[-1][1] if evaluated else None),
        number(metrics.get("steps", max(steps, default=None))),
        number(_trained_tokens(system)),
        duration(training.get("wall_seconds")),
        number(metrics.get("trainable_parameters")),
        f"{memory:,} MB" if isinstance(memory, int) else "–",
    ]


def _mean_loss(system: System) -> float | None:
    """transformers' train_loss where logged, else the logged losses weighted by the steps each covers."""
    if whole := system.losses("train_loss"):
        return whole[-1][1]
    total, before = 0.0, 0
    for step, loss in system.losses("loss"):
        total, before = total + loss * (step - before), step
    return total / before if before else None


def _trained_tokens(system: System) -> int | None:
    """Tokens with a loss: as Axolotl logged them, else those of an epoch times the epochs trained."""
    logged = [entry["tokens/trainable"] for entry in system.history if entry.get("tokens/trainable") is not None]
    if logged:
        return int(max(logged))
    epoch = (system.section("training").get("metrics") or {}).get("trained_tokens_an_epoch")
    epochs = max((entry.get("epoch") or 0 for entry in system.history), default=0)
    return round(epoch * epochs) if epoch and epochs else None


def _made_with(measured: list[System]) -> list[str]:
    """One line for each environment in which something was measured, with what was measured in it."""
    lines: dict[str, dict[str, list[str]]] = {}
    for system in measured:
        for kind in ("training", "merge", "evaluation", "benchmark"):
            if environment := system.section(kind).get("environment"):
                lines.setdefault(_environment(environment), {}).setdefault(kind, []).append(system.name)
    return [f"{_who(kinds)}: {text}." for text, kinds in lines.items()]


def _who(kinds: dict[str, list[str]]) -> str:
    return "; ".join(f"{kind} of {', '.join(names)}" for kind, names in kinds.items())


def _environment(environment: dict[str, Any]) -> str:
    hardware = environment.get("hardware") or {}
    gpu = f"{hardware.get('gpus', 1)} × {hardware['gpu']}, " if hardware.get("gpu") else ""
    packages = ", ".join(f"{name} {version}" for name, version in sorted((environment.get("packages") or {}).items()))
    commit = str(environment.get("git_commit") or "unknown")[:12]
    dirty = " with uncommitted changes" if environment.get("git_dirty") else ""
    return (
        f"{gpu}{hardware.get('processor', 'unknown processor')}, {hardware.get('cores', '?')} cores; "
        f"commit {commit}{dirty}; Python {environment.get('python', '?')}; {packages}"
    )


def _limits(measured: list[System]) -> list[str]:
    """What was left out or differs, once for all systems that share it."""
    if not measured:
        return ["nothing is measured here yet; the rows above are those of others"]
    users: dict[str, list[str]] = {}
    for system in measured:
        for text in _limits_of(system):
            users.setdefault(text, []).append(system.name)
    return [f"{', '.join(names)}: {text}" for text, names in users.items()]


def _limits_of(system: System) -> list[str]:
    evaluation, benchmark = system.section("evaluation"), system.section("benchmark")
    texts = [f"{task} was skipped: {reason}" for task, reason in (benchmark.get("skipped") or {}).items()]
    if (evaluation.get("rows") or intervals.LEAST) < intervals.LEAST:
        texts.append(f"only {evaluation['rows']} questions. {tables.TOO_FEW}")
    if evaluation.get("limit"):
        texts.append(f"answered the first {evaluation['rows']} rows of {evaluation['split']} only")
    if benchmark.get("limit"):
        texts.append(f"benchmarked on the first {benchmark['limit']} questions of each task only")
    if system.is_base and system.name != BASE:
        config = (evaluation or benchmark).get("run_file", {}).get("config", {})
        texts.append(f"the base model {config.get('base_model')}, another than that of the rows called {BASE}")
    if evaluation.get("prompt_parity") is False:
        texts.append("asked with another prompt than it was trained on, so the scores say little about the training")
    return texts
