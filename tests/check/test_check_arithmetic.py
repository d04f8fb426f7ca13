"""Steps, epochs and warm-up are counted as the trainer counts them, and DeepSpeed is held against them."""

import json

from lora_recipes import ROOT
from lora_recipes.check import arithmetic
from lora_recipes.check import deepspeed as ds
from lora_recipes.check.checked_run import CheckedRun
from lora_recipes.support import processes

import pytest

BATCH = "micro_batch_size: 2\ngradient_accumulation_steps: 4\n"


@pytest.fixture
def checked(tmp_path):
    """Check a text: `checked(text, rows, tokens, processes=2)`."""

    def make(text, rows=None, tokens=None, processes=1, trainable=None):
        (tmp_path / "run.yaml").write_text(text, encoding="utf-8")
        subject = CheckedRun(tmp_path / "run.yaml", processes=processes)
        if trainable:
            subject.report.facts["target_modules"] = {"trainable": trainable}
        arithmetic.check(subject, rows, tokens)
        return subject.report

    return make


@pytest.fixture
def deepspeed(checked):
    """What is said to DeepSpeed settings, given inline as JSON, which is YAML."""

    def find(settings, text=BATCH, **options):
        report = checked(f"{text}deepspeed: {json.dumps(settings)}\n", **options)
        return [(one.severity, one.check, one.found) for one in report.findings]

    return find


@pytest.mark.parametrize(
    ("text", "rows", "processes", "line"),
    [
        ("num_epochs: 3\n", 2120, 1, "global batch 8 (2 x 4 x 1 process), 265 steps an epoch, 795 in 3 epochs"),
        ("num_epochs: 3\n", 2121, 1, "global batch 8 (2 x 4 x 1 process), 266 steps an epoch, 798 in 3 epochs"),
        ("", 2120, 2, "global batch 16 (2 x 4 x 2 processes), 133 steps an epoch, 133 in 1 epoch"),
        ("num_epochs: 1.5\n", 80, 1, "global batch 8 (2 x 4 x 1 process), 10 steps an epoch, 15 in 1.5 epochs"),
        ("max_steps: 25\n", 80, 1, "global batch 8 (2 x 4 x 1 process), 10 steps an epoch, 25 steps are 2.5 epochs"),
    ],
)
def test_steps_and_epochs_are_counted_as_the_trainer_counts_them(checked, text, rows, processes, line):
    report = checked(BATCH + text, rows, processes=processes)
    assert report.lines[0] == ("batch", line)
    assert report.facts["batch"]["steps_per_epoch"] == int(line.split(", ")[1].split()[0])


def test_packed_rows_are_counted_in_sequences_and_said_to_be_about(checked):
    report = checked(f"{BATCH}sample_packing: true\nsequence_len: 2048\nmax_steps: 30\n", 1000, 8 * 10 * 2048)
    assert "about 10 steps an epoch, 30 steps are about 3 epochs" in report.lines[0][1]
    assert report.facts["batch"]["estimated"] is True


def test_without_rows_the_global_batch_is_said_and_the_rest_is_not_checked(checked):
    report = checked(BATCH)
    assert report.lines == [("batch", "global batch 8 (2 x 4 x 1 process)")]
    assert [check for check, _ in report.unchecked] == ["steps and epochs"]
    assert checked(f"{BATCH}max_steps: 650\n").lines[0][1].endswith("650 steps")


@pytest.mark.parametrize(
    ("text", "warmup"),
    [("warmup_steps: 20\n", 20), ("warmup_ratio: 0.1\n", 10), ("", 3), ("warmup_ratio: 0.01\n", 2)],
)
def test_warm_up_is_counted_as_axolotl_counts_it(checked, text, warmup):
    report = checked(f"max_steps: 100\n{text}", 100)
    assert report.facts["batch"]["warmup_steps"] == warmup
    assert report.findings == []


def test_a_warm_up_of_more_than_a_fifth_is_a_warning(checked):
    (finding,) = checked("max_steps: 100\nwarmup_steps: 21\n", 100).findings
    assert (finding.severity, finding.check, finding.key) == ("warning", "warm-up", "warmup_steps")
    assert "21 of 100" in finding.found and finding.fix == "write warmup_steps: 5"
    assert [one.key for one in checked("max_steps: 100\nwarmup_ratio: 0.5\n", 100).findings] == ["warmup_ratio"]


@pytest.mark.parametrize(
    ("text", "evals", "saves"),
    [
        ("eval_steps: 20\nsave_steps: 50\nval_set_size: 0.1\n", 5, 2),
        ("evals_per_epoch: 2\nsaves_per_epoch: 1\ntest_datasets: [a]\n", 4, 2),
        ("eval_steps: 0.25\nval_set_size: 10\n", 4, 2),
        ("eval_strategy: epoch\nsave_strategy: 'no'\nval_set_size: 10\n", 2, None),
        ("eval_steps: 20\n", None, 2),
    ],
)
def test_evaluations_and_saves_of_a_run_are_counted(checked, text, evals, saves):
    facts = checked(f"num_epochs: 2\n{text}", 50).facts["batch"]
    assert (facts["steps"], facts.get("evals"), facts.get("saves")) == (100, evals, saves)


