"""Masks: which tokens carry loss, over every training row and shown of one."""

from dataclasses import dataclass
from typing import Any

from lora_recipes.check import conversations, parity
from lora_recipes.check.checked_run import CheckedRun
from lora_recipes.check.parts import Part
from lora_recipes.data import prompts

import click

_LEAST_TRAINED = 0.01
"""The share of tokens with loss below which a run hardly learns."""
_MOST_CUT = 0.05
"""The share of rows over sequence_len from which it is an error."""


@dataclass
class Counts:
    """Sums over the training rows."""

    rows: int = 0
    tokens: int = 0
    trained: int = 0
    """Tokens with loss."""
    longest: int = 0
    rows_without_loss: int = 0
    """Rows without a trained token."""
    on_prompt: int = 0
    """Rows in which a token of the prompt is trained."""
    rows_without_eos: int = 0
    """Whole rows in which the end of turn is not trained."""
    cut: int = 0
    """Rows over sequence_len."""


def check(checked: CheckedRun, training: list[Part], lengths: dict[str, list[int | None]]) -> Counts | None:
    """Count what is trained and report what is not as meant; None where no row could be tokenized."""
    parts = [part for part in training if part.examples]
    if not parts:
        return None
    end = parity.end_of_turn(checked)
    limit = int(checked.number("sequence_len", 512))
    counts = Counts()
    for part in parts:
        known = lengths.get(part.key) or [None] * len(part.examples)
        for row, example, length in zip(part.rows, part.examples, known, strict=False):
            answers = [] if part.format or not length else _answers(checked, part, row, example["input_ids"])
            asked = None if answers is None else length
            _count(counts, example, asked, answers or [], end, limit, truncated=part.format is None)
    _report(checked, counts, end, made_up=all(part.made_up for part in parts))
    _judge(checked, counts, end, spelled_out=all(part.format for part in parts))
    return None if all(part.made_up for part in parts) else counts


def _answers(checked: CheckedRun, part: Part, row: dict[str, Any], ids: list[int]) -> list[tuple[int, int]] | None:
    """Where the answers before the last one stand in a conversation's tokens, each from its first to its last.

    None where that is not known, because the template writes earlier turns otherwise, or where the data set itself
    says that more than answers are trained.
    """
    entry, spans = part.entry, []
    roles, ends = entry.get("roles_to_train") or ["assistant"], (entry.get("train_on_eos"), entry.get("train_on_eot"))
    if "all" in ends or entry.get("message_field_training") or not {*roles} <= {"assistant", "gpt", "model"}:
        return None
    turns = conversations.turns(entry, row)
    before = conversations.before_answer(turns)
    for number, turn in enumerate(before):
        if turn["role"] == "assistant":
            try:
                texts = [parity.rendered(checked, part, row, turns[: number + n], asking=not n) for n in (0, 1)]
            except Exception:  # a template may refuse a part of a conversation that it takes as a whole
                return None
            start, stop = (prompts.text_ids(checked.tokenizer, text) for text in texts)
            if ids[: len(start)] != start or ids[: len(stop)] != stop:
                return None
            spans.append((len(start), len(stop)))
    return spans


def _count(
    counts: Counts,
    example: dict[str, list[int]],
    length: int | None,
    answers: list[tuple[int, int]],
    end: int | None,
    limit: int,
    truncated: bool,
) -> None:
    labels = example["labels"]
    masked = labels.count(prompts.IGNORED)
    cut = len(labels) >= limit if truncated else len(labels) > limit
    counts.rows += 1
    counts.tokens += len(labels)
    counts.trained += len(labels) - masked
    counts.longest = max(counts.longest, len(labels))
    counts.rows_without_loss += masked == len(labels)
    counts.cut += cut
    last = max((at for at, label in enumerate(labels) if label != prompts.IGNORED), default=-1)
    counts.rows_without_eos += not cut and end not in labels[max(last - 7, 0) : last + 1]
    if length:
        asked = [*labels[:length]]
        for start, stop in answers:
            asked[start:stop] = [prompts.IGNORED] * (stop - start)
        counts.on_prompt += asked.count(prompts.IGNORED) < length


def _report(checked: CheckedRun, counts: Counts, end: int | None, made_up: bool) -> None:
    token = checked.tokenizer.decode([end]) if end is not None else "none"
    value: dict[str, Any] = {**vars(counts), "share_trained": counts.trained / counts.tokens, "end_of_turn": token}
    if made_up:
        checked.report.fact("masks", value, f"of a made-up row: {counts.trained} of {counts.tokens} tokens are trained")
        return
    whole = counts.rows - counts.rows_without_eos - counts.cut
    checked.report.fact(
        "masks",
        value,
        f"{counts.rows:,} rows, {counts.tokens:,} tokens, {counts.trained / counts.tokens:.1%} of them trained",
        f"longest row {counts.longest:,} tokens; {counts.cut:,} rows over sequence_len",
        f"end of turn {token} trained in {whole:,} of {counts.rows - counts.cut:,} whole rows",
    )


