"""Rows in files, and calls of tools/data.py on them."""

import json

import data as tool_data

from click.testing import CliRunner


def call(*arguments):
    return CliRunner().invoke(tool_data.main, [str(argument) for argument in arguments])


def failed(*arguments, code=1):
    """The one sentence with which a call fails."""
    done = call(*arguments)
    assert done.exit_code == code, done.output
    assert not done.exception or isinstance(done.exception, SystemExit), done.exception
    sentence = done.stderr.split("Error: ")[1].strip()
    assert "\n" not in sentence
    return sentence


def write(path, questions, **columns):
    rows = [{"question": asked, "answer": f"It is {n}.", **columns} for n, asked in enumerate(questions)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def hundred_rows(folder):
    """Every tenth question asked twice with other signs."""
    asked = [f"Who ruled {row}?" for row in range(90)] + [f"who  RULED {row}" for row in range(0, 90, 9)]
    return write(folder / "few.jsonl", asked)
