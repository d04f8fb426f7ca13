"""Result files: one JSON a system (base or trained variant), with all that is needed to argue with it."""

import os
import platform
import resource
import subprocess
import sys
import time
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from lora_recipes import ROOT
from lora_recipes.config.runfile import RunFile
from lora_recipes.support import files, terminal

import click

NAME = "result.json"

PACKAGES = ("torch", "transformers", "peft", "axolotl", "deepspeed", "bitsandbytes", "lm_eval", "bert-score")


class Stopwatch:
    """Wall time in seconds since it was made."""

    def __init__(self) -> None:
        self.start = time.monotonic()

    def seconds(self) -> float:
        return round(time.monotonic() - self.start, 2)


def section(run: RunFile, metrics: dict[str, Any], watch: Stopwatch, **more: Any) -> dict[str, Any]:
    """What one tool measured, with what is needed to repeat it.

    Metrics are plain numbers, or {"mean", "low", "high", "n"} with a 95 % interval.
    """
    return {
        "status": "ok",
        "metrics": metrics,
        **more,
        "run_file": {"name": run.name, "sha256": run.sha256, "config": run.config},
        "seed": run.config.get("seed"),
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "wall_seconds": watch.seconds(),
        "peak_memory_mb": peak_memory_mb(),
        **_peak_gpu_memory(),
        "environment": environment(),
    }


def read_or_set_aside(path: Path) -> dict[str, Any] | None:
    """A result file; one that cannot be read is renamed, for what was measured just now must not be lost by it."""
    try:
        return read(path)
    except click.ClickException as error:
        aside = path.with_name(f"{path.name}.unreadable")
        with files.as_click_errors(path):
            os.replace(path, aside)
        click.echo(f"{terminal.visible(error.message)} It is {aside.name} now.", err=True)
        return None


def environment() -> dict[str, Any]:
    """Code, packages and hardware of this process."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "git_commit": _git("rev-parse", "HEAD"),
        "git_dirty": bool(_git("status", "--porcelain")),
        "python": platform.python_version(),
        "packages": versions,
        "hardware": _hardware(),
    }


def _git(*args: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *args], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _hardware() -> dict[str, Any]:
    found: dict[str, Any] = {"cores": os.cpu_count(), "processor": _processor()}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
        found["gpus"] = torch.cuda.device_count()
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def peak_memory_mb() -> int:
    """The largest resident size of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak // 1024 if sys.platform != "darwin" else peak // 1024**2)


def _peak_gpu_memory() -> dict[str, int]:
    """`peak_gpu_memory_mb`: the most that this process's tensors took on a GPU, the largest of its GPUs."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return {}
    peak = max(torch.cuda.max_memory_allocated(number) for number in range(torch.cuda.device_count()))
    return {"peak_gpu_memory_mb": int(peak // 2**20)}


def read(path: Path) -> dict[str, Any]:
    """A result file. Raises click.ClickException, naming the field, for one that is truncated, foreign or spoilt."""
    from lora_recipes.results import schema

    result = files.read_json(path)
    if not {"recipe", "variant"} <= set(result):
        raise click.ClickException(f"{path}: not a result of these tools; move it elsewhere.")
    if mistake := schema.mistake(schema.Result, result):
        raise click.ClickException(f"{path}: {mistake}; correct it there, or delete the file and measure again.")
    return result


def finished(run: RunFile) -> bool:
    """Whether this very run file was trained to its end: its adapter is there and its result notes it."""
    path = run.output_dir / NAME
    if not path.exists() or not (run.output_dir / "adapter_model.safetensors").exists():
        return False
    return bool(read(path).get("training", {}).get("run_file", {}).get("sha256") == run.sha256)
