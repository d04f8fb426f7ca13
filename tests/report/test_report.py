"""tools/report.py: the tables and plots say what the result files say, and nothing else."""

import base64
import io
import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lora_recipes import ROOT
from lora_recipes.report import inputs, plots

import pytest
from PIL import Image, ImageColor

ENVIRONMENT = {
    "git_commit": "0123456789abcdef",
    "git_dirty": True,
    "python": "3.12.3",
    "packages": {"torch": "2.13.0"},
    "hardware": {"cores": 2, "processor": "a processor"},
}


def score(mean: float, width: float, **more: Any) -> dict[str, Any]:
    return {"mean": mean, "low": mean - width, "high": mean + width, "n": 100, **more}


def write_result(outputs: Path, variant: str, f1: float, recipe: str = "smollm2-african-history", **more: Any) -> Path:
    """result.json of one system in the shape of the tools; `more` are further sections."""
    evaluation: dict[str, Any] = {
        "metrics": {"bertscore_f1": score(f1, 0.02), "empty_answers": 3, "mean_answer_tokens": 41.5},
        "environment": ENVIRONMENT,
    }
    if variant != "base":
        difference = score(f1 - 0.4, 0.01, excludes_zero=abs(f1 - 0.4) > 0.01)
        evaluation["differences"] = {"base": {"metric": "bertscore_f1", **difference}}
    path = outputs / recipe / variant / "result.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"recipe": recipe, "variant": variant, "evaluation": evaluation, **more}))
    return path


def history(steps: int) -> list[dict[str, Any]]:
    logged: list[dict[str, Any]] = [
        {"step": step, "loss": 3 / step + 1, "tokens/trainable": step * 1000} for step in range(1, steps + 1)
    ]
    return [*logged, {"step": steps, "eval_loss": 1.2345}]


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    """A base, a clear gain and a gain within the noise, with a training section and a skipped task."""
    folder = tmp_path / "outputs"
    write_result(folder, "base", 0.4)
    training = {
        "metrics": {"steps": 10, "trainable_parameters": 4884480},
        "log_history": history(10),
        "wall_seconds": 125.0,
        "peak_memory_mb": 2310,
        "environment": ENVIRONMENT,
    }
    benchmark = {
        "metrics": {"mmlu_dev_acc": score(0.31, 0.05)},
        "skipped": {"tinyMMLU": "its package is not installed"},
    }
    write_result(folder, "lora", 0.55, training=training, benchmark=benchmark)
    write_result(folder, "qlora", 0.405)
    return folder


