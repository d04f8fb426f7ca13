"""Prompt and mask: one definition for training and evaluation, for Axolotl and the plain trainer."""

from lora_recipes import batches, models, prompts, rows, runfile

import click
import pytest


@pytest.fixture
def run(embedded_model, run_file):
    return runfile.load(run_file("lora"))


@pytest.fixture
def tokenizer(run):
    return models.load_tokenizer(run)


def test_the_prompt_is_exactly_the_models_chat_template(run, tokenizer):
    for part in ("train", "validation", "test"):
        for found, fmt in rows.load_parts(run, part):
            for row in found:
                assert prompts.chat_prompt(tokenizer, fmt, row) == fmt.prompt(row)


def test_the_prompt_at_evaluation_is_a_prefix_token_by_token_of_the_training_text(run, tokenizer):
    ((found, fmt),) = rows.load_parts(run, "train")
    for row in found:
        asked = prompts.prompt_ids(tokenizer, prompts.chat_prompt(tokenizer, fmt, row))
        assert prompts.example(tokenizer, fmt, row)["input_ids"][: len(asked)] == asked


def test_only_the_answer_and_its_end_token_carry_loss(run, tokenizer):
    ((found, fmt),) = rows.load_parts(run, "train")
    for row in found:
        made = prompts.example(tokenizer, fmt, row)
        trained = [label for label in made["labels"] if label != prompts.IGNORED]
        assert tokenizer.decode(trained) == row["answer"] + "<|im_end|>"
        assert made["input_ids"][-len(trained) :] == trained


def test_train_on_inputs_trains_the_prompt_too(run, tokenizer):
    ((found, fmt),) = rows.load_parts(run, "train")
    made = prompts.example(tokenizer, fmt, found[0], on_prompt=True)
    assert made["labels"] == made["input_ids"]


def test_a_format_built_into_axolotl_is_refused(embedded_model, run_file):
    path = run_file("lora")
    text = path.read_text()
    start, end = text.index("    type:"), text.index("test_datasets:")
    path.write_text(text[:start] + "    type: alpaca_chat.load_qa\n" + text[end:])
    with pytest.raises(
        click.ClickException, match=r"line \d+: datasets.0.type: 'alpaca_chat.load_qa' is a format built"
    ):
        rows.load_rows(runfile.load(path), "train")


def test_batches_are_padded_and_masked(tokenizer):
    collate = batches.Collator(tokenizer.pad_token_id)
    batch = collate([{"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}, {"input_ids": [8], "labels": [8]}])
    assert batch["input_ids"].shape == (2, batches.PAD_TO)
    assert batch["labels"][1].tolist() == [8] + [-100] * (batches.PAD_TO - 1)
    assert batch["attention_mask"].sum(dim=1).tolist() == [3, 1]


def test_rows_over_the_length_limit_are_counted_and_left_out(embedded_model, run_file, tokenizer):
    run = runfile.load(run_file("lora", "sequence_len=90"))
    made = batches.tokenize(run, tokenizer, "train")
    assert made.dropped > 0 and made.dropped + len(made.dataset) == len(rows.load_rows(run, "train"))
    assert max(len(ids) for ids in made.dataset["input_ids"]) <= 90


@pytest.mark.parametrize(
    ("limit", "strategy"), [("sequence_len=90", "excess_length_strategy=raise"), ("sequence_len=9", "seed=1")]
)
def test_a_limit_that_leaves_nothing_or_may_not_drop_is_an_error(embedded_model, run_file, tokenizer, limit, strategy):
    run = runfile.load(run_file("lora", limit, strategy))
    with pytest.raises(click.ClickException, match=r"sequence_len: .* raise the limit"):
        batches.tokenize(run, tokenizer, "train")
