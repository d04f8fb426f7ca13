"""Greedy answers of a loaded model, batched: what prompts have in common is computed once, finished rows leave.

In float32 the tokens are those of greedy decoding one by one (a test holds that); in bf16 they can
depend on the neighbours in a batch, as with any batching.

24 questions, 64 tokens at most, SmolLM2-135M with an adapter, float32, one core: 37 s of its time, 33.5 s with
grouped_query; transformers' generate in one batch, and the references apart, 42 s.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lora_recipes.data.questions import Question
from lora_recipes.inference import reference_loss

TOKENS = 2048
"""Columns times rows of one pass over prompts and references: more is no faster on two cores, and takes memory."""

_CROWDED = 0.85
"""Rows leave when no more than this share still runs: each leaving copies the cache of the others."""


@dataclass(frozen=True)
class Reply:
    """An answer as token ids, closed by an end token where one was given, and the cross-entropy of the reference."""

    token_ids: list[int]
    reference_nats: float
    """The sum over the reference's tokens."""


Respond = Callable[[list[Question]], list[Reply]]
"""One system's replies to a batch of questions, in their order."""


def common_beginning(prompts: list[list[int]]) -> list[int]:
    """The tokens that all prompts begin with; at least one is left over of each."""
    first, last = min(prompts), max(prompts)  # what these two share, all between them share
    most = min(len(ids) for ids in prompts) - 1
    same = next((place for place in range(most) if first[place] != last[place]), most)
    return first[:same]


class Decoder:
    """Replies of one model, with the adapter that is active on it, to questions that begin alike."""

    def __init__(self, model: Any, beginning: list[int], pad: int, end_tokens: list[int], max_new_tokens: int) -> None:
        self.model, self.pad, self.ends, self.limit = model, pad, set(end_tokens), max_new_tokens
        self.beginning = beginning
        self._begun: list[tuple[Any, Any]] = []

    def __call__(self, asked: list[Question]) -> list[Reply]:
        """Replies to a batch; its questions' prompts have to begin with `beginning`."""
        import torch

        with torch.inference_mode():
            if not keeps_everything(self.model.config, _width(asked, self.limit)):
                return self._by_the_library(asked)
            parts = [self._read(part) for part in _parts(asked)]
            nats = [loss for part in parts for loss in part.nats]
            answers = self._continued(*_joined(parts))
        return [Reply(ids, loss) for ids, loss in zip(answers, nats, strict=True)]

    def _by_the_library(self, asked: list[Question]) -> list[Reply]:
        prompts = [question.prompt_ids for question in asked]
        answers = generate(self.model, self.pad, prompts, sorted(self.ends), self.limit)
        nats = reference_loss.reference_nats(
            self.model, prompts, [question.reference_ids for question in asked], self.pad
        )
        return [Reply(ids, loss) for ids, loss in zip(answers, nats, strict=True)]

    def _read(self, asked: list[Question]) -> "_Read":
        """Prompts in the cache and their next tokens; the references' cross-entropy on the way.

        The references are read on top of the prompts' cache and dropped from it.
        """
        import torch

        rest = [question.prompt_ids[len(self.beginning) :] for question in asked]
        inputs = reference_loss.left_padded(rest, self.pad, self.model.device)
        cache = self._cache(len(asked))
        begun = inputs["attention_mask"].new_ones(len(asked), len(self.beginning))
        mask = torch.cat([begun, inputs["attention_mask"]], dim=1)
        logits = forward(self.model, inputs["input_ids"], mask, cache, last_only=True)
        references = [question.reference_ids for question in asked]
        longest = max(len(ids) for ids in references)
        known = [ids[:-1] + [self.pad] * (longest - len(ids)) for ids in references]
        told = logits
        if longest > 1:
            seen = [[1] * (len(ids) - 1) + [0] * (longest - len(ids)) for ids in references]
            both = torch.cat([mask, torch.tensor(seen, device=mask.device)], dim=1)
            more = forward(self.model, torch.tensor(known, device=mask.device), both, cache)
            told = torch.cat([logits, more], dim=1)
            cache.crop(-(longest - 1))
        return _Read(cache, mask, logits[:, -1].argmax(-1), reference_loss.nats(told, references))

    def _cache(self, rows: int) -> Any:
        """A cache that holds the common beginning in each row; it is computed once."""
        import torch
        from transformers import DynamicCache

        if not self.beginning:
            return DynamicCache()
        if not self._begun:
            cache: Any = DynamicCache()
            ids = torch.tensor([self.beginning], device=self.model.device)
            forward(self.model, ids, torch.ones_like(ids), cache, last_only=True)
            self._begun = [(layer.keys, layer.values) for layer in cache.layers]
        return DynamicCache(
            [(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1)) for keys, values in self._begun]
        )

    def _continued(self, cache: Any, mask: Any, tokens: Any) -> list[list[int]]:
        import torch

        made: list[list[int]] = [[] for _ in tokens]
        rows = list(range(len(tokens)))  # whose each row of the cache is
        running = set(rows)
        while True:
            for row, token in zip(rows, tokens.tolist(), strict=True):
                if row in running:
                    made[row].append(token)
                    if token in self.ends or len(made[row]) == self.limit:
                        running.discard(row)
            if not running:
                return made
            if len(running) <= _CROWDED * len(rows):
                places = [place for place, row in enumerate(rows) if row in running]
                chosen = torch.tensor(places, device=mask.device)
                cache.batch_select_indices(chosen)
                rows, mask, tokens = [rows[place] for place in places], mask[chosen], tokens[chosen]
            mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
            tokens = forward(self.model, tokens[:, None], mask, cache)[:, -1].argmax(-1)


