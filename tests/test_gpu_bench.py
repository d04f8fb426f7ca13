"""bench/gpu.py on the CPU with a tiny model: everything but the GPU itself."""

import gpu
import pytest
import rates
import torch

TINY = {
    **gpu.PHI4_MINI,
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 1200,
    "pad_token_id": 0,
}


@pytest.fixture
def model():
    return gpu.made(TINY, "cpu")


def test_the_rows_have_the_lengths_of_the_embedded_set():
    lengths = gpu.rows(483)
    assert len(lengths) == 483 and min(map(min, lengths)) > 10
    assert sum(map(sum, lengths)) / 483 == pytest.approx(
        87, abs=3
    )  # by SmolLM2's tokenizer 86.8, system prompt included


def test_both_ways_make_the_same_gradients(model):
    from lora_recipes import headloss, paddingfree

    model = model.float()
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    batch = gpu.examples([(9, 5), (4, 5), (7, 5), (3, 5)], 1200)  # answers as long: means of means are the mean

    def gradients(step, *more):
        step(model, batch, *more)
        found = [weight.grad.clone() for weight in model.parameters() if weight.requires_grad]
        model.zero_grad()
        return found

    expected = gradients(gpu.reference)
    assert paddingfree.is_exact(model)
    found = gradients(gpu.plain, headloss.detach(model))
    scale = max(gradient.abs().max() for gradient in expected)
    assert all((one - two).abs().max() <= 0.02 * scale for one, two in zip(expected, found, strict=True))  # in bf16


@pytest.mark.parametrize("way", ["reference", "plain"])
def test_training_is_measured(model, way):
    data = list(gpu._split(gpu.examples(gpu.rows(16), 1200)))
    found = gpu.trained(way, model, data)
    assert found["tokens_per_second"] > 10 * found["samples_per_second"] > 0


@pytest.mark.parametrize("way", ["reference-answers", "answers"])
def test_answers_are_measured(model, way):
    found = gpu.answered(way, model, gpu.rows(5), 4)
    assert found["tokens_per_second"] == pytest.approx(4 * found["questions_per_second"], rel=0.01)


def test_the_operations_of_a_model_are_those_of_its_frozen_layers_its_head_and_its_adapter(model):
    counted = rates.of_model(model)
    assert counted.head == 1200 * 32
    assert counted.linear == 2 * (32 * 64 + 32 * 32 + 32 * 128 + 64 * 32)  # qkv, o, gate and up, down
    assert counted.lora == 2 * 8 * ((32 + 64) + (32 + 32))
