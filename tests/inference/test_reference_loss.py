"""The cross-entropy of references in batches is that of transformers row by row."""

from typing import Any

from lora_recipes.inference import reference_loss

import pytest


@pytest.fixture(scope="module")
def tiny() -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=50, initializer_range=0.5, **sizes)).eval()


@pytest.mark.slow
def test_the_cross_entropy_of_a_batch_is_that_of_transformers_row_by_row(tiny: Any) -> None:
    import torch

    prompts = [[5, 6, 7, 8, 9], [10], [11, 12, 13]]
    references = [[20, 21, 2], [22, 23, 24, 25, 26, 27, 2], [2]]
    expected = []
    for prompt, reference in zip(prompts, references, strict=True):
        labels = torch.tensor([[-100] * len(prompt) + reference])
        with torch.no_grad():
            loss = tiny(input_ids=torch.tensor([prompt + reference]), labels=labels).loss
        expected.append(loss.item() * len(reference))
    assert reference_loss.reference_nats(tiny, prompts, references, pad=0) == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_logits_are_made_for_the_references_only(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []
    monkeypatch.setattr(tiny, "forward", _recording(tiny.forward, shapes))
    reference_loss.reference_nats(tiny, [[5] * 30, [6] * 20], [[7, 2], [8, 9, 2]], pad=0)
    assert shapes == [(2, 3, 50)]


def _recording(forward: Any, shapes: list[tuple[int, ...]]) -> Any:
    def recorded(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        shapes.append(tuple(output.logits.shape))
        return output

    return recorded