@dataclass
class _Read:
    cache: Any
    mask: Any
    tokens: Any
    nats: list[float]


def _width(asked: list[Question], limit: int) -> int:
    """Columns of the cache at most."""
    return max(len(question.prompt_ids) + max(limit, len(question.reference_ids)) for question in asked)


def forward(model: Any, ids: Any, mask: Any, cache: Any, last_only: bool = False) -> Any:
    """Logits [rows, columns of ids or 1, vocabulary] of tokens that follow on the cache; mask [rows, all columns].

    `logits_to_keep=1` would do the same, but makes a view, for which torch copies the whole
    output matrix for every row (5 GB for 100 rows of SmolLM2, most of the time of a pass).
    """
    import torch

    columns = ids.shape[1]
    kept = torch.arange(columns - 1 if last_only else 0, columns, device=ids.device)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -columns:]
    output = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=kept,
    )
    return output.logits


def keeps_everything(config: Any, width: int) -> bool:
    """Whether the model's own cache would forget nothing of so many columns: attention only, and no shorter window."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    def keeps(layer: Any) -> bool:
        slides = type(layer) is DynamicSlidingWindowLayer and layer.sliding_window > width
        return type(layer) is DynamicLayer or slides

    return all(keeps(layer) for layer in DynamicCache(config=config).layers)


def _parts(asked: list[Question]) -> list[list[Question]]:
    """The questions in their order, in parts of about TOKENS columns times rows."""
    size = max(1, TOKENS // max(len(question.prompt_ids) + len(question.reference_ids) for question in asked))
    return [asked[start : start + size] for start in range(0, len(asked), size)]


def _joined(parts: list[_Read]) -> tuple[Any, Any, Any]:
    """One cache, mask and tokens; shorter parts get columns on the left that the mask hides."""
    import torch
    from torch.nn.functional import pad
    from transformers import DynamicCache

    width = max(part.mask.shape[1] for part in parts)
    short = [width - part.mask.shape[1] for part in parts]
    mask = torch.cat([pad(part.mask, (more, 0)) for part, more in zip(parts, short, strict=True)])
    layers = []
    for number in range(len(parts[0].cache.layers)):
        found = [part.cache.layers[number] for part in parts]
        keys = torch.cat([pad(layer.keys, (0, 0, more, 0)) for layer, more in zip(found, short, strict=True)])
        values = torch.cat([pad(layer.values, (0, 0, more, 0)) for layer, more in zip(found, short, strict=True)])
        layers.append((keys, values))
        for layer in found:  # else the cache is in memory twice
            layer.keys = layer.values = None
    return DynamicCache(layers), mask, torch.cat([part.tokens for part in parts])


def generate(
    model: Any, pad: int, prompts: list[list[int]], end_tokens: list[int], max_new_tokens: int
) -> list[list[int]]:
    """The greedy continuation of each prompt by transformers itself: for caches that forget, and to compare with."""
    import torch
    from transformers import GenerationConfig

    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        use_cache=True,
        eos_token_id=end_tokens,
        pad_token_id=pad,
    )
    inputs = reference_loss.left_padded(prompts, pad, model.device)
    with torch.inference_mode():
        output = model.generate(**inputs, generation_config=config)
    continued = output[:, inputs["input_ids"].shape[1] :].tolist()
    return [_until_end(ids, set(end_tokens)) for ids in continued]


def _until_end(ids: list[int], ends: set[int]) -> list[int]:
    end = next((place for place, token in enumerate(ids) if token in ends), len(ids) - 1)
    return ids[: end + 1]