def table(markdown: str, title: str) -> list[list[str]]:
    """The rows of the table under a heading."""
    part = re.search(rf"^### {re.escape(title)}\n(.*?)(?=^#|\Z)", markdown, re.M | re.S)
    assert part, f"no table {title}"
    lines = [line for line in part.group(1).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_the_tables_hold_the_numbers_of_the_files(outputs: Path, tool: Callable) -> None:
    done = tool("report", outputs)
    assert done.returncode == 0, done.stderr
    text = (outputs / "README.md").read_text()
    assert table(text, "BERTScore F1") == [
        ["base", r"0.4000 \[0.3800, 0.4200\]", "–", "100", "measured"],
        ["lora", r"0.5500 \[0.5300, 0.5700\]", r"+0.1500 \[+0.1400, +0.1600\] \*", "100", "measured"],
        ["qlora", r"0.4050 \[0.3850, 0.4250\]", r"+0.0050 \[-0.0050, +0.0150\]", "100", "measured"],
    ]
    assert table(text, r"mmlu\_dev\_acc") == [["lora", r"0.3100 \[0.2600, 0.3600\]", "–", "100", "measured"]]
    assert table(text, "Answers")[0] == ["base", "41.50", "3", "–", "–", "measured"]


def test_the_training_table_holds_loss_time_tokens_and_parameters(outputs: Path, tool: Callable) -> None:
    assert tool("report", outputs).returncode == 0
    mean = sum(3 / step + 1 for step in range(1, 11)) / 10
    expected = ["lora", f"{mean:.4f}", "1.2345", "10", "10,000", "2 min 05 s", "4,884,480", "2,310 MB", "measured"]
    assert table((outputs / "README.md").read_text(), "Training") == [expected]


def test_the_report_names_hardware_versions_commit_and_what_was_skipped(outputs: Path, tool: Callable) -> None:
    assert tool("report", outputs).returncode == 0
    for name in ("README.md", "index.html"):
        text = (outputs / name).read_text()
        for expected in ("a processor, 2 cores", "commit 0123456789ab with uncommitted changes", "torch 2.13.0"):
            assert expected in text, (name, expected)
        assert "lora: tinyMMLU was skipped: its package is not installed" in text


def test_published_rows_are_marked_and_follow_the_measured_ones(tmp_path: Path, tool: Callable) -> None:
    write_result(tmp_path, "lora", 0.9, recipe="phi4-mini-african-history")
    assert tool("report", tmp_path).returncode == 0
    rows = table((tmp_path / "README.md").read_text(), "BERTScore F1")
    assert rows[0][0] == "lora" and rows[0][-1] == "measured"
    link = "*[published by LoRAfrica](https://github.com/daniau23/LoRAfrica)*"
    assert rows[1:] == [
        [f"*{name}*", f"*{value}*", "*–*", "*–*", link]
        for name, value in [
            ("base", "0.8887"),
            ("peft lora", "0.9073"),
            ("peft lora ds2", "0.9034"),
            ("axolotl lora", "0.8898"),
            ("axolotl lora ds2", "0.8887"),
        ]
    ]
    assert (tmp_path / "index.html").read_text().count("<tr class=published>") >= 5


def test_a_recipe_without_published_figures_shows_none(outputs: Path, tool: Callable) -> None:
    assert tool("report", outputs).returncode == 0
    assert "published by LoRAfrica" not in (outputs / "README.md").read_text()


def test_the_page_holds_its_images_and_loads_nothing(outputs: Path, tool: Callable) -> None:
    assert tool("report", outputs).returncode == 0
    page = (outputs / "index.html").read_text()
    embedded = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    for name, data in zip(("scores.png", "losses.png"), embedded, strict=True):
        image = (outputs / name).read_bytes()
        assert image.startswith(b"\x89PNG") and 5_000 < len(image) < 150_000
        assert base64.b64decode(data) == image
        assert f"({name})" in (outputs / "README.md").read_text()
    assert "<script" not in page
    assert not re.findall(r'(?:src|href)="(?!data:|https://)', page)


def test_the_same_results_give_the_same_report_to_the_byte(outputs: Path, tool: Callable, tmp_path: Path) -> None:
    for name in ("one", "two"):
        assert tool("report", outputs, "-o", tmp_path / name).returncode == 0
    names = {path.name for path in (tmp_path / "one").iterdir()}
    assert names == {"README.md", "index.html", "losses.png", "scores.png"}
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


def test_losses_come_from_the_last_checkpoint_where_no_section_has_them(tmp_path: Path) -> None:
    path = write_result(tmp_path, "lora", 0.5)
    for step in (8, 10, 9):
        checkpoint = path.parent / f"checkpoint-{step}"
        checkpoint.mkdir()
        (checkpoint / "trainer_state.json").write_text(json.dumps({"log_history": history(step)}))
    (system,) = inputs.load(tmp_path)
    assert [step for step, _ in system.losses("loss")] == list(range(1, 11))
    assert system.losses("eval_loss") == [(10, 1.2345)]


@pytest.mark.parametrize("text", ['{"recipe": "r", "varia', '{"loss": 1}', "[]", ""])
def test_a_truncated_or_foreign_result_is_one_sentence(outputs: Path, tool: Callable, text: str) -> None:
    path = outputs / "smollm2-african-history" / "lora" / "result.json"
    path.write_text(text)
    done = tool("report", outputs)
    assert done.returncode == 1
    assert str(path) in done.stderr and done.stderr.count("\n") == 1
    assert not (outputs / "README.md").exists()


def test_two_results_of_one_name_and_names_that_are_paths_are_refused(outputs: Path, tool: Callable) -> None:
    again = write_result(outputs / "again", "lora", 0.5)
    done = tool("report", outputs)
    assert done.returncode == 1 and "is also in" in done.stderr
    again.write_text('{"recipe": "..", "variant": "../../x"}')
    done = tool("report", outputs / "again")
    assert done.returncode == 1 and "is no name of a recipe" in done.stderr


def test_a_folder_without_results_says_how_to_measure(tmp_path: Path, tool: Callable) -> None:
    done = tool("report", tmp_path)
    assert done.returncode == 1 and "tools/eval.py" in done.stderr
    done = tool("report", tmp_path / "absent")
    assert done.returncode == 2 and "tools/eval.py" in done.stderr


def test_what_is_published_holds_the_losses_and_no_path_of_this_machine(outputs: Path, tool: Callable) -> None:
    target = outputs.parent / "results"
    lora = outputs / "smollm2-african-history" / "lora" / "result.json"
    result = json.loads(lora.read_text())
    config = {"base_model": str(ROOT / ".cache/models/M"), "output_dir": "/home/somebody/outputs/r/lora"}
    result["evaluation"]["run_file"] = {"name": "/home/somebody/run.yaml", "config": config}
    result["benchmark"]["skipped"]["tinyMMLU"] = "see /home/somebody/log.txt or https://example.org/a/b, and/or ask"
    lora.write_text(json.dumps(result))
    done = tool("report", outputs, "--publish", "-o", target)
    assert done.returncode == 0, done.stderr
    text = (target / "smollm2-african-history" / "lora.json").read_text()
    published = json.loads(text)
    assert "somebody" not in text and str(ROOT) not in text
    assert published["evaluation"]["run_file"] == {
        "name": "run.yaml",
        "config": {"base_model": ".cache/models/M", "output_dir": "lora"},
    }
    assert published["benchmark"]["skipped"]["tinyMMLU"] == "see log.txt or https://example.org/a/b, and/or ask"
    assert published["training"]["log_history"] == history(10)
    (target / "bench").mkdir()
    (target / "bench" / "training.json").write_text('{"benchmark": "training"}')  # speed, of no system
    again = outputs.parent / "again"
    assert tool("report", target, "-o", again).returncode == 0
    assert table((again / "README.md").read_text(), "Training") == table((target / "README.md").read_text(), "Training")


def test_losses_that_only_a_checkpoint_holds_are_published_too(outputs: Path, tool: Callable) -> None:
    checkpoint = outputs / "smollm2-african-history" / "qlora" / "checkpoint-4"
    checkpoint.mkdir()
    (checkpoint / "trainer_state.json").write_text(json.dumps({"log_history": history(4)}))
    target = outputs.parent / "results"
    assert tool("report", outputs, "--publish", "-o", target).returncode == 0
    published = json.loads((target / "smollm2-african-history" / "qlora.json").read_text())
    assert published["training"]["log_history"] == history(4)


def test_plots_of_many_long_runs_stay_small_and_keep_their_colours(tmp_path: Path) -> None:
    noise = random.Random(0)
    for variant in ("lora", "qlora", "ds2", "ds3", "peft", "peft+ds2", "peft+qlora", "qlora+ds2"):
        logged = [{"step": step, "loss": 2 + noise.gauss(0, 0.3)} for step in range(1, 501)]
        write_result(tmp_path, variant, 0.5, training={"log_history": logged})
    measured = inputs.load(tmp_path)
    image = plots.losses(measured)
    assert image is not None and len(image) < 150_000
    drawn = {colour for _, colour in Image.open(io.BytesIO(image)).convert("RGB").getcolors(2**24)}
    for colour in map(ImageColor.getrgb, plots._colours(measured).values()):
        assert min(max(abs(a - b) for a, b in zip(colour, found, strict=True)) for found in drawn) < 8


def test_published_scores_of_another_scoring_model_are_not_drawn_beside_measured_ones(tmp_path: Path) -> None:
    recipe = "phi4-mini-african-history"
    path = write_result(tmp_path, "lora", 0.5, recipe=recipe)
    for model, drawn in (("roberta-large", 6), ("all-MiniLM-L6-v2", 1)):
        result = json.loads(path.read_text())
        result["evaluation"]["scoring"] = {"model": model}
        path.write_text(json.dumps(result))
        assert len(plots._points(recipe, inputs.load(tmp_path))) == drawn


def test_the_answers_page_is_linked_where_it_lies_below_the_report(outputs: Path, tool: Callable) -> None:
    recipe = outputs / "smollm2-african-history"
    (recipe / "compare.html").touch()
    for folder, link in ((outputs, "smollm2-african-history/compare.html"), (recipe, "compare.html")):
        assert tool("report", folder).returncode == 0
        assert f"]({link})" in (folder / "README.md").read_text()
        assert f'href="{link}"' in (folder / "index.html").read_text()


def test_a_recipe_behind_a_link_is_in_the_report_once(outputs: Path, tool: Callable, tmp_path: Path) -> None:
    linked = tmp_path / "linked"
    linked.mkdir()
    for name in ("one", "two"):
        (linked / name).symlink_to(outputs / "smollm2-african-history")
    (linked / "itself").symlink_to(linked)
    assert [system.name for system in inputs.load(linked)] == ["base", "lora", "qlora"]
    assert tool("report", linked).returncode == 0
