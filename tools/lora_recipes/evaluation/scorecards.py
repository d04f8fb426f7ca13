"""The result section of each evaluated system: its scores with intervals, its differences to the others."""

import math
from typing import Any

from lora_recipes.evaluation import answering
from lora_recipes.evaluation.evaluate import System
from lora_recipes.evaluation.scoring import Scorer
from lora_recipes.results import intervals, result_files
from lora_recipes.results.result_files import Stopwatch


def sections(systems: list[System], scorer: Scorer, watch: Stopwatch, **more: Any) -> list[dict[str, Any]]:
    """The result section of each system, with the paired differences to the others of its recipe."""
    found = [_scored(system, scorer) for system in systems]
    return [
        result_files.section(
            system.run,
            metrics,
            watch,
            split=system.split,
            rows=len(system.asked),
            prompt_parity=not system.prompt_mismatch,
            settings=system.settings,
            scoring=scorer.settings,
            scores=system.scores,
            differences=_differences(system, systems),
            answered_now=system.answered,
            answering_seconds=system.seconds,
            **more,
        )
        for system, metrics in zip(systems, found, strict=True)
    ]


def _scored(system: System, scorer: Scorer) -> dict[str, Any]:
    saved = answering.kept(system.answers_path, system.hashes)
    lines = [saved[question.row] for question in system.asked]
    texts, references = [line["answer"] for line in lines], [line["reference"] for line in lines]
    tokens = [len(question.reference_ids) for question in system.asked]
    system.scores = {
        **scorer.score(texts, references),
        "cross_entropy": [round(line["reference_nats"] / n, 6) for line, n in zip(lines, tokens, strict=True)],
        "reference_tokens": [float(n) for n in tokens],
    }
    cross_entropy = intervals.interval(system.scores["cross_entropy"], tokens)
    return {
        **{f"bertscore_{name}": intervals.interval(system.scores[name]) for name in ("precision", "recall", "f1")},
        "cross_entropy": cross_entropy,
        "perplexity": {key: value if key == "n" else math.exp(value) for key, value in cross_entropy.items()},
        "empty_answers": sum(not text.strip() for text in texts),
        "unfinished_answers": sum(not line["finished"] for line in lines),
        "cut_texts": scorer.count_cut([*texts, *references]),
        "mean_answer_tokens": sum(line["new_tokens"] for line in lines) / len(lines),
    }


def _differences(system: System, systems: list[System]) -> dict[str, Any]:
    """Paired differences of BERTScore F1, and of cross-entropy beside it, to the others that had the same rows."""
    if system.adapter is None:
        return {}
    made = {}
    for other in systems:
        same = [(q.question, q.reference) for q in system.asked] == [(q.question, q.reference) for q in other.asked]
        if other is system or other.folder.parent != system.folder.parent or not same:
            continue
        made[other.name] = {
            "metric": "bertscore_f1",
            **intervals.difference(system.scores["f1"], other.scores["f1"]),
            "cross_entropy": intervals.difference(
                system.scores["cross_entropy"], other.scores["cross_entropy"], system.scores["reference_tokens"]
            ),
        }
    return made
