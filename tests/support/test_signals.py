"""What SIGINT, SIGTERM and SIGHUP do to a program of the project, to what it has forked, and to what it prints."""

import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

from lora_recipes import ROOT
from lora_recipes.support import signals

import psutil
import pytest

HEAD = "import os, signal, sys, time; from lora_recipes.support import signals, streams\n"
FORK = (
    "child = os.fork()\n"
    "if not child:\n    print(os.getpid(), flush=True)\n    time.sleep(60)\n    os._exit(0)\n"
    "time.sleep(60) or time.sleep(60)\n"
)
STEPS = (
    "signals.wait_for_step()\nprint('ready', flush=True)\n"
    "while not signals.told(): time.sleep(0.01)\n"
    "time.sleep(float(sys.argv[1])); streams.say('saved'); sys.exit(128 + signals.told())\n"
)


def start(code, *args, **options):
    """A program that has begun; a session of its own, and no signal ignored as behind a shell's `&`."""
    heed = "[signal.signal(n, signal.SIG_DFL) for n in signals.ENDING]; signals.begin()\n"
    environment = os.environ | {"PYTHONPATH": str(ROOT / "tools")} | options.pop("env", {})
    command = [sys.executable, "-c", HEAD + options.pop("heed", heed) + code, *map(str, args)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True} | options
    return subprocess.Popen(command, env=environment, **pipes)


