"""results/published.json: the figures of the reference projects."""

import json
import math
from typing import Any

from lora_recipes.report import inputs

import pytest

LORAFRICA = "https://github.com/daniau23/LoRAfrica"
SCORES = {
    "base": (None, 0.88868, 0.6837, 0.49745),
    "peft lora": ("DannyAI/phi4_african_history_lora", 0.90726, 0.67751, 0.43555),
    "peft lora ds2": ("DannyAI/phi4_african_history_lora_ds2", 0.90339, 0.67788, 0.43822),
    "axolotl lora": ("DannyAI/phi4_lora_axolotl", 0.88981, 0.67371, 0.46626),
    "axolotl lora ds2": ("DannyAI/phi4_african_history_lora_ds2_axolotl", 0.88872, 0.67371, 0.46877),
}
"""Adapter, BERTScore F1, tinyMMLU, tinyTruthfulQA: copied a second time, from the README of LoRAfrica, "Results" and
"Model Links", at commit 0723f265216cf0d491ffd1f9f83abf6ab2a1dd1a."""

PHI4_MINI, PHI15 = 3_836_021_760, 1_418_270_720
"""Parameters of the base models: 32 layers of 3072 / 24 layers of 2048, from their config.json."""


def settings(recipe: str) -> dict[str, Any]:
    return dict(json.loads(inputs.PUBLISHED.read_text())["settings"][recipe])


def test_the_published_scores_are_those_of_the_reference_project() -> None:
    rows = inputs.published("phi4-mini-african-history")
    assert [row["system"] for row in rows] == list(SCORES)
    for row in rows:
        adapter, f1, mmlu, truthful = SCORES[row["system"]]
        assert row["adapter"] == adapter and row["source"] == LORAFRICA
        assert row["metrics"] == {"bertscore_f1": f1, "tinyMMLU_acc_norm": mmlu, "tinyTruthfulQA_acc": truthful}


def test_the_published_training_figures_fit_each_other() -> None:
    """Rows, seconds and rows a second, steps, epochs and batch: a wrong digit in any one fits the others no more."""
    (row,) = (row["training"] for row in inputs.published("phi4-mini-african-history") if "training" in row)
    run, rows = settings("phi4-mini-african-history"), settings("phi4-mini-african-history")["splits"]["train"]
    peft = run["hyperparameters"]["peft"]
    assert peft["samples_per_second"] == pytest.approx(rows * peft["epochs"] / row["seconds"], abs=0.005)
    batch = peft["micro_batch_size"] * peft["gradient_accumulation_steps"]
    assert row["steps"] == peft["epochs"] * math.ceil(rows / batch)
    assert peft["all_parameters"] - row["trainable_parameters"] == PHI4_MINI
    (phi,) = inputs.published("phi1.5-alpaca-gpt4")
    qlora = settings("phi1.5-alpaca-gpt4")["hyperparameters"]["qlora"]
    assert phi["training"]["steps"] == qlora["max_steps"]
    assert qlora["all_parameters"] - phi["training"]["trainable_parameters"] == PHI15
    assert (row["train_loss"], phi["training"]["train_loss"], phi["training"]["eval_loss"]) == (1.4917, 1.03, 1.09)


def test_the_published_splits_are_those_of_their_fractions() -> None:
    found = settings("phi4-mini-african-history")
    whole, split = sum(found["dataset_sources"].values()), found["split"]
    test = math.ceil(whole * split["test_fraction"])
    validation = math.ceil((whole - test) * split["validation_fraction_of_rest"])
    assert found["splits"] == {"train": whole - test - validation, "validation": validation, "test": test}
    alpaca = settings("phi1.5-alpaca-gpt4")
    assert alpaca["train_rows"] == round(alpaca["rows"] * alpaca["split"]["train"])


def test_every_published_figure_names_its_source() -> None:
    rows = [row for recipe in inputs.published_recipes() for row in inputs.published(recipe)]
    assert len(rows) == 6 and all(row["source"].startswith("https://") and row["publisher"] for row in rows)
