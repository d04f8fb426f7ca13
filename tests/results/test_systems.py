"""A system: one name and one folder, whoever asks."""

from collections.abc import Callable
from pathlib import Path

from lora_recipes.config import runfile
from lora_recipes.results import systems

import pytest


def test_a_variant_and_its_base_lie_beside_each_other(run_file: Callable[..., Path], tmp_path: Path) -> None:
    run = runfile.load(run_file("lora"))
    folder = tmp_path / "outputs" / "smollm2-african-history"
    lora, base = systems.of_run(run, run.output_dir), systems.of_base(run, None)
    assert [lora.name, lora.folder, lora.recipe] == ["lora", folder / "lora", folder.name]
    assert [base.name, base.answers_path("test")] == ["base", folder / "base" / "answers-test.jsonl"]
    assert base.result == {} and base.section("evaluation") == {}
    assert base.record("evaluation", {"metrics": {}}) == base.path
    model = systems.model_identity(run.model())
    sections = {"model": model, "evaluation": {"metrics": {}}}
    assert systems.of_base(run, model).result == {"recipe": folder.name, "variant": "base", **sections}


def test_another_base_model_beside_the_same_variants_has_a_folder_of_its_own(
    run_file: Callable[..., Path], tmp_path: Path
) -> None:
    run = runfile.load(run_file("lora"))
    first = systems.of_base(run, systems.model_identity(run.model()))
    first.reserve()
    second = systems.of_base(run, "sha256:another")
    assert second.is_base and second.name.startswith("base-") and second.folder == first.folder.parent / second.name
    assert systems.of_base(run, systems.model_identity(run.model())).folder == first.folder


@pytest.mark.parametrize(("held", "name"), [("config.json", "base-"), ("answers-test.jsonl", "base")])
def test_a_folder_called_base_that_holds_something_else_is_left_alone(
    run_file: Callable[..., Path], tmp_path: Path, held: str, name: str
) -> None:
    run = runfile.load(run_file("lora"))
    folder = run.output_dir.parent / "base"
    folder.mkdir(parents=True)
    (folder / held).write_text("")
    assert systems.of_base(run, "sha256:x").name.startswith(name)
    assert (systems.of_base(run, "sha256:x").folder == folder) == (name == "base")


def test_another_adapter_than_the_run_s_own_has_results_of_its_own(run_file: Callable[..., Path]) -> None:
    run = runfile.load(run_file("lora"))
    found = systems.of_run(run, run.output_dir / "checkpoint-20")
    assert [found.name, found.folder] == ["lora-checkpoint-20", run.output_dir.parent / "lora-checkpoint-20"]


def test_the_split_names_the_section() -> None:
    assert [systems.evaluation_kind(split) for split in ("test", "train")] == ["evaluation", "evaluation-train"]


def test_a_system_of_a_report_has_no_run_file() -> None:
    with pytest.raises(ValueError, match="r lora has no run file"):
        _ = systems.System("r", "lora", Path("r/lora.json")).run
