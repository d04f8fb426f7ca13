"""tools/benchmark.py: scores as lm-eval gives them, adapters switched on one base, tasks skipped with a reason."""

import json
import math
import os
import pickle
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lora_recipes import ROOT, likelihood, runfile, tasks, tinybenchmarks

import benchmark
import pytest
import yaml
from click.testing import CliRunner, Result

RECIPE = "smollm2-african-history"
OURS = ("african_history_mc", "mmlu_dev")


def run_benchmark(*args: object) -> Result:
    return CliRunner().invoke(benchmark.main, [str(arg) for arg in args])


def section(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())["benchmark"]


# The tasks


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


def test_a_score_keeps_the_error_of_lm_eval_and_an_interval_inside_0_and_1() -> None:
    found = {"acc,none": 0.875, "acc_stderr,none": 0.125}
    metric = likelihood._metric(found, "acc", 8)
    assert metric == {"mean": 0.875, "low": pytest.approx(0.63), "high": 1.0, "n": 8, "stderr": 0.125}
    one = likelihood._metric({"acc,none": 1.0, "acc_stderr,none": "N/A"}, "acc", 1)
    assert (one["low"], one["high"], one["stderr"]) == (None, None, None)


def test_a_4_bit_run_needs_another_base_in_memory_than_its_base_model(run_file: Callable[..., Path]) -> None:
    lora, qlora = (runfile.load(str(run_file(name))) for name in ("lora", "qlora"))
    base = likelihood.Candidate(qlora, None).base
    assert base == likelihood.Candidate(lora, lora.output_dir).base
    assert base != likelihood.Candidate(qlora, qlora.output_dir).base


