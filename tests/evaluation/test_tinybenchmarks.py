"""tinyBenchmarks: what an estimate needs, and the reason where it is missing."""

import hashlib
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lora_recipes.config import runfile
from lora_recipes.evaluation import tinybenchmarks

import benchmark
import pytest
import yaml
from click.testing import CliRunner


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for tinyBenchmarks, which no index has: `evaluate` as its own, the mean as its estimate."""
    folder = tmp_path / "packages"
    folder.mkdir()
    (folder / "tinyBenchmarks.py").write_text(
        "import pickle\n"
        "def evaluate(items, benchmark):\n"
        "    with open('tinyBenchmarks.pkl', 'rb') as file:\n"
        "        weights = pickle.load(file)[benchmark]['weights']\n"
        "    return {benchmark: {'gpirt': float((items * weights).sum())}}\n"
    )
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(tinybenchmarks, "FOLDER", tmp_path / "parameters")
    (tmp_path / "parameters").mkdir()
    return tmp_path / "parameters" / "tinyBenchmarks.pkl"


def reason(limit: int | None = None) -> str:
    with pytest.raises(tinybenchmarks.OutOfReach) as caught:
        tinybenchmarks.require(limit)
    return str(caught.value)


def trust(package: Path, content: bytes) -> None:
    package.write_bytes(content)
    package.with_name(f"{package.name}.sha256").write_text(f"{hashlib.sha256(content).hexdigest()}  {package.name}\n")


def parameters() -> dict[str, Any]:
    import numpy as np

    return {name: {"weights": np.full(8, 1 / 8)} for name in ("mmlu", "truthfulqa")}


def test_without_the_package_the_reason_says_how_to_get_it() -> None:
    assert "pip install git+https://" in reason()


def test_a_limit_would_falsify_the_estimate(package: Path) -> None:
    assert "leave out --limit" in reason(limit=8)


def test_without_parameters_nothing_is_downloaded(package: Path) -> None:
    assert "parameters of tinyBenchmarks are missing" in reason()
    assert list(package.parent.iterdir()) == []


def test_parameters_whose_hash_nobody_wrote_down_are_refused_unread(package: Path) -> None:
    package.write_bytes(b"anything")
    written = package.with_name("tinyBenchmarks.pkl.sha256")
    assert hashlib.sha256(b"anything").hexdigest() in reason() and "is missing" in reason()
    written.write_text("")
    assert "is missing" in reason()
    written.write_text(f"{hashlib.sha256(b'another').hexdigest()}  tinyBenchmarks.pkl\n")
    assert f"says {hashlib.sha256(b'another').hexdigest()[:12]}" in reason()


def test_parameters_of_the_hash_that_is_written_down_are_taken(package: Path) -> None:
    trust(package, b"anything")
    assert tinybenchmarks.require(None) == hashlib.sha256(b"anything").hexdigest()


@pytest.mark.slow
def test_tiny_mmlu_is_an_estimate_without_an_interval_made_where_the_parameters_are(
    package: Path, trained: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    trust(package, pickle.dumps(parameters()))
    copy = package.parent / "tinyBenchmarks" / "tinyMMLU"  # lm-eval names the data set so: a folder, or on the Hub
    copy.mkdir(parents=True)
    rows = [{"input_formatted": f"Question {n}\nAnswer:", "answer": n % 4} for n in range(8)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (copy / "test.jsonl").write_text(text)
    (copy / "dev.jsonl").write_text(text)
    files = [{"split": part, "path": f"{part}.jsonl"} for part in ("test", "dev")]
    head = yaml.safe_dump({"configs": [{"config_name": "all", "data_files": files}]})
    (copy / "README.md").write_text(f"---\n{head}---\n")
    monkeypatch.chdir(package.parent)
    run = trained("lora")
    monkeypatch.chdir(package.parent)
    done = CliRunner().invoke(benchmark.main, [str(run), "--tasks", "tinyMMLU"])
    assert done.exit_code == 0, done.output
    found = json.loads((runfile.load(run).output_dir / "result.json").read_text())["benchmark"]
    score = found["metrics"]["tinyMMLU_acc_norm"]
    assert 0 <= score["mean"] <= 1 and (score["mean"] * 8).is_integer()
    assert (score["low"], score["stderr"], score["n"]) == (None, None, 8)
    assert found["outcomes"] == {"tinyMMLU": {}}
