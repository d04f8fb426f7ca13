"""Faults on purpose: a command killed at its n-th change of a file, or at any moment, and then run once more.

A hook of Python's audit events counts what a process opens for writing, renames, removes and makes below one
folder, and sends the process a signal at the n-th. So every named step of a tool is hit, not only where a test
happens to look; a timer hits the whole process group in what happens between them, in libraries that write past Python.
"""

import contextlib
import json
import os
import random
import shutil
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_recipes import ROOT

import forking
import psutil
import pytest
from merges import ROWS, write_base

BIN = ROOT / ".venv" / "bin"
HOOK = """
import os, signal, sys

def _install():
    folder, only = os.environ["FAULTS_FOLDER"], os.environ["FAULTS_ONLY"]
    if only not in " ".join(sys.orig_argv):
        return
    wanted, number = int(os.environ["FAULTS_AT"]), int(os.environ["FAULTS_SIGNAL"])
    log = os.open(os.environ["FAULTS_LOG"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    count = 0

    def hook(event, args):
        nonlocal count
        if event == "open":
            if not isinstance(args[2], int) or not args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                return
        elif event not in ("os.rename", "os.remove", "os.mkdir", "os.rmdir"):
            return
        path = os.fsdecode(args[0]) if isinstance(args[0], (str, bytes, os.PathLike)) else ""
        if os.path.join(os.getcwd(), path).startswith(folder) and path:
            count += 1
            os.write(log, f"{event} {os.path.relpath(path, folder)}\\n".encode())
            if count == wanted:
                os.kill(os.getpid(), number)

    sys.addaudithook(hook)

_install()
"""
RUN = """
base_model: {base}
special_tokens: {{eos_token: <end>, pad_token: <pad>}}
adapter: lora
lora_r: 4
lora_alpha: 8
lora_dropout: 0.1
lora_target_modules: [q_proj, v_proj, down_proj]
datasets: &data
  - path: {data}
    split: train
    type: {{field_instruction: question, field_output: answer, no_input_format: "ask {{instruction}} say "}}
test_datasets:
  - path: {data}
    split: test
    type: {{field_instruction: question, field_output: answer, no_input_format: "ask {{instruction}} say "}}
dataset_prepared_path: {folder}/prepared
sequence_len: 64
num_epochs: 2
micro_batch_size: 2
gradient_accumulation_steps: 1
learning_rate: 0.01
lr_scheduler: cosine
warmup_steps: 0
optimizer: adamw_torch
seed: 42
bf16: false
logging_steps: 1
save_steps: 2
eval_steps: 3
save_total_limit: 2
auto_resume_from_checkpoints: true
plugins: [lora_recipes.plugin.CpuPlugin]
output_dir: {folder}/outputs/small/peft
"""
"""Eight steps, dropout included, so that a wrong random state after a restart would show."""


@dataclass
class Ended:
    """A command that was let go on after a fault."""

    faults: int
    """1 when it was hit; 0 when it had ended before."""
    folder: Path
    said: str


@dataclass
class Harness:
    """A small base model and its rows, and folders in which commands are disturbed."""

    root: Path
    libraries: forking.Parent | None = None
    axolotl: forking.Parent | None = None
    """Where commands are run; a harness that only makes folders needs neither."""
    made: dict[str, Path] = field(default_factory=dict)
    """The folder after each command that was not disturbed."""
    events: dict[str, list[str]] = field(default_factory=dict)
    """What each of these changed, in order."""
    seconds: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        write_base(self.root / "base")
        (self.root / "data").mkdir()
        for part in ("train", "test"):
            text = "".join(json.dumps(row) + "\n" for row in ROWS)
            (self.root / "data" / f"{part}.jsonl").write_text(text)
        (self.root / "hook").mkdir()
        (self.root / "hook" / "sitecustomize.py").write_text(HOOK)

    def stage(self, name: str, start: Path | None = None) -> Path:
        """A folder with a run file, and with what an earlier command made of another one."""
        folder = self.root / name
        if start:
            shutil.copytree(start, folder)
        folder.mkdir(exist_ok=True)
        text = RUN.format(base=self.root / "base", data=self.root / "data", folder=folder)
        (folder / "run.yaml").write_text(text)
        (folder / "deepspeed.yaml").write_text(text + f"deepspeed: {ROOT}/deepspeed_configs/zero2.json\n")
        kept = folder / "outputs" / "small" / "peft" / "run.yaml"
        if start and kept.exists():
            kept.write_text(kept.read_text().replace(str(start), str(folder)))
        return folder

    def run(self, command: str, folder: Path, at: int = 0, number: int = signal.SIGKILL, after: float = 0.0) -> Any:
        """Run a command in a folder; hit its at-th change, or the command itself after some seconds."""
        log = folder.with_name(folder.name + ".log")
        log.unlink(missing_ok=True)
        program, *args = COMMANDS[command].split()
        environment = os.environ | {
            "PYTHONPATH": str(self.root / "hook"),
            "FAULTS_FOLDER": str(folder),
            "FAULTS_ONLY": program,
            "FAULTS_AT": str(at),
            "FAULTS_SIGNAL": str(int(number)),
            "FAULTS_LOG": str(log),
        }
        parent = self.axolotl if program == AXOLOTL else self.libraries
        assert parent
        text = (folder / args.pop()).read_text() if program == AXOLOTL else ""
        process = parent.start([program, *args], cwd=folder, env=environment, input=text)
        if after:
            time.sleep(after)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)  # with all that it has forked, as a terminal and a scheduler do
        done = process.wait()
        assert nobody_works_in(folder)
        changed = log.read_text().splitlines() if log.exists() else []
        return done.returncode, done.stdout + done.stderr, changed

    def whole(self, command: str) -> Path:
        """The folder after the command alone, made once; notes what it changed and how long it took."""
        if command not in self.made:
            folder = self.stage(f"{command}-whole", self.start(command))
            begun = time.monotonic()
            code, said, changed = self.run(command, folder)
            assert code == 0, said
            self.seconds[command] = time.monotonic() - begun
            self.made[command], self.events[command] = folder, changed
        return self.made[command]

    def start(self, command: str) -> Path | None:
        """The folder that a command goes on from."""
        return self.whole(BEGIN[command]) if command in BEGIN else None

    def disturbed(self, command: str, **fault: Any) -> Ended:
        """The folder after the command was hit and then run again."""
        folder = self.stage(f"{command}-{random.getrandbits(40):x}", self.start(command))
        code, said, _ = self.run(command, folder, **fault)
        assert "Traceback" not in said, said
        again, words, _ = self.run(command, folder)
        assert again == 0, words
        return Ended(int(code != 0), folder, said + words)


