"""A disk that is full or read-only: one sentence, and what was there before is still there. Needs to mount a tmpfs."""

import hashlib
import os
import shutil
import subprocess

import pytest
from faults import Harness, same_training

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def harness(tmp_path_factory, libraries, axolotl_libraries):
    return Harness(tmp_path_factory.mktemp("disk"), libraries, axolotl_libraries)


@pytest.fixture(scope="module")
def trained(harness):
    """A folder in which everything was made once."""
    folder = harness.stage("made", harness.whole("train"))
    for command in ("eval", "benchmark", "merge", "report"):
        code, said, _ = harness.run(command, folder)
        assert code == 0, said
    return folder


@pytest.fixture
def disk(tmp_path):
    """A small disk at a folder: `mount(folder, kilobytes)`, and what undoes it."""
    mounted = []

    def mount(folder, kilobytes):
        folder.mkdir(parents=True, exist_ok=True)
        line = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
        done = subprocess.run(line, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no disk of one's own here: {done.stderr.strip()}")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


def state(folder):
    """What a user would miss: every file but locks, with its content."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix not in (".lock", ".claim")
    }


def fill(folder):
    with open(folder / "filler", "wb") as file:
        while True:
            try:
                os.write(file.fileno(), b"\0" * 4096)
            except OSError:
                return


CHANGED = {
    "eval": ("max_new_tokens", "eval", "--max-new-tokens 8", "--max-new-tokens 4"),
    "benchmark": ("limit", "benchmark", "--limit 4", "--limit 3"),
}
"""An option changed, so that there is something to write."""


def spoilt(harness, trained, disk, tmp_path, command):
    folder = harness.stage(f"disk-{command}-{tmp_path.name}", None)
    outputs = disk(folder / "outputs", 60_000)
    shutil.copytree(trained / "outputs", outputs, dirs_exist_ok=True)
    kept = outputs / "small" / "peft" / "run.yaml"
    kept.write_text(kept.read_text().replace(str(trained), str(folder)))
    return folder, outputs


@pytest.mark.parametrize("how", ["full", "read-only"])
@pytest.mark.parametrize("command", ["eval", "benchmark", "merge", "report"])
def test_a_tool_that_cannot_write_says_so_and_leaves_what_was_there(
    harness, trained, disk, tmp_path, monkeypatch, command, how
):
    import faults

    folder, outputs = spoilt(harness, trained, disk, tmp_path, command)
    if command in CHANGED:
        *_, old, new = CHANGED[command]
        monkeypatch.setitem(faults.COMMANDS, command, faults.COMMANDS[command].replace(old, new))
    if how == "full":
        fill(outputs)
    else:
        subprocess.run(["mount", "-o", "remount,ro", str(outputs)], check=True)
    before = state(outputs)
    code, said, _ = harness.run(command, folder)
    assert code == 1 and "Traceback" not in said, said
    assert_a_sentence(said)
    assert state(outputs) == before


def assert_a_sentence(said):
    """The last line, or of Axolotl's many the last one that begins so, names the fault."""
    last = [line for line in said.splitlines() if line.startswith("Error: ")][-1:]
    assert last and any(word in last[0] for word in ("space", "Read-only", "disk")), said[-3000:]


@pytest.mark.parametrize(("command", "kilobytes"), [("train", 40), ("train", 260), ("train", 350), ("axolotl", 260)])
def test_a_training_that_runs_out_of_disk_says_so_and_goes_on_when_there_is_space(harness, disk, command, kilobytes):
    folder = harness.stage(f"disk-{command}-{kilobytes}")
    outputs = disk(folder / "outputs", kilobytes)
    code, said, _ = harness.run(command, folder)
    assert code == 1 and "Traceback" not in said, said
    assert_a_sentence(said)
    subprocess.run(["mount", "-o", "remount,size=60000k", str(outputs)], check=True)
    code, said, _ = harness.run(command, folder)
    assert code == 0, said
    same_training(harness.whole(command), folder)


@pytest.mark.parametrize("command", ["train", "axolotl"])
def test_a_training_into_a_read_only_folder_says_so_before_it_begins(harness, disk, command):
    folder = harness.stage(f"read-only-{command}")
    outputs = disk(folder / "outputs", 1000)
    subprocess.run(["mount", "-o", "remount,ro", str(outputs)], check=True)
    code, said, _ = harness.run(command, folder)
    assert code == 1 and "Traceback" not in said, said
    assert_a_sentence(said)
