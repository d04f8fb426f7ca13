"""The tables of results/bench/README.md out of results/bench/*.json; the words below them out of notes.md there."""

import json
from pathlib import Path
from typing import Any

from lora_recipes import ROOT
from lora_recipes.support import files

import contenders

SCRIPTS = {name: f"{name}.py" for name in ("training", "evaluation", "benchmark", "merging", "startup", "growth")}
SCRIPTS["benchmark"] = "benchmarking.py"
REFERENCES = {"training": "reference", "benchmark": "lm-eval", "merging": "peft"}
"""The way that the others are compared with, by the benchmark's name."""

PEERS = {one.name for one in contenders.ALL if one.is_peer}
RATES = ("steady_tokens_per_second", "tokens_per_second", "questions_per_second")
COLUMNS = {
    "gflops": "GFLOP/s",
    "tokens_per_second": "tokens/s",
    "steady_tokens_per_second": "tokens/s after the first steps",
    "questions_per_second": "questions/s",
    "seconds": "seconds",
    "milliseconds": "milliseconds",
    "verifying_seconds": "of which verifying",
    "ratio": "times the reference",
    "peer_ratio": "times the best peer",
    "steady_rate_share": "of the matrix rate",
    "validation_loss": "validation loss",
    "mean_acc": "accuracy",
    "largest_difference_bf16_steps": "largest difference in bf16 steps",
    "peak_memory_mb": "peak memory, MB",
}


def tables(folder: Path) -> str:
    """Markdown of all benchmarks measured, in the order of SCRIPTS, what is not among them last."""
    found = {path.stem: json.loads(files.read_text(path)) for path in folder.glob("*.json")}
    order = {benchmark: place for place, benchmark in enumerate(SCRIPTS)}
    names = sorted(found, key=lambda name: (order.get(found[name]["benchmark"], len(order)), name))
    notes = _notes(folder / "notes.md")
    return "\n".join(_section(name, found[name], notes.get(name, "")) for name in names)


def _notes(path: Path) -> dict[str, str]:
    """Text by benchmark: `## <name>` and what follows it. It stays when a benchmark is run again."""
    parts = files.read_text(path).split("\n## ")[1:] if path.exists() else []
    return {name.strip(): text.strip() for name, _, text in (part.partition("\n") for part in parts)}


def _section(name: str, content: dict[str, Any], notes: str) -> str:
    benchmark = content["benchmark"]
    ways = content["ways"]
    rows = {way: _row(way, benchmark, ways) for way in ways if not ways[way]["skipped"] and ways[way]["median"]}
    keys = [key for key in COLUMNS if any(row.get(key) is not None for row in rows.values())]
    lines = [f"## {name.capitalize()}", ""]
    lines += [f"| way | {' | '.join(COLUMNS[key] for key in keys)} | command |", f"|---|{'--:|' * len(keys)}---|"]
    for way, row in rows.items():
        cells = [_cell(key, row.get(key)) for key in keys]
        lines.append(f"| {_escaped(way)} | {' | '.join(cells)} | `{_command(benchmark, way)}` |")
    for way in ways:
        if ways[way]["skipped"]:
            words = f"not measured: {_escaped(ways[way]['skipped'])}"
            lines.append(f"| {_escaped(way)} |{' |' * (len(keys) - 1)} {words} | `{_command(benchmark, way)}` |")
    return "\n".join([*lines, "", _circumstances(content), *([notes, ""] if notes else [])])


def _row(way: str, benchmark: str, ways: dict[str, Any]) -> dict[str, Any]:
    row = dict(ways[way]["median"])
    reference_way = (
        REFERENCES.get(benchmark, "") if benchmark != "evaluation" else f"reference-{way.rpartition('-')[2]}"
    )
    speed, reference = _speed(row), _speed(ways.get(reference_way, {}).get("median", {}))
    if speed and reference:
        row["ratio"] = speed / reference
    peers = [_speed(ways[peer]["median"]) for peer in PEERS & set(ways)]
    if benchmark == "training" and speed and any(peers):
        row["peer_ratio"] = speed / max(filter(None, peers))
    return row


def _speed(median: dict[str, float]) -> float | None:
    """More is better: a rate where one was measured, otherwise runs a second."""
    seconds = median.get("seconds")
    return next((median[key] for key in RATES if key in median), 1 / seconds if seconds else None)


def _cell(key: str, value: float | None) -> str:
    if value is None:
        return ""
    if key.endswith("rate_share"):
        return f"{value:.0%}"
    if key in ("ratio", "peer_ratio"):
        return f"{value:.2f}"
    if key in ("validation_loss", "mean_acc"):
        return f"{value:.4f}"
    if key in ("peak_memory_mb", "largest_difference_bf16_steps"):
        return f"{value:,.0f}"
    return f"{value:.2f}" if value < 10 else f"{value:,.1f}"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _command(benchmark: str, way: str) -> str:
    """What measures a row of the table; all of them where one cannot be had by itself."""
    script = ROOT / "bench" / SCRIPTS.get(benchmark, f"{benchmark}.py")
    if benchmark == "evaluation":
        name, _, adapters = way.rpartition("-")
        return f"bench/{script.name} --ways {name} --adapters {adapters}"
    chosen = script.exists() and '"--ways"' in script.read_text(encoding="utf-8") and way != "matmul"
    return f"bench/{script.name}" + (f" --ways {way}" if chosen else "")


def _circumstances(content: dict[str, Any]) -> str:
    settings = ", ".join(
        f"{name.replace('_', ' ')} {value}"
        for name, value in content["settings"].items()
        if not isinstance(value, dict)
    )
    environment = content["environment"]
    hardware = environment["hardware"]
    where = f"{hardware.get('gpu') or hardware['processor']}, {hardware['cores']} cores"
    versions = ", ".join(f"{name} {version}" for name, version in environment["packages"].items())
    return f"{settings}. {where}; Python {environment['python']}, {versions}.\n"
