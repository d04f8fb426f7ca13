"""A metric is one file, as CONTRIBUTING.md shows: found, scored, in the section and in the tables."""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lora_recipes import ROOT
from lora_recipes.evaluation import metrics, scorecards
from lora_recipes.evaluation.metrics import Answers, bertscore, cross_entropy
from lora_recipes.report import recipe_tables
from lora_recipes.results.systems import System

import eval as eval_tool
import pytest

CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


@pytest.fixture
def exact_match(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (code,) = re.findall(r"metrics/exact_match.py`:\n\n```python\n(.*?)```", CONTRIBUTING, re.DOTALL)
    (tmp_path / "exact_match.py").write_text(code)
    monkeypatch.setattr(metrics, "__path__", [*metrics.__path__, str(tmp_path)])
    metrics.modules.cache_clear()
    yield
    metrics.modules.cache_clear()


def evaluated(name: str, texts: list[str]) -> Any:
    """An evaluation of two questions with its answers."""
    questions = [SimpleNamespace(row=row, question="q", reference="r", reference_ids=[1, 2]) for row in range(2)]
    run: Any = SimpleNamespace(model=lambda: "the same for both")
    system = System("recipe", name, Path(f"recipe/{name}/result.json"), run, None if name == "base" else Path("a"))
    lines = {
        row: {"answer": text, "reference": "r", "reference_nats": 3.0, "finished": True, "new_tokens": 4}
        for row, text in enumerate(texts)
    }
    return SimpleNamespace(system=system, questions=questions, scores={}, answers=lines)


def test_the_metrics_are_bertscore_and_cross_entropy_in_the_order_of_the_tables() -> None:
    assert metrics.modules() == (bertscore, cross_entropy)
    names = ["bertscore_f1", "bertscore_precision", "bertscore_recall", "cross_entropy", "perplexity"]
    assert list(metrics.titles()) == names


def test_cross_entropy_is_a_mean_over_tokens_and_perplexity_its_exponential() -> None:
    answers = Answers(["a", "b"], ["a", "b"], reference_nats=[20.0, 120.0], reference_tokens=[10, 30])
    scores = cross_entropy.score(answers)
    assert scores == {"cross_entropy": [2.0, 4.0], "reference_tokens": [10.0, 30.0]}
    found = scorecards._means(cross_entropy, scores, answers)
    assert found["cross_entropy"]["mean"] == pytest.approx(3.5)
    assert found["perplexity"] == {
        key: pytest.approx(math.exp(value)) if key != "n" else 2 for key, value in found["cross_entropy"].items()
    }


def test_a_module_more_is_a_metric_more_in_sections_differences_and_tables(
    exact_match: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bertscore, "score", lambda answers: {"precision": [1, 1], "recall": [1, 1], "f1": [1, 1]})
    monkeypatch.setattr(scorecards, "model_identity", str)
    monkeypatch.setattr(bertscore, "summary", lambda answers, means: {"cut_texts": 0})
    base, lora = evaluated("base", ["r", "x"]), evaluated("lora", ["r", "r"])
    found = [scorecards._scored(one, None) for one in (base, lora)]
    assert [one["exact_match"]["mean"] for one in found] == [0.5, 1.0]
    differences = scorecards._differences(lora, [base, lora])["base"]
    assert (differences["metric"], differences["mean"], differences["exact_match"]["mean"]) == ("bertscore_f1", 0, 0.5)
    sections = [{"rows": 2, "metrics": one, "differences": {}} for one in found]
    header, first, *_ = eval_tool._table(["base", "lora"], sections).splitlines()
    assert header.split()[-2:] == ["exact", "match"] and "0.5000" in first
    lora.system.result["evaluation"] = {"metrics": found[1], "differences": {"base": differences}}
    tables = {table["title"]: table for table in recipe_tables.recipe_section("recipe", [lora.system])["tables"]}
    assert tables["Exact match"]["note"] == "share of the answers, higher is better"
    assert tables["Exact match"]["rows"][0]["cells"][1].startswith("+0.5000")
