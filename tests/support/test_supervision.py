"""What a command started ends with it, however it ends."""

import os
import signal
import subprocess
import sys
import time

from lora_recipes import ROOT
from lora_recipes.support import supervision

import pytest

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="supervised on Linux only")

WORK = """
import signal, subprocess, sys, time
sys.path.insert(0, {tools!r})
from lora_recipes.support import supervision
supervision.GRACE = 2

def work():
    trainer = "import signal, sys, time\\n{handler}\\nprint('ready', flush=True)\\ntime.sleep(60)"
    # A launcher that dies of SIGTERM and leaves its trainer, in a session of its own, as Axolotl's do.
    launch = f"subprocess.run([sys.executable, '-c', {{trainer!r}}], start_new_session=True)"
    launcher = f"import subprocess, sys; sys.exit({{launch}}.returncode)"
    sys.exit(subprocess.run([sys.executable, "-c", launcher]).returncode and 7)

supervision.run(work)
"""
OBEYS = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(print('saved', flush=True)))"
HELPED = (
    f"sys.path.insert(0, {str(ROOT / 'tools')!r})\\n"
    "import subprocess\\n"
    "from lora_recipes.support import supervision; supervision.name_trainer()\\n"
    "helper = subprocess.Popen(['sleep', '60'])\\n"
    "told = lambda *_: (time.sleep(0.5), print('helped', helper.poll(), flush=True), sys.exit())\\n"
    "signal.signal(signal.SIGTERM, told)"
)
IGNORES = "signal.signal(signal.SIGTERM, signal.SIG_IGN)"


def started(handler=""):
    code = WORK.format(tools=str(ROOT / "tools"), handler=handler)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


def gone(processes, seconds=10):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not any(os.path.exists(f"/proc/{process}") for process in processes):
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_trainer_is_told_and_may_save_when_the_command_ends(number):
    process = started(OBEYS)
    below = list(supervision.descendants(process.pid))
    assert len(below) == 4  # supervisor, Axolotl, launcher, trainer
    os.kill(process.pid, number)
    assert process.stdout.read() == "saved\n"
    assert gone(below) and process.wait() == (-9 if number == signal.SIGKILL else 143)


def test_a_trainer_s_own_helpers_are_left_to_it():
    process = started(HELPED)
    below = list(supervision.descendants(process.pid))
    assert len(below) == 5  # supervisor, Axolotl, launcher, trainer and its helper
    os.kill(process.pid, signal.SIGTERM)
    assert process.stdout.readline() == "helped None\n"
    process.stdout.close()
    process.wait()
    assert gone(below, 30)


def test_a_trainer_that_does_not_listen_is_killed_after_the_time_of_grace():
    process = started(IGNORES)
    below = list(supervision.descendants(process.pid))
    os.kill(process.pid, signal.SIGTERM)
    assert not gone(below, seconds=1) and gone(below)
    assert process.wait() == 143


def test_the_command_exits_as_its_work_does():
    code = "import sys; sys.path.insert(0, {!r}); from lora_recipes.support import supervision; supervision.run({})"
    for work, status in (("lambda: None", 0), ("lambda: sys.exit(3)", 3), ("lambda: 1 / 0", 1)):
        done = subprocess.run(
            [sys.executable, "-c", code.format(str(ROOT / "tools"), work)], capture_output=True, text=True
        )
        assert done.returncode == status and ("ZeroDivisionError" in done.stderr) == (status == 1)


def test_a_failed_work_s_exit_status_is_the_command_s():
    process = started("sys.exit(print('ready', flush=True) or 5)")
    assert process.wait() == 7
