"""data/african_history_mc: nothing but knowledge may tell the right option, and no question is asked in training."""

import json
import math
import re
from collections import Counter
from typing import Any

from lora_recipes import ROOT

import pytest
import yaml

FOLDER = ROOT / "data" / "african_history_mc"


def read(path: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


ROWS = read(FOLDER / "test.jsonl")
TAUGHT = [row for part in sorted((ROOT / "data" / "african_history").glob("*.jsonl")) for row in read(part)]


def words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))


def right_by(length: Any) -> float:
    """The expected share of right answers of who picks by length, ties drawn at random."""
    total = 0.0
    for row in ROWS:
        lengths = [len(choice) for choice in row["choices"]]
        picked = [place for place, found in enumerate(lengths) if found == length(lengths)]
        total += (row["answer"] in picked) / len(picked)
    return total / len(ROWS)


def chance(limit: float = 1.645) -> float:
    """The share of right answers that guessing stays below in 95 % of such tests."""
    return 0.25 + limit * math.sqrt(0.25 * 0.75 / len(ROWS))


def test_there_are_questions_enough_for_an_interval_of_a_tenth() -> None:
    assert len(ROWS) >= 100


def test_each_row_is_a_question_with_four_different_options() -> None:
    for row in ROWS:
        assert set(row) == {"question", "choices", "answer", "topic"}
        assert row["question"].endswith("?") and row["topic"]
        assert len({choice.strip().lower() for choice in row["choices"]}) == 4
        assert all(choice == choice.strip() and choice for choice in row["choices"])
        assert row["answer"] in range(4)


def test_no_position_of_the_right_option_is_favoured() -> None:
    counts = Counter(row["answer"] for row in ROWS)
    assert all(abs(counts[place] - len(ROWS) / 4) <= 1 for place in range(4))


@pytest.mark.parametrize("length", [max, min], ids=["longest", "shortest"])
def test_the_length_of_an_option_does_not_give_it_away(length: Any) -> None:
    assert right_by(length) < min(0.40, chance())


@pytest.mark.parametrize("place", range(4))
def test_one_position_throughout_scores_at_chance(place: int) -> None:
    assert sum(row["answer"] == place for row in ROWS) / len(ROWS) < min(0.40, chance())


def test_the_words_of_the_question_do_not_point_at_its_answer() -> None:
    shared = [[len(words(choice) & words(row["question"])) for choice in row["choices"]] for row in ROWS]
    told = [row["question"] for row, n in zip(ROWS, shared, strict=True) if n[row["answer"]] > max(sorted(n)[:3])]
    assert told == []


def test_no_question_is_asked_twice() -> None:
    asked = [" ".join(sorted(words(row["question"]))) for row in ROWS]
    assert len(set(asked)) == len(ROWS)


def test_no_question_is_one_of_training_or_evaluation() -> None:
    assert len(TAUGHT) > 600
    for row in ROWS:
        mine = words(row["question"])
        for taught in TAUGHT:
            other = words(taught["question"])
            assert len(mine & other) / len(mine | other) < 0.6, (row["question"], taught["question"])


def test_the_task_file_names_the_data_from_the_root_of_the_checkout() -> None:
    task = yaml.safe_load((FOLDER / "african_history_mc.yaml").read_text(encoding="utf-8"))
    path = ROOT / task["dataset_kwargs"]["data_files"]["test"]
    assert path == FOLDER / "test.jsonl"
    assert (task["metadata"]["version"], task["num_fewshot"]) == (1.0, 0)
