"""The tasks of tools/benchmark.py: two that need nothing but this checkout and lm-eval, and all that lm-eval knows.

african_history_mc lies in data/. mmlu_dev are the development questions of MMLU (Hendrycks et al.,
2021; MIT), which lm-eval carries inside its few-shot prompts; they are read out of the installed
package and never copied into the checkout.
"""

import functools
import hashlib
import importlib.util
import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_recipes import ROOT
from lora_recipes.config import keys
from lora_recipes.evaluation import tinybenchmarks
from lora_recipes.evaluation.tinybenchmarks import OutOfReach
from lora_recipes.support import filenames, files, libraries, terminal

import click
import yaml

OFFLINE = ("african_history_mc", "mmlu_dev")
NAMES = (*OFFLINE, "tinyMMLU", "tinyTruthfulQA")
"""Those that are run unless others are named."""

_OURS = ROOT / "data" / "african_history_mc"
_MMLU_DEV = ROOT / ".cache" / "mmlu_dev.jsonl"
_MMLU_QUESTION = re.compile(
    r"(.+?)\s\(A\) (.+?)\s\(B\) (.+?)\s\(C\) (.+?)\s\(D\) (.+?)"
    r"\nA: Let's think step by step\..*The answer is \(([A-D])\)\.?\s*",
    re.DOTALL,
)


@dataclass(frozen=True, eq=False)
class Task:
    """A task that can run here."""

    name: str
    sha256: str
    """Of its questions and its prompt."""
    definition: Any
    """lm-eval's configuration of it, or its task object."""
    folder: Path
    """The working directory in which it is scored."""

    @functools.cached_property
    def loaded(self) -> Any:
        """lm-eval's task object, with its questions."""
        from lm_eval.api.task import ConfigurableTask

        given = self.definition
        return ConfigurableTask(config=dict(given)) if isinstance(given, dict) else given


def chosen(text: str, include_path: Path | None) -> tuple[list[str], Any]:
    """The names in a comma-separated list, and lm-eval's TaskManager that knows those which are not OFFLINE.

    Raises click.UsageError for an unknown name and for task files that cannot be read.
    """
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise click.UsageError(f"--tasks: no task is named; give some, as {','.join(OFFLINE)}.")
    others = [name for name in names if name not in OFFLINE]
    if not others:
        return names, None
    manager = _manager(others, include_path)
    for name in others:
        if name not in manager.all_tasks:
            near = keys.nearest(name, [*OFFLINE, *manager.all_tasks]) or "."
            raise click.UsageError(
                f"--tasks: no task {name!r}{near} `lm_eval ls tasks` lists those of lm-eval; your own need "
                "--include-path."
            )
    return names, manager


def _manager(names: Sequence[str], include_path: Path | None) -> Any:
    """All of lm-eval's 14,000 tasks are indexed, for some seconds, only where one is named that is not of a few."""
    from lm_eval.tasks import TaskManager

    folders = [str(_lm_eval_tasks() / tinybenchmarks.TASKS), *([str(include_path)] if include_path else [])]
    try:
        manager = TaskManager(include_path=folders, include_defaults=False)
        return manager if set(names) <= set(manager.all_tasks) else TaskManager(include_path=folders)
    except Exception as error:  # of YAML, of files and of lm-eval
        raise click.UsageError(f"--include-path {include_path}: {libraries.reason(error)}") from None


def prepare(names: list[str], manager: Any, limit: int | None) -> tuple[list[Task], dict[str, str]]:
    """The tasks that can run here, and what each of the others lacks; a group or a tag stands for its tasks."""
    ready, skipped = [], {}
    for name in names:
        try:
            ready += [_cloze(name)] if name in OFFLINE else _of_lm_eval(name, manager, limit)
        except OutOfReach as reason:
            skipped[name] = str(reason)
    return ready, skipped


def _of_lm_eval(name: str, manager: Any, limit: int | None) -> list[Task]:
    from lm_eval.evaluator_utils import get_task_list

    parameters, folder = "", Path.cwd()
    if Path(str(manager.task_index[name]["yaml_path"])).parent.name == tinybenchmarks.TASKS:
        parameters, folder = tinybenchmarks.require(limit), tinybenchmarks.FOLDER
    random.seed(0)  # as lm-eval does: some tasks shuffle their options
    try:
        found = get_task_list(manager.load_task_or_group([name]))
        if unsafe := [one.task_name for one in found if not filenames.is_safe(one.task_name)]:
            raise OutOfReach(f"{terminal.shown(unsafe[0])} becomes part of a file's name: {filenames.EXPECTED}")
        return [Task(one.task_name, _digest(one.task, parameters), one.task, folder) for one in found]
    except OutOfReach:
        raise
    except Exception as error:  # datasets, the Hub's client and the task's own code raise all sorts
        raise OutOfReach(f"it cannot be loaded ({libraries.reason(error)})") from None


def _digest(task: Any, more: str) -> str:
    """A hash of a task's configuration and its questions. Raises OutOfReach for one that cannot be asked here."""
    if getattr(task, "UNSAFE_CODE", False):
        raise OutOfReach("it runs the code that a model writes, for which lm-eval's own command asks you first")
    if getattr(task, "MULTIMODAL", False):
        raise OutOfReach("its questions hold more than text")
    if task.get_config("num_fewshot") is None:
        task.set_config("num_fewshot", 0)
    shown = list(task.fewshot_docs()) if task.get_config("num_fewshot") else []
    told = json.dumps([task.dump_config(), list(task.eval_docs), shown, more], default=str, sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()


def _cloze(name: str) -> Task:
    """Our task file on some questions, by their absolute path.

    MMLU too is asked without lettered options: shown letters, SmolLM2-135M is right in 24 % and by
    the likelihood of the options in 29 %; on our questions in 25 % (one letter throughout) and 49 %.
    """
    questions = _OURS / "test.jsonl" if name == OFFLINE[0] else mmlu_dev()
    definition = yaml.safe_load(files.read_text(_OURS / "african_history_mc.yaml")) | {"task": name}
    del definition["dataset_kwargs"]
    asked = json.dumps(definition, sort_keys=True).encode() + questions.read_bytes()
    definition["dataset_kwargs"] = {"data_files": {"test": str(questions)}}
    return Task(name, hashlib.sha256(asked).hexdigest(), definition, Path.cwd())


def _lm_eval_tasks() -> Path:
    """The folder of lm-eval's tasks."""
    package = importlib.util.find_spec("lm_eval")
    if package is None or package.origin is None:
        raise click.ClickException("lm-eval is not installed here; run `make setup`.")
    return Path(package.origin).parent / "tasks"


def mmlu_dev() -> Path:
    """MMLU's development questions as JSON lines: question, choices, answer (0-3), subject.

    281 of lm-eval's 282; the other has five options. A few carry that file's own defects, such as a
    lost backslash. Raises OutOfReach when this lm-eval has no such file.
    """
    source = _lm_eval_tasks() / "mmlu" / "flan_cot_fewshot" / "_cot_prompts.json"
    if not source.is_file():
        raise OutOfReach(f"this lm-eval has no {source.name}; install lm-eval 0.4.11")
    lines = []
    for subject, prompt in json.loads(source.read_text(encoding="utf-8")).items():
        for text in prompt.split("\n\nQ: ")[1:]:
            if found := _MMLU_QUESTION.fullmatch(text):
                question, *choices, letter = found.groups()
                row = {"question": question, "choices": choices, "answer": "ABCD".index(letter), "subject": subject}
                lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    files.write_text(_MMLU_DEV, "".join(lines))
    return _MMLU_DEV
