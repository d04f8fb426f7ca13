"""The multiple-choice tasks of tools/benchmark.py: where their questions come from, and which can run here.

african_history_mc lies in data/. mmlu_dev are the development questions of MMLU (Hendrycks et al.,
2021; MIT), which lm-eval carries inside its few-shot prompts; they are read out of the installed
package and never copied into the checkout. tinyMMLU and tinyTruthfulQA are lm-eval's own.
"""

import hashlib
import importlib.util
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_recipes import ROOT
from lora_recipes.config import keys
from lora_recipes.evaluation import tinybenchmarks
from lora_recipes.support import files

import click
import yaml

NAMES = ("african_history_mc", "mmlu_dev", *tinybenchmarks.DATASETS)

_OURS = ROOT / "data" / "african_history_mc"
_MMLU_DEV = ROOT / ".cache" / "mmlu_dev.jsonl"
_MMLU_QUESTION = re.compile(
    r"(.+?)\s\(A\) (.+?)\s\(B\) (.+?)\s\(C\) (.+?)\s\(D\) (.+?)"
    r"\nA: Let's think step by step\..*The answer is \(([A-D])\)\.?\s*",
    re.DOTALL,
)


@dataclass(frozen=True)
class Task:
    """A task that can run here."""

    name: str
    sha256: str
    """Of its questions and its prompt."""
    definition: dict[str, Any] | None = None
    """lm-eval's configuration of it; None for a task that lm-eval has itself."""

    @property
    def is_estimate(self) -> bool:
        """Its score is an estimate over all of its questions, not the mean of their outcomes."""
        return self.definition is None

    @property
    def metrics(self) -> tuple[str, ...]:
        return (tinybenchmarks.METRICS[self.name],) if self.is_estimate else ("acc", "acc_norm")

    @property
    def folder(self) -> Path:
        """The working directory in which it is scored."""
        return tinybenchmarks.plain_folder() if self.is_estimate else Path.cwd()

    def load(self) -> dict[str, Any]:
        """Name -> lm-eval's task object, with its questions."""
        if self.definition is None:
            return tinybenchmarks.load(self.name)
        from lm_eval.api.task import ConfigurableTask

        return {self.name: ConfigurableTask(config=dict(self.definition))}


def chosen(text: str) -> list[str]:
    """The names in a comma-separated list. Raises click.UsageError for an unknown one."""
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    for name in names or [""]:
        if name not in NAMES:
            raise click.UsageError(
                f"--tasks: no task {name!r}{keys.nearest(name, NAMES) or '.'} There are {', '.join(NAMES)}."
            )
    return names


def prepare(names: list[str], limit: int | None) -> tuple[list[Task], dict[str, str]]:
    """The tasks that can run here, and what each of the others lacks."""
    ready, skipped = [], {}
    for name in names:
        try:
            if name in tinybenchmarks.DATASETS:
                ready.append(Task(name, tinybenchmarks.require(name, limit)))
            else:
                ready.append(_cloze(name, _OURS / "test.jsonl" if name == NAMES[0] else mmlu_dev()))
        except tinybenchmarks.OutOfReach as reason:
            skipped[name] = str(reason)
    return ready, skipped


def _cloze(name: str, questions: Path) -> Task:
    """Our task file on some questions, by their absolute path.

    MMLU too is asked without lettered options: shown letters, SmolLM2-135M is right in 24 % and by
    the likelihood of the options in 29 %; on our questions in 25 % (one letter throughout) and 49 %.
    """
    definition = yaml.safe_load(files.read_text(_OURS / "african_history_mc.yaml")) | {"task": name}
    del definition["dataset_kwargs"]
    asked = json.dumps(definition, sort_keys=True).encode() + questions.read_bytes()
    definition["dataset_kwargs"] = {"data_files": {"test": str(questions)}}
    return Task(name, hashlib.sha256(asked).hexdigest(), definition)


def mmlu_dev() -> Path:
    """MMLU's development questions as JSON lines: question, choices, answer (0-3), subject.

    281 of lm-eval's 282; the other has five options. A few carry that file's own defects, such as a
    lost backslash. Raises OutOfReach when this lm-eval has no such file.
    """
    package = importlib.util.find_spec("lm_eval")
    if package is None or package.origin is None:
        raise click.ClickException("lm-eval is not installed here; run `make setup`.")
    source = Path(package.origin).parent / "tasks" / "mmlu" / "flan_cot_fewshot" / "_cot_prompts.json"
    if not source.is_file():
        raise tinybenchmarks.OutOfReach(f"this lm-eval has no {source.name}; install lm-eval 0.4.11")
    lines = []
    for subject, prompt in json.loads(source.read_text(encoding="utf-8")).items():
        for text in prompt.split("\n\nQ: ")[1:]:
            if found := _MMLU_QUESTION.fullmatch(text):
                question, *choices, letter = found.groups()
                row = {"question": question, "choices": choices, "answer": "ABCD".index(letter), "subject": subject}
                lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    files.write_text(_MMLU_DEV, "".join(lines))
    return _MMLU_DEV
