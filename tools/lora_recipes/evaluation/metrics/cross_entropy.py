"""The cross-entropy of the references, in nats a token: how likely the right answers are to the model."""

import math
from typing import Any

from lora_recipes.evaluation.metrics import Answers

TITLES = {
    "cross_entropy": ("Cross-entropy of the reference answers", "nats a token, lower is better"),
    "perplexity": ("Perplexity of the reference answers", "lower is better"),
}
HEADING = "cross-entropy"
WEIGHTS = "reference_tokens"


def score(answers: Answers) -> dict[str, list[float]]:
    tokens = answers.reference_tokens
    return {
        "cross_entropy": [round(nats / n, 6) for nats, n in zip(answers.reference_nats, tokens, strict=True)],
        WEIGHTS: [float(n) for n in tokens],
    }


def summary(answers: Answers, means: dict[str, dict[str, Any]]) -> dict[str, Any]:
    nats = means["cross_entropy"]
    return {
        "perplexity": {key: value if key == "n" or value is None else math.exp(value) for key, value in nats.items()}
    }