def _judge(checked: CheckedRun, counts: Counts, end: int | None, spelled_out: bool) -> None:
    rows = counts.rows
    if counts.rows_without_loss:
        checked.error(
            "no-trained-token", "train_on_inputs",
            f"{counts.rows_without_loss:,} of {rows:,} rows have no token with loss",
            "an answer in every row", "look at one with --row, and correct the prompt or the rows",
        )  # fmt: skip
    elif counts.trained / counts.tokens < _LEAST_TRAINED:
        checked.error(
            "trained-share", "datasets", f"only {counts.trained / counts.tokens:.2%} of the tokens carry loss",
            f"at least {_LEAST_TRAINED:.2%}", "shorten the prompt, or train longer answers",
        )  # fmt: skip
    if counts.on_prompt and not checked.config.get("train_on_inputs"):
        checked.error(
            "prompt-trained", "train_on_inputs", f"tokens of the prompt carry loss in {counts.on_prompt:,} rows",
            "loss on the answer only",
            "set train_on_inputs: true if this is meant, or correct the prompt" if spelled_out
            else "set roles_to_train: [assistant] and train_on_eos: turn, and give messages their speakers",
        )  # fmt: skip
    if counts.rows_without_eos and not counts.rows_without_loss:
        token = checked.tokenizer.decode([end]) if end is not None else "an end token"
        eos = checked.tokenizer.eos_token
        checked.error(
            "end-of-turn", "special_tokens",
            f"{token}, which ends a turn in the chat template, is not trained in {counts.rows_without_eos:,} of "
            f"{rows - counts.cut:,} rows (the end token is {eos}): the model does not learn to stop",
            f"{token} as the last trained token of every row",
            f'set special_tokens.eos_token: "{token}", or eot_tokens: ["{token}"] with type: chat_template',
        )  # fmt: skip
    _positions(checked, counts)
    if counts.cut:
        share = counts.cut / rows
        done = "cut" if checked.config.get("excess_length_strategy") == "truncate" else "left out"
        checked.find(
            "error" if share > _MOST_CUT else "warning", "cut-rows", "sequence_len",
            f"{counts.cut:,} of {rows:,} rows ({share:.1%}) are over {int(checked.number('sequence_len', 512)):,} "
            f"tokens and are {done}; the longest has {counts.longest:,}",
            f"at most {_MOST_CUT:.0%} of them", "raise sequence_len or shorten the rows",
        )  # fmt: skip


def _positions(checked: CheckedRun, counts: Counts) -> None:
    """Rows longer than the model has positions: some models end there, others score noise."""
    config = checked.model_config.get_text_config(decoder=True) if checked.model_config else None
    positions = getattr(config, "max_position_embeddings", None)
    longest = min(counts.longest, int(checked.number("sequence_len", 512)))
    if positions and longest > positions:
        checked.error(
            "positions",
            "sequence_len",
            f"rows of up to {longest:,} tokens, and the model has {positions:,} positions",
            "no row longer than the model reads",
            f"write sequence_len: {positions}",
        )


def shown_row(checked: CheckedRun, training: list[Part], number: int) -> str:
    """Row `number`, from 1, of all training rows: trained tokens green between ⟦ and ⟧, masked ones dim.

    Raises click.ClickException when there is no such row.
    """
    examples = [example for part in training if not part.made_up for example in part.examples]
    if not 1 <= number <= len(examples):
        raise click.ClickException(
            f"there is no row {number}: {len(examples)} training rows could be tokenized, counted from 1."
        )
    ids, labels = examples[number - 1]["input_ids"], examples[number - 1]["labels"]
    pieces, start = [], 0
    for at in range(1, len(ids) + 1):
        if at == len(ids) or (labels[at] == prompts.IGNORED) != (labels[start] == prompts.IGNORED):
            text = checked.tokenizer.decode(ids[start:at])
            masked = labels[start] == prompts.IGNORED
            pieces.append(click.style(text, dim=True) if masked else click.style(f"⟦{text}⟧", fg="green"))
            start = at
    trained = sum(label != prompts.IGNORED for label in labels)
    head = click.style(f"row {number}: {len(ids)} tokens, {trained} of them trained (between ⟦ and ⟧)", bold=True)
    return f"{head}\n{''.join(pieces)}"
