"""BERTScore of the answers against the references."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_recipes.evaluation.metrics import Answers
from lora_recipes.models import bundled
from lora_recipes.results import systems
from lora_recipes.support import libraries

import click

TITLES = {
    "bertscore_f1": ("BERTScore F1", "higher is better"),
    "bertscore_precision": ("BERTScore precision", "higher is better"),
    "bertscore_recall": ("BERTScore recall", "higher is better"),
}
HEADING = "BERTScore F1"
PREFIX = "bertscore_"

EMBEDDED = "all-MiniLM-L6-v2"
PUBLISHED = "roberta-large"
"""The model of most published BERTScore figures in English, and bert_score's default."""


_MOST_UNKNOWN = 0.05
"""Of the references' tokens; English with an emoji here and there has a thousandth."""


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

    def unknown_share(self, texts: list[str]) -> float:
        """The share of the texts' tokens for which the model has no token: all of these look alike to it."""
        tokenizer = self.bert_scorer._tokenizer
        ids = [one for row in tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"] for one in row]
        return sum(one == tokenizer.unk_token_id for one in ids) / max(1, len(ids))

    def require_known(self, references: list[str]) -> None:
        """Raises click.ClickException for a script that the model does not know: any two such texts would score 1."""
        share = self.unknown_share(references)
        if share > _MOST_UNKNOWN:
            raise click.ClickException(
                f"{self.name} has no token for {share:.0%} of the references' tokens, so its scores would mean "
                "nothing; take one that knows their script, as --score-model xlm-roberta-large."
            )

    def count_cut(self, texts: list[str]) -> int:
        """How many texts are longer than the model reads."""
        encoded = self.bert_scorer._tokenizer(texts, truncation=False, verbose=False)["input_ids"]
        return sum(len(ids) > self.limit for ids in encoded)


def score(answers: Answers) -> dict[str, list[float]]:
    return load(answers.score_model).score(answers.texts, answers.references)


def summary(answers: Answers, means: dict[str, dict[str, Any]]) -> dict[str, Any]:
    scorer, texts = load(answers.score_model), [*answers.texts, *answers.references]
    return {"cut_texts": scorer.count_cut(texts), "unknown_tokens": round(scorer.unknown_share(texts), 4)}


@functools.cache
def load(model: str | None) -> Scorer:
    """The BERTScore model: the embedded all-MiniLM-L6-v2, or a name that bert_score knows, or a folder.

    Raises click.ClickException when it cannot be loaded.
    """
    source = str(bundled.scoring_model()) if model is None else model
    name = EMBEDDED if model is None else Path(model).name if Path(model).is_dir() else model
    from bert_score import BERTScorer
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        scorer = BERTScorer(source, num_layers=_layers(source, config), rescale_with_baseline=False)
    except (OSError, ValueError, ImportError) as error:
        raise click.ClickException(
            f"--score-model {model}: cannot be loaded; give a model on the Hub that can be reached, a folder, "
            f"or leave it out for {EMBEDDED}. ({libraries.reason(error)})"
        ) from None
    scorer._model.float()
    limit = _limit(scorer._tokenizer, config)
    scorer._tokenizer.model_max_length = limit  # absent, bert_score raises OverflowError
    return Scorer(name, scorer, limit, systems.model_identity(source))


def _layers(source: str, config: Any) -> int:
    """The layer that bert_score recommends for a model that it knows, else the last."""
    from bert_score.utils import model2layers

    return int(model2layers.get(source) or model2layers.get(Path(source).name) or config.num_hidden_layers)


def _limit(tokenizer: Any, config: Any) -> int:
    """The tokens that the model reads at most; RoBERTa's positions begin after the padding's."""
    offset = config.pad_token_id + 1 if "roberta" in config.model_type else 0
    positions = getattr(config, "max_position_embeddings", None)
    return min(int(tokenizer.model_max_length), positions - offset if positions else 10**6)