def nobody_works_in(folder: Path, seconds: float = 10) -> bool:
    """Whether every process whose working directory is the folder is gone in time."""
    deadline = time.monotonic() + seconds
    while there := [one for one in psutil.process_iter(["cwd"]) if one.info["cwd"] == str(folder)]:
        if time.monotonic() > deadline:
            break
        time.sleep(0.05)
    return not there


AXOLOTL = str(BIN / "axolotl")
COMMANDS = {
    "train": f"{ROOT}/tools/train.py run.yaml",
    "train with DeepSpeed": f"{ROOT}/tools/train.py deepspeed.yaml",
    "axolotl": f"{AXOLOTL} train - run.yaml",
    "axolotl with DeepSpeed": f"{AXOLOTL} train - deepspeed.yaml",
    "eval": f"{ROOT}/tools/eval.py run.yaml --base --batch-size 2 --max-new-tokens 8",
    "benchmark": f"{ROOT}/tools/benchmark.py run.yaml --base --limit 4",
    "merge": f"{ROOT}/tools/merge.py run.yaml",
    "report": f"{ROOT}/tools/report.py outputs",
}
"""Program and arguments; the last one of Axolotl's is the file on its stdin."""

BEGIN = {"eval": "train", "benchmark": "train", "merge": "train", "report": "eval"}
"""What each command goes on from."""


def tensors(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(folder / "outputs" / "small" / "peft" / "adapter_model.safetensors")


def result(folder: Path, system: str = "peft") -> dict[str, Any]:
    return json.loads((folder / "outputs" / "small" / system / "result.json").read_text())


def curve(folder: Path) -> dict[tuple[str, int], float]:
    """Every logged loss by name and step; one that was logged twice has to be the same both times."""
    found: dict[tuple[str, int], float] = {}
    for entry in result(folder)["training"]["log_history"]:
        for name in ("loss", "eval_loss", "learning_rate"):
            if name in entry:
                value = float(entry[name])
                assert abs(found.setdefault((name, entry["step"]), value) - value) <= 1e-6
    return found


def left_over(folder: Path) -> list[str]:
    """What only a half-done write leaves."""
    marks = (".unfinished", ".adapter")
    return [str(path.relative_to(folder)) for path in folder.rglob("*") if path.name.endswith(marks)]


def same_training(one: Path, other: Path) -> None:
    a, b = tensors(one), tensors(other)
    assert a.keys() == b.keys() and max((a[name] - b[name]).abs().max().item() for name in a) <= 1e-6
    assert curve(one) == pytest.approx(curve(other), abs=1e-5)


def same_evaluation(one: Path, other: Path) -> None:
    for system in ("base", "peft"):
        lines = [
            sorted((folder / "outputs" / "small" / system / "answers-test.jsonl").read_text().splitlines())
            for folder in (one, other)
        ]
        assert lines[0] == lines[1] and len(lines[0]) == len(ROWS)
        metrics = [result(folder, system)["evaluation"]["metrics"] for folder in (one, other)]
        assert metrics[0] == metrics[1]


def same_benchmark(one: Path, other: Path) -> None:
    for system in ("base", "peft"):
        a, b = (result(folder, system)["benchmark"] for folder in (one, other))
        assert a["metrics"] == b["metrics"] and a["outcomes"] == b["outcomes"]


def same_merge(one: Path, other: Path) -> None:
    merged = [sorted((folder / "outputs/small/peft/merged").glob("*.safetensors")) for folder in (one, other)]
    assert len(merged[0]) == len(merged[1]) > 0
    for a, b in zip(*merged, strict=True):
        assert a.name == b.name and a.read_bytes() == b.read_bytes()
    assert all(result(folder)["merge"]["status"] == "ok" for folder in (one, other))


def same_report(one: Path, other: Path) -> None:
    assert (one / "outputs/README.md").read_text() == (other / "outputs/README.md").read_text()
    assert (one / "outputs/index.html").stat().st_size > 1000


SAME = {
    "train": same_training,
    "train with DeepSpeed": same_training,
    "axolotl": same_training,
    "axolotl with DeepSpeed": same_training,
    "eval": same_evaluation,
    "benchmark": same_benchmark,
    "merge": same_merge,
    "report": same_report,
}
