"""Results and answers that were edited by hand: a report, or one sentence that names file and field."""

import importlib
import json
import os
import random

import pytest
from click.testing import CliRunner

WRONG = (None, True, -1, 0, 3, 10**400, 1.5, 1e308, float("inf"), float("nan"), "", "text", "\x1b[31m", "\ud800", "..")
WRONG = (*WRONG, [], {}, [[]], ["a"], {"a": 1}, {"mean": "x"}, json.loads("[" * 60 + "]" * 60))
RECIPE = "smollm2-african-history"
ENVIRONMENT = {
    "git_commit": "0123456789abcdef",
    "git_dirty": True,
    "python": "3.12.3",
    "packages": {"torch": "2.13.0"},
    "hardware": {"cores": 2, "processor": "a processor", "gpu": "a GPU", "gpus": 2},
}
SCORE = {"mean": 0.5, "low": 0.4, "high": 0.6, "n": 2}


def result(variant):
    """A result with every field that a report reads."""
    section = {"environment": ENVIRONMENT, "wall_seconds": 12.5, "peak_memory_mb": 2310}
    logged = {"step": 1, "loss": 2.0, "epoch": 0.5, "tokens/trainable": 300}
    return {
        "recipe": RECIPE,
        "variant": variant,
        "training": {
            **section,
            "metrics": {"steps": 1, "trained_tokens_an_epoch": 600, "trainable_parameters": 9},
            "log_history": [logged, {"step": 1, "eval_loss": 1.2, "train_loss": 2.1}],
        },
        "evaluation": {
            **section,
            "metrics": {"bertscore_f1": SCORE, "empty_answers": 1, "mean_answer_tokens": 4.5},
            "differences": {"base": {"metric": "bertscore_f1", **SCORE, "excludes_zero": True, "cross_entropy": SCORE}},
            "scores": {"f1": [0.4, 0.6]},
            "scoring": {"model": "a-model", "bert_score_hash": "a"},
            "settings": {"max_new_tokens": 8},
            "split": "test",
            "rows": 2,
            "limit": 2,
            "prompt_parity": False,
        },
        "benchmark": {
            **section,
            "metrics": {"mmlu_acc": SCORE},
            "differences": {"base": {"mmlu_acc": SCORE}},
            "skipped": {"tinyMMLU": "it is not here"},
            "limit": 3,
        },
    }


def answer(row):
    told = {"question": f"who is {row}?", "reference": "one", "answer": "two", "finished": True, "new_tokens": 2}
    return {"row": row, **told, "reference_nats": 3.5, "settings": "a hash", "batch_size": 2}


def places(value, path=()):
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        yield (*path, key)
        if isinstance(item, (dict, list)):
            yield from places(item, (*path, key))


def mutated(value, path, wrong):
    changed = json.loads(json.dumps(value))  # no part of it twice the same object
    node = changed
    for part in path[:-1]:
        node = node[part]
    node[path[-1]] = wrong
    return changed


@pytest.fixture
def outputs(tmp_path, run_file):
    """The base and a variant with results and answers, and the run file of the variant."""
    run = run_file("lora")
    for variant in ("base", "lora"):
        folder = tmp_path / "outputs" / RECIPE / variant
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(json.dumps(result(variant)))
        (folder / "answers-test.jsonl").write_text("".join(json.dumps(answer(row)) + "\n" for row in range(2)))
    return tmp_path / "outputs", run


def call(tool, *arguments):
    done = CliRunner().invoke(importlib.import_module(tool).main, [str(argument) for argument in arguments])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def assert_a_report_or_a_sentence(done, *names):
    assert done.exit_code in (0, 1), done.output
    if done.exit_code:
        assert done.stderr.startswith("Error: ") and done.stderr.rstrip("\n").isprintable(), done.stderr
        assert len(done.stderr) < 1100 and all(name in done.stderr for name in names), done.stderr


def test_a_hundred_mutated_results_and_answers_are_reported_or_refused_in_a_sentence(outputs):
    folder, run = outputs
    at = folder / RECIPE / "lora"
    whole, line = result("lora"), answer(1)
    pairs = [("result.json", path, wrong) for path in places(whole) for wrong in WRONG]
    pairs += [("answers-test.jsonl", path, wrong) for path in places(line) for wrong in WRONG]
    random.Random(0).shuffle(pairs)
    refused = 0
    for name, path, wrong in pairs[:100]:
        (at / "result.json").write_text(json.dumps(mutated(whole, path, wrong) if name[0] == "r" else whole))
        second = mutated(line, path, wrong) if name[0] == "a" else line
        (at / "answers-test.jsonl").write_text(f"{json.dumps(answer(0))}\n{json.dumps(second)}\n")
        for tool, arguments in (("report", (folder, "-o", folder / "report")), ("compare", (run,))):
            try:
                done = call(tool, *arguments)
                assert_a_report_or_a_sentence(done)
            except Exception as error:
                pytest.fail(f"{tool}, {name}: {path} = {wrong!r:.60}: {type(error).__name__}: {error}")
            refused += done.exit_code
    assert refused > 40, refused


@pytest.mark.parametrize("name", ["..", "../x", "", ".hidden", "a\\b", "a\0b", "a\x1b[31mb", "a" * 300, 3, None])
@pytest.mark.parametrize("field", ["recipe", "variant"])
def test_no_name_in_a_result_leads_out_of_the_published_folder(outputs, tmp_path, field, name):
    folder, _ = outputs
    (folder / RECIPE / "lora" / "result.json").write_text(json.dumps(result("lora") | {field: name}))
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    done = call("report", folder, "--publish", "-o", tmp_path / "results")
    assert done.exit_code == 1
    assert_a_report_or_a_sentence(done, "result.json", f"{field}: ")
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("split", ["../lora/answers", "..", ".x", "a\0b", "a" * 300, ""])
def test_no_split_leads_out_of_the_output_folder(outputs, split):
    for tool in ("compare", "eval"):
        done = call(tool, outputs[1], "--split", split)
        assert done.exit_code == 2 and "--split" in done.stderr, done.output


@pytest.mark.parametrize("name", ["result.json", "answers-test.jsonl"])
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)])
def test_a_pipe_a_folder_or_a_device_in_a_files_place_is_refused_at_once(outputs, name, make):
    folder, run = outputs
    path = folder / RECIPE / "lora" / name
    path.unlink()
    make(path)
    done = call("compare", run)
    assert done.exit_code == 1
    assert_a_report_or_a_sentence(done, name, "no regular file")
