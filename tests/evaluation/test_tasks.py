"""tools/lora_recipes/tasks.py: the questions of a task, and what it is known by."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from lora_recipes import ROOT
from lora_recipes.evaluation import tasks

import pytest


def test_mmlu_dev_is_read_out_of_lm_eval_and_never_into_the_checkout() -> None:
    path = tasks.mmlu_dev()
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 281
    assert len({row["subject"] for row in rows}) == 57
    assert all(len(row["choices"]) == 4 and row["answer"] in range(4) for row in rows)
    assert [row["choices"][row["answer"]] for row in rows[1:2]] == ["0"]  # the characteristic of 2Z
    told = ("(A)", "(E)", "The answer is (", "think step by step")
    assert not [row for row in rows if any(text in row["question"] + " ".join(row["choices"]) for text in told)]
    ignored = subprocess.run(["git", "check-ignore", "-q", str(path)], cwd=ROOT, check=False)
    assert ignored.returncode == 0


def test_a_task_is_known_by_its_questions_and_its_prompt_not_by_their_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def digest(name: str, change: Callable[[Path], object]) -> str:
        folder = tmp_path / name
        shutil.copytree(tasks._OURS, folder)
        change(folder)
        monkeypatch.setattr(tasks, "_OURS", folder)
        return tasks.prepare(["african_history_mc"], None)[0][0].sha256

    def replace(name: str, old: str, new: str) -> Callable[[Path], object]:
        return lambda folder: (folder / name).write_text((folder / name).read_text().replace(old, new))

    same = digest("same", lambda folder: None)
    assert digest("moved", lambda folder: None) == same
    assert digest("question", replace("test.jsonl", "Kushite", "Nubian")) != same
    assert digest("prompt", replace("african_history_mc.yaml", "Answer:", "A:")) != same