def gone(pid, seconds=10):
    deadline = time.monotonic() + seconds
    while (there := psutil.pid_exists(pid)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not there


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_before_training_a_signal_ends_at_once_with_one_sentence_and_its_status(number, status):
    running = start(FORK)
    child = int(running.stdout.readline())
    os.killpg(running.pid, number)
    said = running.communicate()[1]
    assert (running.returncode, said.count("\n")) == (status, 1) and said.startswith("told to end while nothing")
    assert gone(child)


def test_what_is_forked_ends_with_a_process_that_is_killed():
    running = start(FORK)
    child = int(running.stdout.readline())
    running.kill()
    assert running.wait() == -signal.SIGKILL and gone(child)


def test_a_data_loader_of_a_trainer_outlives_a_signal_to_the_group_though_torch_sets_it_a_handler():
    torch_s = FORK.replace("    time.sleep", "    signal.signal(15, signal.SIG_DFL)\n    time.sleep", 1)
    running = start("signals.wait_for_step()\n" + torch_s)
    child = int(running.stdout.readline())
    time.sleep(0.2)
    for number in signals.ENDING:
        os.killpg(running.pid, number)
    time.sleep(0.2)
    assert psutil.Process(child).status() == "sleeping" and running.poll() is None
    running.kill()
    assert gone(child)
    running.communicate()


def test_a_pool_can_still_end_its_workers():
    code = "import multiprocessing as m\nwith m.get_context('fork').Pool(2) as pool: print(pool.map(abs, [-1, -2]))"
    assert start(code).communicate(timeout=30)[0] == "[1, 2]\n"


@pytest.mark.parametrize(("pause", "words"), [(0.05, "saved"), (signals.SAME + 0.2, "told to end again")])
def test_a_second_signal_in_a_step_ends_at_once_unless_it_is_the_first_one_again(pause, words):
    running = start(STEPS, 1.5)
    running.stdout.readline()
    running.send_signal(signal.SIGTERM)
    time.sleep(pause)
    running.send_signal(signal.SIGTERM)
    said = running.communicate()[1]
    assert running.returncode == 143 and said.startswith(words) and said.count("\n") == 1


def test_under_a_launcher_which_passes_signals_on_none_is_a_second_one():
    running = start(STEPS, 1.5, env={signals.LAUNCHER: "7"})
    running.stdout.readline()
    for pause in (0, signals.SAME + 0.2):
        time.sleep(pause)
        running.send_signal(signal.SIGTERM)
    assert running.communicate()[1] == "saved\n" and running.returncode == 143


def test_what_nohup_ignores_stays_ignored():
    ignored = "signal.signal(signal.SIGHUP, signal.SIG_IGN); signals.begin()\n"
    running = start(STEPS, 0, heed=ignored)
    running.stdout.readline()
    running.send_signal(signal.SIGHUP)
    time.sleep(0.3)
    assert running.poll() is None
    running.send_signal(signal.SIGTERM)
    assert running.wait() == 143


PRINTS = (
    "signals.wait_for_step()\nos.write(1, b'ready')\n"
    "while not signals.told(): print('step', flush=True); time.sleep(0.001)\n"
    "for _ in range(300): print('step', flush=True); print('step', file=sys.stderr, flush=True); time.sleep(0.001)\n"
    "open(sys.argv[1], 'w').close(); streams.say('saved'); sys.exit(128 + signals.told())\n"
)


def test_a_terminal_that_is_closed_does_not_keep_a_step_from_its_end(tmp_path):
    """Prints fail from when it is closed; the shell's SIGHUP comes a little later."""
    master, slave = pty.openpty()
    running = start(PRINTS, tmp_path / "saved", stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    assert b"ready" in os.read(master, 1000)
    os.close(master)
    time.sleep(0.1)
    running.send_signal(signal.SIGHUP)
    assert running.wait(20) == 129 and (tmp_path / "saved").exists()


def test_a_tee_that_got_ctrl_c_too_does_not_keep_a_step_from_its_end(tmp_path):
    running = start(PRINTS, tmp_path / "saved", stderr=subprocess.STDOUT)
    assert "ready" in running.stdout.readline()
    running.send_signal(signal.SIGINT)
    time.sleep(0.05)
    running.stdout.close()
    assert running.wait(20) == 130 and (tmp_path / "saved").exists()


def test_all_that_is_printed_after_the_steps_arrives():
    master, slave = pty.openpty()
    code = "signals.wait_for_step(); print('in a step'); signals.step_is_over(); print('adapter saved')"
    running = start(code, stdout=slave)
    os.close(slave)
    running.communicate()
    assert b"in a step" in (said := os.read(master, 1000)) and b"adapter saved" in said
    os.close(master)


LAUNCH = "import subprocess; subprocess.run([sys.executable, '-c', sys.argv[1]], start_new_session=True)"
"""As torchrun does."""
LAUNCHED = HEAD + (
    "signals.begin(); signals.wait_for_step(); print('ready', flush=True)\n"
    "end = time.monotonic() + float(sys.argv[1])\n"
    "while not signals.told() and time.monotonic() < end: time.sleep(0.01)\n"
    "print('told' if signals.told() else 'left alone')"
)


@pytest.mark.parametrize(
    ("mark", "seconds", "expected"),
    [
        ({"TORCHELASTIC_RUN_ID": "x"}, 30, "told\n"),
        ({signals.LAUNCHER: "7"}, 30, "told\n"),
        ({"WORLD_SIZE": "2"}, 30, "told\n"),
        ({}, 1, "left alone\n"),  # a training outlives its shell
    ],
)
def test_a_trainer_is_told_when_its_launcher_was_killed(mark, seconds, expected):
    code = LAUNCHED.replace("sys.argv[1]", str(seconds))
    launcher = start(LAUNCH, code, env=mark, heed="", stderr=None)
    assert launcher.stdout.readline() == "ready\n"
    launcher.kill()
    assert launcher.stdout.read() == expected
    launcher.wait()


@pytest.mark.parametrize("tool", ["check", "merge", "eval"])
def test_ctrl_c_in_a_tool_is_click_s_word_and_130(tool):
    """Each waits for its run file on stdin; from when its first modules are there."""
    heed = (
        "import signal, os, sys; signal.signal(2, signal.SIG_DFL); os.execv(sys.executable, ['python', *sys.argv[1:]])"
    )
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    command = [sys.executable, "-c", heed, ROOT / "tools" / f"{tool}.py", "-"]
    running = subprocess.Popen(command, text=True, start_new_session=True, **pipes)
    while "/_yaml." not in Path(f"/proc/{running.pid}/maps").read_text():
        time.sleep(0.01)
    os.killpg(running.pid, signal.SIGINT)
    _, said = running.communicate()
    assert (said.strip(), running.returncode) == ("Aborted!", 130)


def test_ctrl_c_while_a_folder_is_written_leaves_nothing_of_it(tmp_path):
    code = (
        "import pathlib; from lora_recipes.support import ctrl_c, files\n"
        "signal.signal(signal.SIGINT, ctrl_c.abort)\n"
        "with files.whole_folder(pathlib.Path(sys.argv[1], 'merged')) as folder:\n"
        "    (folder / 'half').touch(); print('ready', flush=True); time.sleep(60)"
    )
    running = start(code, tmp_path, heed="")
    running.stdout.readline()
    running.send_signal(signal.SIGINT)
    assert running.communicate()[1].strip() == "Aborted!" and running.returncode == 130
    assert list(tmp_path.iterdir()) == []
