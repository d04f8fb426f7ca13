"""tools/data.py leakage: questions that are both trained on and asked."""

import json

from lora_recipes import ROOT

import pytest
from datacalls import call, failed, write


@pytest.fixture
def leaking(tmp_path):
    write(tmp_path / "set" / "train.jsonl", ["Who built the city of Great Zimbabwe?", "Where is Aksum?", "Why salt?"])
    write(tmp_path / "set" / "test.jsonl", ["Who built the city of Zimbabwe?", "where is aksum", "Whose gold was it?"])
    return tmp_path / "set"


def test_leakage_finds_equal_and_near_questions_and_exits_1(leaking):
    done = call("leakage", leaking)
    assert done.exit_code == 1
    assert done.stdout.splitlines()[0] == "2 of 3 test questions in 3 training rows: 1 exactly, 1 nearly"
    assert "exact\n  test row 2: where is aksum\n  training row 2: Where is Aksum?" in done.stdout
    assert "0.86\n  test row 1: Who built the city of Zimbabwe?" in done.stdout
    assert "test row" not in call("leakage", leaking, "--examples", "0").stdout
    assert call("leakage", leaking, "--threshold", "0.9").stdout.startswith("1 of 3 test questions")


def test_leakage_as_json_holds_all_that_was_found(leaking):
    found = json.loads(call("leakage", leaking, "--json", "--examples", "0").stdout)
    assert (found["exact"], found["near"], found["test_rows"], found["train_rows"]) == (1, 1, 3, 3)
    assert [(one["row"], one["other"], one["exact"]) for one in found["found"]] == [(1, 1, True), (0, 0, False)]


def test_the_embedded_data_leak_nothing_and_exit_0():
    done = call("leakage", ROOT / "data" / "african_history")
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.startswith("0 of 100 test questions in")


def test_another_source_can_be_the_training_side(leaking, tmp_path):
    other = write(tmp_path / "other.jsonl", ["Whose gold was it?"])
    done = call("leakage", leaking, "--against", other)
    assert done.exit_code == 1 and done.stdout.startswith("1 of 3 test questions in 1 training row:")
    turned = call("leakage", other, "--test", "train", "--against", f"{leaking}:test")
    assert turned.exit_code == 1 and turned.stdout.startswith("1 of 1 test question in 3 training rows:")
    assert "has no split 'test', only train; choose with --train and --test" in failed("leakage", other)


def test_an_input_is_part_of_the_question(tmp_path):
    write(tmp_path / "train.jsonl", ["Name the capital."], input="Mali")
    write(tmp_path / "test.jsonl", ["Name the capital."], input="Ghana in the year 1200")
    assert call("leakage", tmp_path).exit_code == 0
    write(tmp_path / "test.jsonl", ["Name the capital."], input="mali")
    done = call("leakage", tmp_path)
    assert done.exit_code == 1 and done.stdout.startswith("1 of 1 test question in 1 training row: 1 exactly")
