"""tools/eval.py: answers that survive a kill, prompts as trained, adapters beside each other on one base."""

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
from lora_recipes.config import runfile
from lora_recipes.data import questions
from lora_recipes.models import loading
from lora_recipes.results import systems

import eval as eval_tool
import pytest
from click.testing import CliRunner, Result
from tiny import save_adapter

RECIPE = "smollm2-african-history"
BF16 = "bf16=true"
"""As the recipe has it: what shares a batch with a question shows in its answer."""

FEW = ("--limit", "6", "--max-new-tokens", "8", "--batch-size", "2")


def evaluate(*args: object) -> Result:
    return CliRunner().invoke(eval_tool.main, [str(arg) for arg in args])


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def section(folder: Path, kind: str = "evaluation") -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())[kind]


def test_the_same_run_twice_is_wrong_usage(run_file: Callable[..., Path]) -> None:
    done = evaluate(run_file(), run_file())
    assert (done.exit_code, "give each run once" in done.stderr) == (2, True)


def test_an_adapter_for_two_runs_is_wrong_usage(run_file: Callable[..., Path], tmp_path: Path) -> None:
    done = evaluate(run_file("lora"), run_file("qlora"), "--adapter", tmp_path)
    assert (done.exit_code, "--adapter belongs to one run file" in done.stderr) == (2, True)


def test_a_split_is_no_path(run_file: Callable[..., Path]) -> None:
    assert evaluate(run_file(), "--split", "../test").exit_code == 2


def test_a_variant_named_base_would_overwrite_the_base_model(tmp_path: Path, run_file: Callable[..., Path]) -> None:
    path = run_file("lora", f"output_dir={tmp_path}/{RECIPE}/base")
    assert_one_sentence(evaluate(path), "output_dir", "the base model's")


def assert_one_sentence(done: Result, *words: str) -> None:
    assert done.exit_code in (1, 2), done.output
    assert isinstance(done.exception, SystemExit), done.exception
    message = done.stderr.rpartition("Error: ")[2]
    assert message.count("\n") == 1
    for word in words:
        assert word in message


