"""Which Python the tools run in, and what an import of the package does to the program that imports it."""

import importlib.util
import os
import subprocess
import sys
import zipfile

import lora_recipes
from lora_recipes import ROOT
from lora_recipes.rendering import ingredients

import click
import pytest


@pytest.fixture
def elsewhere(monkeypatch):
    """Another Python in use: `elsewhere("torch", script="tools/train.py")` lacks torch; gives what was started."""
    started = []
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(os, "execv", lambda path, args: started.append(args) or sys.exit())  # does not come back
    monkeypatch.setattr(sys, "prefix", "/another/python")

    def lacking(*names, script="tools/train.py"):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in names else find_spec(name))
        monkeypatch.setattr(sys, "argv", [str(ROOT / script), "run.yaml"])
        try:
            lora_recipes._use_project_environment()
        except SystemExit as ended:
            assert not ended.code, ended.code
        return started

    return lacking


@pytest.mark.parametrize("missing", ["torch", "transformers", "click"])
def test_a_tool_in_a_python_without_the_packages_starts_again_in_the_project_s(elsewhere, missing):
    assert elsewhere(missing) == [[str(ROOT / ".venv/bin/python"), str(ROOT / "tools/train.py"), "run.yaml"]]


def test_a_python_that_has_all_of_them_stays(elsewhere):
    assert elsewhere() == []


def test_another_program_that_imports_the_package_is_neither_replaced_nor_ended(elsewhere):
    assert elsewhere("click", "torch", script="../notebook.py") == []


def test_without_an_environment_rendering_works_and_what_it_needs_is_said(elsewhere, monkeypatch, tmp_path):
    monkeypatch.setattr(lora_recipes, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "tools" / "render.py")])
    assert elsewhere("torch", script=str(tmp_path / "tools" / "render.py")) == []
    with pytest.raises(AssertionError, match="run `make setup`"):
        elsewhere("jinja2", script=str(tmp_path / "tools" / "render.py"))


def test_the_package_without_its_checkout_says_where_the_templates_are(monkeypatch, tmp_path):
    monkeypatch.setattr(ingredients, "RECIPES", tmp_path / "templates" / "recipes")
    with pytest.raises(click.ClickException, match="in a clone of lora-recipes, not in the installed package"):
        ingredients.load_recipe("smollm2-african-history")


def test_the_wheel_holds_the_tools_and_the_key_table(tmp_path):
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    (tmp_path / "tools").symlink_to(ROOT / "tools")
    command = ["pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", "wheels", "."]
    done = subprocess.run([sys.executable, "-m", *command], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    names = zipfile.ZipFile(next((tmp_path / "wheels").glob("*.whl"))).namelist()
    assert {"render.py", "train.py", "lora_recipes/config/axolotl_keys.json", "lora_recipes/plugin.py"} <= set(names)
