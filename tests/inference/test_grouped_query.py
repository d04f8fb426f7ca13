"""Grouped-query attention on a CPU: the bits of transformers' own, without its copies."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from lora_recipes.inference import grouped_query, shared_base
from lora_recipes.models import loading

import pytest
import torch
import transformers
from transformers.integrations import sdpa_attention


@pytest.fixture(autouse=True)
def own() -> Iterator[None]:
    """transformers' own attention before and after a test."""
    transformers.AttentionInterface.register("sdpa", sdpa_attention.sdpa_attention_forward)
    yield
    transformers.AttentionInterface.register("sdpa", sdpa_attention.sdpa_attention_forward)


def in_use() -> bool:
    return transformers.AttentionInterface()["sdpa"] is grouped_query.attention


MIXED = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}


def tiny(kind: str, **more: Any) -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    heads = {"num_key_value_heads": 2, "head_dim": 8, "initializer_range": 0.5}
    config = getattr(transformers, f"{kind}Config")(vocab_size=40, **sizes, **heads, **more)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def logits(model: Any) -> list[torch.Tensor]:
    """Of padded prompts and, on their cache, of two more tokens; with a mask and without."""
    ids = torch.arange(3 * 21).reshape(3, 21) % 40
    mask = torch.ones_like(ids)
    mask[0, :7] = mask[2, :2] = 0
    found = []
    with torch.inference_mode():
        for given in (mask, None):
            cache = transformers.DynamicCache()
            for start, end in ((0, 18), (18, 20), (20, 21)):
                seen = given if given is None else given[:, :end]
                output = model(ids[:, start:end], attention_mask=seen, past_key_values=cache, use_cache=True)
                found.append(output.logits)
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("kind", "more"),
    [("Llama", {}), ("Mistral", {"sliding_window": 9}), ("Phi3", {"pad_token_id": 0}), ("Gemma3Text", MIXED)],
)
def test_the_logits_are_those_of_transformers_to_the_bit(kind: str, more: dict[str, Any], dtype: Any) -> None:
    model = tiny(kind, **more).to(dtype)
    before = logits(model)
    grouped_query.use()
    for one, other in zip(before, logits(model), strict=True):
        assert torch.equal(one, other)


def test_no_key_is_copied_for_the_heads_that_share_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def copied(*args: Any) -> Any:
        raise AssertionError("copied")

    monkeypatch.setattr(sdpa_attention, "repeat_kv", copied)
    model = tiny("Llama")
    with pytest.raises(AssertionError, match="copied"):
        logits(model)
    grouped_query.use()
    logits(model)


def test_a_shared_base_answers_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "load_base", lambda run, quantized: tiny("Llama"))
    monkeypatch.setattr(shared_base, "loaded", lambda system: SimpleNamespace(in_4bit=False))
    system: Any = SimpleNamespace(run=None, adapter=None)
    shared_base.SharedBase([system])
    assert in_use()