def test_questions_are_tokenized_once_for_systems_that_are_asked_alike(
    run_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from lora_recipes.evaluation import evaluate

    loads: list[str] = []
    monkeypatch.setattr(loading, "load_tokenizer", lambda run: loads.append(run.variant))
    monkeypatch.setattr(questions, "load", lambda run, tokenizer, split: ([], ""))
    monkeypatch.setattr(questions, "end_tokens", lambda run, tokenizer: [2])
    for name in ("model_identity", "adapter_identity"):
        monkeypatch.setattr(questions, name, str)
    runs = [runfile.load(run_file(name)) for name in ("lora", "peft", "qlora")]
    runs.append(runfile.load(run_file("dora", "chat_template=jinja", "chat_template_jinja=another")))
    chosen = [systems.of_run(runs[0], None), *(systems.of_run(run, run.output_dir) for run in runs)]
    found = evaluate.prepare(chosen, "test", None, 8)
    assert loads == ["lora", "dora"]
    assert found[0].asked is found[3].asked is not found[4].asked
    assert [one.settings["four_bit"] for one in found] == [False, False, False, True, False]


@pytest.mark.slow
def test_base_and_variants_are_answered_on_one_base_without_disturbing_each_other(
    trained: Callable[..., Path], tmp_path: Path
) -> None:
    done = evaluate(trained("lora"), trained("peft"), "--base", *FEW)
    assert done.exit_code == 0, done.output
    assert done.stderr.count("loading") == 1
    base, lora, peft = (tmp_path / "outputs" / RECIPE / name for name in ("base", "lora", "peft"))
    answers = {folder.name: lines(folder / "answers-test.jsonl") for folder in (base, lora, peft)}
    assert answers["lora"] == answers["peft"]
    assert [line["row"] for line in answers["base"]] == [line["row"] for line in answers["lora"]]
    for key in ("answer", "reference_nats", "settings"):
        assert [line[key] for line in answers["base"]] != [line[key] for line in answers["lora"]]
    found = section(lora)
    assert found["differences"]["peft"]["mean"] == 0
    assert not found["differences"]["peft"]["excludes_zero"]
    f1 = [new - old for new, old in zip(found["scores"]["f1"], section(base)["scores"]["f1"], strict=True)]
    assert found["differences"]["base"]["mean"] == pytest.approx(sum(f1) / 6)
    assert found["differences"]["base"]["n"] == 6
    assert section(base)["differences"] == {}
    table = [line.split()[:2] for line in done.stdout.splitlines()[:4]]
    assert table == [["system", "n"], ["base", "6"], ["lora", "6"], ["peft", "6"]]


@pytest.mark.slow
def test_answers_are_the_most_likely_tokens_whatever_the_model_samples_by_default(
    trained: Callable[..., Path], tiny: Path, tmp_path: Path
) -> None:
    import torch
    from transformers import LlamaForCausalLM

    run = trained("lora")
    assert evaluate(run, "--base", *FEW).exit_code == 0
    tokenizer = loading.load_tokenizer(runfile.load(run))
    model = LlamaForCausalLM.from_pretrained(tiny)
    asked = questions.load(runfile.load(run), tokenizer, "test")[0]
    for line in lines(tmp_path / "outputs" / RECIPE / "base" / "answers-test.jsonl"):
        ids = list(asked[line["row"]].prompt_ids)
        for _ in range(line["new_tokens"]):
            with torch.no_grad():
                ids.append(model(torch.tensor([ids])).logits[0, -1].argmax().item())
        answer = ids[len(asked[line["row"]].prompt_ids) :]
        assert line["answer"] == tokenizer.decode(answer, skip_special_tokens=True).strip()


@pytest.mark.slow
def test_the_section_holds_what_a_report_needs(trained: Callable[..., Path], tmp_path: Path) -> None:
    done = evaluate(trained("lora", BF16), "--split", "validation", *FEW)
    assert done.exit_code == 0, done.output
    folder = tmp_path / "outputs" / RECIPE / "lora"
    found = section(folder, "evaluation-validation")
    answers = sorted(lines(folder / "answers-validation.jsonl"), key=lambda line: line["row"])
    metrics = found["metrics"]
    intervals = ("bertscore_precision", "bertscore_recall", "bertscore_f1", "cross_entropy", "perplexity")
    for name in intervals:
        assert metrics[name]["low"] <= metrics[name]["mean"] <= metrics[name]["high"]
        assert metrics[name]["n"] == 6
    assert set(metrics) == {
        *intervals,
        *("empty_answers", "unfinished_answers", "cut_texts", "mean_answer_tokens"),
    }
    tokens = found["scores"]["reference_tokens"]
    nats = sum(line["reference_nats"] for line in answers) / sum(tokens)
    assert metrics["cross_entropy"]["mean"] == pytest.approx(nats, rel=1e-5)
    assert metrics["unfinished_answers"] == sum(not line["finished"] for line in answers)
    assert (found["split"], found["limit"], found["rows"], found["batch_size"]) == ("validation", 6, 6, 2)
    assert found["prompt_parity"] is True
    assert found["settings"]["end_tokens"] == [2, 7]
    assert found["settings"]["dtype"] == "bfloat16"
    assert found["settings"]["backend"] == "transformers"  # hashed with the answers: those of earlier versions stay
    assert "evaluation" not in json.loads((folder / "result.json").read_text())


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
def test_another_adapter_is_asked_anew_and_the_old_answers_stay_beside(
    trained: Callable[..., Path], tmp_path: Path, tiny: Path
) -> None:
    run = trained()
    path = tmp_path / "outputs" / RECIPE / "lora" / "answers-test.jsonl"
    assert evaluate(run, *FEW).exit_code == 0
    other = save_adapter(tiny, tmp_path / "scaled")
    config = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 4 * config["lora_alpha"]}))
    before = path.read_bytes()
    done = evaluate(run, "--adapter", other, *FEW)
    assert "6 answers of another model, adapter, prompt or setting moved" in done.stderr
    assert path.with_name("answers-test.jsonl.old").read_bytes() == before
    assert {line["settings"] for line in lines(path)}.isdisjoint(
        json.loads(line)["settings"] for line in before.splitlines()
    )


@pytest.mark.slow
def test_another_prompt_than_in_training_is_shouted_about(trained: Callable[..., Path], tmp_path: Path) -> None:
    run = trained()
    run.write_text(run.read_text().replace(r"<|im_end|>\n<|im_start|>assistant\n", r"\nASSISTANT:"))
    done = evaluate(run, *FEW)
    assert done.exit_code == 0, done.output
    assert "WARNING" in done.stderr and "ASSISTANT:" in done.stderr
    assert section(tmp_path / "outputs" / RECIPE / "lora")["prompt_parity"] is False


@pytest.mark.slow
def test_a_missing_adapter_an_adapter_of_another_base_and_an_unknown_split_are_one_sentence(
    trained: Callable[..., Path], run_file: Callable[..., Path], tiny: Path, tmp_path: Path
) -> None:
    assert_one_sentence(evaluate(run_file("lora")), "holds no adapter", "train first")
    assert_one_sentence(
        evaluate(run_file("peft"), "--adapter", save_adapter(tiny, tmp_path / "other")), "was trained on", "tiny"
    )
    assert_one_sentence(evaluate(trained("qlora"), "--split", "tset"), "datasets.0.path", "tset")


@pytest.mark.slow
def test_the_scores_reach_wandb(trained: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    wandb.teardown()  # an earlier test's settings would outlive its environment
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    done = evaluate(trained("lora", "wandb_project=history"), *FEW)
    assert done.exit_code == 0, done.output
    logged = b"".join(path.read_bytes() for path in tmp_path.glob("wandb/offline-run-*/run-*.wandb"))
    wandb.teardown()
    assert b"evaluation/bertscore_f1_low" in logged
