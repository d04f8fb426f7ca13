"""What a run file reads: found, identified by its content, and never in the folder that is written."""

from pathlib import Path

from lora_recipes.config import inputs, runfile

import click
import pytest

RUN = "base_model: {base}\ndatasets:\n  - path: {rows}\noutput_dir: {out}\n"


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A folder with a base model, a file of rows and a folder of rows."""
    for name in ("model", "rows"):
        (tmp_path / name).mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "rows" / "train.jsonl").write_text('{"question": "q", "answer": "a"}\n')
    return tmp_path


def load(folder: Path, base: str = "model", rows: str = "rows/train.jsonl", out: str = "out") -> runfile.RunFile:
    path = folder / "run.yaml"
    path.write_text(RUN.format(base=folder / base, rows=folder / rows, out=folder / out))
    return runfile.load(path)


@pytest.mark.parametrize(
    ("base", "rows", "out", "key"),
    [
        ("model", "rows/train.jsonl", "model", "base_model"),
        ("model", "rows/train.jsonl", ".", "base_model"),
        ("model", "rows/train.jsonl", "rows", "datasets.0.path"),
        ("model", "rows", "rows", "datasets.0.path"),
        ("model", "rows", "rows/out", "datasets.0.path"),
        ("rows/../model", "rows", "rows/../model", "base_model"),
    ],
)
def test_an_output_folder_that_holds_what_the_run_reads_is_refused(
    written: Path, base: str, rows: str, out: str, key: str
) -> None:
    with pytest.raises(click.ClickException, match=f"line 4: output_dir: {key} reads .* name a new folder"):
        load(written, base, rows, out)


def test_an_output_folder_through_a_link_is_known_all_the_same(written: Path) -> None:
    (written / "link").symlink_to(written / "model")
    with pytest.raises(click.ClickException, match="base_model reads"):
        load(written, out="link")


def test_outputs_beside_the_rows_and_below_the_base_model_are_taken(written: Path) -> None:
    assert load(written, out="model/lora").output_dir == written / "model" / "lora"
    assert load(written, rows="rows", out="rows2").output_dir == written / "rows2"


@pytest.mark.parametrize(
    ("changed", "key"), [("model/config.json", "base_model"), ("rows/train.jsonl", r"datasets\.0\.path")]
)
def test_a_run_whose_inputs_changed_is_not_gone_on_with(written: Path, changed: str, key: str) -> None:
    load(written).keep()
    (written / "out" / "checkpoint-3").mkdir()
    load(written).keep()
    (written / changed).write_text("other")
    with pytest.raises(click.ClickException, match=f"{key}: its content is not what checkpoint-3 .* --overwrite"):
        load(written).keep()
    (written / "out" / "checkpoint-3").rmdir()
    load(written).keep()


def test_axolotl_prepares_changed_rows_anew(written: Path) -> None:
    before = runfile.load(load(written).keep()).config["dataset_prepared_path"]
    assert runfile.load(load(written).keep()).config["dataset_prepared_path"] == before
    (written / "rows" / "train.jsonl").write_text("other")
    assert runfile.load(load(written).keep()).config["dataset_prepared_path"] != before


@pytest.mark.parametrize("held", ["adapter_model.safetensors", "checkpoint-7", "model.safetensors", "config.json"])
def test_a_folder_that_somebody_else_trained_into_is_left_alone(written: Path, held: str) -> None:
    (written / "out").mkdir()
    (written / "out" / held).write_text("theirs")
    with pytest.raises(click.ClickException, match=f"holds {held}, which none of these tools trained"):
        load(written).keep()
    assert [path.name for path in (written / "out").iterdir()] == [held]


def test_files_and_folders_are_known_by_their_content_wherever_they_lie(written: Path) -> None:
    run = load(written, rows="rows")
    found = inputs.digests(run.config, run.anchor)
    (written / "rows").rename(written / "moved")
    moved = load(written, rows="moved")
    assert set(found) == {"base_model", "datasets.0.path"}
    assert inputs.digests(moved.config, moved.anchor) == found


def test_a_clone_s_hidden_copy_of_its_files_is_not_read(written: Path) -> None:
    run = load(written)
    before = inputs.digests(run.config, run.anchor)
    (written / "model" / ".git" / "lfs").mkdir(parents=True)
    (written / "model" / ".git" / "lfs" / "weights").write_text("again")
    assert inputs.digests(run.config, run.anchor) == before


@pytest.mark.parametrize(
    ("out", "names"), [("/output", ("outputs", "output")), ("/a/x/../b", ("a", "b")), ("/a/b/", ("a", "b"))]
)
def test_every_output_folder_has_names_under_which_its_results_are_read_again(
    written: Path, out: str, names: tuple[str, str]
) -> None:
    run = load(written, out=out)
    assert (run.recipe, run.variant) == names


@pytest.mark.parametrize("out", ["a/.hidden/run", "a/b/.run", "a/" + "b" * 121, "/"])
def test_an_output_folder_whose_results_could_not_be_read_again_is_refused_before_the_work(
    written: Path, out: str
) -> None:
    with pytest.raises(click.ClickException, match="line 4: output_dir: its last two folders name the run in results"):
        load(written, out=out)
