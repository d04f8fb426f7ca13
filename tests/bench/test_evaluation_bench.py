"""What the benchmarks of evaluation and of lm-eval start from, and how their scores are compared."""

import json
from pathlib import Path

from lora_recipes.config import runfile

import benchmarking
import evaluation
import pytest
from click.testing import CliRunner


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(evaluation, "WORK", tmp_path)
    monkeypatch.setattr(benchmarking, "WORK", tmp_path)
    return tmp_path


def test_answers_of_an_earlier_run_are_not_counted_as_speed(work: Path) -> None:
    (work / "adapter1").mkdir()
    for name in ("answers-test.jsonl", "adapter_model.safetensors"):
        (work / "adapter1" / name).touch()
    run = runfile.load(evaluation.run_file(1, "float32"))
    assert [path.name for path in run.output_dir.iterdir()] == ["adapter_model.safetensors"]
    assert run.config["bf16"] is False and runfile.load(evaluation.run_file(1, "bfloat16")).config["bf16"] is True


def test_the_other_adapters_are_the_first_with_noise_of_their_seed(work: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    (work / "adapter1").mkdir()
    (work / "adapter1" / "adapter_config.json").write_text("{}")
    save_file({"a": torch.randn(50, 40)}, work / "adapter1" / "adapter_model.safetensors")
    evaluation.prepare(3)
    one, two, three = (load_file(work / f"adapter{n}" / "adapter_model.safetensors")["a"] for n in (1, 2, 3))
    assert 0.01 < (two - one).std() / one.std() < 0.03 and not torch.equal(two, three)
    evaluation.prepare(2)
    assert torch.equal(two, load_file(work / "adapter2" / "adapter_model.safetensors")["a"])


def test_the_largest_difference_of_a_score_is_found_and_a_missing_way_has_none(work: Path) -> None:
    (work / "ours.json").write_text(json.dumps({"one acc": 0.5, "two acc": 0.25}))
    assert benchmarking._difference() is None
    (work / "lm-eval.json").write_text(json.dumps({"one acc": 0.5, "two acc": 0.5}))
    assert benchmarking._difference() is None
    (work / "hflm.json").write_text(json.dumps({"one acc": 0.5, "two acc": 0.375}))
    assert benchmarking._difference() == 0.25


def test_an_unknown_way_is_wrong_usage() -> None:
    done = CliRunner().invoke(evaluation.main, ["--ways", "theirs"])
    assert (done.exit_code, "expected some of reference, sorted, ours" in done.stderr) == (2, True)
