"""What reaches a terminal is visible and short; no state of the standard streams ends in a traceback."""

import json
import shlex
import subprocess
import sys

from lora_recipes import ROOT
from lora_recipes.check.findings import Report
from lora_recipes.support import terminal

import click
import pytest
from click.testing import CliRunner

ESCAPES = "a\x1b]0;b\x07\x9b31m\u202e\ud800c"


def test_an_error_shows_escapes_as_text_and_is_short():
    @click.command(cls=terminal.Tool)
    def tool():
        raise click.ClickException(f"{ESCAPES}{'x' * 10**6}; correct it.")

    said = CliRunner().invoke(tool).stderr
    assert r"a\x1b]0;b\x07\x9b31m\u202e\ud800c" in said and said.rstrip("\n").isprintable()
    assert len(said) < 1100 and said.endswith("; correct it.\n")


def test_findings_and_facts_show_escapes_as_text_and_are_short():
    from lora_recipes.check.findings import Finding

    report = Report(ESCAPES)
    report.fact("model", 1, ESCAPES)
    report.skip("parity", ESCAPES)
    report.findings.append(Finding("error", "x", ESCAPES, 1, ESCAPES, "y" * 10**6, ESCAPES))
    text = click.unstyle("\n".join(report.as_text()))
    assert text.replace("\n", "").isprintable() and len(text) < 3000
    assert "\x1b" not in json.dumps(report.as_json(), ensure_ascii=False)


FAST = ["render", "render --list", "report --help", "check --help", "eval --help", "data --help", "train --help"]


@pytest.mark.parametrize("streams", [">&-", "2>&-", "<&-", ">&- 2>&- <&-", ">/dev/full", "2>/dev/full"])
@pytest.mark.parametrize("command", FAST)
def test_closed_and_full_streams_end_without_a_traceback(command, streams):
    name, *arguments = command.split()
    line = f"{sys.executable} {ROOT}/tools/{name}.py {shlex.join(arguments)} {streams}"
    done = subprocess.run(line, shell=True, capture_output=True, text=True, cwd=ROOT)
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr, done.stderr
    if streams == ">/dev/full":
        assert done.returncode == 1 and "No space left on device" in done.stderr


def test_a_run_file_from_a_closed_stdin_is_an_empty_one():
    line = f"{sys.executable} {ROOT}/tools/compare.py - <&-"
    done = subprocess.run(line, shell=True, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1 and "stdin is empty" in done.stderr


@pytest.mark.parametrize("locale", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}])
def test_an_ascii_locale_changes_no_byte_of_a_run_file(locale, tmp_path):
    ingredients = (ROOT / "templates" / "recipes" / "smollm2-african-history.yaml").read_text(encoding="utf-8")
    (tmp_path / "mine.yaml").write_text(f"{ingredients}\nwandb_project: Où ça\n", encoding="utf-8")
    program = [sys.executable, str(ROOT / "tools" / "render.py"), "--recipe", str(tmp_path / "mine.yaml")]
    plain = subprocess.run(program, capture_output=True, cwd=ROOT, check=True)
    ascii_only = subprocess.run(program, capture_output=True, cwd=ROOT, env={"PATH": "/usr/bin:/bin", **locale})
    assert "wandb_project: Où ça" in plain.stdout.decode()
    assert ascii_only.stdout == plain.stdout and ascii_only.returncode == 0, ascii_only.stderr


@pytest.mark.parametrize("command", [*FAST, "report results -o {}"])
def test_warnings_that_are_errors_are_no_tracebacks(command, tmp_path):
    name, *arguments = command.format(tmp_path).split()
    program = [sys.executable, "-W", "error", str(ROOT / "tools" / f"{name}.py"), *arguments]
    done = subprocess.run(program, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
