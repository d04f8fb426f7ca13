"""Prompt and mask: one definition for training and evaluation, for Axolotl and the plain trainer."""

from lora_recipes.config import runfile
from lora_recipes.data import prompts, questions, rows
from lora_recipes.models import loading
from lora_recipes.training import batches, settings

import click
import jinja2
import pytest

ALPACA = "phi1.5-alpaca-gpt4"
PLAIN = {"instruction": "Name a river.", "input": "", "output": "The Niger."}
GIVEN = {"instruction": "Translate {this}.", "input": "fleuve\n\nrivière", "output": "river"}


@pytest.fixture
def run(embedded_model, run_file):
    return runfile.load(run_file("lora"))


@pytest.fixture
def tokenizer(run):
    return loading.load_tokenizer(run)


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
    collate = batches.Collator(tokenizer)
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


def fmt_of(**settings):
    fields = {"field_instruction": "instruction", "field_input": "input", "field_output": "output"}
    return prompts.PromptFormat(**{**prompts._DEFAULTS, **fields, **settings})


@pytest.mark.parametrize(
    ("format", "row", "turn"),
    [
        ("<u>{instruction}\n\n### Input:\n{input}</u>", GIVEN, "Translate {this}.\n\n### Input:\nfleuve\n\nrivière"),
        ("<u>{input} | {instruction}</u>", GIVEN, "fleuve\n\nrivière | Translate {this}."),
        ("<u>{instruction}</u>", GIVEN, "Translate {this}."),
        ("<u>{instruction}: {input}</u>", PLAIN, "Name a river."),
        ("<u>{instruction}: {input}</u>", {"instruction": "Name a river."}, "Name a river."),
    ],
)
def test_the_user_turn_is_the_format_from_its_first_column_to_its_last(format, row, turn):
    fmt = fmt_of(format=format, no_input_format="<u>{instruction}</u>")
    assert fmt.messages(row) == [{"role": "user", "content": turn}]
    assert fmt.prompt(row) == f"<u>{turn}</u>"


def test_the_chat_template_gets_the_run_files_arguments(tokenizer):
    tokenizer.chat_template = "{{ date_string }}: {{ messages[0].content }}"
    fmt = fmt_of()
    assert prompts.chat_prompt(tokenizer, fmt, PLAIN, {"date_string": "26 Jul 2024"}) == "26 Jul 2024: Name a river."
    assert prompts.chat_prompt(tokenizer, fmt, PLAIN) == ": Name a river."


def test_questions_are_asked_with_the_run_files_chat_template_kwargs(embedded_model, run_file):
    template = ("chat_template=jinja", "chat_template_jinja={{ date_string }}: {{ messages[1].content }}")
    run = runfile.load(run_file("lora", *template, "chat_template_kwargs.date_string=26 Jul 2024"))
    tokenizer = loading.load_tokenizer(run)
    found, mismatch = questions.load(run, tokenizer, "test[:1]")
    assert tokenizer.decode(found[0].prompt_ids) == f"26 Jul 2024: {found[0].question}"
    assert "asked '26 Jul 2024" in mismatch


def test_the_prompt_of_phi4_is_its_chat_template(run_file, tokenizer):
    run = runfile.load(run_file("lora", recipe="phi4-mini-african-history"))
    tokenizer.chat_template = (
        "{% for turn in messages %}<|{{ turn.role }}|>{{ turn.content }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    fmt, row = prompts.prompt_format(run), {"question": "Who ruled Mali?", "answer": "Mansa Musa."}
    assert prompts.chat_prompt(tokenizer, fmt, row) == fmt.prompt(row)
    assert fmt.system_prompt.endswith("answers to questions asked.")
    assert run.config["special_tokens"] == {"eos_token": "<|end|>", "pad_token": "<|endoftext|>"}


@pytest.fixture
def alpaca(embedded_model, run_file):
    return runfile.load(run_file("lora", f"base_model={embedded_model}", recipe=ALPACA))


@pytest.mark.parametrize("row", [PLAIN, GIVEN])
def test_the_alpaca_recipes_chat_template_is_its_prompt(alpaca, row):
    tokenizer, fmt = loading.load_tokenizer(alpaca), prompts.prompt_format(alpaca)
    asked = prompts.chat_prompt(tokenizer, fmt, row)
    assert asked == fmt.prompt(row)
    assert ("an input" in asked) == bool(row["input"]) and asked.endswith("\n\n### Response:\n")
    turns = [*fmt.messages(row), {"role": "assistant", "content": row["output"]}]
    trained = prompts.example(tokenizer, fmt, row)["input_ids"]
    assert tokenizer.apply_chat_template(turns, tokenize=False) == tokenizer.decode(trained)


def test_the_alpaca_template_refuses_a_system_turn(alpaca):
    fmt = fmt_of(system_prompt="Be brief.")
    with pytest.raises(jinja2.TemplateError, match="no system turn"):
        prompts.chat_prompt(loading.load_tokenizer(alpaca), fmt, PLAIN)


def test_the_run_files_chat_template_is_saved_with_the_tokenizer(alpaca, tmp_path):
    from transformers import AutoTokenizer

    loading.load_tokenizer(alpaca).save_pretrained(tmp_path / "saved")
    saved = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert saved.chat_template == alpaca.config["chat_template_jinja"]


def test_a_chat_template_in_a_file_is_read_as_axolotl_reads_it(embedded_model, run_file, tmp_path):
    (tmp_path / "mine.jinja").write_text("Q: {{ messages[-1].content }} A: ")
    run = runfile.load(run_file("lora", "chat_template=jinja", f"chat_template_jinja={tmp_path}/mine.jinja"))
    tokenizer = loading.load_tokenizer(run)
    assert prompts.chat_prompt(tokenizer, fmt_of(), PLAIN) == "Q: Name a river. A: "
    found, _ = questions.load(run, tokenizer, "test[:1]")
    assert tokenizer.decode(found[0].prompt_ids) == f"Q: {found[0].question} A: "


def test_tokenizer_default_is_the_models_own_template(run, run_file):
    own = runfile.load(run_file("peft", "chat_template=tokenizer_default"))
    assert loading.load_tokenizer(own).chat_template == loading.load_tokenizer(run).chat_template
    settings.read(own)


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        (["chat_template=phi_3"], "phi_3 is a template inside Axolotl"),
        (["chat_template=jinja"], "chat_template_jinja is missing"),
        (["chat_template=tokenizer_default", "chat_template_jinja=x"], "or the file has one"),
    ],
)
def test_a_chat_template_that_cannot_be_had_is_one_sentence(embedded_model, run_file, chosen, words):
    run = runfile.load(run_file("lora", *chosen))
    with pytest.raises(click.ClickException, match=rf"line \d+: chat_template: .*{words}; spell the template out with"):
        loading.load_tokenizer(run)


