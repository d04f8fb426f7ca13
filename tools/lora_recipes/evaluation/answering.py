"""Answers of a model to questions: greedy, in batches, kept in a file that a restart goes on with."""

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lora_recipes.data.questions import Question
from lora_recipes.inference.decoding import Reply, Respond
from lora_recipes.results import answers
from lora_recipes.support import files

import click


@contextlib.contextmanager
def locked(paths: list[Path]) -> Iterator[None]:
    """Hold the locks of answers files; a second evaluation waits, and says so."""
    with contextlib.ExitStack() as stack:
        for path in sorted(paths):  # in one order everywhere, so that two never wait for each other
            busy = f"{files.relative(path)}: another evaluation is answering; waiting for it …"
            try:
                stack.enter_context(files.locked(path, busy))
            except click.ClickException as said:
                click.echo(said.message, err=True)
                stack.enter_context(files.locked(path))
        yield


class AnswersFile:
    """The answers of one system to a split, by row; to be opened and written with the lock of the file held."""

    def __init__(self, path: Path, hashes: dict[int, str]) -> None:
        self.path, self.hashes = path, hashes
        self.answers = _load_and_quarantine(path, hashes)

    @property
    def batch_size(self) -> int | None:
        """That of the last answer, so that a restart goes on with it."""
        sizes = [answer.get("batch_size") for answer in self.answers.values()]
        return sizes[-1] if sizes else None

    def unanswered(self, questions: list[Question]) -> set[int]:
        """The rows of the questions that have no answer."""
        return {question.row for question in questions} - self.answers.keys()

    def append(self, given: list[dict[str, Any]]) -> None:
        _append(self.path, given)
        self.answers |= {answer["row"]: answer for answer in given}


def _load_and_quarantine(path: Path, hashes: dict[int, str]) -> dict[int, dict[str, Any]]:
    """Row -> saved answer, of those given under the hash of their row.

    Lines that are damaged, as after a crash, are dropped; answers under another hash go to a file
    with the suffix .old. Either is said on stderr.
    """
    saved, damaged = answers.read(path)
    found = {answer["row"]: answer for answer in saved if hashes.get(answer["row"]) == answer["settings"]}
    foreign = [answer for answer in saved if hashes.get(answer["row"]) != answer["settings"]]
    name = files.relative(path)
    if damaged:
        click.echo(f"{name}: {len(damaged)} damaged line dropped; its question is asked again", err=True)
    if foreign:
        old = path.with_name(f"{path.name}.old")
        _append(old, foreign)
        click.echo(
            f"{name}: {len(foreign)} answers of another model, adapter, prompt or setting moved to {old.name}", err=True
        )
    whole = _text(list(found.values()))
    if path.exists() and path.read_bytes() != whole:
        files.write_text(path, whole.decode())
    return found


def _text(given: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(answer, ensure_ascii=False) + "\n" for answer in given).encode()


def _append(path: Path, given: list[dict[str, Any]]) -> None:
    with files.as_click_errors(path), path.open("ab") as file:
        file.write(_text(given))
        file.flush()
        os.fsync(file.fileno())


def answer(
    file: AnswersFile,
    respond: Respond,
    tokenizer: Any,
    questions: list[Question],
    end_tokens: list[int],
    batch_size: int,
    label: str,
) -> tuple[int, int]:
    """Answer what is missing and append it batch by batch; a kill loses the batch in flight only.

    The number of questions answered, and the batch size at the end: on a GPU whose memory is too
    small it is halved. Raises torch.OutOfMemoryError when one question is too much.

    The batches are those of all the questions, whatever is missing: in bf16 an answer can depend on
    its neighbours, and a restart has to give the answers of an undisturbed run.
    """
    import torch

    wanted = file.unanswered(questions)
    order = sorted(questions, key=lambda question: (-len(question.prompt_ids), question.row))
    start = 0
    with _progress(len(questions), len(questions) - len(wanted), label) as bar:
        while start < len(order):
            batch = order[start : start + batch_size]
            if rows := wanted & {question.row for question in batch}:
                try:
                    replies = respond(batch)
                except torch.OutOfMemoryError:
                    if batch_size == 1:
                        raise
                    batch_size //= 2
                    click.echo(f"{label}: out of memory; going on with batches of {batch_size}", err=True)
                    continue
                lines = [
                    _line(question, reply, tokenizer, file.hashes[question.row], end_tokens)
                    | {"batch_size": batch_size}
                    for question, reply in zip(batch, replies, strict=True)
                    if question.row in rows
                ]
                file.append(lines)
                bar.update(len(rows))
            start += len(batch)
    return len(wanted), batch_size


def _line(question: Question, reply: Reply, tokenizer: Any, settings: str, end_tokens: list[int]) -> dict[str, Any]:
    ids = reply.token_ids
    return {
        "row": question.row,
        "question": question.question,
        "reference": question.reference,
        "answer": tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False).strip(),
        "finished": bool(ids) and ids[-1] in end_tokens,
        "new_tokens": len(ids),
        "reference_nats": round(reply.reference_nats, 6),
        "settings": settings,
    }


def _progress(total: int, done: int, label: str) -> Any:
    """A bar on a terminal; elsewhere a line at the start, every 20 s, and at the end."""
    from tqdm import tqdm

    if sys.stderr.isatty():
        return tqdm(total=total, initial=done, desc=label)
    line = "{desc}: {n_fmt}/{total_fmt} answered"
    pause = {"mininterval": 20, "maxinterval": 20}
    return tqdm(total=total, initial=done, desc=label, bar_format=line, file=_Lines(), **pause)


class _Lines:
    """A file in which each state of a bar is a line of stderr."""

    def write(self, text: str) -> None:
        if said := text.strip():
            click.echo(said, err=True)

    def flush(self) -> None:
        """Each line is flushed when it is written."""
