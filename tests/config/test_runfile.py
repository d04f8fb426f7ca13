"""Run files are read strictly, and kept whole beside their outputs."""

import io
import sys
from types import SimpleNamespace

from lora_recipes import ROOT
from lora_recipes.axolotl import command
from lora_recipes.config import runfile, yamlfile
from lora_recipes.rendering import render

import click
import pytest

GOOD = "base_model: x/y\ndatasets:\n  - path: a/b\noutput_dir: outputs/r/v\n"


def load(tmp_path, text):
    path = tmp_path / "run.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return runfile.load(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", ["is empty"]),
        (b"\xff\xfe", ["not UTF-8"]),
        (GOOD + "seed: 1\nseed: 2\n", ["line 6", "seed", "duplicate key"]),
        (GOOD + "learning_rate: 1e-4\n", ["line 5", "learning_rate", "reads 1e-4 as text"]),
        (GOOD + 'learning_rate: "1e-4"\n', ["line 5", "learning_rate", "expected float", "without quotes"]),
        (GOOD + "learning_rte: 1\n", ["line 5", "learning_rte", "did you mean 'learning_rate'"]),
        (GOOD.replace("  - path: a/b", "  - path: a/b\n    tipe: x"), ["line 4", "datasets.0.tipe", "'type'"]),
        (GOOD + "micro_batch_size: two\n", ["line 5", "micro_batch_size", "expected int"]),
        (GOOD + "eval_strategy: no\n", ["line 5", "eval_strategy", "quote the word"]),
        ("base_model: x/y\noutput_dir: o\n", ["datasets", "missing"]),
        ("a: [\n", ["line 2", "invalid YAML"]),
        ("just text\n", ["expected a YAML mapping"]),
    ],
)
def test_a_mistake_is_one_sentence_naming_the_file_the_line_and_the_remedy(tmp_path, text, words):
    with pytest.raises(click.ClickException) as caught:
        load(tmp_path, text)
    assert all(word in caught.value.message for word in ["run.yaml", *words]), caught.value.message


def test_a_missing_run_file_is_wrong_usage():
    with pytest.raises(click.UsageError, match="no run file nowhere.yaml"):
        runfile.load("nowhere.yaml")


def test_the_hash_is_of_the_meaning_not_of_the_comments(tmp_path):
    assert load(tmp_path, GOOD).sha256 == load(tmp_path, "# hello\n" + GOOD).sha256
    assert load(tmp_path, GOOD).sha256 != load(tmp_path, GOOD + "seed: 1\n").sha256


def from_stdin(monkeypatch, text):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: False, buffer=io.BytesIO(text.encode())))


def test_paths_count_from_the_checkout_where_only_it_has_the_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    from_stdin(monkeypatch, render.render("smollm2-african-history", "ds2"))
    run = runfile.load("-")
    assert run.output_dir == ROOT / "outputs" / "smollm2-african-history" / "ds2"


