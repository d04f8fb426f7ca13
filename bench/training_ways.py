"""One way of training, run by bench/training.py: trains, scores the adapter, prints the measurements as JSON.

The time is that of the training loop alone (transformers' train_runtime); start-up is another benchmark.
Every way is one process on all cores.
"""

import collections
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_recipes.config import runfile
from lora_recipes.data import prompts, rows
from lora_recipes.models import loading
from lora_recipes.results import result_files
from lora_recipes.support import libraries, processes

import measuring
import peers
import rates
import training

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


def from_run_file(command: list[str], run: runfile.RunFile) -> Trained:
    """A command that trains a run file and notes it in result.json."""
    times = _step_times(command)
    history = result_files.read(run.output_dir / "result.json")["training"]["log_history"]
    return Trained(_runtime(history), times, history)


def from_llama_factory(configuration: Path, folder: Path) -> Trained:
    """Its own command on its own run file; transformers' trainer_state.json has the times."""
    times = _step_times([str(peers.COMMAND), "train", str(configuration)])
    history = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    return Trained(_runtime(history), times, history)


def _runtime(history: list[dict[str, Any]]) -> float:
    # Trainers that count tokens note it with every step, so the last entry has the whole.
    return float([entry["train_runtime"] for entry in history if "train_runtime" in entry][-1])


def _step_times(command: list[str]) -> list[float]:
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


def score(run: runfile.RunFile, folder: Path) -> float:
    """Mean cross-entropy in nats over the answer tokens of the validation rows, in float32."""
    import torch

    tokenizer = loading.load_tokenizer(run)
    model = loading.load_adapter(loading.load_base(run, torch.float32), folder).eval()
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


def train(way: str, run: runfile.RunFile, folder: Path, sequence_len: int) -> Trained:
    """One pass over the rows, the adapter left in `folder`."""
    if way.startswith("plain"):
        return from_run_file([sys.executable, str(training.ROOT / "tools" / "train.py"), run.name], run)
    if way.startswith("axolotl"):
        axolotl = str(Path(sys.executable).parent / "axolotl")
        return from_run_file([axolotl, "train", run.name, "--launcher", "python"], run)
    if way.startswith("llamafactory"):
        return from_llama_factory(training.WORK / f"{way}.yaml", folder)
    import trainers

    processes.share_cores()
    if way.startswith("reference"):
        return Trained(*trainers.reference(run, folder, sequence_len))
    return Trained(*trainers.trl(run, folder, sequence_len, way.removeprefix("trl").lstrip("-")))


def main() -> None:
    way, tokens, sequence_len = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    libraries.quiet()
    if way == "matmul":
        processes.share_cores()
        print(json.dumps({"gflops": round(rates.matrix_rate(dtype=measuring.dtype()) / 1e9, 1)}))
        return
    run = runfile.load(training.WORK / f"{way if way in training.SETTINGS else 'plain'}.yaml")
    folder = training.WORK / "out" / way
    shutil.rmtree(folder, ignore_errors=True)
    begun = time.monotonic()
    trained = train(way, run, folder, sequence_len)
    whole = time.monotonic() - begun
    usage = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    peak_mb = max(usage) // 1024  # before the adapter is scored
    steady = rates.steady(trained.times, trained.seen, tokens)
    measured = {
        "tokens_per_second": round(tokens / trained.seconds, 1),
        "steady_tokens_per_second": round(steady, 1) if steady else None,
        "seconds": round(trained.seconds, 1),
        "with_start_up": round(whole, 1),
        "peak_memory_mb": peak_mb,
        "steps": len(trained.times),
        "tokens_counted": trained.seen[-1] if trained.seen else None,
        "validation_loss": round(score(run, folder), 4),
    }
    print(json.dumps(measured))


if __name__ == "__main__":
    main()
