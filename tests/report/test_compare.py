"""tools/compare.py: from saved answers to a page on which nothing an answer holds can do harm."""

import json
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

from lora_recipes.report import pages, side_by_side

import pytest

NASTY = "<script>alert(1)</script> | `code` | **bold** [link](javascript:x) $x$ &amp; \\| end\nsecond line"


class Page(HTMLParser):
    """The tags and the text of a page, as a browser would read them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.text: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def write_answers(folder: Path, texts: list[str], f1: list[float] | None = None, **changes: object) -> None:
    """answers-test.jsonl as tools/eval.py leaves it, and its scores in result.json."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "answers-test.jsonl").open("w", encoding="utf-8") as file:
        for row, text in enumerate(texts):
            answer = {"row": row, "question": f"question {row}", "reference": f"reference {row}", "answer": text}
            answer |= {"finished": True, "new_tokens": 7, "reference_nats": 1.5, "settings": "0", **changes}
            file.write(json.dumps(answer) + "\n")
    if f1:
        result = {"recipe": folder.parent.name, "variant": folder.name, "evaluation": {"scores": {"f1": f1}}}
        (folder / "result.json").write_text(json.dumps(result))


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """The folder beside which run_file("lora") puts its outputs."""
    return tmp_path / "outputs" / "smollm2-african-history"


