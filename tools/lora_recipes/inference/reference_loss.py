"""The cross-entropy of reference answers after their prompts."""

from typing import Any


def left_padded(rows: list[list[int]], pad: int, device: Any) -> dict[str, Any]:
    """`input_ids` and `attention_mask`, int64 tensors [rows, longest row], padded on the left."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    ids = [torch.tensor(row) for row in rows]
    seen = [torch.ones_like(row) for row in ids]
    return {
        "input_ids": pad_sequence(ids, batch_first=True, padding_value=pad, padding_side="left").to(device),
        "attention_mask": pad_sequence(seen, batch_first=True, padding_side="left").to(device),
    }


def reference_nats(model: Any, prompts: list[list[int]], references: list[list[int]], pad: int) -> list[float]:
    """The cross-entropy of each reference after its prompt: the sum over its tokens, in nats.

    Padded on the left, so that all references end in the last column and logits are made for the
    columns of the longest reference only.
    """
    import torch

    inputs = left_padded([a + b for a, b in zip(prompts, references, strict=True)], pad, model.device)
    positions = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    width = positions.shape[1]
    longest = max(len(ids) for ids in references)
    # Indices and not a number: of a view torch copies the output matrix for every row.
    kept = torch.arange(width - longest - 1, width - 1, device=model.device)
    with torch.inference_mode():
        logits = model(**inputs, position_ids=positions, use_cache=False, logits_to_keep=kept).logits
    # The columns before a reference that is shorter than the longest are another's.
    return [nats(logits[place : place + 1, longest - len(ids) :], [ids])[0] for place, ids in enumerate(references)]


def nats(logits: Any, references: list[list[int]]) -> list[float]:
    """The cross-entropy of each reference, summed over its tokens; logits [references, tokens, vocabulary].

    A row at a time: a float32 copy of all the logits would be the largest tensor of the evaluation.
    """
    import torch

    return [
        torch.nn.functional.cross_entropy(
            logits[place, : len(ids)].float(), torch.tensor(ids, device=logits.device), reduction="sum"
        ).item()
        for place, ids in enumerate(references)
    ]
