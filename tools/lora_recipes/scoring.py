"""Scores of answers: BERTScore against the references, cross-entropy of the references themselves."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_recipes import embedded, questions

import click

EMBEDDED = "all-MiniLM-L6-v2"
PUBLISHED = "roberta-large"
"""The model of most published BERTScore figures in English, and bert_score's default."""


@dataclass
class Scorer:
    """A loaded BERTScore model (Zhang et al., BERTScore, 2020), without idf weights or baseline rescaling."""

    name: str
    bert_scorer: Any
    limit: int
    """Tokens; bert_score cuts longer texts without a word."""
    identity: str

    @property
    def settings(self) -> dict[str, Any]:
        """What makes two scores comparable: bert_score's own hash, and the model's identity."""
        scorer = self.bert_scorer
        return {
            "bert_score_hash": scorer.hash.replace(scorer.model_type, self.name),
            "model": self.name,
            "model_identity": self.identity,
            "num_layers": scorer.num_layers,
            "token_limit": self.limit,
            "rescaled": False,
            "published_setting": self.name == PUBLISHED,
        }

    @property
    def description(self) -> str:
        """In one line, with what its scores may be compared to."""
        if self.name == PUBLISHED:
            return f"{self.name}, layer {self.bert_scorer.num_layers}: the setting of most published figures"
        return f"{self.name}: compare these scores with each other only, published ones use {PUBLISHED}"

    def score(self, answers: list[str], references: list[str]) -> dict[str, list[float]]:
        """`precision`, `recall` and `f1` of each answer; an empty answer, which crashes bert_score, has 0."""
        scores = {name: [0.0] * len(answers) for name in ("precision", "recall", "f1")}
        filled = [place for place, answer in enumerate(answers) if answer.strip()]
        if filled:
            found = self.bert_scorer.score([answers[n] for n in filled], [references[n] for n in filled], batch_size=32)
            for name, values in zip(scores, found, strict=True):
                for place, value in zip(filled, values.tolist(), strict=True):
                    scores[name][place] = round(value, 6)
        return scores

    def count_cut(self, texts: list[str]) -> int:
        """How many texts are longer than the model reads."""
        encoded = self.bert_scorer._tokenizer(texts, truncation=False, verbose=False)["input_ids"]
        return sum(len(ids) > self.limit for ids in encoded)


def load(model: str | None) -> Scorer:
    """The BERTScore model: the embedded all-MiniLM-L6-v2, or a name that bert_score knows, or a folder.

    Raises click.ClickException when it cannot be loaded.
    """
    source = str(embedded.scoring_model()) if model is None else model
    name = EMBEDDED if model is None else Path(model).name if Path(model).is_dir() else model
    from bert_score import BERTScorer
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        scorer = BERTScorer(source, num_layers=_layers(source, config), rescale_with_baseline=False)
    except (OSError, ValueError, ImportError) as error:
        words = " ".join(str(error).split())[:200]
        raise click.ClickException(
            f"--score-model {model}: cannot be loaded; give a model on the Hub that can be reached, a folder, "
            f"or leave it out for {EMBEDDED}. ({words})"
        ) from None
    scorer._model.float()
    limit = _limit(scorer._tokenizer, config)
    scorer._tokenizer.model_max_length = limit  # absent, bert_score raises OverflowError
    return Scorer(name, scorer, limit, questions.model_identity(source))


def _layers(source: str, config: Any) -> int:
    """The layer that bert_score recommends for a model that it knows, else the last."""
    from bert_score.utils import model2layers

    return int(model2layers.get(source) or model2layers.get(Path(source).name) or config.num_hidden_layers)


def _limit(tokenizer: Any, config: Any) -> int:
    """The tokens that the model reads at most; RoBERTa's positions begin after the padding's."""
    offset = config.pad_token_id + 1 if "roberta" in config.model_type else 0
    positions = getattr(config, "max_position_embeddings", None)
    return min(int(tokenizer.model_max_length), positions - offset if positions else 10**6)


def left_padded(rows: list[list[int]], pad: int, device: Any) -> dict[str, Any]:
    """`input_ids` and `attention_mask`, int64 tensors [rows, longest row], padded on the left."""
    import torch

    longest = max(len(ids) for ids in rows)
    ids = [[pad] * (longest - len(row)) + row for row in rows]
    mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
    return {
        "input_ids": torch.tensor(ids, device=device),
        "attention_mask": torch.tensor(mask, device=device),
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
