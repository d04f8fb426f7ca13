"""How the launcher in the axolotl command and its trainers end: torchrun is real, the trainers are short programs."""

import os
import signal
import subprocess
import sys
import time

from lora_recipes import ROOT
from lora_recipes.axolotl import launcher
from lora_recipes.support import signals

import pytest

pytestmark = pytest.mark.slow  # torchrun imports torch

LAUNCH = """
import signal, sys
from lora_recipes.axolotl import launcher
from lora_recipes.support import signals
[signal.signal(number, signal.SIG_DFL) for number in signals.ENDING]
launcher._RANK = "trainer"
signals.begin()
launcher.run("", ["torchrun", "--nproc-per-node=2", "-m", "axolotl.cli.train", *sys.argv[1:]], {})
"""
TRAINER = """
import sys, time
from lora_recipes.support import signals, streams
kind, main = sys.argv[1], __import__("os").environ["RANK"] == "0"
if kind == "fails": sys.exit(3)
if kind != "starts":
    signals.begin(); signals.wait_for_step()
if main: print("ready", flush=True)
while not signals.told(): time.sleep(0.01)
if kind == "slow": time.sleep(60)
if main: streams.say("saved")
sys.exit(128 + signals.told())
"""


@pytest.fixture
def launch(tmp_path):
    (tmp_path / "trainer.py").write_text(TRAINER)
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'tools'}:{tmp_path}"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    return lambda kind: subprocess.Popen([sys.executable, "-c", LAUNCH, kind], env=environment, **pipes)


@pytest.mark.parametrize(
    ("kind", "number", "said"),
    [
        ("saves", signal.SIGINT, "saved"),
        ("saves", signal.SIGHUP, "saved"),
        ("starts", signal.SIGTERM, "told to end while nothing is trained"),
    ],
)
def test_a_signal_ends_the_trainers_and_its_status_is_the_command_s(launch, kind, number, said):
    running = launch(kind)
    assert running.stdout.readline() == "ready\n"
    running.send_signal(number)
    lines = running.communicate()[1]
    assert running.returncode == 128 + number and "Traceback" not in lines
    assert [line.startswith(said) for line in lines.splitlines() if "saved" in line or "told" in line] == [True]


def test_a_second_signal_kills_the_trainers(launch):
    running = launch("slow")
    assert running.stdout.readline() == "ready\n"
    running.send_signal(signal.SIGINT)
    time.sleep(signals.SAME + 0.5)
    running.send_signal(signal.SIGINT)
    lines = running.communicate(timeout=30)[1]  # the trainers have the pipe open, too
    assert running.returncode == 130 and lines.count("told to end again") == 1


def test_a_trainer_s_own_failure_is_its_status_without_a_traceback(launch):
    running = launch("fails")
    lines = running.communicate()[1]
    assert running.returncode == 3 and "Traceback" not in lines


def test_a_trainer_ended_by_a_signal_has_a_shell_s_status():
    assert (launcher.status(3), launcher.status(-9)) == (3, 137)
