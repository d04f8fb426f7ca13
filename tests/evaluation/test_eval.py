"""tools/eval.py: answers that survive a kill, prompts as trained, adapters beside each other on one base."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lora_recipes.config import runfile
from lora_recipes.data import questions
from lora_recipes.models import adapter_settings, loading
from lora_recipes.results import systems

import pytest
from evaluations import BF16, FEW, RECIPE, assert_one_sentence, evaluate, lines, section
from safetensors.torch import load_file, save_file
from tiny import save_adapter


def test_the_same_run_twice_is_wrong_usage(run_file: Callable[..., Path]) -> None:
    done = evaluate(run_file(), run_file())
    assert (done.exit_code, "give each run once" in done.stderr) == (2, True)


def test_an_adapter_for_two_runs_is_wrong_usage(run_file: Callable[..., Path], tmp_path: Path) -> None:
    done = evaluate(run_file("lora"), run_file("qlora"), "--adapter", tmp_path)
    assert (done.exit_code, "--adapter belongs to one run file" in done.stderr) == (2, True)


def test_a_split_is_no_path(run_file: Callable[..., Path]) -> None:
    assert evaluate(run_file(), "--split", "../test").exit_code == 2


def test_a_variant_named_base_would_overwrite_the_base_model(tmp_path: Path, run_file: Callable[..., Path]) -> None:
    assert_one_sentence(evaluate(run_file("lora", f"output_dir={tmp_path}/x/base-0123abcd")), "base-0123abcd is a base")
    path = run_file("lora", f"output_dir={tmp_path}/{RECIPE}/base")
    assert_one_sentence(evaluate(path), "output_dir", "base is a base model's")


@pytest.mark.parametrize("template", ["{{ 1 + 'a' }}", "{% if %}", "{{ raise_exception('no system turn') }}"])
def test_a_chat_template_that_fails_is_one_sentence(trained: Callable[..., Path], template: str) -> None:
    path = trained("lora", "chat_template=jinja", f"chat_template_jinja={json.dumps(template)}")
    assert_one_sentence(evaluate(path, *FEW), "the model's chat template refuses the prompt")


def test_a_question_longer_than_the_models_positions_is_one_sentence(
    trained: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_one_sentence(evaluate(trained("lora"), "--max-new-tokens", "5000"), "positions", "--max-new-tokens (5000)")


def test_questions_are_tokenized_once_for_systems_that_are_asked_alike(
    run_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from lora_recipes.evaluation import evaluate

    loads: list[str] = []
    monkeypatch.setattr(loading, "load_tokenizer", lambda run: loads.append(run.variant))
    monkeypatch.setattr(questions, "load", lambda run, tokenizer, split: ([], ""))
    monkeypatch.setattr(questions, "end_tokens", lambda run, tokenizer: [2])
    monkeypatch.setattr(questions, "adapter_identity", str)
    monkeypatch.setattr(systems, "model_identity", str)
    monkeypatch.setattr(adapter_settings, "changes_base", lambda folder: False)
    monkeypatch.setattr(evaluate, "_require_positions", lambda *_: None)
    runs = [runfile.load(run_file(name)) for name in ("lora", "peft", "qlora")]
    runs.append(runfile.load(run_file("dora", "chat_template=jinja", "chat_template_jinja=another")))
    chosen = [systems.of_base(runs[0], None), *(systems.of_run(run, run.output_dir) for run in runs)]
    found = evaluate.prepare(chosen, "test", None, 8)
    assert loads == ["lora", "dora"]
    assert found[0].asked is found[3].asked is not found[4].asked
    assert [one.settings["four_bit"] for one in found] == [False, False, False, True, False]


def _figures(folder: Path) -> tuple[Any, ...]:
    """What was measured, without what depends on the call."""
    found = section(folder)
    return found["metrics"], found["scores"], lines(folder / "answers-test.jsonl")


@pytest.mark.slow
def test_beside_an_adapter_that_changes_the_base_all_are_scored_as_alone(
    trained: Callable[..., Path], tiny: Path, tmp_path: Path
) -> None:
    plain, pissa = trained("lora"), trained("peft", seed=2)
    outputs = tmp_path / "outputs" / RECIPE
    save_adapter(tiny, outputs / "peft", 2, init_lora_weights="pissa")
    asked = {"base": ("--base",), "lora": (), "peft": ()}
    alone = {}
    for name, option in asked.items():
        assert evaluate(pissa if name == "peft" else plain, *option, *FEW).exit_code == 0
        alone[name] = _figures(outputs / name)
    assert alone["base"] != alone["lora"] != alone["peft"]
    for name in asked:
        (outputs / name / "answers-test.jsonl").unlink()
    assert evaluate(pissa, plain, "--base", *FEW).exit_code == 0
    assert {name: _figures(outputs / name) for name in asked} == alone


@pytest.mark.slow
def test_two_bases_beside_each_other_are_two(trained: Callable[..., Path], tiny: Path, tmp_path: Path) -> None:
    one, other = trained("lora"), trained("peft")
    changed = shutil.copytree(tiny, tmp_path / "models" / tiny.name)
    weights = load_file(changed / "model.safetensors")
    save_file({name: value * 1.5 for name, value in weights.items()}, changed / "model.safetensors", {"format": "pt"})
    other.write_text(other.read_text().replace(f"base_model: {tiny}", f"base_model: {changed}"))
    outputs = tmp_path / "outputs" / RECIPE
    assert evaluate(one, other, "--base", *FEW).exit_code == 0
    (second,) = outputs.glob("base-*")
    assert section(second)["settings"]["base_model"] != section(outputs / "base")["settings"]["base_model"]
    for variant, base in (("lora", outputs / "base"), ("peft", second)):
        found = section(outputs / variant)
        gain = found["metrics"]["bertscore_f1"]["mean"] - section(base)["metrics"]["bertscore_f1"]["mean"]
        assert found["differences"]["base"]["mean"] == pytest.approx(gain)
    again = evaluate(other, "--base", *FEW)  # alone, and it finds its own
    assert "loading" not in again.stderr and str(second.name) in again.stderr


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
        *("empty_answers", "unfinished_answers", "cut_texts", "unknown_tokens", "mean_answer_tokens"),
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
