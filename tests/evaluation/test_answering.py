"""The answers file: what is kept, what is moved aside, and who may write it."""

import json
import threading
from pathlib import Path
from typing import Any

from lora_recipes.evaluation import answering
from lora_recipes.evaluation.answering import AnswersFile

import pytest


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def saved(row: int, settings: str) -> dict[str, Any]:
    texts = {"question": "q", "reference": "r", "answer": f"answer {row}"}
    return {"row": row, **texts, "finished": True, "new_tokens": 3, "reference_nats": 1.5, "settings": settings}


def write(path: Path, *answers: dict[str, Any], tail: bytes = b"") -> None:
    path.write_bytes("".join(json.dumps(answer) + "\n" for answer in answers).encode() + tail)


def test_answers_under_the_hash_of_their_row_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "answers-test.jsonl"
    write(path, saved(1, "b"), saved(0, "a"))
    before = path.read_bytes()
    assert AnswersFile(path, {0: "a", 1: "b", 2: "c"}).answers == {1: saved(1, "b"), 0: saved(0, "a")}
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "tail", [b'{"row": 1, "question": "q', b"\0\0\0\0", b'{"row": 1}\n', "é".encode()[:1], b"[1]\n"]
)
def test_a_damaged_last_line_is_dropped_with_a_notice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tail: bytes
) -> None:
    path = tmp_path / "answers-test.jsonl"
    write(path, saved(0, "a"), tail=tail)
    assert list(AnswersFile(path, {0: "a", 1: "b"}).answers) == [0]
    assert lines(path) == [saved(0, "a")]
    assert "1 damaged line dropped" in capsys.readouterr().err


def test_a_whole_last_line_without_its_newline_is_not_joined_to_the_next(tmp_path: Path) -> None:
    path = tmp_path / "answers-test.jsonl"
    path.write_text(json.dumps(saved(0, "a")))
    file = AnswersFile(path, {0: "a", 1: "b"})
    file.append([saved(1, "b")])
    assert lines(path) == list(file.answers.values()) == [saved(0, "a"), saved(1, "b")]


def test_answers_under_another_hash_are_moved_aside_and_never_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "answers-test.jsonl"
    write(path, saved(0, "a"), saved(1, "b"))
    assert AnswersFile(path, {0: "a", 1: "changed"}).answers == {0: saved(0, "a")}
    assert "1 answers of another model, adapter, prompt or setting moved" in capsys.readouterr().err
    assert AnswersFile(path, {0: "changed", 1: "changed"}).answers == {}
    assert lines(path.with_name("answers-test.jsonl.old")) == [saved(1, "b"), saved(0, "a")]
    assert path.read_text() == ""


def test_a_second_evaluation_waits_for_the_first_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "answers-test.jsonl"
    order: list[str] = []

    def second() -> None:
        with answering.locked([path]):
            order.append("second")

    with answering.locked([path]):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(0.3)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
    assert "another evaluation is answering; waiting for it" in capsys.readouterr().err
