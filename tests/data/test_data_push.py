"""tools/data.py push: to a fake of the Hub, with a login and whole splits only."""

import pytest
from datacalls import call, failed, hundred_rows, write


@pytest.fixture
def built(tmp_path, monkeypatch):
    """A built folder, and a login that is none: nothing is sent, push_to_hub is a fake below."""
    call("build", hundred_rows(tmp_path), "-o", tmp_path / "made")
    monkeypatch.setenv("HF_TOKEN", "hf_not_a_token")
    return tmp_path / "made"


def test_push_sends_three_splits_to_a_fake_of_the_hub(built, monkeypatch):
    import datasets

    sent = {}

    def fake(data, repo, private=None):
        sent.update(rows=data.num_rows, repo=repo, private=private)

    monkeypatch.setattr(datasets.DatasetDict, "push_to_hub", fake)
    done = call("push", built, "me/history", "--private")
    assert done.exit_code == 0, done.output
    assert sent == {"rows": {"train": 86, "validation": 9, "test": 5}, "repo": "me/history", "private": True}
    assert done.stdout == "me/history  100 rows in 3 splits\n"
    assert call("push", built, "me/history").exit_code == 0 and sent["private"] is None


def test_a_push_that_fails_is_one_sentence_without_the_token(built, monkeypatch):
    import datasets

    def fake(*_, **__):
        raise RuntimeError("Illegal header value b'Bearer hf_not_a_token'\nfor hf_not_a_token")

    monkeypatch.setattr(datasets.DatasetDict, "push_to_hub", fake)
    sentence = failed("push", built, "me/history")
    assert sentence.startswith("me/history was not pushed: Illegal header value") and "hf_not" not in sentence


def test_push_needs_a_login_first_and_whole_splits(built, monkeypatch):
    (built / "test.jsonl").unlink()
    assert "has no split 'test'" in failed("push", built, "me/history")
    assert "expected OWNER/NAME" in failed("push", built, "history", code=2)
    write(built / "test.jsonl", ["a"]).write_text('{"question": "a"}\n')
    assert failed("push", built, "me/history")
    monkeypatch.delenv("HF_TOKEN")
    assert "no login on the Hub" in failed("push", built, "me/history")
