"""Conversations and texts as Axolotl itself reads and masks them: no false alarm, and a word where it is due."""

import datetime
import json

from lora_recipes.check import masks, parity, parts, preflight
from lora_recipes.check.checked_run import CheckedRun
from lora_recipes.check.parts import Part

import families
import minimal
import pytest

pytestmark = pytest.mark.slow

RUN = (
    """
base_model: {model}
adapter: lora
lora_r: 8
lora_alpha: 16
lora_target_modules: [q_proj, v_proj]
datasets:
  - path: {path}
    {more}
"""
    + minimal.TRAINING
)
CHAT = "type: chat_template"
ROW = [{"question": "What?", "answer": "A number."}]
SPELLED_OUT = "type: {field_instruction: question, field_output: answer}"
ASKED = ["Who ruled Mali?", "And who came after him, if that is known?", "Where did he travel in that year?"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return families.model_folder("qwen3", tmp_path_factory.mktemp("models") / "qwen3")


@pytest.fixture
def checked(axolotl, here, model):
    """The report on a run with some rows, in a file of JSON lines or of another text."""

    def check(rows, more=CHAT, name="rows.jsonl", end=""):
        text = rows if isinstance(rows, str) else "".join(json.dumps(row) + "\n" for row in rows)
        (here / name).write_text(text, encoding="utf-8")
        (here / "run.yaml").write_text(RUN.format(model=model, path=name, more=more) + end)
        return preflight.run("run.yaml", axolotl)[0].report

    return check


def found(report):
    return {finding.check: finding for finding in report.findings if finding.severity == "error"}


def turns(*said):
    return {"messages": [{"role": role, "content": content} for role, content in said]}


def two(number):
    """A conversation of two questions and answers."""
    return turns(
        ("system", "Be brief."),
        ("user", f"{ASKED[0]} {number}"),
        ("assistant", "Mansa Musa."),
        ("user", f"{ASKED[1]} {number}"),
        ("assistant", f"His son {number}."),
    )


def test_conversations_of_two_turns_have_no_false_alarm(checked):
    report = checked([two(number) for number in range(4)])
    assert found(report) == {}, list(report.as_text())
    assert report.facts["masks"]["rows"] == 4 and report.facts["prompt"] is True


def test_a_users_turn_that_is_trained_is_found_and_the_remedy_does_not_train_it(checked, here):
    checked([two(1)], f"{CHAT}\n    roles_to_train: [assistant, user]")
    assert "prompt-trained" not in found(
        checked([two(1)], f"{CHAT}\n    roles_to_train: [assistant, user]")
    )  # asked for
    checked([two(1)])
    subject = CheckedRun("run.yaml")
    ids = subject.tokenizer(subject.tokenizer.apply_chat_template(two(1)["messages"], tokenize=False))["input_ids"]
    for first in (0, ids.index(subject.tokenizer.eos_token_id)):  # of all turns, and of all after the system's
        labels = [-100] * first + ids[first:]
        part = Part("datasets.0", subject.entries("datasets")[0], [two(1)])
        part.examples = [{"input_ids": ids, "labels": labels}]
        subject.report.findings.clear()
        masks.check(subject, [part], parity.check(subject, [part]))
        assert "train_on_inputs" not in found(subject.report)["prompt-trained"].fix


def test_conversations_that_end_with_the_user_learn_to_stop(checked):
    rows = [
        turns(
            ("user", f"{asked} {number}"),
            ("assistant", "Mansa Musa."),
            ("user", "Thanks, that is all that I asked for."),
        )
        for number, asked in enumerate(ASKED)
    ]
    report = checked(rows)
    assert found(report) == {}, list(report.as_text())


def test_tool_calls_are_masked_and_seen(checked):
    """Arguments of different types, which the datasets library keeps as JSON text."""

    def call(value):
        return {"type": "function", "function": {"name": "look_up", "arguments": {"what": value}}}

    rows = [
        {
            "messages": [
                {"role": "user", "content": f"{asked} {value}"},
                {"role": "assistant", "content": "", "tool_calls": [call(value)]},
                {"role": "tool", "content": "Mansa Musa"},
                {"role": "assistant", "content": "Mansa Musa."},
            ]
        }
        for value, asked in zip((1, "one", ["a"]), ASKED, strict=True)
    ]
    report = checked(rows)
    assert found(report) == {}, list(report.as_text())
    assert report.facts["masks"]["rows"] == 3 and report.facts["masks"]["rows_without_loss"] == 0
    assert report.facts["prompt"] is True


def test_one_system_prompt_in_all_rows_is_no_question_that_leaks(checked, here):
    long = "You are a helpful assistant who knows the history of Africa and answers in one short sentence, please. " * 3
    asked = [turns(("system", long), ("user", asked), ("assistant", "Yes.")) for asked in ASKED]
    (here / "test.jsonl").write_text(json.dumps(asked[2]) + "\n")
    report = checked(asked[:2], end=f"test_datasets:\n  - path: test.jsonl\n    split: train\n    {CHAT}\n")
    assert "leakage" not in found(report), list(report.as_text())
    (here / "test.jsonl").write_text(json.dumps(asked[0]) + "\n")
    report = checked(asked[:2], end=f"test_datasets:\n  - path: test.jsonl\n    split: train\n    {CHAT}\n")
    assert "leakage" in found(report)


class TestTexts:
    """The plain trainer reads texts as written; where Axolotl does not, the check says so."""

    @pytest.mark.parametrize(
        ("name", "rows", "cell", "theirs"),
        [
            ("rows.csv", "question,answer\nWhat?,0000\nWhy?,0001\n", "'0000'", "0"),
            ("rows.csv", "question,answer\nWhat?,one\nWhy?,NA\n", "'NA'", "None"),
            ("rows.csv", "question,answer\n1.50,one\n2,two\n", "'1.50'", "1.5"),
            (
                "rows.jsonl",
                [{"question": f"When {n}?", "answer": f"2024-01-0{n}"} for n in (1, 2)],
                "'2024-01-01'",
                repr(datetime.datetime(2024, 1, 1)),
            ),
        ],
    )
    def test_that_axolotl_reads_otherwise_are_an_error_with_the_place(self, checked, name, rows, cell, theirs):
        finding = found(checked(rows, SPELLED_OUT, name))["texts"]
        row = 2 if cell == "'NA'" else 1
        assert (finding.key, finding.line) == ("datasets.0.path", 8)
        assert f"{name}, row {row}: " in finding.found
        assert f"is {cell} as written, and {theirs} to Axolotl" in finding.found
        assert "tools/data.py build" in finding.fix and "Parquet" in finding.fix

    @pytest.mark.parametrize(
        ("name", "rows"),
        [
            ("rows.csv", "id,question,answer\n001,What?,one\n002,Why?,two\n"),
            ("rows.jsonl", [{"id": 1, "question": "What?", "answer": "0000", "input": None}] * 2),
        ],
    )
    def test_that_axolotl_reads_alike_are_none_and_other_columns_do_not_count(self, checked, name, rows):
        assert "texts" not in found(checked(rows, SPELLED_OUT, name))

    def test_of_a_saved_folder_are_read_alike_unless_a_part_of_it_is_named(self, checked, here):
        import datasets

        rows = [{"question": f"When {n}?", "answer": f"2024-01-0{n}"} for n in (1, 2)]
        datasets.Dataset.from_list(rows).save_to_disk(here / "saved")
        end = "test_datasets:\n  - path: saved\n    split: {}\n    " + SPELLED_OUT + "\n"
        assert "texts" not in found(checked(ROW, SPELLED_OUT, end=end.replace("{}", "train")))
        finding = found(checked(ROW, SPELLED_OUT, end=end.replace("{}", "'train[:50%]'")))["texts"]
        assert finding.key == "test_datasets.0.path" and "reads 2 rows, where 1 are named" in finding.found


def test_a_doubled_begin_token_is_counted_over_all_rows(checked, here, tmp_path, model):
    rows = [{"question": f"What is {n}?", "answer": "A number."} for n in range(12)]
    llama = families.model_folder("llama3.2", tmp_path / "llama")
    fmt = (
        'type: {field_instruction: question, field_output: answer, no_input_format: "<|begin_of_text|>'
        '<|start_header_id|>user<|end_header_id|>\\n\\n{instruction}<|eot_id|>"}'
    )
    template = (
        'chat_template: jinja\nchat_template_jinja: "{{ bos_token }}{% for m in messages %}<|start_header_id|>user'
        '<|end_header_id|>\\n\\n{{ m.content }}<|eot_id|>{% endfor %}"\n'
    )
    (here / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (here / "run.yaml").write_text(RUN.format(model=llama, path="rows.jsonl", more=fmt) + template)
    subject = CheckedRun("run.yaml")
    training = parts.load(subject, "datasets", tokenized=True)
    assert parity.check(subject, training)["datasets.0"] == [None] * 12
    (finding,) = subject.report.findings
    assert "row 1 of 12, 12 in all" in finding.found


def test_roles_of_the_data_set_and_a_column_of_system_prompts_are_axolotls(checked):
    rows = [
        {
            "system": "Be brief.",
            "messages": [
                {"role": "customer", "content": f"{asked} {number}"},
                {"role": "agent", "content": "Mansa Musa."},
                {"role": "customer", "content": f"And after {number}?"},
                {"role": "agent", "content": "His son."},
            ],
        }
        for number, asked in enumerate(ASKED)
    ]
    report = checked(rows, f"{CHAT}\n    roles:\n      user: [customer]\n      assistant: [agent]")
    assert found(report) == {}, list(report.as_text())
    assert report.facts["prompt"] is True
