"""`axolotl train` ended by a signal: at every stage one sentence, nobody left, and the same command goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from faults import nobody_works_in
from piped import BIN, tensors, write

pytestmark = pytest.mark.slow


def wait_for(what, seconds):
    deadline = time.monotonic() + seconds
    while not (found := what()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


HEED = "import os, signal, sys; [signal.signal(n, signal.SIG_DFL) for n in (1, 2)]; os.execv(sys.argv[1], sys.argv[1:])"
HEEDING = (sys.executable, "-c", HEED)
"""Before a command: the tests may run where these signals are ignored, behind a shell's `&`."""


def test_a_run_ended_again_and_again_is_finished_by_the_same_command(rows, tmp_path, axolotl_libraries):
    """`axolotl train FILE` and `axolotl train -` are one command; the end is that of a run left alone."""

    def start(name, by_path=False):
        path = write(tmp_path / name, rows)
        command = [BIN / "axolotl", "train", path if by_path else "-"]
        return axolotl_libraries.start(command, cwd=tmp_path, input="" if by_path else path.read_text())

    def newest():
        return max((int(path.parent.name[11:]) for path in folder.glob("checkpoint-*/trainer_state.json")), default=0)

    whole, folder = tmp_path / "whole", tmp_path / "ended"
    assert start("whole").wait().returncode == 0
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL):
        before, running = newest(), start("ended", by_path=number in (signal.SIGTERM, signal.SIGKILL))
        assert wait_for(lambda before=before: newest() > before, 400)
        os.killpg(running.pid, number)  # as Ctrl-C, a closed terminal and a scheduler do
        done = running.wait()
        assert nobody_works_in(tmp_path)
        assert not (folder / "result.json").exists(), "ended too late to show anything"
        if number != signal.SIGKILL:
            assert done.returncode == 128 + number and f"told to end: checkpoint-{newest()} is saved" in done.stderr
            assert done.stderr.count("told to end") == 1 and "Traceback" not in done.stdout + done.stderr
        assert "is not whole" not in done.stderr
    (cut_off := folder / f"checkpoint-{newest() + 2}").mkdir()  # as left by a kill while a checkpoint is written
    again = start("ended").wait()
    assert again.returncode == 0 and f"{cut_off.name} is not whole" in again.stderr, again.stderr[-2000:]
    one, two = tensors(whole), tensors(folder)
    assert one.keys() == two.keys() and all((one[name] - two[name]).abs().max() <= 1e-6 for name in one)
    history = [
        json.loads((path / "result.json").read_text())["training"]["metrics"]["steps"] for path in (whole, folder)
    ]
    assert history == [40, 40]


def test_ctrl_c_before_training_is_one_sentence_at_any_moment(rows, tmp_path):
    """While Axolotl and torch are imported, the model loaded, the rows tokenized."""
    text = write(tmp_path / "early", rows).read_text()
    for seconds in (0, 0.1, 0.3, 1, 2, 3, 5):
        with open(tmp_path / "said", "w+") as said:
            options = {"stdout": said, "stderr": said, "start_new_session": True, "text": True, "cwd": tmp_path}
            running = subprocess.Popen([*HEEDING, BIN / "axolotl", "train", "-"], stdin=subprocess.PIPE, **options)
            assert wait_for(lambda pid=running.pid: "psutil" in Path(f"/proc/{pid}/maps").read_text(), 60)
            running.stdin.write(text)
            running.stdin.close()
            time.sleep(seconds)
            os.killpg(running.pid, signal.SIGINT)
            running.wait()
            said.seek(0)
            lines = said.read()
        assert running.returncode == 130 and "Traceback" not in lines, lines
        assert lines.count("Aborted!") + lines.count("told to end while nothing is trained") == 1, lines
        assert nobody_works_in(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGKILL])
def test_a_launcher_that_is_ended_takes_its_trainers_with_it_and_they_save(rows, tmp_path, number):
    path = write(folder := tmp_path / "ended", rows)
    command = [BIN / "axolotl", "train", path, "--launcher", "torchrun", "--", "--nproc-per-node=1"]
    with open(tmp_path / "said", "w") as said:
        running = subprocess.Popen([*HEEDING, *command], stderr=said, stdout=subprocess.DEVNULL)
    assert wait_for(lambda: list(folder.glob("checkpoint-*/trainer_state.json")), 400)
    below = [process.pid for process in psutil.Process(running.pid).children(recursive=True)]
    os.kill(running.pid, number)  # the command alone: what it started has to end with it
    assert running.wait() == (129 if number == signal.SIGHUP else -number)
    assert below and wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in below), 100)
    assert not (folder / "result.json").exists(), "ended too late to show anything"
    lines = (tmp_path / "said").read_text()
    assert lines.count("is saved in") == lines.count("told to end") == 1 and "Traceback" not in lines
