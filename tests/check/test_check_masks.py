"""Masks: each way in which the wrong tokens can carry loss is a finding of its own."""

from lora_recipes.check import masks
from lora_recipes.check.checked_run import CheckedRun
from lora_recipes.check.parts import Part

import pytest

END = 2
"""<|im_end|>, the end of turn in the embedded model's chat template."""


def example(prompt, answer, on_prompt=0):
    """Token ids of a prompt, of which the last `on_prompt` carry loss, and of an answer that does."""
    labels = [-100] * (len(prompt) - on_prompt) + prompt[len(prompt) - on_prompt :]
    return {"input_ids": prompt + answer, "labels": labels + answer}


@pytest.fixture
def found(embedded_model, run_file):
    """The errors and warnings on some examples with three tokens of prompt each."""

    def find(examples, *settings):
        subject = CheckedRun(run_file("lora", *settings))
        part = Part("datasets.0", {}, [{}] * len(examples), format=object(), examples=examples)
        counts = masks.check(subject, [part], {"datasets.0": [3] * len(examples)})
        assert counts.rows == len(examples)
        return [(finding.severity, finding.check) for finding in subject.report.findings]

    return find


WHOLE = example([5, 6, 7], [8, 9, END])


def test_rows_that_train_the_answer_and_its_end_give_no_finding(found):
    assert found([WHOLE, WHOLE]) == []


@pytest.mark.parametrize(
    ("examples", "check"),
    [
        ([WHOLE, example([5, 6, 7], [8, 9])], "end-of-turn"),
        ([WHOLE, example([5, 6, 7], [8, END], on_prompt=1)], "prompt-trained"),
        ([WHOLE, example([5, 6, 7], [])], "no-trained-token"),
    ],
)
def test_one_row_that_is_not_as_meant_is_an_error(found, examples, check):
    assert found(examples) == [("error", check)]


def test_a_trained_prompt_that_is_asked_for_is_none(found):
    assert found([example([5, 6, 7], [8, END], on_prompt=3)], "train_on_inputs=true") == []


def test_a_share_of_trained_tokens_below_one_percent_is_an_error(found):
    assert found([example([5] * 198, [8, END])]) == []
    assert found([example([5] * 199, [END])]) == [("error", "trained-share")]


def test_few_long_rows_are_a_warning_and_many_an_error(found):
    long = example([5, 6, 7], [8] * 20 + [END])
    assert found([long, *[WHOLE] * 19], "sequence_len=20") == [("warning", "cut-rows")]
    assert found([long, *[WHOLE] * 18], "sequence_len=20") == [("error", "cut-rows")]


def test_a_row_longer_than_the_models_positions_is_an_error(found, embedded_model):
    import json

    positions = json.loads((embedded_model / "config.json").read_text())["max_position_embeddings"]
    whole, long = example([5, 6, 7], [8] * (positions - 4) + [END]), example([5, 6, 7], [8] * positions + [END])
    assert found([whole], "sequence_len=1000000") == []
    assert found([long], f"sequence_len={positions}") == [("error", "cut-rows")]
    assert found([long], "sequence_len=1000000") == [("error", "positions")]
