"""Log-likelihoods of options after their context: a context that several options share is read once.

20 questions of four options, SmolLM2-135M, float32, one core: 5.8 s; by lm-eval's HFLM on the same loaded model 15 s.
"""

from collections.abc import Callable
from typing import Any

from lora_recipes.inference import decoding, reference_loss


def log_likelihoods(
    model: Any, pairs: list[tuple[list[int], list[int]]], pad: int, batch_size: int, advance: Callable[[int], Any]
) -> list[tuple[float, bool]]:
    """Of each (context, option) as token ids, neither empty: the option's log-likelihood in nats, and whether each of
    its tokens is the most likely.

    The model has to keep all columns in its cache (decoding.keeps_everything). A batch holds the
    contexts of up to `batch_size` options; logits are made for the options alone. `advance` is told
    how many pairs are done.
    """
    import torch

    options: dict[tuple[int, ...], list[int]] = {}
    for place, (context, _) in enumerate(pairs):
        options.setdefault(tuple(context), []).append(place)
    found: list[tuple[float, bool]] = [(0.0, False)] * len(pairs)
    with torch.inference_mode():
        for contexts in _batches(options, batch_size):
            places = [place for context in contexts for place in options[context]]
            rows = [row for row, context in enumerate(contexts) for _ in options[context]]
            logits = _logits(model, contexts, rows, [pairs[place][1] for place in places], pad)
            for place, told in zip(places, logits, strict=True):
                found[place] = _likelihood(told, pairs[place][1])
            advance(len(places))
    return found


def _batches(options: dict[tuple[int, ...], list[int]], batch_size: int) -> list[list[tuple[int, ...]]]:
    """The contexts, those of like length together, the longest first."""
    made: list[list[tuple[int, ...]]] = []
    room = 0
    for context in sorted(options, key=lambda ids: (-len(ids), ids)):
        if len(options[context]) > room:
            made.append([])
            room = batch_size
        made[-1].append(context)
        room -= len(options[context])
    return made


def _logits(model: Any, contexts: list[tuple[int, ...]], rows: list[int], options: list[list[int]], pad: int) -> Any:
    """Logits [options, longest option, vocabulary] of the options' tokens; rows: the context of each option."""
    import torch
    from transformers import DynamicCache

    inputs = reference_loss.left_padded([list(context) for context in contexts], pad, model.device)
    cache = DynamicCache()
    first = decoding.forward(model, inputs["input_ids"], inputs["attention_mask"], cache, last_only=True)
    of = torch.tensor(rows, device=model.device)
    longest = max(len(option) for option in options)
    if longest == 1:
        return first[of]
    cache.batch_select_indices(of)
    ids = [option[:-1] + [pad] * (longest - len(option)) for option in options]
    seen = [[1] * (len(option) - 1) + [0] * (longest - len(option)) for option in options]
    mask = torch.cat([inputs["attention_mask"][of], torch.tensor(seen, device=model.device)], dim=1)
    more = decoding.forward(model, torch.tensor(ids, device=model.device), mask, cache)
    return torch.cat([first[of], more], dim=1)


def _likelihood(logits: Any, option: list[int]) -> tuple[float, bool]:
    import torch

    logits = logits[: len(option)].float()
    ids = torch.tensor(option, device=logits.device)
    nats = torch.nn.functional.cross_entropy(logits, ids, reduction="sum").item()
    return -nats, bool((logits.argmax(-1) == ids).all())
