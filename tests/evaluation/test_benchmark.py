"""tools/benchmark.py: scores as lm-eval gives them, adapters switched on one base, tasks skipped with a reason."""

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lora_recipes import ROOT
from lora_recipes.config import runfile
from lora_recipes.evaluation import lm_eval_run, tasks
from lora_recipes.inference.shared_base import SharedBase
from lora_recipes.models import loading
from lora_recipes.results import systems
from lora_recipes.results.systems import System

import benchmark
import pytest
import yaml
from click.testing import CliRunner, Result
from tiny import save_adapter

RECIPE = "smollm2-african-history"
OURS, TINY = tasks.NAMES[:2], tasks.NAMES[2:]


def run_benchmark(*args: object) -> Result:
    return CliRunner().invoke(benchmark.main, [str(arg) for arg in args])


def section(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())["benchmark"]


def test_an_unknown_task_is_wrong_usage_with_the_nearest_name(run_file: Callable[..., Path]) -> None:
    done = run_benchmark(run_file(), "--tasks", "mmlu_dev,tinyMLU")
    assert (done.exit_code, "no task 'tinyMLU', did you mean 'tinyMMLU'?" in done.stderr) == (2, True)
    assert run_benchmark(run_file(), "--tasks", ",").exit_code == 2


@pytest.mark.parametrize("variants", [("lora", "lora"), ("lora", "qlora")])
def test_a_run_given_twice_and_an_adapter_for_two_runs_are_wrong_usage(
    run_file: Callable[..., Path], tmp_path: Path, variants: tuple[str, str]
) -> None:
    more = ("--adapter", tmp_path) if len(set(variants)) == 2 else ()
    assert run_benchmark(*(run_file(variant) for variant in variants), *more).exit_code == 2


def test_a_score_has_wilsons_interval_of_a_share_and_else_the_normal_one() -> None:
    told = {"mean": 0.875, "n": 8, "stderr": 0.125}
    found = lm_eval_run._with_intervals({"metrics": {"acc": told, "f1": told}, "outcomes": {"acc": "11111110"}})
    assert found["metrics"]["acc"] == {
        **told,
        "low": pytest.approx(0.5291, abs=1e-4),
        "high": pytest.approx(0.9776, abs=1e-4),
    }
    assert found["metrics"]["f1"] == {**told, "low": pytest.approx(0.63), "high": pytest.approx(1.12)}
    alone = lm_eval_run._with_intervals({"metrics": {"f1": told | {"stderr": None}}, "outcomes": {}})
    assert (alone["metrics"]["f1"]["low"], alone["metrics"]["f1"]["high"]) == (None, None)


