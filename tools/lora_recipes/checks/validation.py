"""Axolotl's own validation of a run file, and Axolotl's own prompts, asked of a second process."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from lora_recipes.checks import structure
from lora_recipes.checks.subject import Subject

import yaml

_FILES = {"tokenizer": "tokenizer", "rows": "rows.jsonl", "output": "examples.jsonl"}


class Axolotl:
    """The worker process; started early, since importing Axolotl takes ten seconds."""

    def __init__(self) -> None:
        self.installed = importlib.util.find_spec("axolotl") is not None
        self._process: subprocess.Popen[str] | None = None
        self._refused: list[dict[str, str]] | str | None = None
        """What the validation asked for last has found, or why it has not been made."""
        self._waiting = False

    def __enter__(self) -> "Axolotl":
        return self

    def __exit__(self, *_: object) -> None:
        if self._process:
            self._process.kill()
            self._process.communicate()

    def _send(self, job: dict[str, Any]) -> None:
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "lora_recipes.checks.axolotl_worker"],
                cwd=Path(__file__).resolve().parents[2],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        assert self._process.stdin
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()

    def _answer(self) -> Any:
        """The answer to the oldest job that has none yet. Raises RuntimeError when Axolotl failed at it."""
        assert self._process and self._process.stdout
        line = self._process.stdout.readline()
        answer = json.loads(line) if line else {"failed": "Axolotl ended without an answer"}
        if "failed" in answer:
            raise RuntimeError(answer["failed"])
        return answer["answer"]

    def ask_validation(self, subject: Subject) -> None:
        """Ask without waiting: `check` takes the answer."""
        if self.installed:
            self._send({"do": "validate", "config": _plain(subject.config)})
            self._waiting = True

    def _take_validation(self) -> None:
        if self._waiting:
            self._waiting = False
            try:
                self._refused = list(self._answer())
            except RuntimeError as error:
                self._refused = str(error)

    def tokenize(self, config: dict[str, Any], entry: dict[str, Any], folder: str) -> str:
        """rows.jsonl of a folder to examples.jsonl, with the tokenizer that lies in it; '' or why not."""
        self._take_validation()  # answers come in the order of the questions
        paths = {name: f"{folder}/{file}" for name, file in _FILES.items()}
        try:
            self._send({"do": "tokenize", "config": _plain(config), "entry": _plain(entry), **paths})
            return str(self._answer())
        except RuntimeError as error:
            return str(error)

    def check(self, subject: Subject) -> None:
        """What Axolotl refuses, once; what the key table has found already is not said again."""
        if not self.installed:
            return subject.report.skip("Axolotl's own validation", "Axolotl is not installed here")
        self._take_validation()
        if not isinstance(refused := self._refused, list):
            return subject.report.skip("Axolotl's own validation", str(refused))
        known = {finding.key for finding in subject.report.findings if finding.severity == "error"}
        known |= structure.unknown_keys(subject)
        for one in refused:
            key = _key(one["key"])
            if key not in known:
                known.add(key)  # a union's every member complains
                message = one["message"].removeprefix("Value error, ")
                subject.error("axolotl-refuses", key, message, "a file that Axolotl accepts", "change the value")
        if not refused:
            subject.report.fact("axolotl", True, "its own validation accepts the file, a GPU assumed")
        return None


def _key(place: str) -> str:
    """The key in pydantic's place of an error, which goes on with the member of a union that complained."""
    found = re.match(r"[a-z0-9_]+(\.[a-z0-9_]+)*(?=$|\.)", place)
    return found[0] if found else "the file"


def _plain(config: Any) -> Any:
    """Dates and the like as text: JSON has none."""
    return json.loads(json.dumps(yaml.safe_load(yaml.safe_dump(config)), default=str))
