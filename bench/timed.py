"""A training loop and its times, whoever ran it: read from a trainer's output and from transformers' log_history."""

import collections
import json
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_recipes.config.runfile import RunFile
from lora_recipes.results import result_files

_STEP = re.compile(r"^step \d+/\d+  loss |'loss': ")
"""A line that tells of a finished step: of lora_recipes.training.progress, and of transformers' own printing."""


@dataclass(frozen=True)
class Trained:
    """The times of one training loop."""

    seconds: float
    """transformers' train_runtime."""
    times: list[float]
    """The end of each step, in seconds from anywhere."""
    history: list[dict[str, Any]]
    """transformers' log_history."""

    @property
    def seen(self) -> list[float] | None:
        """Tokens counted by the trainer up to each step; None where it does not count."""
        entries = [entry for entry in self.history if "loss" in entry]
        for name in ("num_input_tokens_seen", "num_tokens", "tokens/total"):
            if entries and all(name in entry for entry in entries):
                return [float(entry[name]) for entry in entries]
        return None


def from_run_file(command: list[str], run: RunFile) -> Trained:
    """Run a command that trains a run file and notes it in result.json."""
    times = step_times(command)
    history = result_files.read(run.output_dir / "result.json")["training"]["log_history"]
    return Trained(runtime(history), times, history)


def from_trainer_state(command: list[str], folder: Path) -> Trained:
    """Run a command that leaves transformers' trainer_state.json in a folder."""
    times = step_times(command)
    history = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    return Trained(runtime(history), times, history)


def runtime(history: list[dict[str, Any]]) -> float:
    """Seconds of the whole loop. Trainers that count tokens note it with every step: the last entry has the whole."""
    return float([entry["train_runtime"] for entry in history if "train_runtime" in entry][-1])


def step_times(command: list[str]) -> list[float]:
    """Run it; when each line about a finished step came. Ends this process where the command fails."""
    cores = str(len(os.sched_getaffinity(0)))
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": cores, "AXOLOTL_DO_NOT_TRACK": "1"}
    times: list[float] = []
    last: collections.deque[str] = collections.deque(maxlen=60)
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", env=environment
    ) as process:
        for line in process.stdout or ():
            last.append(line)
            if _STEP.search(line):
                times.append(time.monotonic())
    if process.returncode:
        sys.exit("".join(last))
    return times
