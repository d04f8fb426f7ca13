#!/usr/bin/env python3
"""Make the data sets of the recipes, and look at any: consolidate and split, measure, find leakage, push."""

import json
import re
from pathlib import Path
from typing import Any

from lora_recipes.data import similarity, sources, splitting, statistics
from lora_recipes.support import files, libraries, terminal

import click

_LORAFRICA = (  # 1,015, 844 and 555 rows, as the LoRAfrica project joined them
    "Svngoku/Global-African-History-QA",
    "Svngoku/African-History-Extra-11-30-24-QA-Pairs",
    "Svngoku/African-History-Extra-Dspy-QA-Reasoning",
)
_SHARE = click.FloatRange(0, 1, min_open=True, max_open=True)
_question = click.option("--question", default="question", show_default=True, help="column that asks")
_answer = click.option("--answer", default="answer", show_default=True, help="column that answers")
_as_json = click.option("--json", "as_json", is_flag=True, help="print JSON instead of a table")


@click.group(cls=terminal.Tools)
def main() -> None:
    """Consolidate, measure, check and push question/answer data.

    A SOURCE is a .json, .jsonl, .csv or .parquet file, a folder of them, or a name on the Hub;
    `SOURCE:train` is one split of it.

    \b
    Example:
      tools/data.py stats data/african_history
    """


@main.command()
@click.argument("names", metavar="[SOURCE]...", nargs=-1)
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="write the splits here")
@_question
@_answer
@click.option("--dedupe", is_flag=True, help="keep the first of repeated questions")
@click.option("--seed", default=42, show_default=True, type=click.IntRange(0, 2**32 - 1), help="seed of the split")
@click.option("--test", default=0.0414, show_default=True, type=_SHARE, help="share of the rows to test on")
@click.option("--validation", default=0.086, show_default=True, type=_SHARE, help="share of the rest to validate on")
@click.option("--special-tokens", type=click.Choice(["escape", "drop"]), help="escape them in texts, or drop the rows")
@click.option("--tokenizer", metavar="NAME|DIR", help="whose special tokens")
def build(
    names: tuple[str, ...], output: Path, special_tokens: str | None, tokenizer: str | None, **choices: Any
) -> None:
    """Join sources in the order given and split them into train, validation and test.

    Without a SOURCE they are the three of the LoRAfrica project, from the Hub. What was done goes to
    build.json beside the rows. Special tokens of a model inside rows would be trained as ends and beginnings
    of turns: --special-tokens with the model's --tokenizer puts a space into each, or drops the rows.

    \b
    Example:
      tools/data.py build first.jsonl second.csv -o /tmp/joined --dedupe
    """
    if (special_tokens is None) != (tokenizer is None):
        raise click.UsageError("--special-tokens and --tokenizer belong together; give both.")
    files.require_ours(output, splitting.RECORD, "build")
    files.require_writable(output.parent)
    clean = None
    if special_tokens and tokenizer:
        clean = splitting.Clean(special_tokens, statistics.load_tokenizer(tokenizer))
    made = splitting.consolidate(names or _LORAFRICA, clean=clean, **choices)
    _say(made.record, choices["dedupe"])
    splitting.write(made, output)
    for part, data in made.parts.items():
        click.echo(f"{output / part}.jsonl  {len(data):,} rows")


def _say(record: dict[str, Any], dedupe: bool) -> None:
    repeated = record["repeated"]
    if repeated["rows"]:
        found = f"{_many(repeated['rows'], 'row')} repeat{'s' * (repeated['rows'] == 1)} an earlier row's question"
        across = f"; {_many(repeated['across splits'], 'question')} in more than one split: --dedupe keeps the first"
        click.echo(found + ("; removed" if dedupe else across), err=True)
        for example in repeated["examples"]:
            click.echo(f"  repeated: {_short(example)}", err=True)
    if cleaned := record.get("special tokens"):
        done = "dropped" if cleaned["done"] == "drop" else "escaped"
        click.echo(f"special tokens in {_many(cleaned['rows'], 'row')}: {done}", err=True)
    if record["empty"]:
        click.echo(f"{_many(record['empty'], 'row')} without a question or an answer: training refuses them", err=True)


def _many(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'s' * (count != 1)}"


def _short(text: str) -> str:
    line = terminal.visible(" ".join(text.split()))
    return line if len(line) <= 100 else f"{line[:99]}…"


