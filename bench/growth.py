#!/usr/bin/env python3
"""How the cost grows: training and evaluation against rows, evaluation against adapters.

Times are those of the whole commands, start-up included: what a user waits for.
"""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from lora_recipes import ROOT
from lora_recipes.config import runfile
from lora_recipes.data import prompts
from lora_recipes.models import adapters, loading
from lora_recipes.rendering import render
from lora_recipes.report import plots
from lora_recipes.results import result_files
from lora_recipes.support import files, libraries

import alpaca
import click
import measuring
import training

WORK = ROOT / ".cache" / "bench" / "growth"
COLOURS = {"train": "#0072B2", "evaluate": "#D55E00"}  # Okabe and Ito's, as in the report's plots


def prepare(data: Path | None, wanted: list[int], adapters: int, sequence_len: int) -> list[int]:
    """Write rows and run files into WORK; the numbers of rows, the last one less where there are fewer.

    A training run of n rows has the folder WORK/n; its questions are the rows that it trains on, because
    only the time counts here. The run files that are evaluated together are WORK/adapter-<k>.yaml.
    Raises click.ClickException where even the smallest number of rows is not there.
    """
    smallest = str(min(wanted))
    shutil.rmtree(WORK, ignore_errors=True)
    _write_run_file(smallest, smallest, sequence_len)
    run = runfile.load(WORK / f"{smallest}.yaml")
    tokenizer, fmt = loading.load_tokenizer(run), prompts.prompt_format(run, 0, "datasets")
    found = alpaca.fitting(alpaca.load(data), tokenizer, fmt, sequence_len)
    if len(found) < min(wanted):
        raise click.ClickException(
            f"{alpaca.name(data)}: {len(found)} rows of at most {sequence_len} tokens; "
            "give smaller --rows or another --data."
        )
    counts = available(wanted, len(found))
    for count in counts:
        lines = "".join(json.dumps(row) + "\n" for row in found[:count])
        (WORK / str(count)).mkdir()
        for part in ("train", "test"):
            (WORK / str(count) / f"{part}.jsonl").write_text(lines, encoding="utf-8")
        _write_run_file(str(count), str(count), sequence_len)
    for number in range(adapters):
        _write_run_file(f"adapter-{number}", smallest, sequence_len)
    return counts


def available(wanted: list[int], there: int) -> list[int]:
    """The numbers of rows in order; those beyond what is there become all there is, once."""
    return sorted({min(count, there) for count in wanted})


def _write_run_file(name: str, rows: str, sequence_len: int) -> None:
    shared = training.common(WORK / "out" / name, WORK / rows, WORK / rows, sequence_len)
    files.write_text(WORK / f"{name}.yaml", render.render(alpaca.RECIPE, "lora", shared))


def train_one(count: int) -> dict[str, float]:
    """Seconds of tools/train.py on so many rows, from nothing, with the tokens and the memory that it notes."""
    folder = WORK / "out" / str(count)
    shutil.rmtree(folder, ignore_errors=True)
    timed = _timed("train.py", str(WORK / f"{count}.yaml"))
    noted = result_files.read(folder / "result.json")["training"]
    return {**timed, "tokens": noted["metrics"]["tokens_an_epoch"], "peak_memory_mb": noted["peak_memory_mb"]}


def evaluate_one(run_files: list[Path], folder: str, *options: str) -> dict[str, float]:
    """Seconds of tools/eval.py on run files without answers; their adapters are those of training run `folder`."""
    for number, path in enumerate(run_files):
        output = WORK / "out" / path.stem
        for old in output.glob("answers-*"):
            old.unlink()
        if not (output / adapters.FILES[0]).exists():
            _copy_adapter(WORK / "out" / folder, output, 1 + number / 100)
    return _timed("eval.py", *map(str, run_files), *options)


def _copy_adapter(trained: Path, output: Path, scale: float) -> None:
    """A trained adapter with its B scaled: another one, whose answers are about as long."""
    from safetensors.torch import load_file, save_file

    output.mkdir(parents=True, exist_ok=True)
    weights, settings = adapters.FILES
    tensors = load_file(trained / weights)
    save_file(
        {name: value * scale if ".lora_B." in name else value for name, value in tensors.items()}, output / weights
    )
    shutil.copy(trained / settings, output / settings)


def _timed(tool: str, *options: str) -> dict[str, float]:
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / tool), *options], capture_output=True, text=True, cwd=ROOT, check=False
    )
    if done.returncode:
        sys.exit(done.stderr[-2000:])
    return {"seconds": round(time.monotonic() - begun, 1)}


