"""The Alpaca recipe end to end on a small base: slices, inputs, its own chat template, both trainers, evaluation."""

import json

from lora_recipes import ROOT
from lora_recipes.config import runfile
from lora_recipes.data import questions, rows
from lora_recipes.models import loading
from lora_recipes.rendering import render
from lora_recipes.training import batches

import alpaca
import pytest

RECIPE = "phi1.5-alpaca-gpt4"
ENDING = "### Response:\n"
# Adam divides a gradient by its own size plus epsilon: at 1e-8 a weight whose gradient is as good as zero moves by a
# whole learning rate, one way or the other by the order of a sum. At 1e-3 adapters differ as little as gradients do.
SMALL = (
    *("global_batch=4", "micro_batch_size=2", "max_steps=2", "bf16=false", "tf32=null", "lora_dropout=0.0"),
    *("lora_target_modules=[q_proj, v_proj, down_proj]", "plugins=[lora_recipes.plugin.CpuPlugin]"),
    *("evals_per_epoch=null", "eval_steps=2", "saves_per_epoch=null", "save_steps=2", "adam_epsilon=1e-3"),
)

TEST = "train[90%:]"
"""The rows that the recipe's slices leave for the test."""


def made_up():
    """Twenty rows in the columns of alpaca-gpt4; every second one has an input."""
    asked = [
        {"instruction": "Double this number.", "input": f"{number}\nas digits"}
        if number % 2
        else {"instruction": f"Double the number {number}.", "input": ""}
        for number in range(20)
    ]
    return [{**row, "output": f"It is {2 * number}.", "text": "not read"} for number, row in enumerate(asked)]


@pytest.fixture
def write(tmp_path, embedded_model):
    """A run file of the recipe on a JSON file of rows, with the embedded model as base."""

    def write(data, name, *settings):
        path = tmp_path / "alpaca.json"
        path.write_text(json.dumps(data))
        data_at = (f"datasets.0.path={path}", f"test_datasets.0.path={path}")
        where = (f"base_model={embedded_model}", f"output_dir={tmp_path}/outputs/{RECIPE}/{name}", *data_at)
        text = render.render(RECIPE, "lora", (*where, *SMALL, *settings))
        (tmp_path / f"{name}.yaml").write_text(text)
        return tmp_path / f"{name}.yaml"

    return write


def test_rows_with_and_without_input_are_asked_as_trained(write):
    run = runfile.load(write(made_up(), "made"))
    tokenizer = loading.load_tokenizer(run)
    assert [len(rows.load_rows(run, part)) for part in ("train", "validation", TEST)] == [16, 2, 2]
    found, mismatch = questions.load(run, tokenizer, TEST)
    asked = [tokenizer.decode(question.prompt_ids) for question in found]
    assert mismatch == "" and ["### Input:\n19\nas digits\n" in text for text in asked] == [False, True]
    assert all(text.endswith(ENDING) for text in asked)


def test_the_loss_is_on_the_response_and_on_the_whole_text_when_set(write):
    for setting, share in (("false", False), ("true", True)):
        run = runfile.load(write(made_up(), "made", f"train_on_inputs={setting}"))
        tokenizer = loading.load_tokenizer(run)
        made = batches.tokenize(run, tokenizer, "train")
        assert (made.trained_tokens == made.tokens) is share
        assert all(labels[-1] == tokenizer.eos_token_id for labels in made.dataset["labels"])


def test_the_end_token_keeps_its_loss_although_it_is_the_padding_too(write):
    run = runfile.load(write(made_up(), "made"))
    tokenizer = loading.load_tokenizer(run)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    made = batches.tokenize(run, tokenizer, "train").dataset
    batch = batches.Collator(tokenizer)([made[n] for n in range(4)])
    ends = (batch["labels"] == tokenizer.eos_token_id).sum(dim=1).tolist()
    assert ends == [1, 1, 1, 1] and (batch["labels"][batch["attention_mask"] == 0] == -100).all()


def test_a_thousand_rows_of_real_lengths_are_read_and_asked_as_trained(write):
    run = runfile.load(write(alpaca.made(), "long"))
    assert [len(rows.load_rows(run, part)) for part in ("train", "validation")] == [799, 100]
    found, mismatch = questions.load(run, loading.load_tokenizer(run), TEST)
    assert len(found) == 100 and mismatch == ""


def adapter(path):
    from safetensors.torch import load_file

    return load_file(runfile.load(path).output_dir / "adapter_model.safetensors")


@pytest.mark.slow
def test_both_trainers_give_one_adapter_and_it_is_asked_as_trained(write, tmp_path, tool, axolotl_libraries):
    plain, axolotl = (write(made_up(), name) for name in ("plain", "axolotl"))
    command = [ROOT / ".venv" / "bin" / "axolotl", "train", "-"]
    for done in (tool("train", plain), axolotl_libraries.run(command, input=axolotl.read_text(), cwd=tmp_path)):
        assert done.returncode == 0, done.stderr[-3000:]
    one, two = adapter(plain), adapter(axolotl)
    assert one.keys() == two.keys() and len(one) == 30 * 3 * 2
    assert max((one[name] - two[name]).abs().max().item() for name in one) <= 1e-6
    outputs = [runfile.load(path).output_dir for path in (plain, axolotl)]
    templates = [(folder / "chat_template.jinja").read_text() for folder in outputs]
    assert templates == [runfile.load(plain).config["chat_template_jinja"]] * 2
    done = tool("eval", axolotl, "--split", TEST, "--limit", "2", "--max-new-tokens", "16")
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr[-3000:]
    assert len((outputs[1] / f"answers-{TEST}.jsonl").read_text().splitlines()) >= 2
