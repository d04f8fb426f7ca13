"""Whatever is wrong with a run file or its data is one sentence that names the place: never a traceback."""

import copy
import itertools
import json
import random

from lora_recipes.config import runfile
from lora_recipes.data import questions
from lora_recipes.models import loading
from lora_recipes.rendering import render
from lora_recipes.training import batches, settings

import click
import pytest
import yaml

NUMBERS = (3, -1, 0, 1.5, -0.5, float("inf"), float("nan"))
WRONG = (*NUMBERS, "text", "", "é\n: {", True, None, [], ["a"], [1], {}, {"a": 1})
EMPTY, OTHER = (None, "", "  ", "\n"), (1, 1.5, True, [], {})
REMEDIES = ("; ", "expected", "Check path, split and contents", "did you mean")
ROW = {"question": "Who was Yaa Asantewaa?", "answer": "She led the Asante in 1900."}


@pytest.fixture(scope="module")
def tokenizers(embedded_model):
    """The embedded tokenizer, loaded once: 200 loads of it would test nothing more."""
    return {}


def survey(path, tokenizers):
    """All that the plain trainer and the evaluation read of a run file before a model is loaded."""
    run = runfile.load(path)
    settings.read(run)
    wanted = json.dumps([run.config.get(key) for key in ("base_model", "special_tokens", "chat_template")])
    if wanted not in tokenizers:
        tokenizers[wanted] = loading.load_tokenizer(run)
    rows = [batches.tokenize(run, tokenizers[wanted], part) for part in ("train", "validation")]
    settings.training_arguments(run, len(rows[0].dataset), rows[1] is not None)
    run.steps(len(rows[0].dataset))
    questions.load(run, tokenizers[wanted], "test")


def assert_a_sentence(error, *names):
    message = error.message
    assert "\n" not in message and "Traceback" not in message and len(message) < 800, message
    assert any(name in message for name in names), message
    assert any(words in message for words in REMEDIES), message


def keys_of(config, path=()):
    """Every key of a run file, below data sets and prompts too."""
    for key, value in config.items() if isinstance(config, dict) else enumerate(config):
        yield (*path, key)
        if isinstance(value, (dict, list)):
            yield from keys_of(value, (*path, key))


def mutated(config, path, value):
    changed = copy.deepcopy(config)
    node = changed
    for part in path[:-1]:
        node = node[part]
    node[path[-1]] = value
    return changed


def mutations(base, count):
    """Every key with values of wrong types and sizes, in a fixed random order."""
    pairs = list(itertools.product(keys_of(base), WRONG))
    random.Random(0).shuffle(pairs)
    return pairs[:count]


@pytest.fixture
def base(run_file, tmp_path, embedded_model, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where a mutated path leads
    rows = tmp_path / "rows"
    rows.mkdir()
    for part in ("train", "validation", "test"):
        (rows / f"{part}.jsonl").write_text((json.dumps(ROW) + "\n") * 2)
    text = render.render(
        "smollm2-african-history",
        "peft",
        (
            f"datasets.0.path={rows}",
            f"test_datasets.0.path={rows}",
            f"base_model={embedded_model}",
            f"output_dir={tmp_path}/outputs/r/v",
            "dataset_prepared_path=null",
        ),
    )
    return yaml.safe_load(text)


@pytest.mark.slow
def test_two_hundred_and_more_mutated_run_files_are_taken_or_refused_in_a_sentence(base, tmp_path, tokenizers):
    path, refused = tmp_path / "mutated.yaml", 0
    for place, value in mutations(base, 260):
        path.write_text(yaml.safe_dump(mutated(base, place, value), sort_keys=False, allow_unicode=True))
        try:
            survey(path, tokenizers)
        except click.ClickException as error:
            refused += 1
            assert_a_sentence(error, "mutated.yaml")
        except Exception as error:
            pytest.fail(f"{place} = {value!r}: {type(error).__name__}: {error}")
    assert refused > 120


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: text[: len(text) // 2] + "\n  - {",
        lambda text: text.replace(": ", ":\t", 3) + "\tseed: 1\n",
        lambda text: text + "seed: 1\n",
        lambda text: text + "&a *a",
        lambda text: "\ufeff" + text + "base_model: x\n",
        lambda text: text.replace("micro_batch_size", "micro_batchsize"),
        lambda text: "- " + text.replace("\n", "\n  "),
        lambda text: "!!python/object/apply:os.system ['false']",
        lambda text: "--- a\n--- b\n",
        lambda text: text + "x: \x00\n",
        lambda text: "",
        lambda text: "just words",
        lambda text: "\n" * 10000,
        lambda text: "a: " + "[" * 3000,
    ],
)
def test_yaml_that_is_no_run_file_is_refused_in_a_sentence(base, tmp_path, spoil, tokenizers):
    path = tmp_path / "spoilt.yaml"
    path.write_text(spoil(yaml.safe_dump(base)), encoding="utf-8")
    with pytest.raises(click.ClickException) as caught:
        survey(path, tokenizers)
    assert_a_sentence(caught.value, "spoilt.yaml")


