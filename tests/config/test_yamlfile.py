"""Strict reading and readable writing of YAML."""

import time

from lora_recipes.config import yamlfile

import click
import pytest
import yaml


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["is empty"]),
        ("# only a comment\n", ["is empty"]),
        ("- a\n- b\n", ["line 1", "mapping"]),
        ("a: 1\nb: [1, 2\n", ["line 3", "invalid YAML"]),
        ("a: 1\nb: 2\na: 3\n", ["line 3", "a:", "duplicate key", "first on line 1"]),
        ("a:\n  b: 1\n  b: 2\n", ["line 3", "a.b", "duplicate key"]),
        ("seed: 1\nlearning_rate: 1e-4\n", ["line 2", "learning_rate", "1e-4", "write 0.0001"]),
        ("a: \x00\n", ["invalid YAML"]),
    ],
)
def test_a_mistake_is_one_sentence_with_its_line(text, words):
    with pytest.raises(click.ClickException) as caught:
        yamlfile.load(text, "my.yaml")
    assert all(word in caught.value.message for word in ["my.yaml", *words]), caught.value.message
    assert "\n" not in caught.value.message


NINE = [
    "a0: &a0 [x, x, x, x, x, x, x, x, x]",
    *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)),
]
HOSTILE = {
    **{f"seed: {date}": ["line 1", "seed", f"found {date}", "quote it"] for date in ("2024-01-01", "2024-13-45")},
    "2024-01-01: x": ["line 1", "expected text", "quote it"],
    **{
        f"a: 1\nb: {value}": ["line 2", "invalid YAML", "is no "]
        for value in (
            "0x_",
            "0b_",
            "1" * 5000,
            "!!int abc",
            "!!bool maybe",
            "!!float x",
            "1:" * 3000 + "1",
            "!!set {a}",
        )
    },
    'a: 1\nb: "\\ud800"': ["line 2", "surrogate"],
    'a: "\\UFFFFFFFF"': ["invalid YAML"],
    "a: 1\nb: \x00": ["line 2", "invalid YAML"],
    "? [a, b]\n: c": ["line 1", "as a key"],
    "\n".join(NINE): ["aliases make more than"],
    "\n".join([*NINE, "? *a9\n: c"]): ["line 10", "as a key"],
    "\n".join([*NINE, "m: {<<: *a9}"]): ["aliases make more than"],
    "\n".join(f"k{n}: {n}" for n in range(100_000)): ["more than"],
    "\n".join(f"k{n}: " for n in range(9_000)): ["line 2500", "keys and values"],
    "a: " + "[" * 100_000: ["nested too deep"],
    "\n".join(f"{' ' * n}k{n}:" for n in range(300)): ["line 20", "nested too deep"],
    "a: &a [*a]": ["line 1", "nested too deep"],
    "a: 1" + " " * 150_000 + "x # y\na: 2": ["line 2", "duplicate"],
    "a: " + "1" * 150_000 + "x\na: 2": ["line 2", "duplicate"],
}


@pytest.mark.parametrize("text", HOSTILE, ids=[text[:20] for text in HOSTILE])
def test_yaml_that_a_loader_chokes_on_is_one_sentence_within_a_second_or_two(text):
    began = time.process_time()
    with pytest.raises(click.ClickException) as caught:
        yamlfile.load(text, "my.yaml")
    assert time.process_time() - began < 2
    words = ["my.yaml", *HOSTILE[text]]
    assert all(word in caught.value.message for word in words), caught.value.message
    assert caught.value.message.isprintable() and len(caught.value.message) < 400


def test_every_key_knows_its_line_and_its_comment():
    document = yamlfile.load('a: 1  # one\nb:  # two\n  - c: "x # y"  # three\nd: [1, 2]  # four\n', "f")
    assert document.lines[("b", 0, "c")] == 3
    assert document.comments == {("a",): "one", ("b",): "two", ("b", 0, "c"): "three", ("d",): "four"}


def test_a_quoted_number_stays_text():
    assert yamlfile.load('a: "1e-4"\n', "f").data == {"a": "1e-4"}


AWKWARD = [
    "1e-4", "no", "null", "", " x", "a: b", "a # b", "<|im_start|>user\n{x}<|im_end|>\n", "{{ x }}", "'", '"', "- a",
    "a, b", "[x]", "é 漢 🌍", "\u2028", "0x10", "1_000", "2024-01-01", "&a", "*a", "!x", "%x", "@x", "`", "~", "t\tb",
    "\xa0", "a\xa0", "\x85", "\u3000x", "\ufeff", "\u200b",
]  # fmt: skip


@pytest.mark.parametrize(
    "value", [*AWKWARD, True, False, None, 3, 2e-05, 0.1, 1e300, [], {}, ["a, b", "1e-4", 3], [1, "é"]]
)
def test_a_written_value_is_read_back_unchanged(value):
    assert yaml.safe_load(yamlfile.entry("key", value, {("key",): "why"})) == {"key": value}


def test_nested_values_are_read_back_unchanged():
    value = [{"path": text, "type": {"a": text, "list": [text, {"b": text}]}} for text in AWKWARD]
    written = yamlfile.entry("datasets", value, {})
    assert yamlfile.load(written, "f").data == {"datasets": value}
