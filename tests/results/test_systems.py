"""A system: one name and one folder, whoever asks."""

from collections.abc import Callable
from pathlib import Path

from lora_recipes.config import runfile
from lora_recipes.results import systems

import pytest


def test_a_variant_and_its_base_lie_beside_each_other(run_file: Callable[..., Path], tmp_path: Path) -> None:
    run = runfile.load(run_file("lora"))
    folder = tmp_path / "outputs" / "smollm2-african-history"
    lora, base = systems.of_run(run, run.output_dir), systems.of_run(run, None)
    assert [lora.name, lora.folder, lora.recipe] == ["lora", folder / "lora", folder.name]
    assert [base.name, base.answers_path("test")] == ["base", folder / "base" / "answers-test.jsonl"]
    assert base.result == {} and base.section("evaluation") == {}
    assert base.record("evaluation", {"metrics": {}}) == base.path
    assert systems.of_run(run, None).result == {
        "recipe": folder.name,
        "variant": "base",
        "evaluation": {"metrics": {}},
    }


def test_the_split_names_the_section() -> None:
    assert [systems.evaluation_kind(split) for split in ("test", "train")] == ["evaluation", "evaluation-train"]


def test_a_system_of_a_report_has_no_run_file() -> None:
    with pytest.raises(ValueError, match="r lora has no run file"):
        _ = systems.System("r", "lora", Path("r/lora.json")).run
