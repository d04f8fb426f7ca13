"""results/published.json: the figures of the reference projects."""

import json
from typing import Any

from lora_recipes import ROOT, systems

import pytest

SHARED = ROOT.parent / "shared" / "facts" / "published.json"


def _leaves(value: Any) -> set[Any]:
    """Every number and text below a value, lists and mappings taken apart."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return {leaf for item in value for leaf in _leaves(item)}
    return set() if value is None else {value}


@pytest.mark.skipif(not SHARED.is_file(), reason="the facts of the reference projects (shared/facts) are not here")
def test_the_published_figures_are_those_of_the_reference_projects() -> None:
    facts = json.loads(SHARED.read_text())
    ours = json.loads(systems.PUBLISHED.read_text())
    by_name = {row["system"]: row for row in systems.published("phi4-mini-african-history")}
    assert len(by_name) == 5
    for theirs in facts["lorafrica"]["results"]:
        row = by_name[theirs["system"].replace("baseline", "base")]
        assert row["adapter"] == theirs["adapter"] and row["source"] == facts["lorafrica"]["source"]
        assert row["metrics"] == {
            "bertscore_f1": theirs["bertscore_f1"],
            "tinyMMLU_acc_norm": theirs["tinyMMLU"],
            "tinyTruthfulQA_acc": theirs["tinyTruthfulQA"],
        }
    peft, theirs = by_name["peft lora"]["training"], facts["lorafrica"]["peft_run"]
    assert (peft["train_loss"], peft["steps"]) == (theirs["train_loss"], theirs["global_steps"])
    assert (peft["seconds"], peft["trainable_parameters"]) == (theirs["train_runtime_s"], theirs["trainable_params"])
    (phi,) = systems.published("phi1.5-alpaca-gpt4")
    theirs = facts["phi1_5_alpaca_gpt4"]
    assert phi["training"] == {
        "train_loss": theirs["results"]["train_loss"],
        "eval_loss": theirs["results"]["validation_loss"],
        "steps": theirs["training"]["max_steps"],
        "trainable_parameters": theirs["trainable_params"],
    }
    words = {"text (instruction, input and response in the Alpaca prompt)", "baseline"}
    missing = _leaves(facts) - _leaves(ours) - words
    assert not missing, "figures of the facts that results/published.json does not hold"
