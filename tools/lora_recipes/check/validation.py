"""What Axolotl itself says of a run file: its types, its validation, its prompts; asked of a second process."""

import importlib.util
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from lora_recipes.check import inputs, loading, readings, structure
from lora_recipes.check.checked_run import CheckedRun
from lora_recipes.check.parts import Part
from lora_recipes.config import keys

import yaml


class Axolotl:
    """The worker process: it imports Axolotl for ten seconds while the caller reads rows, then answers one job each."""

    def __init__(self) -> None:
        self.installed = importlib.util.find_spec("axolotl") is not None
        self._process: subprocess.Popen[str] | None = None
        self._said = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        """What Axolotl prints."""

    def __enter__(self) -> "Axolotl":
        return self

    def __exit__(self, *_: object) -> None:
        if self._process:
            self._process.kill()
            self._process.communicate()
        self._said.close()

    def start(self) -> None:
        """Let the import begin, where Axolotl is installed and no process is there."""
        if self.installed and (self._process is None or self._process.poll() is not None):
            self._process = subprocess.Popen(
                [sys.executable, "-m", "lora_recipes.check.axolotl_worker"],
                cwd=Path(__file__).resolve().parents[2],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._said,
                text=True,
            )

    def ask(self, job: dict[str, Any]) -> dict[str, Any]:
        """The answer to one job, as axolotl_worker.answer has it. Raises RuntimeError when Axolotl failed at it."""
        self.start()
        assert self._process and self._process.stdin and self._process.stdout
        try:
            self._process.stdin.write(json.dumps(job) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        answer = dict(json.loads(line)) if line else {"failed": self._death()}
        if "failed" in answer:
            raise RuntimeError(answer["failed"])
        return answer

    def _death(self) -> str:
        assert self._process
        code = self._process.wait()
        self._said.seek(0)
        last = next((line.strip() for line in reversed(self._said.readlines()) if line.strip()), "")
        how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
        return f"its process {how} without an answer{f'; it said last: {last[:200]}' if last else ''}"


def check(checked: CheckedRun, training: list[Part], evaluation: list[Part], axolotl: Axolotl) -> None:
    """Report what Axolotl refuses or reads otherwise, and tokenize the training rows whose prompt Axolotl defines."""
    if not axolotl.installed:
        return checked.report.skip("Axolotl's own validation, types and prompts", "Axolotl is not installed here")
    parts = [part for part in training if _is_for_axolotl(checked, part)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            written = readings.jobs(checked, [*training, *evaluation], folder)
            answer = axolotl.ask({**_job(checked, parts, folder), "written": _plain(written)})
        except RuntimeError as error:
            return checked.error(
                "check-failed",
                "the file",
                f"Axolotl could not be asked: {error}",
                "an answer of Axolotl's",
                "try again with more memory free; if `axolotl --help` fails too, run `make setup`",
            )
        _types(checked, answer["types"])
        for part in parts:
            _take_examples(checked, part, folder, answer["problems"])
        readings.report(checked, [*training, *evaluation], answer["texts"], folder)
    _refused(checked, answer["refused"])
    if not answer["refused"]:
        checked.report.fact("axolotl", True, "its own validation accepts the file, a GPU assumed")
        loading.report(checked, answer["load"])
    return None


def _is_for_axolotl(checked: CheckedRun, part: Part) -> bool:
    """Whether the rows have one of Axolotl's own types, which no code beside the run file defines."""
    kind = part.entry.get("type")
    if part.format or checked.tokenizer is None or not isinstance(kind, str):
        return False
    beside = checked.given.anchor / kind.partition(".")[0].partition(":")[0]
    if "." not in kind or not (beside.is_dir() or beside.with_suffix(".py").is_file()):
        return True
    checked.report.skip(f"{part.key} prompt", f"its type {kind} is code beside the file: not run here")
    return False


def _job(checked: CheckedRun, parts: list[Part], folder: Path) -> dict[str, Any]:
    """What axolotl_worker.answer is asked, with the tokenizer and the rows of the parts as files in the folder."""
    model = checked.run.config.get("base_model")
    if parts:
        checked.tokenizer.save_pretrained(folder / "tokenizer")
    jobs = []
    for part in parts:
        local = readings.split_of(part) if readings.is_local(checked, part) else None
        blank = (f"{part.key}.blank", part.blank[0], None)
        for name, rows, split in ((part.key, part.rows, local), blank):
            text = "".join(json.dumps(row, default=str) + "\n" for row in rows)
            (folder / name).write_text(text, encoding="utf-8")
            jobs.append({"entry": _plain(part.entry), "rows": str(folder / name), "split": split})
    return {
        "at": str(checked.given.anchor),
        "config": _plain(checked.config),
        "model": checked.run.model() if isinstance(model, str) and model else None,
        "types": [kind for _, kind in inputs.types(checked)],
        "tokenizer": str(folder / "tokenizer"),
        "parts": jobs,
    }


def _plain(config: Any) -> Any:
    """Dates and the like as text: JSON has none."""
    return json.loads(json.dumps(yaml.safe_load(yaml.safe_dump(config)), default=str))


def _types(checked: CheckedRun, unknown: dict[str, str]) -> None:
    """Types that Axolotl cannot resolve, with the most similar of its own."""
    rl = checked.config.get("rl")
    for key, kind in inputs.types(checked):
        if kind not in unknown:
            continue
        module = kind.rpartition(".")[0]
        if rl in ("grpo", "gdpo") and module:
            checked.report.skip("data-set type", f"{kind}: the module {module}, yours to write, is not here")
            continue
        checked.error(
            "dataset-type",
            key,
            f"Axolotl has no type {kind!r}{f' for rl: {rl}' if rl else ''}",
            "a type of Axolotl, an importable module, or a mapping with field_instruction and field_output",
            f"did you mean {unknown[kind]!r}?"
            if unknown[kind]
            else "write chat_template for rows of messages, or a mapping for rows of columns",
        )


def _take_examples(checked: CheckedRun, part: Part, folder: Path, problems: dict[str, str]) -> None:
    """The tokenized rows of one data set, or why Axolotl has none."""
    path = folder / part.key
    problem = problems.get(str(path))
    if problem is None:
        part.examples = _examples(path)
        part.blank_examples = [] if f"{path}.blank" in problems else _examples(Path(f"{path}.blank"))
    elif part.made_up or any(one.key == f"{part.key}.type" for one in checked.report.findings):
        checked.report.skip(f"{part.key} prompt", f"Axolotl cannot tokenize the rows ({problem})")
    else:
        checked.error(
            "data",
            f"{part.key}.type",
            f"Axolotl cannot tokenize the rows with this type ({problem})",
            "rows as the type expects them",
            "take the type that fits the rows, or change their columns",
        )


def _examples(path: Path) -> list[dict[str, list[int]]]:
    lines = Path(f"{path}.tokens").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def _refused(checked: CheckedRun, refused: list[dict[str, Any]]) -> None:
    """Each key that Axolotl's validation refuses, once; what the key table has found already is not said again."""
    known = {finding.key for finding in checked.report.findings if finding.severity == "error"}
    known |= structure.unknown_keys(checked)
    for one in refused:
        key = _key(one["key"])
        if key in known:
            continue
        known.add(key)  # a union's every member complains
        near = keys.nearest(one["value"], re.findall(r"'([^']*)'", one["values"])).removeprefix(", ")
        found = f"{one['value']!r} is none of its values" if one["values"] else one["message"]
        expected = one["values"] or "a file that Axolotl accepts"
        found = found.removeprefix("Value error, ")
        checked.error("axolotl-refuses", key, found, expected, near or "change the value")


def _key(place: str) -> str:
    """The key in pydantic's place of an error, which goes on with the member of a union that complained."""
    found = re.match(r"[a-z0-9_]+(\.[a-z0-9_]+)*(?=$|\.)", place)
    return found[0] if found else "the file"
