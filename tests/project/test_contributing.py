"""The worked examples of CONTRIBUTING.md, followed in a copy of the checkout."""

import os
import re
import shutil
import subprocess
import sys

from lora_recipes import ROOT

import pytest

TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
SECTIONS = {
    title: body
    for title, body in re.findall(r"^## (A .*?)\n(.*?)(?=^## |\Z)", TEXT, re.S | re.M)
    if "\n```sh\n" in body
}
EXAMPLE = re.compile(r"^`([^`]+)`(?:, before `([^`]+)`)?:\n\n```\w+\n(.*?)```", re.S | re.M)


@pytest.fixture
def copy(tmp_path):
    """The files of the checkout, without what a run makes."""
    skipped = shutil.ignore_patterns(".git", ".venv", ".*cache*", "outputs", "__pycache__", ".hypothesis", "*.egg-info")
    return shutil.copytree(ROOT, tmp_path / "copy", ignore=skipped, symlinks=True)


def follow(copy, body):
    """Write the section's files as it says, run its commands; gives what they print."""
    for path, before, code in EXAMPLE.findall(body):
        text = (copy / path).read_text(encoding="utf-8") if before else ""
        assert text.count(before) == 1 if before else not (copy / path).exists()
        blank = "\n\n" * before.startswith("def ")
        written = text.replace(before, f"{code}{blank}{before}") if before else code
        (copy / path).write_text(written, encoding="utf-8")
    printed = []
    for line in re.search(r"```sh\n(.*?)```", body, re.S)[1].splitlines():
        done = run(copy, *line.split())
        assert done.returncode == 0, f"{line}\n{done.stderr}"
        printed.append(done.stdout)
    return printed


def run(copy, *command):
    environment = os.environ | {"PYTHONPATH": f"{copy}/tools"}
    return subprocess.run([sys.executable, *command], cwd=copy, env=environment, capture_output=True, text=True)


def require_tests(copy, *which):
    """The copy's own tests that go over all recipes and variants pass: no list of them has to be kept up."""
    done = run(copy, "-m", "pytest", "-p", "no:xdist", "-q", "-m", "not slow", *which)
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout[-3000:]


def test_every_promised_example_is_there():
    assert list(SECTIONS) == [
        "A recipe: one file",
        "A variant: its template, and the keys that it changes",
        "A contender of the training benchmark: one class",
    ]


@pytest.mark.slow
def test_a_new_recipe_is_one_file(copy):
    rendered, *_ = follow(copy, SECTIONS["A recipe: one file"])
    assert "adapter: qlora" in rendered and "# a quarter of the parameters" in rendered
    assert sorted(path.stem for path in (copy / "recipes" / "smollm2-short-answers").iterdir()) == ["lora", "peft"]
    assert "smollm2-short-answers" in (copy / "README.md").read_text(encoding="utf-8")
    assert [run(copy, script, "--check").returncode for script in ("tools/render.py", "docs/generate.py")] == [0, 0]
    require_tests(copy, "tests/rendering", "tests/report/test_published.py", "tests/training/test_train.py")


@pytest.mark.slow
def test_a_new_variant_is_its_template_and_its_keys(copy):
    difference, joined, *_ = follow(copy, SECTIONS["A variant: its template, and the keys that it changes"])
    changed = [line for line in difference.splitlines() if re.match(r"[-+]lora_", line)]
    assert changed == ["-lora_r: 16", "-lora_alpha: 32", "+lora_r: 64", "+lora_alpha: 128"]
    assert "lora_r: 64" in joined and "zero2.json" in joined
    assert (copy / "recipes" / "qwen3-african-history" / "wide.yaml").is_file()
    assert run(copy, "tools/render.py", "--check").returncode == 0
    require_tests(copy, "tests/rendering")


def test_a_new_contender_is_one_class(copy):
    (text,) = follow(copy, SECTIONS["A contender of the training benchmark: one class"])
    assert "trl-shuffled" in text