def draw(saved: dict[str, Any]) -> bytes:
    """The plot of growth.json as PNG: seconds against rows and against adapters, both axes logarithmic.

    The dashed lines grow as the count does, from the first point: points on or below them are linear or better.
    """
    import matplotlib.ticker

    lines: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for name, way in saved["ways"].items():
        verb, count, unit = name.split()
        if "seconds" in way["median"]:
            lines.setdefault((unit, verb), []).append((int(count), way["median"]["seconds"]))
    units = list(dict.fromkeys(unit for unit, _ in lines))
    figure, axes = plots.stacked([3.4] * len(units))
    for axis, unit in zip(axes, units, strict=True):
        for verb in (verb for measured, verb in lines if measured == unit):
            counts, seconds = zip(*lines[unit, verb], strict=True)
            axis.plot(counts, seconds, color=COLOURS[verb], marker="o", linewidth=1.8, label=_words(saved, verb, unit))
            linear = [seconds[0] * count / counts[0] for count in counts]
            axis.plot(
                counts, linear, color=COLOURS[verb], linestyle="--", linewidth=1, label="proportional to the first"
            )
            for count, value in zip(counts, seconds, strict=True):
                others = [dict(lines[line]).get(count, 0) for line in lines if line[0] == unit]
                above = len(others) > 1 and value == max(others)  # below, the dashed line is out of the way
                axis.annotate(
                    f"{value:.0f} s",
                    (count, value),
                    xytext=(0, 8 if above else -14),  # two lines may run close to each other
                    textcoords="offset points",
                    ha="center",
                    color=COLOURS[verb],
                )
        axis.set(xscale="log", yscale="log", xlabel=unit, ylabel="seconds, start-up included")
        axis.set_xticks(sorted({count for line in lines if line[0] == unit for count, _ in lines[line]}))
        axis.yaxis.set_major_locator(matplotlib.ticker.LogLocator(base=2))
        for direction in (axis.xaxis, axis.yaxis):
            direction.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%d"))
            direction.set_minor_locator(matplotlib.ticker.NullLocator())
        axis.margins(y=0.2)
        axis.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0, frameon=False)
    return plots.png(figure)


def _words(saved: dict[str, Any], verb: str, unit: str) -> str:
    settings = saved["settings"]
    if verb == "train":
        return "tools/train.py"
    return "tools/eval.py" if unit == "rows" else f"tools/eval.py, {settings['questions']} questions"


def _counts(context: click.Context, parameter: click.Parameter, value: str) -> list[int]:
    try:
        found = sorted({int(word) for word in value.split(",")})
    except ValueError:
        found = []
    if not found or found[0] < 1:
        raise click.BadParameter(f"{value!r}: expected whole numbers from 1 on, as in 250,500.")
    return found


@click.command()
@click.option(
    "--data",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="rows in Alpaca's columns  [default: made rows as long as LLaMA-Factory's demo rows]",
)
@click.option("--rows", default="250,500,1000", show_default=True, callback=_counts, metavar="N,N", help="rows")
@click.option("--adapters", default="1,2,4,8", show_default=True, callback=_counts, metavar="N,N", help="adapters")
@click.option("--questions", default=64, show_default=True, type=click.IntRange(1), help="for each adapter")
@click.option("--sequence-len", default=384, show_default=True, type=click.IntRange(64), help="longest row in tokens")
@click.option("--max-new-tokens", default=32, show_default=True, type=click.IntRange(1), help="longest answer")
@click.option("--rounds", default=1, show_default=True, type=click.IntRange(1), help="runs of each, in turn")
def main(
    data: Path | None,
    rows: list[int],
    adapters: list[int],
    questions: int,
    sequence_len: int,
    max_new_tokens: int,
    rounds: int,
) -> None:
    """Time training and evaluation of the embedded model at several sizes, and plot them.

    Where the data have fewer rows, all of them are taken; none is repeated. In bf16, or in float32 where the
    processor emulates bf16.

    \b
    Example:
      bench/growth.py --rows 32,64 --adapters 1,2 --questions 8
    """
    libraries.quiet()
    counts = prepare(data, rows, max(adapters), sequence_len)
    asked, answers = min(questions, counts[0]), ("--max-new-tokens", max_new_tokens)
    ways = _ways(counts, adapters, asked, answers)
    measured = measuring.interleave(ways, rounds, WORK / "log.txt")
    settings = {"adapters": adapters, "questions": asked, "sequence_len": sequence_len, "dtype": measuring.dtype()}
    settings |= {"max_new_tokens": max_new_tokens, "data": alpaca.name(data), "rows": counts}
    saved = measuring.save("growth", ways, measured, **settings)
    plot = saved.with_suffix(".png")
    plot.write_bytes(draw(json.loads(saved.read_text(encoding="utf-8"))))
    click.echo(f"{saved}\n{plot}", err=True)


def _ways(counts: list[int], adapters: list[int], asked: int, options: tuple[object, ...]) -> list[measuring.Way]:
    """Training and evaluation of each number of rows, evaluation of each number of adapters."""
    first = counts[0]
    ways = [_way(f"train {count} rows", "train", count) for count in counts]
    ways += [_way(f"evaluate {count} rows", "evaluate", first, count, f"{count}.yaml", *options) for count in counts]
    for number in adapters:
        names = ",".join(f"adapter-{each}.yaml" for each in range(number))
        ways.append(_way(f"evaluate {number} adapters", "evaluate", first, asked, names, *options))
    return ways


def _way(name: str, *command: object) -> measuring.Way:
    tool = "tools/train.py" if command[0] == "train" else "tools/eval.py"
    return measuring.Way(name, f"{tool}, start-up included", measuring.python("growth.py", "time-one", *command))


def _time_one(kind: str, *words: str) -> None:
    """`train COUNT`, or `evaluate ADAPTER-OF QUESTIONS RUN,RUN OPTION…`; prints the seconds as JSON."""
    if kind == "train":
        print(json.dumps(train_one(int(words[0]))))
        return
    folder, limit, names, *options = words
    run_files = [WORK / name for name in names.split(",")]
    print(json.dumps(evaluate_one(run_files, folder, "--split", "test", "--limit", limit, *options)))


if __name__ == "__main__":
    if sys.argv[1:2] == ["time-one"]:
        _time_one(*sys.argv[2:])
    else:
        main()
