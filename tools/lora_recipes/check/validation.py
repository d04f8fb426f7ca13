"""Axolotl's own validation of a run file, and Axolotl's own prompts, asked of a second process."""

import importlib.util
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from lora_recipes.check import loading, structure
from lora_recipes.check.subject import Subject

import yaml

_FILES = {"tokenizer": "tokenizer", "rows": "rows.jsonl", "output": "examples.jsonl"}


class Axolotl:
    """The worker process; started early, since importing Axolotl takes ten seconds."""

    def __init__(self) -> None:
        self.installed = importlib.util.find_spec("axolotl") is not None
        self._process: subprocess.Popen[str] | None = None
        self._said = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        """What Axolotl prints."""
        self._found: dict[str, Any] | RuntimeError
        """What the validation asked for last has found, or why it has found nothing."""
        self._waiting = False

    def __enter__(self) -> "Axolotl":
        return self

    def __exit__(self, *_: object) -> None:
        if self._process:
            self._process.kill()
            self._process.communicate()
        self._said.close()

    def _send(self, job: dict[str, Any], at: Path) -> None:
        """Raises OSError when there is no process to be had, or it ended this moment."""
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "lora_recipes.check.axolotl_worker"],
                cwd=Path(__file__).resolve().parents[2],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._said,
                text=True,
            )
        assert self._process.stdin
        self._process.stdin.write(json.dumps({**job, "at": str(at)}) + "\n")
        self._process.stdin.flush()

    def _answer(self) -> Any:
        """The answer to the oldest job that has none yet. Raises RuntimeError when Axolotl failed at it."""
        assert self._process and self._process.stdout
        line = self._process.stdout.readline()
        answer = json.loads(line) if line else {"failed": self._death()}
        if "failed" in answer:
            raise RuntimeError(answer["failed"])
        return answer["answer"]

    def _death(self) -> str:
        assert self._process
        code = self._process.wait()
        self._said.seek(0)
        last = next((line.strip() for line in reversed(self._said.readlines()) if line.strip()), "")
        how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
        return f"its process {how} without an answer{f'; it said last: {last[:200]}' if last else ''}"

    def ask_validation(self, subject: Subject) -> None:
        """Ask without waiting: `check` takes the answer."""
        self._found = RuntimeError("it was not asked")
        if self.installed:
            model = subject.run.config.get("base_model")
            model = subject.run.model() if isinstance(model, str) and model else None
            self._send({"do": "validate", "config": _plain(subject.config), "model": model}, subject.given.anchor)
            self._waiting = True

    def _take_validation(self) -> None:
        if self._waiting:
            self._waiting = False
            try:
                self._found = dict(self._answer())
            except RuntimeError as error:
                self._found = error

    def tokenize(self, subject: Subject, config: dict[str, Any], entry: dict[str, Any], folder: str) -> str:
        """rows.jsonl of a folder to examples.jsonl, with the tokenizer that lies in it; '' or what the rows lack.

        Raises RuntimeError when Axolotl failed, OSError when it cannot be asked.
        """
        self._take_validation()  # answers come in the order of the questions
        paths = {name: f"{folder}/{file}" for name, file in _FILES.items()}
        job = {"do": "tokenize", "config": _plain(config), "entry": _plain(entry), **paths}
        self._send(job, subject.given.anchor)
        return str(self._answer())

    def check(self, subject: Subject) -> None:
        """What Axolotl refuses, once; what the key table has found already is not said again."""
        if not self.installed:
            return subject.report.skip("Axolotl's own validation", "Axolotl is not installed here")
        self._take_validation()
        if isinstance(found := self._found, RuntimeError):
            return subject.error(
                "check-failed",
                "the file",
                f"Axolotl's own validation could not be made: {found}",
                "an answer of Axolotl's",
                "try again with more memory free; if `axolotl --help` fails too, run `make setup`",
            )
        known = {finding.key for finding in subject.report.findings if finding.severity == "error"}
        known |= structure.unknown_keys(subject)
        for one in found["refused"]:
            key = _key(one["key"])
            if key not in known:
                known.add(key)  # a union's every member complains
                message = one["message"].removeprefix("Value error, ")
                subject.error("axolotl-refuses", key, message, "a file that Axolotl accepts", "change the value")
        if not found["refused"]:
            subject.report.fact("axolotl", True, "its own validation accepts the file, a GPU assumed")
            loading.report(subject, found["load"])
        return None


def _key(place: str) -> str:
    """The key in pydantic's place of an error, which goes on with the member of a union that complained."""
    found = re.match(r"[a-z0-9_]+(\.[a-z0-9_]+)*(?=$|\.)", place)
    return found[0] if found else "the file"


def _plain(config: Any) -> Any:
    """Dates and the like as text: JSON has none."""
    return json.loads(json.dumps(yaml.safe_load(yaml.safe_dump(config)), default=str))
