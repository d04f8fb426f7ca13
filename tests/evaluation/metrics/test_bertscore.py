"""BERTScore with its traps."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

from lora_recipes.evaluation.metrics import Answers, bertscore
from lora_recipes.models import bundled

import click
import pytest

REFERENCE = "Alaafin Atiba founded the new capital of Oyo in the 1830s."
CLOSE = "The new capital of Oyo was founded in the 1830s by Alaafin Atiba."
FAR = "Penguins eat fish."


@pytest.fixture(scope="module")
def scorer() -> bertscore.Scorer:
    return bertscore.load(None)


def test_a_tokenizer_without_a_limit_gets_that_of_the_positions() -> None:
    boundless = SimpleNamespace(model_max_length=int(1e30))
    bert = SimpleNamespace(model_type="bert", max_position_embeddings=512, pad_token_id=0)
    roberta = SimpleNamespace(model_type="roberta", max_position_embeddings=514, pad_token_id=1)
    assert bertscore._limit(boundless, bert) == 512
    assert bertscore._limit(boundless, roberta) == 512
    assert bertscore._limit(SimpleNamespace(model_max_length=256), bert) == 256


@pytest.mark.slow
def test_the_reference_itself_scores_one_and_a_paraphrase_more_than_a_stranger(scorer: bertscore.Scorer) -> None:
    found = scorer.score([REFERENCE, CLOSE, FAR], [REFERENCE] * 3)
    assert [found[name][0] for name in ("precision", "recall", "f1")] == pytest.approx([1, 1, 1], abs=1e-4)
    assert found["f1"][1] > found["f1"][2] + 0.2


@pytest.mark.slow
def test_an_empty_answer_scores_zero_and_leaves_its_neighbours_alone(scorer: bertscore.Scorer) -> None:
    alone = scorer.score([CLOSE, FAR], [REFERENCE] * 2)
    beside = scorer.score([CLOSE, "", FAR, " \n"], [REFERENCE] * 4)
    for name in ("precision", "recall", "f1"):
        assert [beside[name][1], beside[name][3]] == [0.0, 0.0]
        assert [beside[name][0], beside[name][2]] == pytest.approx(alone[name], abs=1e-5)
    assert scorer.score([""], [REFERENCE]) == {"precision": [0.0], "recall": [0.0], "f1": [0.0]}


@pytest.mark.slow
def test_an_answer_without_a_token_scores_zero(scorer: bertscore.Scorer) -> None:
    assert scorer.score(["\u200b", CLOSE], [REFERENCE] * 2)["f1"][0] == 0.0


@pytest.mark.slow
def test_texts_beyond_the_limit_are_counted(scorer: bertscore.Scorer) -> None:
    fits, cut = "word " * 510, "word " * 511  # and two special tokens
    assert scorer.limit == 512
    assert scorer.count_cut([fits, cut, cut, REFERENCE]) == 2
    assert scorer.score([cut], [fits])["f1"] == pytest.approx([1.0], abs=1e-4)


@pytest.mark.slow
def test_the_settings_identify_the_model_without_a_path_of_this_machine(scorer: bertscore.Scorer) -> None:
    settings = scorer.settings
    assert settings["bert_score_hash"].startswith("all-MiniLM-L6-v2_L6_no-idf_version=")
    assert settings["model_identity"].startswith("sha256:")
    assert "/" not in json.dumps(settings)
    assert settings["published_setting"] is False
    assert "published ones use roberta-large" in scorer.description


@pytest.mark.slow
def test_a_folder_whose_tokenizer_names_no_limit_scores_as_the_embedded_model(
    scorer: bertscore.Scorer, tmp_path: Path
) -> None:
    copy = tmp_path / "scorer"
    shutil.copytree(bundled.scoring_model(), copy)
    config = json.loads((copy / "tokenizer_config.json").read_text())
    del config["model_max_length"]
    (copy / "tokenizer_config.json").write_text(json.dumps(config))
    other = bertscore.load(str(copy))
    assert (other.name, other.limit) == ("scorer", 512)
    assert other.score([CLOSE], [REFERENCE]) == scorer.score([CLOSE], [REFERENCE])
    assert other.identity != scorer.identity


@pytest.mark.slow
def test_a_scoring_model_out_of_reach_is_one_sentence() -> None:
    with pytest.raises(click.ClickException, match="--score-model no/such: cannot be loaded; give"):
        bertscore.load("no/such")


@pytest.mark.parametrize(
    ("text", "known"),
    [
        (REFERENCE, True),
        ("Москва столица России. مرحبا بالعالم", True),
        ("የኢትዮጵያ ዋና ከተማ አዲስ አበባ ናት", False),
        ("中华人民共和国的首都", False),
        ("ประเทศไทย", False),
    ],
)
def test_a_script_that_the_model_has_no_tokens_for_is_refused(scorer: bertscore.Scorer, text: str, known: bool) -> None:
    if known:
        assert scorer.require_known([text]) is None
    else:
        with pytest.raises(click.ClickException, match="no token for .*% of the references' tokens.*--score-model"):
            scorer.require_known([text])


def test_the_result_has_the_share_of_unknown_tokens(scorer: bertscore.Scorer) -> None:
    answers = Answers(["ዋና", REFERENCE], [REFERENCE] * 2, [1.0, 1.0], [1, 1])
    assert 0 < bertscore.summary(answers, {})["unknown_tokens"] < 0.05
