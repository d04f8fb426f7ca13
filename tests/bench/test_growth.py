"""The growth benchmark takes no row twice and draws what was measured."""

import io
import json

import growth
import pytest
from click.testing import CliRunner


def test_numbers_of_rows_beyond_what_is_there_become_all_there_is_once():
    assert growth.available([250, 500, 1000], 862) == [250, 500, 862]
    assert growth.available([1000, 250, 500], 400) == [250, 400]


@pytest.mark.parametrize("given", ["0,2", "many", ""])
def test_numbers_that_are_none_are_refused_in_a_sentence(given, monkeypatch):
    monkeypatch.setattr(growth, "prepare", None)  # should they be taken, nothing is measured
    done = CliRunner().invoke(growth.main, ["--rows", given])
    assert done.exit_code == 2 and "expected whole numbers from 1 on" in done.output


def saved(**seconds):
    ways = {name.replace("_", " "): {"median": {"seconds": value}} for name, value in seconds.items()}
    return {"settings": {"questions": 8}, "ways": ways}


def test_each_unit_has_a_panel_and_each_command_a_line_beside_its_proportional_one(monkeypatch):
    drawn = []
    monkeypatch.setattr(growth.plots, "png", drawn.append)
    measured = saved(train_10_rows=20, train_20_rows=40, evaluate_10_rows=5, evaluate_20_rows=9, evaluate_1_adapters=3)
    measured["ways"]["evaluate 2 adapters"] = {"median": {}}  # failed
    growth.draw(measured)
    rows, adapters = drawn[0].axes
    assert [axis.get_xlabel() for axis in (rows, adapters)] == ["rows", "adapters"]
    assert [list(line.get_ydata()) for line in rows.lines] == [[20, 40], [20, 40], [5, 9], [5, 10]]
    assert [list(line.get_xdata()) for line in adapters.lines] == [[1], [1]]


def test_the_plot_is_a_png():
    from PIL import Image

    assert Image.open(io.BytesIO(growth.draw(saved(train_10_rows=20, train_20_rows=40)))).format == "PNG"


def test_run_files_and_rows_of_every_size_are_written_and_no_row_is_repeated(tmp_path, monkeypatch):
    monkeypatch.setattr(growth, "WORK", tmp_path / "growth")
    rows = [{"instruction": f"Question {n}?", "input": "", "output": f"Answer {n}."} for n in range(6)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    assert growth.prepare(tmp_path / "rows.json", [2, 4, 100], 2, 128) == [2, 4, 6]
    lines = (tmp_path / "growth" / "6" / "train.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == rows
    for name, folder in {"2": "2", "6": "6", "adapter-1": "2"}.items():
        run = growth.runfile.load(tmp_path / "growth" / f"{name}.yaml")
        assert run.config["datasets"][0]["path"] == str(tmp_path / "growth" / folder)
        assert run.output_dir == tmp_path / "growth" / "out" / name
