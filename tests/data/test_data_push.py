"""tools/data.py push: to a fake of the Hub, with a login and whole builds only."""

import pytest
from datacalls import call, failed, hundred_rows


@pytest.fixture
def built(tmp_path, monkeypatch):
    """A built folder, and a login that is none: nothing is sent, the Hub is a fake below."""
    call("build", hundred_rows(tmp_path), "-o", tmp_path / "made")
    monkeypatch.setenv("HF_TOKEN", "hf_not_a_token")
    return tmp_path / "made"


@pytest.fixture
def sent(monkeypatch):
    """What the Hub is asked to do."""
    calls = {}
    monkeypatch.setattr("huggingface_hub.create_repo", lambda repo, **more: calls.update(repo=repo, **more))
    monkeypatch.setattr("huggingface_hub.upload_folder", lambda **more: calls.update(more))
    return calls


def test_push_sends_the_files_that_the_build_wrote_and_no_others(built, sent):
    (built / ".env").write_text("secret")
    done = call("push", built, "me/history", "--private")
    assert done.exit_code == 0, done.output
    assert (sent["repo"], sent["repo_id"], sent["repo_type"], sent["private"]) == ("me/history",) * 2 + (
        "dataset",
        True,
    )
    assert sent["folder_path"] == built
    assert sorted(sent["allow_patterns"]) == ["build.json", "test.jsonl", "train.jsonl", "validation.jsonl"]
    assert done.stdout == "me/history  100 rows in 3 splits\n"
    assert call("push", built, "me/history").exit_code == 0 and sent["private"] is None


def test_a_push_that_fails_is_one_sentence_without_the_token(built, monkeypatch):
    def fake(*_, **__):
        raise RuntimeError("Illegal header value b'Bearer hf_not_a_token'\nfor hf_not_a_token")

    monkeypatch.setattr("huggingface_hub.create_repo", fake)
    sentence = failed("push", built, "me/history")
    assert sentence.startswith("me/history was not pushed: Illegal header value") and "hf_not" not in sentence


def test_push_needs_whole_splits_and_a_name_with_an_owner(built, sent):
    assert "expected OWNER/NAME" in failed("push", built, "history", code=2)
    (built / "test.jsonl").unlink()
    assert "has no test.jsonl; write it with `tools/data.py build`" in failed("push", built, "me/history")
    (built / "build.json").unlink()
    assert "has no build.json" in failed("push", built, "me/history") and sent == {}


def test_push_needs_a_login(built, monkeypatch):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert "no login on the Hub; run `hf auth login`" in failed("push", built, "me/history")