@pytest.mark.slow
def test_the_section_holds_scores_errors_outcomes_differences_and_what_was_skipped(
    trained: Callable[..., Path], tmp_path: Path
) -> None:
    program = [sys.executable, ROOT / "tools" / "benchmark.py"]  # no fork: it hides lm-eval's bars before tqdm is there
    command = [*program, trained("lora"), trained("peft", seed=2), "--base", "--limit", "8"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "outputs" / RECIPE
    base, lora, peft = (section(folder / name) for name in ("base", "lora", "peft"))
    assert set(lora["metrics"]) == {f"{task}_{metric}" for task in OURS for metric in ("acc", "acc_norm")}
    for task in OURS:
        for metric in ("acc", "acc_norm"):
            found, outcomes = lora["metrics"][f"{task}_{metric}"], lora["outcomes"][task][metric]
            share = outcomes.count("1") / 8
            assert (found["mean"], found["n"], len(outcomes)) == (share, 8, 8)
            assert found["stderr"] == pytest.approx(math.sqrt(share * (1 - share) / 7))
            difference = lora["differences"]["base"][f"{task}_{metric}"]
            assert difference["mean"] == share - base["metrics"][f"{task}_{metric}"]["mean"]
            assert difference["n"] == 8
    assert (set(lora["differences"]), base["differences"]) == ({"base", "peft"}, {})
    assert (lora["limit"], lora["inputs"]["mmlu_dev"]["dtype"]) == (8, "float32")
    assert list(lora["skipped"]) == list(TINY) == list(peft["skipped"])
    for name in TINY:
        assert f"{name} is skipped: its score is estimated by" in done.stderr
    rows = [line.split()[:2] for line in done.stdout.splitlines()]
    assert rows[1:4] == [["african_history_mc_acc", name] for name in ("base", "lora", "peft")]
    assert "it/s" not in done.stderr


@pytest.mark.slow
def test_an_adapter_switched_on_scores_as_one_loaded_alone_in_any_order(trained: Callable[..., Path]) -> None:
    runs = [runfile.load(str(trained("lora"))), runfile.load(str(trained("peft", seed=2)))]
    lora, peft, base = (*(systems.of_run(run, run.output_dir) for run in runs), systems.of_base(runs[0], None))
    task = tasks.prepare(["african_history_mc"], None, None)[0][0]

    def score(order: list[System]) -> list[tuple[Any, list[tuple[float, bool]]]]:
        shared, found = SharedBase(list(dict.fromkeys(order))), []
        lm = lm_eval_run.wrapped(shared.base, loading.load_tokenizer(runs[0]), 4)
        tokens = [(("", ""), [1, 2, 3], [word]) for word in (100, 200, 300)]
        for system in order:
            with shared.active(system):
                outcomes = lm_eval_run.measure(lm, task, 40)["outcomes"]
                found.append((outcomes, lm._loglikelihood_tokens(tokens, disable_tqdm=True)))
        return found

    together = score([lora, base, peft, lora, base])
    alone = [score([system])[0] for system in (lora, base, peft)]
    assert together == [*alone, alone[0], alone[1]]
    assert len({str(found) for found in alone}) == 3
    assert len({str(outcomes) for outcomes, _ in alone}) == 3


@pytest.mark.slow
def test_what_was_measured_is_not_measured_again_until_it_changes(
    trained: Callable[..., Path], tmp_path: Path, tiny: Path
) -> None:
    args = (trained("lora"), trained("peft", seed=2), "--base", "--limit", 4)
    assert run_benchmark(*args).exit_code == 0
    folder = tmp_path / "outputs" / RECIPE
    before = {name: section(folder / name) for name in ("base", "lora", "peft")}

    def measured() -> list[str]:
        done = run_benchmark(*args)
        assert done.exit_code == 0, done.output
        assert section(folder / "peft")["metrics"] == before["peft"]["metrics"]
        return [line for line in done.stderr.splitlines() if line.endswith(" …")]

    assert measured() == []
    (folder / "peft" / "benchmark-mmlu_dev.json").unlink()  # as after a kill in this task
    assert measured() == [f"{RECIPE} peft, mmlu_dev …"]
    (folder / "peft" / "benchmark-mmlu_dev.json").write_text('{"inputs": {')
    assert measured() == [f"{RECIPE} peft, mmlu_dev …"]
    save_adapter(tiny, folder / "lora", seed=3)
    assert measured() == [f"{RECIPE} lora, {task} …" for task in OURS]
    assert section(folder / "lora")["outcomes"] != before["lora"]["outcomes"]
    args = (*args[:-1], 5)
    assert len([line for line in run_benchmark(*args).stderr.splitlines() if line.endswith(" …")]) == 6


@pytest.mark.slow
def test_with_no_task_left_it_fails_and_with_some_it_does_not(trained: Callable[..., Path]) -> None:
    run = trained("lora")
    done = run_benchmark(run, "--tasks", "tinyMMLU")
    assert (done.exit_code, "no task left to run" in done.stderr) == (1, True)
    assert run_benchmark(run, "--tasks", "tinyMMLU,african_history_mc", "--limit", 2).exit_code == 0


@pytest.mark.slow
def test_the_task_file_gives_the_same_scores_in_lm_eval_itself(
    trained: Callable[..., Path], tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    monkeypatch.chdir(ROOT)  # the path of the questions counts from here
    run = trained("lora")
    theirs = simple_evaluate(
        model="hf",
        model_args={"pretrained": str(tiny), "dtype": "float32", "peft": runfile.load(run).output_dir},
        tasks=["african_history_mc"],
        task_manager=TaskManager(include_path="data/african_history_mc", include_defaults=False),
        batch_size=8,
        device="cpu",
        limit=40,
        bootstrap_iters=1,
    )["results"]["african_history_mc"]
    done = run_benchmark(run, "--tasks", "african_history_mc", "--limit", 40)
    assert done.exit_code == 0, done.output
    ours = section(tmp_path / "outputs" / RECIPE / "lora")["metrics"]
    for metric in ("acc", "acc_norm"):
        assert ours[f"african_history_mc_{metric}"]["mean"] == theirs[f"{metric},none"]
        assert ours[f"african_history_mc_{metric}"]["stderr"] == theirs[f"{metric}_stderr,none"]


@pytest.mark.slow
def test_own_tasks_have_the_metrics_and_errors_of_lm_eval_and_differences_of_what_is_right_or_wrong(
    trained: Callable[..., Path], tmp_path: Path
) -> None:
    own = tmp_path / "own"
    own.mkdir()
    rows = [{"question": f"Colour {n}?", "choices": ["red", "blue"], "answer": n % 2} for n in range(8)]
    (own / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    head = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(own / "rows.jsonl")}}}
    head |= {"test_split": "test", "doc_to_text": "{{question}}"}
    choice = {"task": "colours", "output_type": "multiple_choice", "doc_to_choice": "{{choices}}"}
    spoken = {"task": "spoken", "output_type": "generate_until", "doc_to_target": "{{choices[answer]}}"}
    spoken |= {"generation_kwargs": {"until": ["\n"], "max_gen_toks": 4}}
    choice |= {"doc_to_target": "{{answer}}", "metric_list": [{"metric": "acc"}]}
    spoken |= {"metric_list": [{"metric": "exact_match"}, {"metric": "chrf", "aggregation": "chrf"}]}
    for task in (choice, spoken):
        (own / f"{task['task']}.yaml").write_text(yaml.safe_dump(head | task))
    done = run_benchmark(trained("lora"), "--base", "--tasks", "colours,spoken", "--include-path", own)
    assert done.exit_code == 0, done.output
    found = section(tmp_path / "outputs" / RECIPE / "lora")
    assert set(found["metrics"]) == {"colours_acc", "spoken_exact_match", "spoken_chrf"}
    share = found["outcomes"]["colours"]["acc"].count("1") / 8
    assert found["metrics"]["colours_acc"]["mean"] == share
    assert found["metrics"]["colours_acc"]["stderr"] == pytest.approx(math.sqrt(share * (1 - share) / 7))
    chrf = found["metrics"]["spoken_chrf"]
    assert chrf["low"] == pytest.approx(chrf["mean"] - 1.96 * chrf["stderr"])
    assert set(found["differences"]["base"]) == {"colours_acc", "spoken_exact_match"}
