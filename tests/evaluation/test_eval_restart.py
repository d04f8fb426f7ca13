"""An evaluation that was killed, or whose adapter, prompt or memory changed, goes on to the right answers."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lora_recipes import ROOT

import pytest
from evaluations import BF16, FEW, RECIPE, evaluate, lines, section
from tiny import save_adapter


def test_the_same_run_twice_is_wrong_usage(run_file: Callable[..., Path]) -> None:
    done = evaluate(run_file(), run_file())
    assert (done.exit_code, "give each run once" in done.stderr) == (2, True)


@pytest.mark.slow
def test_after_a_truncated_last_line_only_what_is_missing_is_answered(
    trained: Callable[..., Path], tmp_path: Path
) -> None:
    run = trained("lora", BF16)
    path = tmp_path / "outputs" / RECIPE / "lora" / "answers-test.jsonl"
    assert evaluate(run, *FEW).exit_code == 0
    before = path.read_bytes()
    path.write_bytes(before[:-20])
    done = evaluate(run, *FEW)
    assert "1 damaged line dropped" in done.stderr
    assert "5/6 answered" in done.stderr
    assert section(path.parent)["answered_now"] == 1
    assert path.read_bytes() == before
    again = evaluate(run, *FEW)
    assert "loading" not in again.stderr
    assert section(path.parent)["answered_now"] == 0
    more = evaluate(run, "--limit", "8", *FEW[2:])
    assert (more.exit_code, section(path.parent)["answered_now"], len(lines(path))) == (0, 2, 8)


@pytest.mark.slow
def test_without_a_batch_size_a_restart_goes_on_with_that_of_the_answers_so_far(
    trained: Callable[..., Path], tmp_path: Path
) -> None:
    run, more = trained(), ("--limit", "8", "--max-new-tokens", "8")
    path = tmp_path / "outputs" / RECIPE / "lora" / "answers-test.jsonl"
    assert evaluate(run, *FEW).exit_code == 0
    assert evaluate(run, *more).exit_code == 0
    assert section(path.parent)["batch_size"] == 2
    assert [line["batch_size"] for line in lines(path)] == [2] * 8
    path.unlink()
    assert evaluate(run, *more).exit_code == 0
    assert section(path.parent)["batch_size"] == lines(path)[0]["batch_size"] > 8


@pytest.mark.slow
def test_a_killed_evaluation_goes_on_to_the_answers_of_an_undisturbed_one(
    trained: Callable[..., Path], tmp_path: Path
) -> None:
    args = ("--limit", "40", "--max-new-tokens", "32", "--batch-size", "2")
    run = trained("lora", BF16)
    path = tmp_path / "outputs" / RECIPE / "lora" / "answers-test.jsonl"
    command = [sys.executable, str(ROOT / "tools" / "eval.py"), str(run), *args]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while process.poll() is None and not (path.exists() and path.read_bytes().count(b"\n") >= 4):
            time.sleep(0.01)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
        process.wait()
    answered = path.read_bytes().count(b"\n")
    assert 4 <= answered < 40
    done = evaluate(run, *args)
    assert done.exit_code == 0, done.output
    assert section(path.parent)["answered_now"] == 40 - answered
    undisturbed = trained("peft", BF16)
    assert evaluate(undisturbed, *args).exit_code == 0
    assert path.read_bytes() == (path.parent.parent / "peft" / path.name).read_bytes()


def test_a_base_s_memory_is_free_before_the_next_is_loaded_and_its_batches_are_sized(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import gc
    import weakref

    from lora_recipes.evaluation import evaluate
    from lora_recipes.inference import shared_base

    import torch

    class Base(dict[str, Any]):
        pass

    done: list[str] = []
    nothing = SimpleNamespace(batch_size=None, unanswered=lambda questions: {0})
    evaluations: list[Any] = [
        SimpleNamespace(system=name, questions=[], open_answers=lambda: nothing) for name in ("one", "two")
    ]

    def answered(waiting: list[Any]) -> None:
        held = Base()
        held["itself"] = held  # as hooks and modules hold each other: goes with the collector only
        weakref.finalize(held, done.append, f"{waiting[0][0].system} gone")
        done.append(waiting[0][0].system)

    monkeypatch.setattr(shared_base, "loaded", lambda system: system)
    monkeypatch.setattr(evaluate, "_answer_on_one_base", answered)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: done.append("cache emptied"))
    gc.disable()
    try:
        evaluate.answer(evaluations, None)
    finally:
        gc.enable()
    assert done == ["one", "one gone", "cache emptied", "two", "two gone", "cache emptied"]


@pytest.mark.slow
def test_another_adapter_has_answers_of_its_own_and_the_run_s_stay(
    trained: Callable[..., Path], tmp_path: Path, tiny: Path
) -> None:
    run = trained()
    path = tmp_path / "outputs" / RECIPE / "lora" / "answers-test.jsonl"
    assert evaluate(run, *FEW).exit_code == 0
    other = save_adapter(tiny, tmp_path / "scaled")
    config = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 4 * config["lora_alpha"]}))
    before = path.read_bytes()
    assert evaluate(run, "--adapter", other, *FEW).exit_code == 0
    assert path.read_bytes() == before
    theirs = path.parent.with_name("lora-scaled") / path.name
    assert {line["settings"] for line in lines(theirs)}.isdisjoint(line["settings"] for line in lines(path))


@pytest.mark.slow
def test_an_adapter_that_changed_is_asked_anew_and_the_old_answers_stay_beside(
    trained: Callable[..., Path], tmp_path: Path
) -> None:
    run = trained()
    path = tmp_path / "outputs" / RECIPE / "lora" / "answers-test.jsonl"
    assert evaluate(run, *FEW).exit_code == 0
    before = path.read_bytes()
    trained(seed=2)
    done = evaluate(run, *FEW)
    assert "6 answers of another model, adapter, prompt or setting moved" in done.stderr
    assert path.with_name("answers-test.jsonl.old").read_bytes() == before
