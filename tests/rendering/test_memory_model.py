"""The memory model: its dimensions, what autograd saves, and peaks that were measured."""

import os
import subprocess
import sys
import weakref

from lora_recipes import ROOT
from lora_recipes.config import yamlfile
from lora_recipes.rendering import ingredients, memory_model

import families
import pytest

BASES = {
    "phi4-mini": "microsoft/Phi-4-mini-instruct",
    "phi1.5": "microsoft/phi-1_5",
    "qwen3": "Qwen/Qwen3-4B-Instruct-2507",
    "llama3.2": "meta-llama/Llama-3.2-3B-Instruct",
    "gemma3": "google/gemma-3-1b-it",
    "mistral": "mistralai/Mistral-7B-Instruct-v0.3",
}
ATTENTION = ["q_proj", "k_proj", "v_proj", "qkv_proj", "o_proj", "dense"]
EMBEDDED = "smollm2-african-history"


def model(family):
    return memory_model.models()[BASES[family]]


def two_layers(path):
    """A model of two layers in bf16 on the meta device."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(path)
    config.num_hidden_layers = 2
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:2]
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa")


def test_the_table_has_base_models_of_recipes_only():
    named = {ingredients.load_recipe(name).run["base_model"] for name in ingredients.recipe_names()}
    assert set(memory_model.models()) <= named


@pytest.mark.slow
@pytest.mark.parametrize("family", families.NAMES)
def test_the_dimensions_are_those_of_the_model(family, model_folder):
    import torch

    whole, facts = families.meta_model(model_folder(family)), model(family)
    config = whole.config
    (layers,) = [module for module in whole.modules() if isinstance(module, torch.nn.ModuleList)]
    linear = {name.split(".")[-1]: m for name, m in layers[0].named_modules() if isinstance(m, torch.nn.Linear)}
    assert facts.linear == {name: [module.in_features, module.out_features] for name, module in linear.items()}
    assert (facts.layers, facts.hidden, facts.words) == (len(layers), config.hidden_size, config.vocab_size)
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    assert facts.heads == config.num_attention_heads * width and facts.mlp == config.intermediate_size
    assert facts.tied == (whole.get_input_embeddings().weight is whole.get_output_embeddings().weight)
    heads = {"q_norm": config.num_attention_heads, "k_norm": config.num_key_value_heads}
    norms = [(n.split(".")[-1], m) for n, m in layers[0].named_modules() if "norm" in n.split(".")[-1]]
    assert facts.normed == sum(module.weight.numel() * heads.get(name, 1) for name, module in norms)
    weights = sum(parameter.numel() for parameter in whole.parameters())
    assert facts.inner + facts.outer == pytest.approx(weights, rel=1e-3)


def saved(path, targets, tokens, dropout=0.05, dora=False):
    """Bytes that the second of two layers keeps for the backward pass: bf16, autocast, adapters in float32.

    On fake tensors, with dropout as a GPU has it: a mask of one byte. Graphs that are dropped on the way do not count.
    """
    import torch
    from peft import LoraConfig, get_peft_model
    from torch._subclasses.fake_tensor import FakeTensorMode

    class Held:
        def __init__(self, tensor):
            self.tensor = tensor
            alive.add(self)

    alive = weakref.WeakSet()
    adapted = get_peft_model(
        two_layers(path), LoraConfig(r=8, target_modules=targets, lora_dropout=dropout, use_dora=dora)
    ).train()
    base = adapted.get_base_model().model
    with FakeTensorMode(allow_non_fake_inputs=True):
        for module in adapted.modules():
            for name, weight in module._parameters.items():
                if weight is not None:
                    module._parameters[name] = torch.nn.Parameter(
                        torch.empty(weight.shape, dtype=weight.dtype), requires_grad=weight.requires_grad
                    )
            for name, buffer in module._buffers.items():
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)
        weights = {weight.untyped_storage()._cdata for weight in adapted.parameters()}
        first = []
        base.layers[1].register_forward_pre_hook(lambda *_: first.extend(alive))
        base.layers[1].register_forward_hook(lambda *_: last.extend(alive))
        last = []
        with torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.tensor), torch.autocast("cpu"):
            result = base(input_ids=torch.ones(1, tokens, dtype=torch.long), use_cache=False)
        before = {held.tensor.untyped_storage()._cdata for held in first} | weights
        found = {held.tensor.untyped_storage()._cdata: held.tensor.untyped_storage().nbytes() for held in last}
        del result
    return sum(size for storage, size in found.items() if storage not in before)


@pytest.fixture
def gpu_dropout(monkeypatch):
    import torch

    def forward(self, x):
        return torch.native_dropout(x, self.p, True)[0] if self.p and self.training else x

    monkeypatch.setattr(torch.nn.Dropout, "forward", forward)


@pytest.mark.slow
@pytest.mark.parametrize("dropout", [0.05, 0.0])
@pytest.mark.parametrize("where", ["everywhere", "attention"])
@pytest.mark.parametrize("family", families.NAMES)
def test_what_a_layer_keeps_of_a_token_is_what_autograd_saves(family, where, dropout, model_folder, gpu_dropout):
    """Within 4 %: a CPU's layer norm keeps 16 bit, and Gemma's one key head is not repeated but shown to all."""
    facts = model(family)
    targets = [name for name in facts.linear if where == "everywhere" or name in ATTENTION]
    few, many = (saved(model_folder(family), targets, tokens, dropout) for tokens in (128, 384))
    expected = memory_model._kept(bool(dropout), {name: facts.linear[name] for name in targets}, facts, 2)
    assert expected == pytest.approx((many - few) / 256, rel=0.04)


@pytest.mark.slow
@pytest.mark.parametrize("dropout", [0.05, 0.0])
@pytest.mark.parametrize("family", ["llama3.2", "phi4-mini"])
def test_dora_keeps_two_results_of_each_module_and_under_dropout_a_copy_of_its_weights(
    family, dropout, model_folder, gpu_dropout
):
    facts = model(family)
    few, many = (saved(model_folder(family), list(facts.linear), tokens, dropout, dora=True) for tokens in (128, 384))
    run = {"bf16": True, "adapter": "lora", "lora_r": 8, "lora_dropout": dropout, "lora_target_linear": True}
    plain, dora = (memory_model.estimate(run | {"peft_use_dora": use}, facts) for use in (False, True))
    a_token = dora.token - memory_model._LOGIT * facts.words
    assert a_token / facts.layers == pytest.approx((many - few) / 256, rel=0.04)
    kept = few - 128 * (many - few) / 256
    scratch = max(6 * inputs**2 + 10 * inputs * outputs for inputs, outputs in facts.linear.values())
    assert (dora.fixed - plain.fixed - scratch) / facts.layers == pytest.approx(kept if dropout else 0, rel=0.04)


STEPS = """
import pathlib, sys
import torch
from lora_recipes.training import lora_model, chunked_loss, memory
from lora_recipes.config import runfile
run, rows, length = runfile.load(pathlib.Path(sys.argv[1])), int(sys.argv[2]), int(sys.argv[3])
import peft, transformers
before = memory.resident()
model = lora_model.attach_lora(run).train()
optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad])
head = chunked_loss.bypass_lm_head(model) if "PlainTrainerPlugin" in str(run.config["plugins"]) else None
ids = torch.randint(1000, 40000, (rows, length))
pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak from here on
for _ in range(2):
    if head is None:
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
    else:
        hidden = model(input_ids=ids, use_cache=False).logits
        loss = chunked_loss.loss(hidden[:, :-1].flatten(0, 1), head, ids[:, 1:].flatten())
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print("MEASURED", int(peak) * 1024 - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("variant", "rows", "length"), [("lora", 8, 64), ("peft", 8, 192), ("qlora", 4, 64)])
def test_the_peak_of_the_embedded_models_training_is_as_computed(variant, rows, length, run_file):
    """In float32 on a CPU, as what becomes resident; within 20 %: allocators and libraries keep what nobody counts.

    The plain trainer's rows are long enough for a whole chunk of logits.
    """
    path = run_file(variant, "bf16=false", recipe=EMBEDDED)
    run = yamlfile.load(path.read_text(), "rendered").data
    done = subprocess.run(
        [sys.executable, "-c", STEPS, str(path), str(rows), str(length)],
        cwd=ROOT,
        env=os.environ | {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536"},  # what is freed goes back
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert "MEASURED" in done.stdout, done.stderr[-2000:]
    facts = memory_model.models()[run["base_model"]]
    computed = memory_model.estimate(run, facts, chunked=variant == "peft").bytes(rows * length)
    assert computed == pytest.approx(int(done.stdout.split("MEASURED")[1]), rel=0.2)
