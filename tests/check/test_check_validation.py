"""Axolotl answers for itself: its types, and what its own validation refuses."""

from lora_recipes.check import validation
from lora_recipes.check.checked_run import CheckedRun

import minimal
import pytest

pytestmark = pytest.mark.slow

RUN = (
    """\
base_model: owner/model
adapter: lora
lora_r: 8
lora_alpha: 16
lora_target_linear: true
"""
    + minimal.TRAINING
)
DATA = "datasets:\n  - path: owner/rows\n    type: alpaca\n"


def findings(axolotl, here, text):
    (here / "run.yaml").write_text(RUN + text, encoding="utf-8")
    checked = CheckedRun("run.yaml")
    validation.check(checked, [], [], axolotl)
    return checked.report.findings


def unknown(axolotl, here, kind, rl):
    """The findings about a type."""
    text = f"rl: {rl or ''}\ndatasets:\n  - path: a/b\n    type: {kind!r}\n"
    return [one for one in findings(axolotl, here, text) if one.check == "dataset-type"]


@pytest.mark.parametrize(
    ("kind", "rl"),
    [
        *[(kind, None) for kind in ("alpaca", "alpaca:chat", "alpaca_chat.load_qa", "chat_template", "completion")],
        *[(kind, None) for kind in ("jeopardy", "stepwise_supervised", "bradley_terry.chat_template", "pretrain")],
        *[(kind, None) for kind in ("context_qa.load_v2", "input_output", "mine.formats", "_synthetic", "messages")],
        *[(kind, "dpo") for kind in ("chatml.ultra", "chat_template.default", "chat_template", "mine.formats.pairs")],
        *[("chat_template.argilla", "orpo"), ("llama3.ultra", "kto"), ("ebft_pretrain.transform", "ebft")],
        *[("chatml.intel", "ipo"), ("rewards.gsm8k", "grpo")],
    ],
)
def test_each_type_that_axolotl_resolves_is_accepted(axolotl, here, kind, rl):
    (here / "mine").mkdir()
    (here / "mine" / "formats.py").touch()
    assert unknown(axolotl, here, kind, rl) == []


@pytest.mark.parametrize(
    ("kind", "rl", "near"),
    [
        ("alpca", None, "alpaca"),
        ("alpaca_chat:load_qa", None, "alpaca_chat.load_qa"),
        ("alpaca:chta", None, "alpaca:chat"),
        ("alpaca_chat.load_qq", None, "alpaca_chat.load_qa"),
        ("chat_templat", None, "chat_template"),
        ("sharegpt", None, "chat_template"),
        ("bradley_terry", None, "bradley_terry.chat_template"),
        ("chatml.ultr", "dpo", "chatml.ultra"),
        ("chatml.ultra", "ebft", "mapping"),
        ("no.such", None, "mapping"),
        ("mine.formats.load_rows", None, "mapping"),  # only Axolotl's own modules have load_ functions
        ("..", None, "mapping"),
    ],
)
def test_a_type_that_axolotl_has_not_is_an_error_with_the_nearest(axolotl, here, kind, rl, near):
    (here / "mine" / "formats" / "load_rows").mkdir(parents=True)
    (finding,) = unknown(axolotl, here, kind, rl)
    assert (finding.severity, finding.key) == ("error", "datasets.0.type")
    assert near in finding.fix


@pytest.mark.parametrize(
    ("text", "key", "words"),
    [
        ("chat_template: chatlm\n", "chat_template", "did you mean 'chatml'?"),
        ("chat_template: jinja\n", "the file", "chat_template_jinja is required"),
        ("load_in_4bit: true\nadapter:\n", "the file", "not supported without setting an adapter"),
        ("adapter: qlora\n", "the file", "load_in_4bit to be True for qlora"),
    ],
)
def test_what_axolotls_validation_refuses_is_said_once_with_its_words_or_the_nearest_value(
    axolotl, here, text, key, words
):
    given = RUN.replace("adapter: lora\n", "") if "adapter" in text else RUN
    (here / "run.yaml").write_text(given + DATA + text, encoding="utf-8")
    checked = CheckedRun("run.yaml")
    validation.check(checked, [], [], axolotl)
    (finding,) = checked.report.findings
    assert (finding.severity, finding.check, finding.key) == ("error", "axolotl-refuses", key)
    assert words in finding.found + finding.fix