# What tinyBenchmarks needs


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for tinyBenchmarks, which no index has: `evaluate` as its own, the mean as its estimate."""
    folder = tmp_path / "packages"
    folder.mkdir()
    (folder / "tinyBenchmarks.py").write_text(
        "import pickle\n"
        "def evaluate(items, benchmark):\n"
        "    with open('tinyBenchmarks.pkl', 'rb') as file:\n"
        "        weights = pickle.load(file)[benchmark]['weights']\n"
        "    return {benchmark: {'gpirt': float((items * weights).sum())}}\n"
    )
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(tinybenchmarks, "FOLDER", tmp_path / "parameters")
    monkeypatch.setattr(tinybenchmarks, "_PARAMETERS", tmp_path / "parameters" / "tinyBenchmarks.pkl")
    (tmp_path / "parameters").mkdir()
    return tmp_path / "parameters" / "tinyBenchmarks.pkl"


def reason(limit: int | None = None) -> str:
    with pytest.raises(tinybenchmarks.OutOfReach) as caught:
        tinybenchmarks.require("tinyMMLU", limit)
    return str(caught.value)


def parameters() -> dict[str, Any]:
    import numpy as np

    return {name: {"weights": np.full(8, 1 / 8)} for name in ("mmlu", "truthfulqa")}


def test_without_the_package_the_reason_says_how_to_get_it() -> None:
    assert "pip install git+https://" in reason()


def test_a_limit_would_falsify_the_estimate(package: Path) -> None:
    assert "leave out --limit" in reason(limit=8)


def test_without_parameters_nothing_is_downloaded(package: Path) -> None:
    assert "parameters of tinyBenchmarks are missing" in reason()
    assert list(package.parent.iterdir()) == []


class Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("unpickled",)


def test_parameters_with_more_than_arrays_are_refused_unrun(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    package.write_bytes(pickle.dumps({**parameters(), "more": Payload()}))
    assert "mkdir" in reason()
    assert not (tmp_path / "unpickled").exists()


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", pickle.dumps([1])])
def test_parameters_that_are_something_else_are_refused(package: Path, content: bytes) -> None:
    package.write_bytes(content)
    assert "fetch it again" in reason()


def test_a_hub_that_does_not_answer_costs_seconds(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import HfApi

    package.write_bytes(pickle.dumps(parameters()))
    assert "cannot be reached" in reason()  # offline, as all tests are
    monkeypatch.setattr(HfApi, "dataset_info", lambda *args, **kwargs: time.sleep(20))
    monkeypatch.setattr(tinybenchmarks, "_PATIENCE", 0.2)
    begun = time.monotonic()
    assert "cannot be reached" in reason()
    assert time.monotonic() - begun < 5


# Scoring, on a tiny random Llama with SmolLM2's tokenizer


@pytest.fixture(scope="module")
def tiny(embedded_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("models") / "tiny"
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=49152, initializer_range=0.4, **sizes)).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(embedded_model / name, folder)
    return folder


@pytest.fixture
def trained(run_file: Callable[..., Path], tiny: Path) -> Callable[..., Path]:
    """A run file on the tiny model with an adapter, random by its seed, in its output folder."""

    def make(variant: str = "lora", seed: int = 1) -> Path:
        path = run_file(variant, f"base_model={tiny}", "bf16=false")
        save_adapter(tiny, runfile.load(str(path)).output_dir, seed)
        return path

    return make


def save_adapter(base: Path, folder: Path, seed: int) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaForCausalLM

    torch.manual_seed(seed)
    config = LoraConfig(r=16, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(LlamaForCausalLM.from_pretrained(base), config).save_pretrained(folder)


@pytest.mark.slow
def test_the_section_holds_scores_errors_outcomes_differences_and_what_was_skipped(
    trained: Callable[..., Path], tmp_path: Path, tool: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    done = tool("benchmark", trained("lora"), trained("peft", 2), "--base", "--limit", 8)
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
    assert list(lora["skipped"]) == list(tinybenchmarks.DATASETS) == list(peft["skipped"])
    for name in tinybenchmarks.DATASETS:
        assert f"{name} is skipped: its score is estimated by" in done.stderr
    rows = [line.split()[:2] for line in done.stdout.splitlines()]
    assert rows[1:4] == [["african_history_mc_acc", name] for name in ("base", "lora", "peft")]
    assert "it/s" not in done.stderr


@pytest.mark.slow
def test_an_adapter_switched_on_scores_as_one_loaded_alone_in_any_order(trained: Callable[..., Path]) -> None:
    runs = [runfile.load(str(trained("lora"))), runfile.load(str(trained("peft", 2)))]
    lora, peft, base = *(likelihood.Candidate(run, run.output_dir) for run in runs), likelihood.Candidate(runs[0], None)
    task = tasks.prepare(["african_history_mc"], None)[0][0]

    def score(bench: likelihood.Bench, candidate: likelihood.Candidate) -> tuple[Any, list[tuple[float, bool]]]:
        with bench._switched(candidate) as lm:
            found = likelihood.measure(lm, task, 40, "test")
            tokens = [(("", ""), [1, 2, 3], [word]) for word in (100, 200, 300)]
            return found["outcomes"], lm._loglikelihood_tokens(tokens, disable_tqdm=True)

    shared = likelihood.Bench(4)
    together = [score(shared, candidate) for candidate in (lora, base, peft, lora, base)]
    alone = [score(likelihood.Bench(4), candidate) for candidate in (lora, base, peft)]
    assert together == [*alone, alone[0], alone[1]]
    assert len({str(found) for found in alone}) == 3
    assert len({str(outcomes) for outcomes, _ in alone}) == 3


@pytest.mark.slow
def test_what_was_measured_is_not_measured_again_until_it_changes(
    trained: Callable[..., Path], tmp_path: Path, tiny: Path
) -> None:
    args = (trained("lora"), trained("peft", 2), "--base", "--limit", 4)
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
    run = trained()
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
    theirs = simple_evaluate(
        model="hf",
        model_args={"pretrained": str(tiny), "dtype": "float32", "peft": runfile.load(str(trained())).output_dir},
        tasks=["african_history_mc"],
        task_manager=TaskManager(include_path="data/african_history_mc", include_defaults=False),
        batch_size=8,
        device="cpu",
        limit=40,
        bootstrap_iters=1,
    )["results"]["african_history_mc"]
    done = run_benchmark(trained(), "--tasks", "african_history_mc", "--limit", 40)
    assert done.exit_code == 0, done.output
    ours = section(tmp_path / "outputs" / RECIPE / "lora")["metrics"]
    for metric in ("acc", "acc_norm"):
        assert ours[f"african_history_mc_{metric}"]["mean"] == theirs[f"{metric},none"]
        assert ours[f"african_history_mc_{metric}"]["stderr"] == theirs[f"{metric}_stderr,none"]


@pytest.mark.slow
def test_tiny_mmlu_is_an_estimate_without_an_interval_made_where_the_parameters_are(
    package: Path, trained: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package.write_bytes(pickle.dumps(parameters()))
    copy = package.parent / "tinyBenchmarks" / "tinyMMLU"  # lm-eval names the data set so: a folder, or on the Hub
    copy.mkdir(parents=True)
    rows = [{"input_formatted": f"Question {n}\nAnswer:", "answer": n % 4} for n in range(8)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (copy / "test.jsonl").write_text(text)
    (copy / "dev.jsonl").write_text(text)
    files = [{"split": part, "path": f"{part}.jsonl"} for part in ("test", "dev")]
    head = yaml.safe_dump({"configs": [{"config_name": "all", "data_files": files}]})
    (copy / "README.md").write_text(f"---\n{head}---\n")
    monkeypatch.setattr(tinybenchmarks, "_revision", lambda dataset: "a commit")
    monkeypatch.chdir(package.parent)
    run = trained()
    monkeypatch.chdir(package.parent)
    done = run_benchmark(run, "--tasks", "tinyMMLU")
    assert done.exit_code == 0, done.output
    found = section(tmp_path / "outputs" / RECIPE / "lora")
    score = found["metrics"]["tinyMMLU_acc_norm"]
    assert 0 <= score["mean"] <= 1 and (score["mean"] * 8).is_integer()
    assert (score["low"], score["stderr"], score["n"]) == (None, None, 8)
    assert found["outcomes"] == {"tinyMMLU": {}}