def test_paths_count_from_the_working_directory_as_for_axolotl(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").touch()
    from_stdin(monkeypatch, GOOD.replace("a/b", "rows.jsonl"))
    assert runfile.load("-").output_dir == tmp_path / "outputs" / "r" / "v"


def test_a_run_file_from_stdin_is_kept_beside_its_outputs_with_absolute_paths(tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    text = render.render("smollm2-african-history", "ds2", (f"output_dir={tmp_path}/out",))
    from_stdin(monkeypatch, text)
    path = runfile.load("-").keep()
    kept = yamlfile.load(path.read_text(), "kept").data
    assert path == tmp_path / "out" / "run.yaml"
    assert kept["deepspeed"] == str(ROOT / "deepspeed_configs" / "zero2.json")
    assert kept["datasets"][0]["path"] == str(ROOT / "data" / "african_history")
    assert path.read_text().splitlines()[0] == text.splitlines()[0]


def test_every_local_path_of_a_kept_run_file_is_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("rows", "a.jsonl", "mine.jinja"):
        (tmp_path / name).touch()
    data = "datasets:\n  - path: rows\n    data_files: [a.jsonl, b.jsonl]\n"
    text = GOOD.replace("datasets:\n  - path: a/b\n", data) + "chat_template_jinja: mine.jinja\n"
    kept = runfile.load(load(tmp_path, text).keep())
    assert kept.datasets == [{"path": str(tmp_path / "rows"), "data_files": [str(tmp_path / "a.jsonl"), "b.jsonl"]}]
    assert kept.config["chat_template_jinja"] == str(tmp_path / "mine.jinja")
    template = "{{ messages }}\\n" * 400  # longer than a path can be
    written = load(tmp_path, GOOD + f'chat_template_jinja: "{template}"\n').keep()
    assert runfile.load(written).config["chat_template_jinja"] == template.replace("\\n", "\n")


@pytest.mark.parametrize("trained", ["checkpoint-3", "adapter_model.safetensors"])
def test_another_run_file_over_what_was_trained_is_refused(tmp_path, trained):
    text = GOOD.replace("outputs/r/v", str(tmp_path / "out"))
    load(tmp_path, text).keep()
    (tmp_path / "out" / trained).mkdir()
    load(tmp_path, text).keep()
    with pytest.raises(click.ClickException, match=f"{trained} of another run file; train with --overwrite"):
        load(tmp_path, text + "seed: 2\n").keep()


@pytest.mark.parametrize("source", ["-", "x.yaml"])
def test_axolotl_train_takes_a_path_or_stdin_and_keeps_all_other_arguments(source):
    args = ["train", "--launcher", "torchrun", source, "--learning-rate", "1e-4", "--overwrite", "--", "--nproc=2", "-"]
    call = command.train_call(args)
    assert (call.source, call.settings, call.overwrite) == (source, {"learning_rate": "1e-4"}, True)
    assert call.launched and not command.train_call(["train", source]).launched
    assert not command.train_call(["train", source, "--launcher", "python"]).launched  # trains in this very process
    assert command.train_call(["train", source, "--", "--num_processes=2"]).launched
    args = command.with_path(call.args, call.source, "kept.yaml")
    assert args == ["train", "--launcher", "torchrun", "kept.yaml", "--learning-rate", "1e-4", "--", "--nproc=2", "-"]


@pytest.mark.parametrize(
    "args",
    [
        *(["--version"], [], ["-"], ["preprocess", "x.yaml"], ["train"], ["train", "--help"]),
        *(["train", "x.yaml", "--sweep", "s.yaml"], ["train", "x.yaml", "--cloud", "c.yaml"], ["train", "--", "-"]),
    ],
)
def test_every_other_call_is_axolotl_s_own(args):
    assert command.train_call(args) is None


def test_overwrite_is_ours_and_not_given_on_to_axolotl():
    own, args = command.without_overwrite(["train", "-", "--overwrite", "--", "--overwrite"])
    assert own and args == ["train", "-", "--", "--overwrite"]
    args = ["train", "-", "--", "--overwrite"]
    assert command.without_overwrite(args) == (False, args)


def test_the_kept_run_file_names_the_plugin_that_makes_a_run_survive(tmp_path):
    text = GOOD.replace("outputs/r/v", str(tmp_path / "out"))
    for named, expected in (
        ("", ["lora_recipes.plugin.RunPlugin"]),
        ("plugins: [a.B]\n", ["a.B", "lora_recipes.plugin.RunPlugin"]),
        ("plugins: [lora_recipes.plugin.CpuPlugin]\n", ["lora_recipes.plugin.CpuPlugin"]),
    ):
        given = load(tmp_path, text + named)
        kept = runfile.load(given.keep(command.plugins(given)))
        assert kept.config["plugins"] == expected and command.plugins(kept) == ()


def test_a_plugin_that_cannot_be_imported_stops_the_run(tmp_path, monkeypatch):
    from_stdin(monkeypatch, GOOD.replace("outputs/r/v", str(tmp_path / "out")) + "plugins: [no_such.Plugin]\n")
    with pytest.raises(click.ClickException, match="no_such.Plugin cannot be imported"):
        command.read("-")


@pytest.mark.parametrize("text", ["", "a: [", "seed: 1\nseed: 2\n"])
def test_axolotl_with_bad_stdin_fails_in_one_sentence(text):
    import subprocess

    axolotl = str(ROOT / ".venv" / "bin" / "axolotl")
    done = subprocess.run([axolotl, "train", "-"], input=text, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("Error: stdin") and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("rows", "words"),
    [('{"question": "a", "anser": "b"}\n', "no column 'answer'"), ("", "cannot be read"), (None, "cannot be read")],
)
def test_axolotl_with_bad_data_on_stdin_fails_in_one_sentence_before_it_starts(tmp_path, monkeypatch, rows, words):
    (tmp_path / "rows").mkdir()
    if rows is not None:
        (tmp_path / "rows" / "train.jsonl").write_text(rows)
    settings = (f"datasets.0.path={tmp_path}/rows", f"output_dir={tmp_path}/out")
    from_stdin(monkeypatch, render.render("smollm2-african-history", "lora", settings))
    with pytest.raises(click.ClickException, match=rf"line \d+: datasets.0.* {words}"):
        command.read("-")
    assert not (tmp_path / "out").exists()


def test_a_deepspeed_file_that_is_not_there_stops_the_run(tmp_path, monkeypatch):
    settings = ("deepspeed=nowhere.json", f"output_dir={tmp_path}/out")
    from_stdin(monkeypatch, render.render("smollm2-african-history", "ds2", settings))
    with pytest.raises(click.ClickException, match=r"deepspeed: there is no file nowhere.json"):
        command.read("-")


def test_a_folder_that_cannot_be_written_fails_before_the_work(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(click.ClickException, match="cannot be written"):
        load(tmp_path, GOOD.replace("outputs/r/v", str(tmp_path / "file" / "out"))).keep()


def test_the_tools_are_sub_commands_of_axolotl_where_the_name_is_free():
    from importlib.metadata import entry_points

    found = {point.name: point.load() for point in entry_points(group="axolotl.cli_commands")}
    assert {"render", "merge", "eval", "benchmark", "compare", "report"} <= set(found)
    assert all(isinstance(command, click.Command) for command in found.values())


@pytest.mark.parametrize(
    ("there", "anchored"),
    [((), True), (("data/african_history",), False), (("tools/lora_recipes",), False)],
    ids=["elsewhere", "with rows of its own", "another checkout"],
)
def test_paths_count_from_the_checkout_only_where_the_working_directory_has_none_of_them(
    tmp_path, monkeypatch, there, anchored
):
    monkeypatch.chdir(tmp_path)
    for name in there:
        (tmp_path / name).mkdir(parents=True)
    run = load(tmp_path, GOOD.replace("a/b", "data/african_history") + "deepspeed: deepspeed_configs/zero2.json\n")
    assert run.anchor == (ROOT if anchored else tmp_path)
