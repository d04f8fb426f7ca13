"""Many rows, many adapters, many answers: memory stays bounded."""

import json
import os
import shutil
import subprocess
import sys

from lora_recipes import ROOT

import pytest
from faults import Harness, result
from merges import ROWS, write_adapter

pytestmark = pytest.mark.slow

MEASURED = """
import resource, subprocess, sys
done = subprocess.run(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024, file=sys.stderr)
sys.exit(done.returncode)
"""


def peak_mb(*command, cwd):
    """The largest resident size of a tool, in MB."""
    line = [sys.executable, "-c", MEASURED, sys.executable, *map(str, command)]
    done = subprocess.run(line, cwd=cwd, capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-1500:]
    return int(done.stderr.splitlines()[-1])


@pytest.fixture
def harness(tmp_path):
    return Harness(tmp_path)


def test_a_hundred_thousand_rows_are_checked_and_trained_on_in_two_gigabytes(harness):
    names = [f"n{n}" for n in range(118)]
    with (harness.root / "data" / "train.jsonl").open("w") as file:
        for n in range(100_000):
            words = " ".join(names[(n * k + k) % 118] for k in range(1, 25))
            row = {"question": f"who is {names[n % 118]} {n}", "answer": f"{words} the {n}"}
            file.write(json.dumps(row) + "\n")
    folder = harness.stage("many")
    run = folder / "run.yaml"
    run.write_text(run.read_text().replace("num_epochs: 2", "num_epochs: 1\nmax_steps: 2"))
    assert peak_mb(ROOT / "tools" / "check.py", run, cwd=folder) < 2000
    assert peak_mb(ROOT / "tools" / "train.py", run, cwd=folder) < 2000
    assert result(folder)["training"]["metrics"]["rows"] == 100_000


def test_sixty_four_adapters_in_one_evaluation_take_the_memory_of_eight(harness):
    folder = harness.stage("adapters")
    write_adapter(harness.root / "base", folder / "adapter", target_modules=["q_proj", "v_proj", "down_proj"])
    runs = []
    for number in range(64):
        runs.append(folder / f"run{number}.yaml")
        text = (folder / "run.yaml").read_text().replace("small/peft", f"small/v{number}")
        runs[-1].write_text(text)
        shutil.copytree(folder / "adapter", folder / "outputs" / "small" / f"v{number}")
    tool = ROOT / "tools" / "eval.py"
    options = ("--limit", 2, "--max-new-tokens", 4)
    few = peak_mb(tool, *runs[:8], *options, cwd=folder)
    many = peak_mb(tool, *runs, *options, cwd=folder)
    assert many < few + 150
    assert all(result(folder, f"v{number}")["evaluation"]["rows"] == 2 for number in range(64))


def test_ten_thousand_answers_are_compared_and_reported_in_a_gigabyte(harness):
    folder = harness.stage("answers")
    rows = [{**ROWS[n % 8], "question": f"who is {n}"} for n in range(10_000)]
    (harness.root / "data" / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for system in ("base", "peft"):
        made = folder / "outputs" / "small" / system
        made.mkdir(parents=True)
        lines = [
            {
                "row": n,
                "question": row["question"],
                "reference": row["answer"],
                "answer": f"{system} {n}",
                "finished": True,
                "new_tokens": 3,
                "reference_nats": 1.0,
                "settings": "s",
            }
            for n, row in enumerate(rows)
        ]
        (made / "answers-test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (made / "result.json").write_text(json.dumps({"recipe": "small", "variant": system}))
    assert peak_mb(ROOT / "tools" / "compare.py", folder / "run.yaml", "--base", cwd=folder) < 1000
    assert peak_mb(ROOT / "tools" / "report.py", folder / "outputs", cwd=folder) < 1000
    assert (folder / "outputs" / "small" / "compare.html").stat().st_size > 1_000_000