def test_the_page_shows_reference_base_and_variant_side_by_side(
    recipe: Path, run_file: Callable[..., Path], tool: Callable
) -> None:
    write_answers(recipe / "base", ["the base says"], [0.25])
    write_answers(recipe / "lora", ["the variant says"], [0.75])
    done = tool("compare", run_file("lora"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(recipe / "compare.html"), str(recipe / "compare.md")]
    for name in ("compare.html", "compare.md"):
        text = (recipe / name).read_text()
        for expected in ("question 0", "reference 0", "the base says", "the variant says", "0.250", "0.750"):
            assert expected in text, (name, expected)


def test_nothing_in_a_question_or_an_answer_becomes_markup(
    recipe: Path, run_file: Callable[..., Path], tool: Callable
) -> None:
    write_answers(recipe / "lora", [NASTY], question=NASTY)
    assert tool("compare", run_file("lora")).returncode == 0
    page = Page((recipe / "compare.html").read_text())
    assert "script" not in page.tags
    assert "".join(page.text).count(NASTY) == 4  # question and answer, in the random rows and among all rows
    markdown = (recipe / "compare.md").read_text()
    assert "<script" not in markdown
    for line in markdown.splitlines():
        if "alert" in line and line.startswith("|"):
            assert line.count("|") == 4, "a cell fell apart"
            assert "second line" in line


def test_markdown_cells_read_back_as_the_text(recipe: Path, run_file: Callable[..., Path], tool: Callable) -> None:
    parser = pytest.importorskip("markdown_it", reason="markdown-it-py, which comes with rich, is not installed")
    write_answers(recipe / "lora", [NASTY])
    assert tool("compare", run_file("lora")).returncode == 0
    html = parser.MarkdownIt("commonmark").enable("table").render((recipe / "compare.md").read_text())
    assert NASTY.replace("\n", "") in "".join(Page(html).text)


def test_the_page_loads_nothing_and_runs_nothing(recipe: Path, run_file: Callable[..., Path], tool: Callable) -> None:
    write_answers(recipe / "lora", ["an answer"])
    assert tool("compare", run_file("lora")).returncode == 0
    page = Page((recipe / "compare.html").read_text())
    assert {"table", "details", "style"} <= page.tags
    assert not page.tags & {"script", "iframe", "img", "object"}
    assert [value for name, value in page.attributes if name in ("src", "href")] == ["data:,"]


def test_best_and_worst_are_by_the_gain_of_the_first_variant_over_the_base(
    recipe: Path, run_file: Callable[..., Path], tool: Callable
) -> None:
    write_answers(recipe / "base", ["b"] * 6, [0.5, 0.9, 0.5, 0.1, 0.5, 0.5])
    write_answers(recipe / "lora", ["l"] * 6, [0.6, 0.2, 0.5, 0.9, 0.5, 0.5])
    write_answers(recipe / "peft", ["p"] * 6, [0.1, 0.9, 0.9, 0.1, 0.9, 0.9])
    assert tool("compare", run_file("lora"), run_file("peft"), "--rows", 1).returncode == 0
    text = (recipe / "compare.md").read_text()
    best, worst = text.split("## Largest F1 gain of lora over base")[1].split("## Smallest F1 gain of lora over base")
    assert "**Row 4.**" in best and best.count("**Row") == 1
    assert "**Row 2.**" in worst.split("## Random rows")[0]


def test_rows_are_picked_once_and_the_same_each_time() -> None:
    gain = [((row * 37) % 100) / 100 for row in range(100)]
    picked = side_by_side.pick(gain, 100, 5)
    rows = [row for chosen in picked.values() for row in chosen]
    assert len(rows) == len(set(rows)) == 15
    assert picked == side_by_side.pick(gain, 100, 5)
    assert [gain[row] for row in picked["best"]] == sorted(gain, reverse=True)[:5]
    assert [gain[row] for row in picked["worst"]] == sorted(gain)[:5]
    assert side_by_side.pick([0.1], 1, 5) == {"best": [0], "worst": [], "random": []}
    assert side_by_side.pick([], 3, 5) == {"best": [], "worst": [], "random": [0, 1, 2]}


def test_empty_and_unfinished_answers_are_marked(recipe: Path, run_file: Callable[..., Path], tool: Callable) -> None:
    write_answers(recipe / "base", [" "])
    write_answers(recipe / "lora", ["on and on"], finished=False, new_tokens=64)
    assert tool("compare", run_file("lora")).returncode == 0
    for name in ("compare.html", "compare.md"):
        text = (recipe / name).read_text()
        assert "an empty answer" in text and "cut off after 64 tokens" in text, name


def test_a_missing_base_is_left_out_unless_asked_for(
    recipe: Path, run_file: Callable[..., Path], tool: Callable
) -> None:
    write_answers(recipe / "lora", ["an answer"])
    assert tool("compare", run_file("lora")).returncode == 0
    done = tool("compare", run_file("lora"), "--base")
    assert done.returncode == 1
    assert "no answers of the base model" in done.stderr and "tools/eval.py" in done.stderr


def test_missing_answers_name_the_command_that_makes_them(run_file: Callable[..., Path], tool: Callable) -> None:
    path = run_file("lora")
    done = tool("compare", path, "--split", "validation")
    assert done.returncode == 1
    assert f"tools/eval.py {path} --split validation" in done.stderr
    assert "Traceback" not in done.stderr


def test_systems_that_answered_different_rows_are_not_compared(
    recipe: Path, run_file: Callable[..., Path], tool: Callable
) -> None:
    write_answers(recipe / "base", ["a", "b", "c"])
    write_answers(recipe / "lora", ["a", "b"])
    done = tool("compare", run_file("lora"))
    assert done.returncode == 1 and "base answered 3 rows of test and lora 2" in done.stderr
    write_answers(recipe / "lora", ["a", "b", "c"], question="another question")
    done = tool("compare", run_file("lora"))
    assert done.returncode == 1 and "row 1 differs in its question" in done.stderr
    assert not (recipe / "compare.html").exists()


@pytest.mark.parametrize("line", ['{"row": 1, "question": "q"', '{"row": 1}', "[]", '"text"', "\x00"])
def test_a_damaged_line_of_answers_is_one_sentence(
    recipe: Path, run_file: Callable[..., Path], tool: Callable, line: str
) -> None:
    write_answers(recipe / "lora", ["an answer"])
    with (recipe / "lora" / "answers-test.jsonl").open("a") as file:
        file.write(line + "\n")
    done = tool("compare", run_file("lora"))
    assert done.returncode == 1
    assert "answers-test.jsonl, line 2: not an answer of tools/eval.py" in done.stderr
    assert done.stderr.count("\n") == 1


def test_runs_of_different_recipes_or_the_same_run_twice_are_refused(
    run_file: Callable[..., Path], tool: Callable, tmp_path: Path
) -> None:
    path = run_file("lora")
    other = run_file("peft", f"output_dir={tmp_path}/outputs/elsewhere/peft")
    for second, words in ((path, "given twice"), (other, "different recipes")):
        done = tool("compare", path, second)
        assert done.returncode == 2 and words in done.stderr


def test_control_characters_and_lone_surrogates_do_not_stop_the_page(
    recipe: Path, run_file: Callable[..., Path], tool: Callable
) -> None:
    write_answers(recipe / "lora", ["a\x00b\ud800c\x1b[31m 𓂀"])
    done = tool("compare", run_file("lora"), "-o", recipe / "own.html")
    assert done.returncode == 0, done.stderr
    assert "a�b�c�[31m 𓂀" in (recipe / "own.html").read_text(encoding="utf-8")
    assert (recipe / "own.md").is_file()


def test_two_thousand_answers_are_one_page_with_all_rows(
    recipe: Path, run_file: Callable[..., Path], tool: Callable
) -> None:
    for name in ("base", "lora"):
        write_answers(recipe / name, [f"{name} {row}" for row in range(2000)], [row / 2000 for row in range(2000)])
    assert tool("compare", run_file("lora")).returncode == 0
    text = (recipe / "compare.html").read_text()
    assert text.count("<details>") == 2000 and "lora 1999" in text


def test_markdown_keeps_plain_text_plain() -> None:
    assert pages.markdown("Oyo, 1830s: Atiba's (new) capital.") == "Oyo, 1830s: Atiba's (new) capital."
    assert pages.markdown("a|b\n`c` <d>") == "a&#124;b<br>\\`c\\` &lt;d&gt;"


def test_answers_beyond_the_rows_of_the_last_evaluation_are_left_out(
    recipe: Path, run_file: Callable[..., Path], tool: Callable
) -> None:
    for name in ("base", "lora"):
        write_answers(recipe / name, ["an answer"] * (3 if name == "base" else 2), [0.5, 0.5])
    result = json.loads((recipe / "base" / "result.json").read_text())
    result["evaluation"] |= {"rows": 2}
    (recipe / "base" / "result.json").write_text(json.dumps(result))
    done = tool("compare", run_file("lora"))
    assert done.returncode == 0, done.stderr
    assert "2 rows of test" in (recipe / "compare.md").read_text()


def test_systems_evaluated_with_different_settings_are_not_compared(
    recipe: Path, run_file: Callable[..., Path], tool: Callable
) -> None:
    for name, model in (("base", "roberta-large"), ("lora", "all-MiniLM-L6-v2")):
        write_answers(recipe / name, ["an answer"], [0.5])
        path = recipe / name / "result.json"
        path.write_text(path.read_text().replace('"scores"', f'"scoring": {{"bert_score_hash": "{model}"}}, "scores"'))
    done = tool("compare", run_file("lora"))
    assert done.returncode == 1
    assert "roberta-large and all-MiniLM-L6-v2" in done.stderr and "--score-model" in done.stderr
