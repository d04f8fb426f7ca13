"""The questions of a task, what it is known by, and tasks of lm-eval by their names."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from lora_recipes import ROOT
from lora_recipes.evaluation import tasks

import click
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
        return tasks.prepare(["african_history_mc"], None, None)[0][0].sha256

    def replace(name: str, old: str, new: str) -> Callable[[Path], object]:
        return lambda folder: (folder / name).write_text((folder / name).read_text().replace(old, new))

    same = digest("same", lambda folder: None)
    assert digest("moved", lambda folder: None) == same
    assert digest("question", replace("test.jsonl", "Kushite", "Nubian")) != same
    assert digest("prompt", replace("african_history_mc.yaml", "Answer:", "A:")) != same


TASK = """
task: colours
dataset_path: json
dataset_kwargs: {data_files: {test: PATH/colours.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list: [{metric: acc}]
metadata: {version: 1.0}
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A folder with a task file and its questions."""
    (tmp_path / "colours.yaml").write_text(TASK.replace("PATH", str(tmp_path)))
    rows = [{"question": f"Colour {n}?", "choices": ["red", "blue"], "answer": n % 2} for n in range(4)]
    (tmp_path / "colours.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def prepared(own: Path) -> tuple[list[tasks.Task], dict[str, str]]:
    names, manager = tasks.chosen("colours", own)
    return tasks.prepare(names, manager, None)


def test_an_own_task_is_known_by_its_name_its_questions_and_its_prompt(own: Path) -> None:
    (first,), skipped = prepared(own)
    assert (first.name, len(first.loaded.eval_docs), skipped) == ("colours", 4, {})
    assert prepared(own)[0][0].sha256 == first.sha256
    rows = (own / "colours.jsonl").read_text()
    (own / "colours.jsonl").write_text(rows.replace("Colour 3?", "Hue 3?"))
    assert prepared(own)[0][0].sha256 != first.sha256
    (own / "colours.jsonl").write_text(rows)
    (own / "colours.yaml").write_text((own / "colours.yaml").read_text().replace("{{question}}", "Q: {{question}}"))
    assert prepared(own)[0][0].sha256 != first.sha256


def test_a_task_whose_data_are_out_of_reach_is_skipped_with_the_reason(own: Path) -> None:
    (own / "colours.yaml").write_text(
        (own / "colours.yaml").read_text().replace("dataset_path: json", "dataset_path: no/such")
    )
    ready, skipped = prepared(own)
    assert ready == [] and "it cannot be loaded" in skipped["colours"]


def test_a_task_that_runs_code_of_the_model_is_skipped(own: Path) -> None:
    (own / "colours.yaml").write_text((own / "colours.yaml").read_text() + "unsafe_code: true\n")
    ready, skipped = prepared(own)
    assert ready == [] and "runs the code that a model writes" in skipped["colours"]


def test_a_task_file_that_is_no_yaml_is_wrong_usage(own: Path) -> None:
    (own / "broken.yaml").write_text("task: [")
    with pytest.raises(click.UsageError, match="--include-path"):
        prepared(own)
