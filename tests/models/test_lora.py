"""LoRA keys of a run file: what they match and train is PEFT's answer, for both trainers."""

from lora_recipes.models import lora

import pytest
import torch

TINY = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 32}
KEYS = {"lora_r": 4, "lora_alpha": 8}


@pytest.fixture
def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device("meta"):
        return LlamaForCausalLM(LlamaConfig(**TINY))


@pytest.fixture
def gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    with torch.device("meta"):
        return GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=32))


@pytest.mark.parametrize(
    ("keys", "settings"),
    [
        ({"peft_layers_to_transform": [1]}, {"layers_to_transform": [1]}),
        (
            {"peft_layers_to_transform": [0], "peft_layers_pattern": ["layers"]},
            {"layers_to_transform": [0], "layers_pattern": ["layers"]},
        ),
        ({"lora_rank_pattern": {"q_proj": 8}}, {"rank_pattern": {"q_proj": 8}}),
        ({"peft_trainable_token_indices": [3, 5]}, {"trainable_token_indices": [3, 5]}),
        ({"lora_modules_to_save": ["lm_head"]}, {"modules_to_save": ["lm_head"]}),
        ({"peft_use_dora": True}, {"use_dora": True}),
        ({"lora_target_parameters": ["up_proj.weight"]}, {"target_parameters": ["up_proj.weight"]}),
    ],
)
def test_every_key_that_axolotl_passes_on_counts(llama, keys, settings):
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    names = ["q_proj", "v_proj"]
    found = lora.matched({**KEYS, "lora_target_modules": names, **keys}, llama)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=names, task_type="CAUSAL_LM", **settings)
    expected = get_peft_model(LlamaForCausalLM(LlamaConfig(**TINY)), config).get_nb_trainable_parameters()
    assert (found.trained, found.total) == expected and not found.unmatched and not found.refused


def test_the_model_stays_as_it_is(llama):
    before = [name for name, _ in llama.named_parameters()]
    lora.matched({**KEYS, "lora_target_linear": True}, llama)
    assert [name for name, _ in llama.named_parameters()] == before


@pytest.mark.parametrize(
    ("keys", "unmatched"),
    [
        ({"lora_rank_pattern": {"q_proj": 8, "k_proj": 8}}, {"lora_rank_pattern": ["k_proj"]}),
        ({"lora_alpha_pattern": {"layers.7.q_proj": 8}}, {"lora_alpha_pattern": ["layers.7.q_proj"]}),
        ({"peft_layers_to_transform": [1, 7]}, {"peft_layers_to_transform": ["7"]}),
        ({"peft_layers_to_transform": [7]}, {"peft_layers_to_transform": ["7"]}),
        ({"peft_layers_to_transform": [0], "peft_layers_pattern": ["h"]}, {"peft_layers_pattern": ["h"]}),
        ({"lora_modules_to_save": ["lm_head", "score"]}, {"lora_modules_to_save": ["score"]}),
        ({"lora_target_parameters": ["w1.weight"]}, {"lora_target_parameters": ["w1.weight"]}),
        ({"lora_target_modules": ["q_proj", "mlp"]}, {"lora_target_modules": ["mlp"]}),
        ({"lora_target_modules": r".*\.z_proj"}, {"lora_target_modules": [r".*\.z_proj"]}),
    ],
)
def test_what_matches_nothing_is_named_with_its_key(llama, keys, unmatched):
    found = lora.matched({**KEYS, "lora_target_modules": ["q_proj"], **keys}, llama)
    assert found.unmatched == unmatched


def test_the_layers_of_gpt2_are_adapted_and_named(gpt2):
    """Its Conv1D is no nn.Linear: Axolotl's lora_target_linear finds none, PEFT adapts them by name."""
    assert lora.names_of(gpt2) == ["c_attn", "c_proj", "c_fc"]
    found = lora.matched({**KEYS, "lora_target_modules": ["c_attn"]}, gpt2)
    assert found.by_name == {"c_attn": (2, found.trained)} and found.trained == 2 * 4 * (16 + 48)
    assert lora.matched({**KEYS, "lora_target_linear": True}, gpt2).unmatched == {"lora_target_linear": [lora.LINEAR]}


def test_what_peft_refuses_is_said_in_its_words(llama):
    keys = {"lora_target_modules": ["q_proj"], "peft_layers_pattern": ["layers"]}
    assert "layers_to_transform" in lora.matched({**KEYS, **keys}, llama).refused


def test_all_linear_layers_are_those_named_and_those_that_are_linear(llama):
    found = lora.matched({**KEYS, "lora_target_modules": ["embed_tokens"], "lora_target_linear": True}, llama)
    assert found.by_name["embed_tokens"][0] == 1 and found.by_name[lora.LINEAR][0] == 14
    assert sum(parameters for _, parameters in found.by_name.values()) == found.trained
