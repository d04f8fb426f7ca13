"""Log-likelihoods with contexts read once are those of lm-eval, which reads context and option together."""

from pathlib import Path
from typing import Any

from lora_recipes.evaluation import lm_eval_run
from lora_recipes.inference import loglikelihood

import pytest


def tiny(**more: Any) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=49152, initializer_range=0.5, **sizes, **more)).eval()


PAIRS = [
    (list(range(5, 5 + length)), [20 + option, *range(30, 30 + option)])
    for length in (3, 9, 4, 3, 7)
    for option in range(4)
]


def expected(model: Any, context: list[int], option: list[int]) -> tuple[float, bool]:
    import torch

    with torch.no_grad():
        logits = model(torch.tensor([context + option])).logits[0, len(context) - 1 : -1].float()
    told = torch.log_softmax(logits, -1)[range(len(option)), option].sum().item()
    return told, logits.argmax(-1).tolist() == option


@pytest.mark.parametrize("batch_size", [1, 6, 64])
def test_options_have_the_likelihood_of_reading_each_alone_whatever_the_batch(batch_size: int) -> None:
    model, done = tiny(), []
    context = [5, 6, 7]
    likely = model(model.dummy_inputs["input_ids"].new_tensor([context])).logits[0, -1].argmax().item()
    pairs = [*PAIRS, (context, [likely])]
    found = loglikelihood.log_likelihoods(model, pairs, 0, batch_size, done.append)
    for (told, greedy), (context, option) in zip(found, pairs, strict=True):
        alone = expected(model, context, option)
        assert (told, greedy) == (pytest.approx(alone[0], rel=1e-5), alone[1])
    assert found[-1][1] is True and sum(done) == len(pairs)


def test_options_of_one_token_need_one_pass() -> None:
    model, pairs = tiny(), [(list(range(5, 5 + n)), [20 + m]) for n in (3, 6) for m in range(2)]
    found = loglikelihood.log_likelihoods(model, pairs, 0, 8, lambda done: None)
    assert [told for told, _ in found] == pytest.approx([expected(model, *pair)[0] for pair in pairs], rel=1e-5)


def test_a_context_is_read_once_and_logits_are_made_for_options_only(monkeypatch: pytest.MonkeyPatch) -> None:
    model, shapes = tiny(), []
    forward = model.forward

    def recorded(**inputs: Any) -> Any:
        output = forward(**inputs)
        shapes.append((tuple(inputs["input_ids"].shape), output.logits.shape[1]))
        return output

    monkeypatch.setattr(model, "forward", recorded)
    loglikelihood.log_likelihoods(model, PAIRS, 0, 64, lambda done: None)
    assert shapes == [((4, 9), 1), ((20, 3), 3)]  # two of the five questions are the same


@pytest.mark.slow
@pytest.mark.parametrize("more", [{}, {"max_position_embeddings": 8}])
def test_lm_eval_gets_what_it_would_compute_itself(embedded_model: Path, more: dict[str, Any]) -> None:
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoTokenizer

    model, tokenizer = tiny(**more), AutoTokenizer.from_pretrained(embedded_model)
    requests = [(("", ""), context, option) for context, option in PAIRS]
    theirs = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4)._loglikelihood_tokens(requests, True)
    lm = lm_eval_run.wrapped(model, tokenizer, 4)
    found = lm._loglikelihood_tokens(requests, disable_tqdm=True)
    assert [one[0] for one in found] == pytest.approx([one[0] for one in theirs], rel=1e-5)
    assert [one[1] for one in found] == [one[1] for one in theirs]
