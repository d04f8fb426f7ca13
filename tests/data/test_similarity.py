"""The search for repeated questions: what counts as equal, and that the fast search is the exact one."""

import itertools
import random
import subprocess
import sys
import time

from lora_recipes.data.similarity import Overlap, normalised, overlaps, words_of

import pytest


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Who  built\tGreat Zimbabwe ?\n", "who built great zimbabwe"),
        ("“Who” built—Great Zimbabwe…", "who built great zimbabwe"),
        ("Ｗｈｏ ﬁrst", "who first"),
        ("STRASSE Straße", "strasse strasse"),
        ("Cafe\u0301", "café"),
        ("Qui a bâti l'Égypte", "qui a bâti l égypte"),
        ("ኢትዮጵያ፣ የት፧", "ኢትዮጵያ የት"),
        ("हिन्दी में", "हिन्दी में"),
        ("C++ 2+2", "c++ 2+2"),
        ("?!", ""),
    ],
)
def test_case_punctuation_space_and_form_do_not_count(text, expected):
    assert normalised(text) == expected
    assert normalised(expected) == expected


def test_an_equal_question_is_exact_and_the_first_of_its_copies():
    among = ["Where is Aksum?", "who built great zimbabwe", "Who built Great Zimbabwe?"]
    assert overlaps(["Who built Great Zimbabwe?"], among) == [Overlap(0, 1, 1.0, True)]


def test_the_same_words_in_another_order_are_no_exact_match():
    assert overlaps(["did Ghana trade with Mali"], ["did Mali trade with Ghana"]) == [Overlap(0, 0, 1.0, False)]
    assert overlaps(["a b c"], ["c b a", "a b c"]) == [Overlap(0, 1, 1.0, True)]


def test_a_near_question_has_the_share_of_words_in_common():
    among = ["a b c d e f", "a b c d e", "z y x"]
    assert overlaps(["q", "a b c d e g"], among, 0.7) == [Overlap(1, 1, 5 / 6, False)]
    assert overlaps(["a b c d e g"], among, 0.9) == []


def test_a_share_just_on_the_threshold_is_found():
    """0.56 * 25 is 14.000000000000002 in floating point, and the 11 other words are rarer than the 14 in common."""
    short = " ".join(f"common{number}" for number in range(14))
    long = short + "".join(f" rare{number}" for number in range(11))
    assert overlaps([long], [short], 0.56) == overlaps([short], [long], 0.56) == [Overlap(0, 0, 0.56, False)]


def test_a_text_without_words_matches_nothing():
    assert overlaps(["", " ?", "a"], ["", "?", "b"]) == []
    assert overlaps(["a"], []) == [] == overlaps([], ["a"])


@pytest.mark.parametrize("threshold", [0.0, -1.0, 1.01, float("nan")])
def test_a_threshold_that_is_no_share_is_an_error(threshold):
    with pytest.raises(ValueError, match="above 0 and up to 1"):
        overlaps(["a"], ["a"], threshold)


def compared_with_all(texts, among, threshold):
    """The definition, pair by pair."""
    found = []
    for row, text in enumerate(normalised(text) for text in texts):
        pairs = []
        for other, candidate in enumerate(normalised(text) for text in among):
            one, two = words_of(text), words_of(candidate)
            if one and two and len(one & two) / len(one | two) >= threshold:
                pairs.append((text == candidate, len(one & two) / len(one | two), -other))
        if pairs:
            exact, value, other = max(pairs)
            found.append(Overlap(row, -other, value, exact))
    return found


def made_up(rng, rows, vocabulary, longest):
    """Texts in which some words are common and most are rare, and half are small changes of another."""
    words = [f"w{number}" for number in range(vocabulary)]
    weights = list(itertools.accumulate(1 / (number + 1) for number in range(vocabulary)))
    texts = []
    for _ in range(rows):
        text = rng.choices(words, cum_weights=weights, k=rng.randint(0, longest))
        if texts and rng.random() < 0.5:
            text = rng.choice(texts).split()
            for _ in range(min(len(text), rng.randint(0, 3))):
                text[rng.randrange(len(text))] = rng.choice(words)
        texts.append(" ".join(text))
    return texts


@pytest.mark.parametrize("threshold", [0.05, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_the_search_finds_what_the_comparison_of_all_pairs_finds(threshold, seed):
    rng = random.Random(seed)
    both = made_up(rng, 260, vocabulary=rng.choice([6, 40, 400]), longest=rng.choice([4, 12, 30]))
    rng.shuffle(both)
    texts, among = both[:90], both[90:]
    expected = compared_with_all(texts, among, threshold)
    assert expected, "nothing to find: the test is empty"
    assert overlaps(texts, among, threshold) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("who built 2+2", {"who", "built", "2+2"}),
        ("qui a bâti l égypte", {"qui", "a", "bâti", "l", "égypte"}),
        ("谁建造了大津巴布韦", {"谁建", "建造", "造了", "了大", "大津", "津巴", "巴布", "布韦"}),
        ("gpt4是什么 谁", {"gpt4", "是什", "什么", "谁"}),
        ("한국어 질문", {"한국어", "질문"}),
        ("", set()),
    ],
)
def test_words_are_pairs_of_characters_where_no_blank_parts_them(text, expected):
    assert words_of(text) == expected


@pytest.mark.parametrize(
    ("asked", "near", "other"),
    [
        (
            "大津巴布韦的石头城墙是由哪个民族在什么时候建造的？",
            "大津巴布韦的石头城墙是由哪个民族在什么时候建成的？",
            "马里帝国的曼萨穆萨在哪一年前往麦加朝圣？",
        ),
        (
            "グレート・ジンバブエの石の城壁はいつ誰が建てましたか",
            "グレートジンバブエの石の城壁はいつ誰が建てましたか？",
            "マンサ・ムーサがメッカへ巡礼したのは何年ですか",
        ),
        (
            "กำแพงหินของเกรตซิมบับเวถูกสร้างขึ้นเมื่อใดและโดยใคร",
            "กำแพงหินของเกรตซิมบับเวถูกสร้างขึ้นเมื่อไรและโดยใคร",
            "มันซา มูซา เดินทางไปแสวงบุญที่เมกกะในปีใด",
        ),
    ],
    ids=["Chinese", "Japanese", "Thai"],
)
def test_near_questions_are_found_in_scripts_without_blanks(asked, near, other):
    (found,) = overlaps([asked], [other, near])
    assert found.other == 1 and 0.8 <= found.similarity <= 1.0
    assert overlaps([asked], [other]) == []


@pytest.mark.parametrize("threshold", [0.3, 0.6, 0.8, 1.0])
def test_the_search_is_exact_in_scripts_without_blanks_too(threshold):
    rng = random.Random(7)
    both = ["".join(rng.choices("大津巴布韦的石头ab 城", k=rng.randint(0, 9))) for _ in range(160)]
    both += [text[:-1] + rng.choice("大津巴") for text in both[:80] if text]
    rng.shuffle(both)
    texts, among = both[:80], both[80:]
    expected = compared_with_all(texts, among, threshold)
    assert expected and overlaps(texts, among, threshold) == expected


def test_large_data_take_seconds():
    rng = random.Random(0)
    among = made_up(rng, 52_000, vocabulary=20_000, longest=30)
    texts = rng.sample(among, 1_000) + made_up(rng, 4_200, 20_000, 30)
    started = time.process_time()
    found = overlaps(texts, among)
    assert time.process_time() - started < 10
    assert len(found) > 900


def test_it_needs_the_standard_library_only():
    code = "import sys; import lora_recipes.data.similarity; print(*{'numpy', 'datasets', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"
