#!/usr/bin/env python3
"""Evaluate: answers of the base model and its variants, BERTScore and cross-entropy with intervals."""

from pathlib import Path
from typing import Any

from lora_recipes.config import runfile
from lora_recipes.results import result_files, systems, tables, tracking
from lora_recipes.support import filenames, files, libraries, terminal

import click


def _table(names: list[str], sections: list[dict[str, Any]]) -> str:
    from lora_recipes.evaluation import metrics

    chief = {next(iter(module.TITLES)): module.HEADING for module in metrics.modules()}
    first, *others = chief
    rows = [("system", "n", chief[first], "difference to base", *(chief[name] for name in others))]
    for name, section in zip(names, sections, strict=True):
        found = [tables.interval(section["metrics"][metric]) for metric in chief]
        difference = tables.difference(section["differences"].get("base"))
        rows.append((name, str(section["rows"]), found[0], difference, *found[1:]))
    return f"{tables.aligned(rows)}\n{tables.note(sections[0]['rows'])}"


@click.command(cls=terminal.Tool)
@click.argument("sources", nargs=-1, required=True, metavar="RUN...")
@click.option("--base", is_flag=True, help="measure the base model too")
@click.option("--split", default="test", show_default=True, callback=filenames.option, help="rows to ask")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="ask the first N rows only")
@click.option("--batch-size", type=click.IntRange(1), help="questions at once  [default: by free memory]")
@click.option("--max-new-tokens", default=128, show_default=True, type=click.IntRange(1), help="longest answer")
@click.option("--score-model", metavar="NAME|DIR", help="BERTScore model, as roberta-large")
@click.option(
    "--adapter", type=click.Path(exists=True, file_okay=False, path_type=Path), help="instead of the run's own"
)
def main(
    sources: tuple[str, ...],
    base: bool,
    split: str,
    limit: int | None,
    batch_size: int | None,
    max_new_tokens: int,
    score_model: str | None,
    adapter: Path | None,
) -> None:
    """Answer a split's questions and score the answers.

    Scored are BERTScore against the references (by default with the embedded all-MiniLM-L6-v2;
    published figures use --score-model roberta-large) and the cross-entropy of the references,
    each with a 95 % interval. A killed evaluation goes on where it was.

    \b
    Example:
      tools/eval.py recipes/smollm2-african-history/lora.yaml --base --limit 20
    """
    watch = result_files.Stopwatch()
    runs = runfile.load_several(sources, adapter)
    for run in runs:
        tracking.require_login(run)
    click.echo("checking adapters, questions and scoring model …", err=True)
    libraries.quiet()
    from lora_recipes.evaluation import answering, evaluate, scorecards
    from lora_recipes.evaluation.metrics import bertscore

    chosen = evaluate.choose(runs, base, adapter)
    evaluations = evaluate.prepare(chosen, split, limit, max_new_tokens)
    scorer = bertscore.load(score_model)
    scorer.require_known([question.reference for evaluation in evaluations for question in evaluation.questions])
    with answering.locked([evaluation.path for evaluation in evaluations]):
        evaluate.answer(evaluations, batch_size)
        click.echo(f"scoring with {scorer.description}", err=True)
        sections = scorecards.sections(evaluations, score_model, watch, limit=limit)
    kind = systems.evaluation_kind(split)
    for system, section in zip(chosen, sections, strict=True):
        click.echo(files.relative(system.record(kind, section)), err=True)
    click.echo(_table([system.name for system in chosen], sections))
    for system, section in zip(chosen, sections, strict=True):
        tracking.log(system, kind, section["metrics"])


if __name__ == "__main__":
    main()
