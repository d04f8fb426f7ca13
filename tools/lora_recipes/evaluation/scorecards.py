"""The result sections of systems: their scores with intervals, their differences to the others of the recipe."""

from types import ModuleType
from typing import Any

from lora_recipes.evaluation import metrics
from lora_recipes.evaluation.evaluate import Evaluation
from lora_recipes.evaluation.lm_eval_run import Scores
from lora_recipes.evaluation.metrics import Answers, bertscore
from lora_recipes.results import intervals, result_files
from lora_recipes.results.result_files import Stopwatch
from lora_recipes.results.systems import BASE, System, model_identity


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
    mine = [(one.question, one.reference) for one in evaluation.questions]
    return {
        name: _difference(evaluation.scores, other.scores)
        for other in evaluations
        if (name := _compared_as(other.system, evaluation.system))
        and mine == [(one.question, one.reference) for one in other.questions]
    }


def _compared_as(other: System, system: System) -> str:
    """The name under which a system is compared to another of its recipe; '' where it is not.

    A base model is compared to none, and to a base model only its own variants are: for them it is `base`.
    """
    if other is system or system.is_base or other.folder.parent != system.folder.parent:
        return ""
    if not other.is_base:
        return other.name
    return BASE if model_identity(other.run.model()) == model_identity(system.run.model()) else ""


def _difference(mine: dict[str, list[float]], other: dict[str, list[float]]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for module in metrics.modules():
        name = next(iter(module.TITLES))
        score = name.removeprefix(getattr(module, "PREFIX", ""))
        found = intervals.difference(mine[score], other[score], mine.get(getattr(module, "WEIGHTS", "")))
        made |= {"metric": name, **found} if module is bertscore else {name: found}
    return made


def benchmark_section(system: System, scores: Scores, watch: Stopwatch, **more: Any) -> dict[str, Any]:
    """The result section of a system that lm-eval scored."""
    mine = scores[system]
    return result_files.section(
        system.run,
        {f"{task}_{name}": value for task, score in mine.items() for name, value in score["metrics"].items()},
        watch,
        differences=_outcome_differences(system, scores),
        inputs={task: score["inputs"] for task, score in mine.items()},
        outcomes={task: score["outcomes"] for task, score in mine.items()},
        seconds={task: score["seconds"] for task, score in mine.items()},
        **more,
    )


def _outcome_differences(system: System, scores: Scores) -> dict[str, dict[str, Any]]:
    """Other system of the recipe -> metric -> paired difference to it over the same questions."""
    return {
        name: {
            f"{task}_{metric}": intervals.difference(list(map(float, mine)), list(map(float, theirs)))
            for task, score in scores[system].items()
            for metric, mine in score["outcomes"].items()
            if (theirs := measured[task]["outcomes"].get(metric))
        }
        for other, measured in scores.items()
        if (name := _compared_as(other, system))
    }
