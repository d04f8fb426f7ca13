"""tools/install.py, part by part on fakes; the real install takes minutes and was done to get here."""

import ast
import os
import subprocess
import sys
import time
import venv
from pathlib import Path

from lora_recipes import ROOT
from lora_recipes.models import bundled

import install
import pytest


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that looks set up to install.py: real files and a real, empty virtual environment."""
    root = tmp_path / "a checkout"
    root.mkdir()
    for name in ("pyproject.toml", "constraints.txt"):
        (root / name).write_text((ROOT / name).read_text())
    environment = root / ".venv"
    venv.create(environment, symlinks=True)
    (environment / "bin" / "axolotl").write_text("from lora_recipes.axolotl.command import main\n")
    record = root / ".cache" / "models" / "converted.json"
    record.parent.mkdir(parents=True)
    record.write_text("{}")
    for name, value in {
        "ROOT": root,
        "VENV": environment,
        "LOG": environment / "install.log",
        "STAMP": environment / ".installed",
        "MODEL_RECORD": record,
    }.items():
        monkeypatch.setattr(install, name, value)
    install.STAMP.write_text(install.fingerprint())
    return root


def test_a_python_that_is_too_old_can_read_the_installer() -> None:
    ast.parse((ROOT / "tools" / "install.py").read_text(), feature_version=(3, 6))


def _fake_python(folder: Path, name: str, version: tuple[int, int]) -> Path:
    """An executable that runs this Python with another version in sys.version_info."""
    path = folder / name
    lie = f"import sys; sys.version_info = {(*version, 0)}; exec(sys.argv.pop())"
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{lie}" "$2"\n')
    path.chmod(0o755)
    return path


def test_this_python_is_taken_when_it_is_supported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    here = _fake_python(tmp_path, "python3", (3, 12))
    _fake_python(tmp_path, "python3.11", (3, 11))
    assert install.find_python(str(here)) == str(here)


@pytest.mark.parametrize("version", [(3, 9), (3, 13)])
def test_another_python_on_the_path_replaces_an_unsupported_one(
    version: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    here = _fake_python(tmp_path, "python3", version)
    _fake_python(tmp_path, "python3.11", (3, 13))  # as a shim that starts another version
    working = _fake_python(tmp_path, "python3.12", (3, 12))
    assert install.find_python(str(here)) == str(working)


def test_no_supported_python_is_one_sentence_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    here = _fake_python(tmp_path, "python3", (3, 9))
    with pytest.raises(install.Failure, match=r"no Python 3\.10, 3\.11 or 3\.12 .* apt install python3"):
        install.find_python(str(here))


def test_a_platform_without_deepspeed_kernels_is_refused() -> None:
    install.require_platform("Linux", "x86_64")
    with pytest.raises(install.Failure, match="Darwin arm64; use a Linux machine"):
        install.require_platform("Darwin", "arm64")


def test_too_little_space_is_said_with_the_figure_needed() -> None:
    with pytest.raises(install.Failure, match=r"2\.0 GB are free there, the packages need 6\.0 GB;"):
        install.require_space(2 * 10**9, 0, cuda=False)
    with pytest.raises(install.Failure, match=r"need 14\.0 GB with CUDA;"):
        install.require_space(7 * 10**9, 0, cuda=True)
    install.require_space(2 * 10**9, 4 * 10**9, cuda=False)  # a continued install: 4 GB are there already


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "disk is full"),
        (
            "WARNING: Retrying after ... [Errno -3] Temporary failure in name resolution')': /simple/",
            "cannot be reached",
        ),
        ("ERROR: No matching distribution found for axolotl==9.9; extra == 'x'", "index has no axolotl==9.9 for"),
        (
            "The conflict is caused by:\n    The user requested (constraint) torch==2.13.0",
            "index has no torch==2.13.0 for",
        ),
        ("ERROR: Failed building wheel for deepspeed", "deepspeed could not be built"),
        ("lora_recipes: something new\nError: the package gguf is odd", "Error: the package gguf is odd"),
        ("", "without a word"),
    ],
)
def test_a_failed_step_says_why(line: str, told: str) -> None:
    assert told in install.explain("Collecting torch==2.13.0\n" + line)


def test_without_a_network_the_missing_version_is_not_blamed() -> None:
    """pip ends with `No matching distribution` in that case too."""
    output = "Failed to establish a new connection: ...\nERROR: No matching distribution found for torch==2.13.0\n"
    assert "cannot be reached" in install.explain(output)


def test_a_failed_step_names_the_log_and_only_its_own_output_counts(checkout: Path) -> None:
    install.LOG.write_text("No space left on device\n")
    with pytest.raises(install.Failure, match=r"index has no torch for .* output is in .*install\.log") as failure:
        install.run("[1/1] trying …", "sh", "-c", "echo No matching distribution found for torch; exit 3")
    assert "disk" not in str(failure.value)


def test_a_finished_install_starts_nothing(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install, "run", lambda *_: pytest.fail("a second run must not start pip"))
    monkeypatch.setattr(sys, "argv", ["install.py"])
    began = time.monotonic()
    install.main()
    assert time.monotonic() - began < 0.5


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt", ".venv/pyvenv.cfg"])
def test_a_changed_pin_or_python_asks_for_another_install(checkout: Path, name: str) -> None:
    assert install.packages_installed()
    (checkout / name).write_text((checkout / name).read_text() + "\n")
    assert not install.packages_installed()


def test_an_interrupted_install_is_noticed(checkout: Path) -> None:
    install.STAMP.unlink()
    assert not install.packages_installed()


def test_a_python_removed_from_the_machine_is_noticed(checkout: Path) -> None:
    for python in (checkout / ".venv" / "bin").glob("python*"):
        python.unlink()
        python.symlink_to(checkout / "gone")
    assert not install.packages_installed()
    assert not install.venv_is_usable()


@pytest.mark.parametrize("moved", [False, True])
def test_a_moved_or_copied_checkout_gets_a_new_environment(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, moved: bool
) -> None:
    """The scripts in .venv/bin name the folder they were made in."""
    original = checkout.parent / "the original"
    (original / ".venv").mkdir(parents=True)
    home = original if moved else checkout
    shebang = f'#!/bin/sh\n\'\'\'exec\' "{home}/.venv/bin/python3" "$0" "$@"\n'
    (checkout / ".venv" / "bin" / "pip").write_text(shebang)
    monkeypatch.setattr(install, "_quiet", lambda *_: True)  # its Python runs
    assert install.venv_is_usable() is not moved


def test_an_overwritten_axolotl_command_is_put_back_and_nothing_else(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started: list[tuple[str, ...]] = []
    monkeypatch.setattr(install, "run", lambda title, *command: started.append((title, *command)))
    (checkout / ".venv" / "bin" / "axolotl").write_text("from axolotl.cli.main import main\n")
    install.set_up()
    [(title, *command)] = started
    assert "Stock Axolotl" in title
    assert command[-5:] == ["install", "--no-deps", "--no-build-isolation", "-e", "."]


def test_a_lost_model_is_converted_again_and_nothing_else(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[tuple[str, ...]] = []
    monkeypatch.setattr(install, "run", lambda title, *command: started.append(command))
    install.MODEL_RECORD.unlink()
    install.set_up()
    assert [command[-1] for command in started] == ["lora_recipes.models.bundled"]


def test_a_package_without_its_list_of_files_is_dropped(checkout: Path) -> None:
    site = next((checkout / ".venv" / "lib").glob("python3*/site-packages"))
    for name in ("whole", "half"):
        (site / f"{name}-1.0.dist-info").mkdir()
        (site / f"{name}-1.0.dist-info" / "METADATA").write_text(f"Name: {name}\n")
    (site / "whole-1.0.dist-info" / "RECORD").write_text("")
    install.drop_half_unpacked()
    assert [path.name for path in site.glob("*.dist-info")] == ["whole-1.0.dist-info"]


def test_a_second_set_up_waits_for_the_first(checkout: Path) -> None:
    second = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1]); import install\n"
        "install.ROOT = Path(sys.argv[2])\n"
        "with install.locked(): print('in')"
    )
    with install.locked():
        process = subprocess.Popen(
            [sys.executable, "-c", second, str(ROOT / "tools"), str(checkout)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr and "waiting" in process.stderr.readline()
        assert process.poll() is None
    assert process.communicate(timeout=30)[0] == "in\n"


def test_a_folder_that_cannot_be_written_is_one_sentence(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(install, "ROOT", tmp_path / "file")  # a folder inside a file: not even root can write it
    monkeypatch.setattr(install, "MODEL_RECORD", tmp_path / "none")
    monkeypatch.setattr(sys, "argv", ["install.py"])
    with pytest.raises(SystemExit, match=r"^Error: .*choose a folder that can be written\.$"):
        install.main()


def test_the_record_of_the_model_is_the_one_that_the_conversion_writes() -> None:
    assert bundled.CHAT_MODEL / "converted.json" == install.MODEL_RECORD
    assert os.path.isfile(install.MODEL_RECORD)


def test_constraints_pin_every_direct_dependency_and_leave_out_the_model_packages() -> None:
    from importlib.metadata import requires

    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pinned = [Requirement(line) for line in lines]
    assert all(str(pin.specifier).startswith("==") for pin in pinned)
    for python in ("3.10.13", "3.11.7", "3.12.1"):
        names = [pin.name for pin in pinned if not pin.marker or pin.marker.evaluate({"python_full_version": python})]
        assert len(names) == len(set(names)), f"two pins of one package for Python {python}"
        direct = {canonicalize_name(Requirement(text).name) for text in requires("lora-recipes") or []}
        assert direct <= set(names), direct - set(names)
    assert not {"llama-cpp-python", "llm", "sentence-transformers"} & {pin.name for pin in pinned}


def test_the_installed_axolotl_command_is_ours() -> None:
    assert install.script_is_ours()
