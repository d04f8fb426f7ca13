"""Files are whole or absent, and a disk that cannot take them is said in a sentence."""

import concurrent.futures
import fcntl

from lora_recipes.support import files

import click
import pytest


def test_a_failed_write_leaves_the_previous_file_and_nothing_beside_it(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    files.write_text(path, "old")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(click.ClickException, match="No space left on device; free some disk space"):
        files.write_text(path, "new")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("result.json", "old")]


def test_what_a_killed_writer_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path):
    left, living = (tmp_path / f".result.json.{name}.unfinished" for name in ("left", "living"))
    for path in (left, living):
        path.touch()
    with living.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        files.write_text(tmp_path / "result.json", "new")
    assert {path.name for path in tmp_path.iterdir()} == {"result.json", living.name}


def write_often(path, text):
    for _ in range(200):
        files.write_text(path, text)


def test_of_many_who_write_a_file_at_once_none_takes_what_another_writes_for_left_over(tmp_path):
    path, texts = tmp_path / "result.json", [letter * 1000 for letter in "abcd"]
    with concurrent.futures.ProcessPoolExecutor(4) as pool:
        assert list(pool.map(write_often, [path] * 4, texts)) == [None] * 4
    assert path.read_text() in texts and list(tmp_path.iterdir()) == [path]


def test_a_folder_is_published_whole_or_not_at_all(tmp_path):
    with files.whole_folder(tmp_path / "merged") as folder:
        (folder / "a").write_text("first")
    with pytest.raises(RuntimeError), files.whole_folder(tmp_path / "merged") as folder:
        (folder / "a").write_text("second")
        raise RuntimeError
    assert [p.name for p in tmp_path.iterdir()] == ["merged"]
    assert (tmp_path / "merged" / "a").read_text() == "first"


def test_a_full_disk_said_by_a_library_is_a_sentence_and_other_errors_pass():
    with pytest.raises(click.ClickException, match="the disk is full"), files.clear_errors("out"):
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")
    with pytest.raises(RuntimeError, match="mine"), files.clear_errors("out"):
        raise RuntimeError("mine")


def test_too_little_space_is_said_before_the_work(tmp_path):
    files.require_space(tmp_path, 1)
    with pytest.raises(click.ClickException, match="MB are needed there"):
        files.require_space(tmp_path, 10**18)
