"""An adapter's settings are of PEFT's own types, and say whether it changes its base."""

import json
from pathlib import Path

from lora_recipes.models import adapter_settings

import click
import pytest
from peft import LoraConfig


def saved(folder: Path, **changed: object) -> Path:
    """What PEFT saves, with some values changed."""
    LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]).save_pretrained(folder)
    path = folder / adapter_settings.NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    return path


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"lora_alpha": 0.5},
        {"init_lora_weights": "pissa_niter_16"},
        {"a_key_of_a_newer_peft": 3},
        {"layer_replication": [[0, 2], [1, 3]]},
        {"target_modules": None, "target_parameters": ["experts.down_proj"]},
        {"loftq_config": {}},
        {"fan_in_fan_out": None, "task_type": None, "use_dora": None},  # as Axolotl and others save them
        {"enable_lora": None, "merge_weights": False, "layers_pattern": None, "modules_to_save": None},  # PEFT 0.3
        {"auto_mapping": {"base_model_class": "LlamaForCausalLM", "unsloth_fixed": True}, "lora_dropout": 0},
        {"target_modules": "all-linear"},
        {"layers_to_transform": 3, "layers_pattern": "layers"},
    ],
)
def test_what_peft_saves_is_taken(tmp_path: Path, changed: dict[str, object]) -> None:
    assert adapter_settings.read(saved(tmp_path, **changed))["peft_type"] == "LORA"


@pytest.mark.parametrize(
    "changed",
    [
        {"r": [1]},
        {"lora_alpha": "x"},
        {"lora_alpha": None},
        {"target_modules": 1},
        {"rank_pattern": "["},
        {"bias": "sometimes"},
        {"megatron_config": 3},
        {"loftq_config": 3},
        {"use_dora": "maybe"},
    ],
    ids=str,
)
def test_a_value_of_another_type_is_named_with_its_key(tmp_path: Path, changed: dict[str, object]) -> None:
    with pytest.raises(click.ClickException, match=f"{next(iter(changed))}: .*; restore it"):
        adapter_settings.read(saved(tmp_path, **changed))


def test_settings_nested_without_end_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path)
    path.write_text("[" * 100_000)
    with pytest.raises(click.ClickException, match="not valid JSON"):
        adapter_settings.read(path)


@pytest.mark.parametrize(
    ("changed", "changes"),
    [
        ({}, False),
        ({"init_lora_weights": "gaussian"}, False),
        ({"init_lora_weights": "olora"}, True),
        ({"init_lora_weights": "pissa_niter_4"}, True),
        ({"bias": "all"}, True),
        ({"layer_replication": [[0, 2]]}, True),
    ],
    ids=str,
)
def test_initialisations_biases_and_replicated_layers_change_the_base(
    tmp_path: Path, changed: dict[str, object], changes: bool
) -> None:
    saved(tmp_path, **changed)
    assert adapter_settings.changes_base(tmp_path) is changes
