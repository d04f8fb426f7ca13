"""Answers of a model to questions: greedy, in batches, kept in a file that a restart goes on with."""

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lora_recipes.data.questions import Question
from lora_recipes.inference.decoding import Reply, Respond
from lora_recipes.support import files

import click

_COLUMNS = {"row", "question", "reference", "answer", "finished", "new_tokens", "reference_nats", "settings"}


@contextlib.contextmanager
def locked(paths: list[Path]) -> Iterator[None]:
    """Hold the locks of answers files; a second evaluation waits, and says so."""
    with contextlib.ExitStack() as stack:
        for path in sorted(paths):  # in one order everywhere, so that two never wait for each other
            if _is_held(path):
                click.echo(f"{files.relative(path)}: another evaluation is answering; waiting for it …", err=True)
            stack.enter_context(files.locked(path))
        yield


def _is_held(path: Path) -> bool:
    lock = path.parent / f".{path.name}.lock"
    if not lock.exists():
        return False
    with lock.open() as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def kept(path: Path, hashes: dict[int, str]) -> dict[int, dict[str, Any]]:
    """Row -> saved answer, of those given under the hash of their row; call it with the lock held.

    Lines that are damaged, as after a crash, are dropped; answers under another hash go to a file
    with the suffix .old. Either is said on stderr.
    """
    data = path.read_bytes() if path.exists() else b""
    found: dict[int, dict[str, Any]] = {}
    foreign, damaged = [], 0
    for line in data.split(b"\n"):
        answer = _parsed(line)
        if answer is None:
            damaged += bool(line)
        elif hashes.get(answer["row"]) == answer["settings"]:
            found[answer["row"]] = answer
        else:
            foreign.append(answer)
    name = files.relative(path)
    if damaged:
        click.echo(f"{name}: {damaged} damaged line dropped; its question is asked again", err=True)
    if foreign:
        old = path.with_name(f"{path.name}.old")
        _append(old, foreign)
        click.echo(
            f"{name}: {len(foreign)} answers of another model, adapter, prompt or setting moved to {old.name}", err=True
        )
    if data != (whole := _text(list(found.values()))):
        files.write_text(path, whole.decode())
    return found


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        answer = json.loads(line)
    except ValueError:
        return None
    whole = isinstance(answer, dict) and set(answer) >= _COLUMNS and isinstance(answer["row"], int)
    return answer if whole else None


def _text(answers: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(answer, ensure_ascii=False) + "\n" for answer in answers).encode()


def _append(path: Path, answers: list[dict[str, Any]]) -> None:
    with files.as_click_errors(path), path.open("ab") as file:
        file.write(_text(answers))
        file.flush()
        os.fsync(file.fileno())


def missing(path: Path, hashes: dict[int, str], questions: list[Question]) -> list[Question]:
    """The questions without an answer in the file."""
    answers = kept(path, hashes)
    return [question for question in questions if question.row not in answers]


def recorded_batch_size(path: Path, hashes: dict[int, str]) -> int | None:
    """The batch size that the last of the kept answers was given in, so that a restart goes on with it."""
    sizes = [answer.get("batch_size") for answer in kept(path, hashes).values()]
    return sizes[-1] if sizes else None


def answer(
    path: Path,
    respond: Respond,
    tokenizer: Any,
    questions: list[Question],
    hashes: dict[int, str],
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

    wanted = {question.row for question in missing(path, hashes, questions)}
    order = sorted(questions, key=lambda question: (-len(question.prompt_ids), question.row))
    start = 0
    with _progress(len(questions), len(questions) - len(wanted), label) as advance:
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
                    _line(question, reply, tokenizer, hashes, end_tokens) | {"batch_size": batch_size}
                    for question, reply in zip(batch, replies, strict=True)
                ]
                _append(path, [line for line in lines if line["row"] in rows])
                advance(len(rows))
            start += len(batch)
    return len(wanted), batch_size


def _line(
    question: Question, reply: Reply, tokenizer: Any, hashes: dict[int, str], end_tokens: list[int]
) -> dict[str, Any]:
    ids = reply.token_ids
    return {
        "row": question.row,
        "question": question.question,
        "reference": question.reference,
        "answer": tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False).strip(),
        "finished": bool(ids) and ids[-1] in end_tokens,
        "new_tokens": len(ids),
        "reference_nats": round(reply.reference_nats, 6),
        "settings": hashes[question.row],
    }


@contextlib.contextmanager
def _progress(total: int, done: int, label: str) -> Iterator[Any]:
    """A bar on a terminal; in a pipe a line at the start, every 20 s, and at the end."""
    import sys

    if sys.stderr.isatty():
        with click.progressbar(length=total, label=label, file=sys.stderr, show_pos=True) as bar:
            bar.update(done)
            yield bar.update
        return
    count, said = done, time.monotonic()
    click.echo(f"{label}: {count}/{total} answered", err=True)

    def advance(more: int) -> None:
        nonlocal count, said
        count += more
        if count == total or time.monotonic() - said > 20:
            said = time.monotonic()
            click.echo(f"{label}: {count}/{total} answered", err=True)

    yield advance
