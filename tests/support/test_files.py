"""Files are whole or absent, and a disk that cannot take them is said in a sentence."""

import concurrent.futures
import errno
import fcntl
import os
import stat

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


def test_what_a_killed_writer_left_is_written_over(tmp_path):
    (tmp_path / ".result.json.unfinished").write_text("half of something that was longer")
    files.write_text(tmp_path / "result.json", "new")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("result.json", "new")]


def test_what_a_living_writer_has_begun_is_waited_for(tmp_path):
    path, begun = tmp_path / "result.json", tmp_path / ".result.json.unfinished"
    begun.write_text("first")
    with begun.open("rb") as file, concurrent.futures.ThreadPoolExecutor() as pool:
        fcntl.flock(file, fcntl.LOCK_EX)
        second = pool.submit(files.write_text, path, "second")
        with pytest.raises(TimeoutError):
            second.result(timeout=0.3)
        assert begun.read_text() == "first"
        begun.rename(path)
        fcntl.flock(file, fcntl.LOCK_UN)
        second.result(timeout=5)
    assert path.read_text() == "second" and list(tmp_path.iterdir()) == [path]


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


def test_what_is_cleared_up_for_a_folder_is_its_own(tmp_path):
    """`merged` is a beginning of `merged.v2`: two merges at a time once deleted each other's work."""
    with files.whole_folder(tmp_path / "merged.v2") as other:
        (other / "a").touch()
        with files.whole_folder(tmp_path / "merged") as folder:
            (folder / "b").touch()
        assert (other / "a").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"merged", "merged.v2"}


def test_a_folder_that_is_busy_is_a_sentence_and_a_free_one_is_held(tmp_path):
    with (
        files.locked(tmp_path / "out", "out is busy"),
        pytest.raises(click.ClickException, match="out is busy"),
        files.locked(tmp_path / "out", "out is busy"),
    ):
        pass
    with files.locked(tmp_path / "out", "out is busy"):
        pass


def test_a_full_disk_said_by_a_library_is_a_sentence_and_other_errors_pass():
    with pytest.raises(click.ClickException, match="the disk is full"), files.as_click_errors("out"):
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")
    with pytest.raises(RuntimeError, match="mine"), files.as_click_errors("out"):
        raise RuntimeError("mine")


def test_too_little_space_is_said_before_the_work(tmp_path):
    files.require_space(tmp_path, 1)
    with pytest.raises(click.ClickException, match="MB are needed there"):
        files.require_space(tmp_path, 10**18)


@pytest.mark.parametrize(("umask", "file", "folder"), [(0o077, 0o600, 0o700), (0o002, 0o664, 0o775), (0, 0o666, 0o777)])
def test_the_umask_says_who_may_read_what_is_written(tmp_path, umask, file, folder):
    before = os.umask(umask)
    try:
        files.write_text(tmp_path / "sub" / "result.json", "new")
        with files.locked(tmp_path / "sub" / "made"), files.whole_folder(tmp_path / "sub" / "made") as made:
            files.write_text(made / "a", "a")
    finally:
        os.umask(before)
    for path in (tmp_path / "sub").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (folder if path.is_dir() else file), path
    assert stat.S_IMODE((tmp_path / "sub").stat().st_mode) == folder


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
@pytest.mark.parametrize("busy", ["", "another process writes"])
def test_a_file_system_without_locks_is_said_once_and_written_to(tmp_path, monkeypatch, capsys, number, busy):
    def none(handle: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", none)
    with files.locked(tmp_path / "result.json", busy):
        files.write_text(tmp_path / "result.json", "new")
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "cannot be locked" in said and os.strerror(number) in said
    assert (tmp_path / "result.json").read_text() == "new"
