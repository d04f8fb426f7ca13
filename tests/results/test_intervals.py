"""Intervals: known cases, pairing, weights, and the published figures."""

import json
import random

from lora_recipes import ROOT
from lora_recipes.results import intervals

import pytest

NOISE = [random.Random(n).gauss(0, 1) for n in range(200)]


def test_the_interval_of_a_normal_sample_is_near_the_textbook_one() -> None:
    found = intervals.interval(NOISE)
    mean = sum(NOISE) / len(NOISE)
    half = 1.96 * (sum((x - mean) ** 2 for x in NOISE) / (len(NOISE) - 1) / len(NOISE)) ** 0.5
    assert found["mean"] == pytest.approx(mean)
    assert found["low"] == pytest.approx(mean - half, abs=0.1 * half)
    assert found["high"] == pytest.approx(mean + half, abs=0.1 * half)
    assert found["n"] == 200


def test_the_same_rows_give_the_same_interval() -> None:
    assert intervals.interval(NOISE) == intervals.interval(list(NOISE))


def test_equal_values_have_an_interval_without_width() -> None:
    assert intervals.interval([0.25] * 7) == {"mean": 0.25, "low": 0.25, "high": 0.25, "n": 7}


def test_a_mean_has_the_interval_of_students_t_test() -> None:
    found = intervals.interval([0.1, 0.4, 0.3])
    # 0.2667 with a standard error of 0.0882, times 4.3027, the t of two degrees of freedom.
    assert (found["low"], found["high"]) == pytest.approx((0.2667 - 0.3795, 0.2667 + 0.3795), abs=1e-4)


def test_two_questions_that_agree_have_an_interval_as_wide_as_they_deserve_and_no_star() -> None:
    found = intervals.difference([0.2465, 0.2869], [0.2, 0.2])
    assert found["mean"] == pytest.approx(0.0667)
    assert found["low"] < -0.18 and found["high"] > 0.32
    assert not found["excludes_zero"]


@pytest.mark.parametrize(("rows", "marked"), [(9, False), (10, True)])
def test_a_difference_is_marked_from_ten_questions_on(rows: int, marked: bool) -> None:
    better = [0.5 + n / 1000 for n in range(rows)]
    assert intervals.difference(better, [0.0] * rows)["excludes_zero"] == marked


def test_a_weighted_mean_counts_each_row_by_its_weight() -> None:
    # Nats a token of 10 and 30 tokens: (10 * 2 + 30 * 4) / 40.
    assert intervals.interval([2.0, 4.0], [10, 30])["mean"] == pytest.approx(3.5)


def test_equal_weights_change_nothing() -> None:
    assert intervals.interval(NOISE, [3.0] * 200) == pytest.approx(intervals.interval(NOISE))


def test_the_interval_of_a_weighted_mean_covers_the_truth_in_95_of_100_samples() -> None:
    draw = random.Random(1)
    held = 0
    for _ in range(1000):
        tokens = [draw.randint(5, 100) for _ in range(50)]
        found = intervals.interval([draw.expovariate(1 / (2 + 10 / n)) for n in tokens], tokens)
        truth = 2 + 10 * 96 / sum(range(5, 101))
        held += found["low"] < truth < found["high"]
    assert 920 <= held <= 970


def test_the_difference_of_a_system_to_itself_is_exactly_zero_and_does_not_exclude_it() -> None:
    found = intervals.difference(NOISE, NOISE)
    assert found == {"mean": 0.0, "low": 0.0, "high": 0.0, "n": 200, "excludes_zero": False}


def test_pairing_finds_a_small_shift_under_large_noise() -> None:
    shifted = [value + 0.01 + 0.001 * noise for value, noise in zip(NOISE, reversed(NOISE), strict=True)]
    found = intervals.difference(shifted, NOISE)
    assert found["excludes_zero"]
    assert found["low"] < 0.01 < found["high"] < 0.012
    assert intervals.difference(NOISE, shifted)["mean"] == pytest.approx(-found["mean"])


def test_a_difference_of_noise_does_not_exclude_zero() -> None:
    assert not intervals.difference(NOISE, list(reversed(NOISE)))["excludes_zero"]


def test_one_row_never_excludes_zero() -> None:
    assert not intervals.difference([1.0], [0.0])["excludes_zero"]


def test_rows_that_do_not_pair_are_refused() -> None:
    with pytest.raises(ValueError, match="paired"):
        intervals.difference([1.0, 2.0], [1.0])


def test_no_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        intervals.interval([])


@pytest.mark.parametrize("name", ["base", "lora", "peft"])
def test_the_published_figures_are_these_intervals_to_the_last_digit(name: str) -> None:
    path = ROOT / "results" / "smollm2-african-history" / f"{name}.json"
    published = json.loads(path.read_text(encoding="utf-8"))["evaluation"]
    metrics, scores = published["metrics"], published["scores"]
    for score in ("precision", "recall", "f1"):
        assert intervals.interval(scores[score]) == metrics[f"bertscore_{score}"]
    assert intervals.interval(scores["cross_entropy"], scores["reference_tokens"]) == metrics["cross_entropy"]
    benchmark = json.loads(path.read_text(encoding="utf-8"))["benchmark"]
    for task, outcomes in benchmark["outcomes"].items():
        for name, text in outcomes.items():
            found = benchmark["metrics"][f"{task}_{name}"]
            assert (found["low"], found["high"]) == intervals.share(text.count("1"), len(text))


def test_one_row_has_no_interval() -> None:
    assert intervals.interval([0.25]) == {"mean": 0.25, "low": None, "high": None, "n": 1}


def test_a_share_has_wilsons_interval_of_some_width_at_its_ends() -> None:
    z, p, n = 1.959964, 0.7, 10
    middle, half = p + z**2 / (2 * n), z * (p * (1 - p) / n + (z / (2 * n)) ** 2) ** 0.5
    ends = [(middle + side * half) / (1 + z**2 / n) for side in (-1, 1)]
    assert intervals.share(7, 10) == pytest.approx(ends, abs=1e-6)
    low, high = intervals.share(0, 2)
    assert low == 0.0 and high == pytest.approx(z**2 / (2 + z**2), abs=1e-6)
