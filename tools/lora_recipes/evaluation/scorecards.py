"""The result section of each evaluated system: its scores with intervals, its differences to the others."""

from types import ModuleType
from typing import Any

from lora_recipes.evaluation import metrics
from lora_recipes.evaluation.evaluate import Evaluation
from lora_recipes.evaluation.metrics import Answers, bertscore
from lora_recipes.results import intervals, result_files
from lora_recipes.results.result_files import Stopwatch


def sections(
    evaluations: list[Evaluation], score_model: str | None, watch: Stopwatch, **more: Any
) -> list[dict[str, Any]]:
    """The result section of each system, with the paired differences to the others of its recipe."""
    found = [_scored(evaluation, score_model) for evaluation in evaluations]
    return [
        result_files.section(
            evaluation.system.run,
            measured,
            watch,
            split=evaluation.split,
            rows=len(evaluation.questions),
            prompt_parity=not evaluation.asked.prompt_mismatch,
            settings=evaluation.settings,
            scoring=bertscore.load(score_model).settings,
            scores=evaluation.scores,
            differences=_differences(evaluation, evaluations),
            answered_now=evaluation.answered,
            answering_seconds=evaluation.seconds,
            batch_size=evaluation.batch_size,
            **more,
        )
        for evaluation, measured in zip(evaluations, found, strict=True)
    ]


def _scored(evaluation: Evaluation, score_model: str | None) -> dict[str, Any]:
    """The metrics of one system; the scores of its answers are kept in the evaluation."""
    lines = [evaluation.answers[question.row] for question in evaluation.questions]
    answers = Answers(
        texts=[line["answer"] for line in lines],
        references=[line["reference"] for line in lines],
        reference_nats=[line["reference_nats"] for line in lines],
        reference_tokens=[len(question.reference_ids) for question in evaluation.questions],
        score_model=score_model,
    )
    found: dict[str, Any] = {}
    for module in metrics.modules():
        scores = module.score(answers)
        evaluation.scores |= scores
        found |= _means(module, scores, answers)
    return {
        **found,
        "empty_answers": sum(not text.strip() for text in answers.texts),
        "unfinished_answers": sum(not line["finished"] for line in lines),
        "mean_answer_tokens": sum(line["new_tokens"] for line in lines) / len(lines),
    }


def _means(module: ModuleType, scores: dict[str, list[float]], answers: Answers) -> dict[str, Any]:
    prefix, weights = getattr(module, "PREFIX", ""), getattr(module, "WEIGHTS", None)
    means = {
        f"{prefix}{name}": intervals.interval(values, scores.get(weights or ""))
        for name, values in scores.items()
        if name != weights
    }
    return means | (module.summary(answers, means) if hasattr(module, "summary") else {})


def _differences(evaluation: Evaluation, evaluations: list[Evaluation]) -> dict[str, Any]:
    """Paired differences to the others of the recipe that had the same rows: of BERTScore F1, the others beside it."""
    if evaluation.system.adapter is None:
        return {}
    mine = [(one.question, one.reference) for one in evaluation.questions]
    return {
        other.system.name: _difference(evaluation.scores, other.scores)
        for other in evaluations
        if other is not evaluation
        and other.system.folder.parent == evaluation.system.folder.parent
        and mine == [(one.question, one.reference) for one in other.questions]
    }


def _difference(mine: dict[str, list[float]], other: dict[str, list[float]]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for module in metrics.modules():
        name = next(iter(module.TITLES))
        score = name.removeprefix(getattr(module, "PREFIX", ""))
        found = intervals.difference(mine[score], other[score], mine.get(getattr(module, "WEIGHTS", "")))
        made |= {"metric": name, **found} if module is bertscore else {name: found}
    return made
