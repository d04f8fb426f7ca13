"""An adapter is whole, as its settings say, and of the base model that the run file names."""

import json

from lora_recipes.config import runfile
from lora_recipes.models import adapters

import click
import pytest
import torch
from merges import write_adapter, write_base
from safetensors.torch import load_file, save_file


@pytest.fixture
def saved(tmp_path, run_file):
    """A run file whose base is a small Llama, and a trained adapter in its output folder."""
    write_base(tmp_path / "base")
    run = runfile.load(run_file("peft", f"base_model={tmp_path}/base", "lora_r=4"))
    run.output_dir.mkdir(parents=True)
    write_adapter(tmp_path / "base", run.output_dir)
    return run


def change(run, weights=None, **settings):
    path = run.output_dir / adapters.FILES[0]
    if weights:
        tensors = load_file(path)
        weights(tensors)
        save_file(tensors, path)
    path = run.output_dir / adapters.FILES[1]
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def first(tensors, part):
    return next(name for name in sorted(tensors) if part in name)


def put(part, make):
    def into(tensors):
        name = first(tensors, part)
        tensors[name] = make(tensors[name])

    return into


def drop(*parts):
    def of(tensors):
        for name in [name for name in tensors if any(part in name for part in parts)]:
            del tensors[name]

    return of


def test_a_whole_adapter_of_its_base_passes(saved):
    assert adapters.require(saved.output_dir, saved)["peft_type"] == "LORA"


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        (lambda tensors: tensors.clear(), "empty: it holds no LoRA weights"),
        (drop("layers.1.self_attn.q_proj.lora_B"), "has no counterpart"),
        (drop("layers.1.self_attn.q_proj"), "1 of 9 layers have no LoRA weights, the first is model.layers.1"),
        (put("lora_B", lambda tensor: tensor * float("nan")), "not finite"),
        (put("lora_A", lambda tensor: tensor * float("inf")), "not finite"),
        (lambda tensors: [tensors[name].zero_() for name in tensors if "lora_B" in name], "every lora_B is zero"),
        (put("lora_A", lambda tensor: tensor[:1].clone()), "has rank 1"),
        (put("lora_A", lambda tensor: tensor[:, :9].clone()), "belongs to another base model"),
    ],
)
def test_a_damaged_adapter_is_refused_with_the_reason(saved, weights, words):
    change(saved, weights)
    with pytest.raises(click.ClickException, match=words):
        adapters.require(saved.output_dir, saved)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"r": 64}, "says 64"),
        ({"peft_type": "IA3"}, "not of a LoRA adapter"),
        ({"base_model_name_or_path": "other/model"}, "was trained on other/model"),
    ],
)
def test_settings_of_something_else_are_refused(saved, settings, words):
    change(saved, **settings)
    with pytest.raises(click.ClickException, match=words):
        adapters.require(saved.output_dir, saved)


@pytest.mark.parametrize("name", adapters.FILES)
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_file_that_is_cut_off_is_refused(saved, name, share):
    path = saved.output_dir / name
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(click.ClickException, match=name):
        adapters.require(saved.output_dir, saved)


def test_a_run_file_that_changed_since_the_training_is_noticed(saved, run_file, tmp_path):
    other = runfile.load(run_file("peft", f"base_model={tmp_path}/base", "lora_r=8"))
    with pytest.raises(click.ClickException, match="has rank 4, .*says lora_r: 8"):
        adapters.require(saved.output_dir, other)


def test_a_pickled_adapter_is_refused_unread(saved):
    class Payload:
        def __reduce__(self):
            return (pytest.fail, ("a pickle was read",))

    torch.save(Payload(), saved.output_dir / "adapter_model.bin")
    (saved.output_dir / adapters.FILES[0]).unlink()
    with pytest.raises(click.ClickException, match=r"adapter_model.bin: a pickle"):
        adapters.require(saved.output_dir, saved)