def test_many_epochs_by_max_steps_are_a_warning(checked):
    text = f"{BATCH}max_steps: 650\nsample_packing: true\nsequence_len: 2048\n"
    (finding,) = checked(text, 1000, 300_000).findings
    assert (finding.severity, finding.check, finding.key) == ("warning", "epochs", "max_steps")
    assert finding.found == "650 steps packed to 2048 tokens are about 34 epochs"
    assert checked(text, 1000, 3_000_000).findings == []


@pytest.mark.parametrize(
    ("name", "right"),
    [("train_micro_batch_size_per_gpu", 2), ("gradient_accumulation_steps", 4), ("train_batch_size", 16)],
)
def test_batch_sizes_of_deepspeed_must_be_those_of_the_run_file(deepspeed, name, right):
    assert deepspeed({name: right}, processes=2) == deepspeed({name: "auto"}, processes=2) == []
    ((severity, check, found),) = deepspeed({name: 3}, processes=2)
    assert (severity, check) == ("error", "deepspeed-batch")
    assert f"{name} is 3" in found and str(right) in found


@pytest.mark.parametrize("name", ["bf16", "fp16"])
def test_the_precision_of_deepspeed_must_be_that_of_the_run_file(deepspeed, name):
    for there, here in ((True, "false"), (False, "true")):
        assert [one[:2] for one in deepspeed({name: {"enabled": there}}, f"{name}: {here}\n")] == [
            ("error", "deepspeed-precision")
        ]
    for there, here in ((True, "true"), ("auto", "false"), (False, "auto")):
        assert deepspeed({name: {"enabled": there}}, f"{name}: {here}\n") == []


def test_offload_of_an_adapters_optimizer_is_a_warning_with_what_it_would_free(deepspeed, monkeypatch):
    monkeypatch.setattr(ds, "_compiled", lambda subject: None)
    zero = {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}
    ((severity, check, found),) = deepspeed(zero, "adapter: lora\n", trainable=5_000_000)
    assert (severity, check) == ("warning", "deepspeed-offload")
    assert "40 MB for 5,000,000 trained parameters" in found
    assert deepspeed(zero, "micro_batch_size: 1\n") == []


@pytest.mark.parametrize(
    ("text", "gpu", "missing", "severity"),
    [
        ("", False, [], "note"),  # it trains elsewhere, and what is there is not known
        ("", False, ["ninja"], "note"),
        ("", True, [], None),
        ("", True, ["that nvcc (CUDA_HOME does not exist)"], "warning"),
        ("plugins: [lora_recipes.plugin.CpuPlugin]\n", False, [], None),
        ("plugins: [lora_recipes.plugin.CpuPlugin]\n", False, ["g++", "ninja"], "warning"),
    ],
)
def test_what_deepspeed_compiles_when_training_begins_is_said_before(
    deepspeed, monkeypatch, text, gpu, missing, severity
):
    monkeypatch.setattr(processes, "on_cpu", lambda: not gpu)
    monkeypatch.setattr(ds, "_missing_compilers", lambda: missing)
    zero = {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}
    found = deepspeed(zero, text)
    assert [one[:2] for one in found] == ([(severity, "deepspeed-compiler")] if severity else [])
    assert all(name in found[0][2] for name in missing)
    assert deepspeed({"zero_optimization": {"stage": 2}}, text, processes=2) == []


def test_compilers_that_are_not_on_the_path_are_missing(monkeypatch, tmp_path):
    monkeypatch.setattr(processes, "on_cpu", lambda: True)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert ds._missing_compilers() == ["g++", "ninja"]
    for name in ("c++", "ninja"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    assert ds._missing_compilers() == []


def test_zero_on_one_process_is_a_note_and_on_two_is_fine(deepspeed):
    zero = {"zero_optimization": {"stage": 2}}
    assert [one[:2] for one in deepspeed(zero)] == [("note", "deepspeed-one-gpu")]
    assert deepspeed(zero, processes=2) == []


def test_overlapping_the_exchange_of_gradients_is_a_warning_where_it_may_spoil_them(deepspeed):
    def found(**zero):
        return [one[:2] for one in deepspeed({"zero_optimization": zero}, processes=2)]

    assert found(stage=2, overlap_comm=True) == found(stage=1, overlap_comm=True) == [("warning", "deepspeed-overlap")]
    assert found(stage=2, overlap_comm=False) == found(stage=2) == found(stage=3, overlap_comm=True) == []


def test_zero_3_with_four_bit_weights_is_an_error(deepspeed):
    zero = {"zero_optimization": {"stage": 3}}
    assert [one[:2] for one in deepspeed(zero, "load_in_4bit: true\n", processes=2)] == [
        ("error", "deepspeed-four-bit")
    ]


def test_the_checked_in_recipes_have_no_error(monkeypatch):
    monkeypatch.chdir(ROOT)
    for path in sorted((ROOT / "recipes").glob("*/*.yaml")):
        subject = CheckedRun(path)
        arithmetic.check(subject, 400, 40_000)
        assert [one for one in subject.report.findings if one.severity == "error"] == [], path