VALID = [
    {"no_input_format": "{{instruction}} {instruction} }}{{", "format": "{input}{{{instruction}}}"},
    {"no_input_format": "", "format": "no column", "system_format": ""},
    {"system_format": "<{system}{system}>", "system_prompt": "Be {brief} {0}."},
    {"field_system": "other", "field_input": "absent", "field_instruction": "input"},
]
ODD = [
    *(GIVEN, PLAIN, {"instruction": "{instruction.x} {0} {{", "input": "{bad}", "output": "a"}),
    *({"instruction": "a", "input": None, "output": "b", "system": None}, {"instruction": "a", "output": "b"}),
    {"instruction": "a", "input": ["b", 1], "output": "c", "system": "S", "other": {"d": 1}},
]


@pytest.mark.parametrize("settings", VALID)
def test_a_format_is_filled_as_axolotl_fills_it(settings):
    from axolotl.prompt_strategies.user_defined import UserDefinedDatasetConfig, load
    from axolotl.utils.dict import DictDefault

    strategy = load(None, DictDefault(train_on_inputs=False, sequence_len=9), UserDefinedDatasetConfig(**settings))
    fmt = prompts.PromptFormat(**{**prompts._DEFAULTS, **settings})
    for row in ODD:
        if fmt.field_instruction in row:
            instruction, given, _, system = strategy.parse_instruction_fields(row)
            (theirs,) = strategy.prompter.build_prompt_w_system(system, instruction, given)
            assert fmt.prompt(row) == theirs


def test_braces_of_a_format_are_no_column_of_the_users_turn():
    fmt = fmt_of(no_input_format="{{instruction}} <u>{instruction}</u>")
    assert fmt.messages(PLAIN) == [{"role": "user", "content": "Name a river."}]


@pytest.mark.parametrize("key", ["format", "no_input_format", "system_format"])
@pytest.mark.parametrize(
    "text",
    [
        *("{bad}", "{0}", "{}", "{instruction.x}", "{system.__class__}", "{input[0]}", "{instruction:>1000000000}"),
        *("{system!r}", "{", "}", "{instruction", "{system:{instruction}}", "{output}"),
    ],
)
def test_a_format_that_names_more_than_its_columns_is_one_sentence(run_file, key, text):
    run = runfile.load(run_file("lora"))
    kind = {**run.datasets[0]["type"], key: text}
    with pytest.raises(click.ClickException, match=rf"datasets.0.type.{key}: .*; write ") as caught:
        prompts.prompt_format(run.replaced(datasets=[{**run.datasets[0], "type": kind}]))
    assert len(caught.value.message) < 400 and "\n" not in caught.value.message


@pytest.mark.parametrize("key", ["field_output", "format", "system_prompt"])
@pytest.mark.parametrize("value", [5, True, ["a"], {"a": "b"}])
def test_a_format_or_a_field_that_is_no_text_is_one_sentence(run_file, key, value):
    run = runfile.load(run_file("lora"))
    kind = {**run.datasets[0]["type"], key: value}
    with pytest.raises(click.ClickException, match=rf"datasets.0.type.{key}: expected a text, found "):
        prompts.prompt_format(run.replaced(datasets=[{**run.datasets[0], "type": kind}]))