def jsonl(*rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def changed(**columns):
    return {**ROW, **columns}


REFUSED = {
    **{f"{name} is {value!r}": jsonl(ROW, changed(**{name: value})) for name in ROW for value in EMPTY},
    **{f"{name} is always {value!r}": jsonl(changed(**{name: value})) for name in ROW for value in OTHER},
    **{f"no {name}": jsonl({key: value for key, value in ROW.items() if key != name}) for name in ROW},
    **{f"{name} misspelt": jsonl({key.replace(name, name.upper()): ROW[key] for key in ROW}) for name in ROW},
    **{f"a row without {name}": jsonl(ROW, {key: ROW[key] for key in ROW if key != name}) for name in ROW},
    "nothing": b"",
    "blank lines": b"\n\n\n",
    "cut off": jsonl(ROW, ROW)[:-20],
    "cut off in the first row": jsonl(ROW)[:-20],
    "no JSON": b"question,answer\nx,y\n",
    "a list of texts": b'["a", "b"]\n',
    "a number": b"3\n",
    "null": b"null\n",
    "invalid UTF-8": jsonl(ROW) + b'{"question": "\xff\xfe", "answer": "b"}\n',
    "UTF-16": jsonl(ROW).decode().encode("utf-16"),
    "latin-1": '{"question": "Où?", "answer": "Là."}\n'.encode("latin-1"),
    "binary": bytes(range(256)),
    "a zip's beginning": b"PK\x03\x04" + b"\0" * 100,
    "texts and numbers": jsonl(ROW, changed(answer=3)),
    "texts and lists": jsonl(ROW, changed(answer=["a"])),
    "a lone surrogate": b'{"question": "\\ud800", "answer": "b"}\n',
    "a pickle": b"\x80\x04\x95\x1e\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94",
}
TAKEN = {
    "BOM": b"\xef\xbb\xbf" + jsonl(ROW),
    "CRLF": jsonl(ROW, ROW).replace(b"\n", b"\r\n"),
    "no last line end": jsonl(ROW).rstrip(b"\n"),
    "another column": jsonl(changed(id=1), changed(id=1)),
    "the same row twice": jsonl(ROW, ROW),
    "a megabyte": jsonl(ROW, changed(answer="long " * 200_000)),
    "right to left": jsonl(changed(question="من هي يا أسانتيوا؟", answer="قادت أشانتي \u202e1900\u202c.")),
    "emoji": jsonl(changed(question="👩🏿‍🦱🇬🇭?", answer="👑" * 40)),
    "control characters": jsonl(changed(answer="a\x00b\x07c\x1b[31md\x7f")),
    "zero-width and combining": jsonl(changed(answer="a\u200bb\u0301\u0301\u0301 \ufeff")),
    "special tokens": jsonl(changed(question="<|im_end|>\n<|im_start|>assistant\n", answer="</s><|endoftext|>")),
    "braces": jsonl(changed(question="{instruction} {0} {} {{ x }} {% y %}", answer="%s %(a)s $a ${b}")),
    "YAML and HTML": jsonl(changed(question="a: [b, *c", answer="<script>alert(1)</script>")),
    "line separators": jsonl(changed(answer="a\u2028b\u2029c\x85d\x0ce")),
    "only punctuation": jsonl(changed(answer="?!")),
}


def on(base, tmp_path, data, suffix="jsonl"):
    (tmp_path / f"rows.{suffix}").write_bytes(data)
    changed = copy.deepcopy(base)
    for key in ("datasets", "test_datasets"):
        changed[key][0] |= {"path": str(tmp_path / f"rows.{suffix}"), "split": "train"}
    changed["datasets"][0]["split"] = "train"
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(changed))
    return path


@pytest.mark.parametrize("name", REFUSED)
def test_bad_data_are_refused_in_a_sentence(base, tmp_path, name, tokenizers):
    with pytest.raises(click.ClickException) as caught:
        survey(on(base, tmp_path, REFUSED[name]), tokenizers)
    assert_a_sentence(caught.value, "rows.jsonl")


@pytest.mark.parametrize("suffix", ["csv", "parquet", "arrow"])
@pytest.mark.parametrize("data", [b"", bytes(range(256)), b"question\nx\n"])
def test_files_that_are_not_what_their_names_say_are_refused_in_a_sentence(base, tmp_path, suffix, data, tokenizers):
    with pytest.raises(click.ClickException) as caught:
        survey(on(base, tmp_path, data, suffix), tokenizers)
    assert_a_sentence(caught.value, f"rows.{suffix}")


@pytest.mark.parametrize("name", TAKEN)
def test_strange_texts_are_trained_as_they_are(base, tmp_path, name, tokenizers):
    path = on(base, tmp_path, TAKEN[name])
    try:
        survey(path, tokenizers)
    except click.ClickException as error:  # a file has no test split: the last thing that is asked for
        assert "(test) cannot be read" in error.message, error.message
    run = runfile.load(path)
    (tokenizer,) = list(tokenizers.values())[-1:]
    made = batches.tokenize(run, tokenizer, "train")
    for row in made.dataset:
        trained = [label for label in row["labels"] if label != -100]
        assert trained[-1] == tokenizer.eos_token_id and len(trained) > 1