@main.command()
@click.argument("source")
@_question
@_answer
@click.option("--tokenizer", metavar="NAME|DIR", help="count tokens of this model too")
@click.option("--sequence-len", type=click.IntRange(1), help="count rows with more tokens than this")
@_as_json
def stats(
    source: str, question: str, answer: str, tokenizer: str | None, sequence_len: int | None, as_json: bool
) -> None:
    """Count a data set's rows, empty cells, repeated questions, characters and tokens, split by split.

    Tokens are those of the columns; the fixed words of a prompt come on top.

    \b
    Example:
      tools/data.py stats data/african_history --tokenizer DIR --sequence-len 512
    """
    if sequence_len and not tokenizer:
        raise click.UsageError("--sequence-len counts tokens; name the --tokenizer.")
    parts = sources.read(source)
    loaded = statistics.load_tokenizer(tokenizer) if tokenizer else None
    found = {
        split: statistics.measure(data, f"{source} ({split})", question, answer, loaded, sequence_len)
        for split, data in parts.items()
    }
    click.echo(json.dumps(found, indent=2) if as_json else statistics.as_tables(found, sequence_len))


@main.command()
@click.argument("source")
@click.option("--against", metavar="SOURCE", help="training rows of another source")
@click.option("--train", default="train", show_default=True, help="split that is trained on")
@click.option("--test", default="test", show_default=True, help="split that is tested on")
@_question
@click.option(
    "--threshold",
    default=0.8,
    show_default=True,
    type=click.FloatRange(0, 1, min_open=True),
    help="least share of words in common",
)
@click.option("--examples", default=5, show_default=True, type=click.IntRange(0), help="how many to show")
@_as_json
@click.pass_context
def leakage(
    context: click.Context,
    source: str,
    against: str | None,
    train: str,
    test: str,
    question: str,
    threshold: float,
    examples: int,
    as_json: bool,
) -> None:
    """Find test questions that are in the training rows, exactly or nearly; exit 1 when there are any.

    Exactly is without regard to case, punctuation and space, nearly by the share of words in common
    (Jaccard), or of pairs of characters where a script does not part words. An `input` column counts as
    part of the question.

    \b
    Example:
      tools/data.py leakage data/african_history --threshold 0.7
    """
    asked = _asked(source, test, question)
    known = _asked(against or source, train, question)
    found = similarity.overlaps(asked, known, threshold)
    ranked = sorted(found, key=lambda overlap: (not overlap.exact, -overlap.similarity, overlap.row))
    rows = [{**vars(one), "question": asked[one.row], "other_question": known[one.other]} for one in ranked]
    exact = sum(one.exact for one in found)
    counts = {"test_rows": len(asked), "train_rows": len(known), "exact": exact, "near": len(found) - exact}
    if as_json:
        click.echo(json.dumps({**counts, "threshold": threshold, "found": rows}, indent=2, ensure_ascii=False))
    else:
        click.echo(
            f"{len(found):,} of {_many(len(asked), 'test question')} in {_many(len(known), 'training row')}: "
            f"{exact:,} exactly, {len(found) - exact:,} nearly"
        )
        for row in rows[:examples]:
            kind = "exact" if row["exact"] else f"{row['similarity']:.2f}"
            click.echo(f"\n{kind}\n  test row {row['row'] + 1}: {_short(row['question'])}")
            click.echo(f"  training row {row['other'] + 1}: {_short(row['other_question'])}")
    context.exit(1 if found else 0)


def _asked(source: str, split: str, question: str) -> list[str]:
    """What one side asks: the split, or the one that `SOURCE:split` names."""
    parts = sources.read(source)
    if source.endswith(f":{(first := next(iter(parts)))}"):
        split = first
    if split not in parts:
        raise click.ClickException(
            f"{source} has no split {split!r}, only {', '.join(parts)}; choose with --train and --test."
        )
    return sources.questions(parts[split], question, f"{source} ({split})")


@main.command()
@click.argument("folder", metavar="DIR", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("repo")
@click.option("--private", is_flag=True, help="make a new repository private")
def push(folder: Path, repo: str, private: bool) -> None:
    """Push a folder that `build` wrote to the Hub, under the login that is there.

    \b
    Example:
      tools/data.py push /tmp/joined my-name/african-history-qa --private
    """
    import huggingface_hub

    token = huggingface_hub.get_token()
    if not token:
        raise click.ClickException("no login on the Hub; run `hf auth login`, or set HF_TOKEN, and push again.")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise click.UsageError(f"{repo}: expected OWNER/NAME, as in my-name/african-history-qa.")
    rows = splitting.rows_of_build(folder)
    try:
        huggingface_hub.create_repo(repo, repo_type="dataset", private=private or None, exist_ok=True)
        huggingface_hub.upload_folder(
            repo_id=repo, repo_type="dataset", folder_path=folder, allow_patterns=[splitting.RECORD, *rows]
        )
    except Exception as error:  # of the network, the Hub and the login alike
        words = libraries.reason(error, 300).replace(token, "…").rstrip(".")
        raise click.ClickException(f"{repo} was not pushed: {words}. Check network, name and rights.") from None
    click.echo(f"{repo}  {_many(sum(rows.values()), 'row')} in {len(rows)} splits")


if __name__ == "__main__":
    main()
