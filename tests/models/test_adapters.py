"""An adapter is whole, as its settings say, and of the base model that the run file names."""

import json
from pathlib import Path

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


def base_of(run):
    return Path(run.model())


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
    model = adapters.require(saved.output_dir, saved)
    assert sum(map(adapters.is_given, model.parameters())) == 18


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        (lambda tensors: tensors.clear(), "empty: it holds no LoRA weights"),
        (
            drop("layers.1.self_attn.q_proj.lora_B"),
            "1 of the 18 tensors .* are missing, the first is .*layers.1.self_attn.q_proj.lora_B.*: restore it",
        ),
        (drop("layers.1.self_attn.q_proj"), "2 of the 18 tensors .* are missing, the first is .*layers.1"),
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


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["embed_tokens", "q_proj"]},
        {"target_modules": ["lm_head"], "modules_to_save": ["norm"]},
        {"target_modules": [], "target_parameters": ["mlp.gate_proj.weight"]},
        {"layers_to_transform": [1], "rank_pattern": {"q_proj": 2}, "use_dora": True},
        {"init_lora_weights": "pissa"},
        {"trainable_token_indices": [3, 5]},
        {"lora_bias": True},
        {"use_rslora": True, "alpha_pattern": {"layers.1.mlp.down_proj": 32}},
    ],
    ids=["embeddings", "a saved norm", "parameters", "some layers", "pissa", "tokens", "biases", "patterns"],
)
def test_every_kind_of_adapter_that_peft_saves_is_whole(saved, settings):
    write_adapter(base_of(saved), saved.output_dir, **settings)
    assert adapters.require(saved.output_dir, saved)


@pytest.mark.parametrize(
    ("prefix", "wrapper"),
    [("_orig_mod.", "torch.compile"), ("module.", "DeepSpeed"), ("base_model.model._orig_mod.", "torch.compile")],
)
def test_keys_of_a_wrapper_are_named_with_the_remedy(saved, prefix, wrapper):
    """PEFT would load none of them, and score the bare base."""

    def put_before(tensors):
        for name in list(tensors):
            tensors[prefix + name.removeprefix("base_model.model." * ("base" in prefix))] = tensors.pop(name)

    change(saved, put_before)
    with pytest.raises(click.ClickException, match=f"18 of its keys match no weight .*{wrapper}.*take these letters"):
        adapters.require(saved.output_dir, saved)


def test_added_tokens_are_named_and_not_another_base(saved):
    """PEFT saves resized embeddings beside LoRA, and loads them into a base that was resized only."""
    import transformers

    resized = transformers.AutoModelForCausalLM.from_pretrained(base_of(saved))
    resized.resize_token_embeddings(140)
    resized.save_pretrained(base_of(saved).parent / "resized" / "base")
    write_adapter(base_of(saved).parent / "resized" / "base", saved.output_dir, modules_to_save=["embed_tokens"])
    with pytest.raises(click.ClickException, match="is of 140 tokens, .* has 128: .*Resize the base's embeddings"):
        adapters.require(saved.output_dir, saved)


def test_an_adapter_is_checked_where_deepspeed_shards_models(saved, monkeypatch):
    """ZeRO-3 shares out every model that transformers makes, and waits for the other processes."""
    import transformers.modeling_utils

    monkeypatch.setattr(transformers.modeling_utils, "is_deepspeed_zero3_enabled", lambda: pytest.fail("shared out"))
    adapters.require(saved.output_dir, saved)


def test_a_base_that_is_not_there_is_left_to_whoever_loads_it(saved):
    (base_of(saved) / "config.json").unlink()
    assert adapters.require(saved.output_dir, saved) is None


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


@pytest.mark.parametrize("dtype", [torch.int8, torch.complex64, torch.float8_e4m3fn], ids=str)
def test_weights_of_another_kind_of_number_are_refused(saved, dtype):
    change(saved, put("lora_A", lambda tensor: tensor.to(dtype)))
    with pytest.raises(click.ClickException, match="LoRA's weights are of 16 or 32 bits"):
        adapters.require(saved.output_dir, saved)


def test_a_pickled_adapter_is_refused_unread(saved):
    class Payload:
        def __reduce__(self):
            return (pytest.fail, ("a pickle was read",))

    torch.save(Payload(), saved.output_dir / "adapter_model.bin")
    (saved.output_dir / adapters.FILES[0]).unlink()
    with pytest.raises(click.ClickException, match=r"adapter_model.bin: a pickle"):
        adapters.require(saved.output_dir, saved)
