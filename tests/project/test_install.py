"""tools/install.py, part by part on fakes; the real install takes minutes and was done to get here."""

import ast
import os
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
        "STAMP": environment / ".installed",
        "MODEL_RECORD": record,
    }.items():
        monkeypatch.setattr(install, name, value)
    monkeypatch.setattr(sys, "argv", ["install.py"])
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
    with pytest.raises(SystemExit, match=r"no Python 3\.10, 3\.11 or 3\.12 .* apt install python3"):
        install.find_python(str(here))


def test_a_platform_without_deepspeed_kernels_is_refused() -> None:
    install.require_platform("Linux", "x86_64")
    with pytest.raises(SystemExit, match="Darwin arm64; use a Linux machine"):
        install.require_platform("Darwin", "arm64")


def test_a_step_that_fails_ends_the_set_up_and_its_own_words_stay(
    checkout: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match=r"`sh -c .*` failed, see above; `make setup` tries again"):
        install.run("trying …", "sh", "-c", "echo the index has no torch >&2; exit 3")
    assert "the index has no torch" in capfd.readouterr().err


def test_a_finished_install_starts_nothing(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install, "run", lambda *_: pytest.fail("a second run must not start pip"))
    began = time.monotonic()
    install.main()
    assert time.monotonic() - began < 0.5


@pytest.mark.parametrize(
    ("name", "old", "new", "installed"),
    [
        ("constraints.txt", "click==", "click==9", False),
        ("pyproject.toml", "click>=8.1", "click>=8.2", False),
        ("pyproject.toml", "line-length = 120", "line-length = 100", True),
    ],
)
def test_other_packages_ask_for_another_install_and_other_settings_do_not(
    checkout: Path, name: str, old: str, new: str, installed: bool
) -> None:
    text = (checkout / name).read_text()
    assert old in text and install.packages_installed()
    (checkout / name).write_text(text.replace(old, new))
    assert install.packages_installed() is installed


def test_an_interrupted_install_starts_anew(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[tuple[str, ...]] = []
    monkeypatch.setattr(install, "run", lambda title, *command: started.append(command))
    monkeypatch.setattr(install, "find_python", lambda: "python3.11")
    install.STAMP.unlink()
    install.main()
    assert started[0] == ("python3.11", "-m", "venv", "--clear", str(install.VENV))
    assert [command[2:4] for command in started[1:]] == [("pip", "install")] * 3
    assert install.packages_installed()


def test_a_link_to_another_checkout_s_environment_is_replaced_not_cleared(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(install, "run", lambda title, *command: None)
    monkeypatch.setattr(install, "find_python", lambda: "python3.11")
    theirs = install.VENV.rename(checkout / "theirs")
    install.VENV.symlink_to(theirs)
    with pytest.raises(FileNotFoundError):  # nothing was run that makes .venv
        install.install_packages()
    assert not install.VENV.is_symlink() and (theirs / "bin" / "python").exists()


def test_a_python_removed_from_the_machine_is_noticed(checkout: Path) -> None:
    for python in (checkout / ".venv" / "bin").glob("python*"):
        python.unlink()
        python.symlink_to(checkout / "gone")
    assert not install.packages_installed()


def test_a_moved_checkout_gets_a_new_environment(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scripts in .venv/bin name the folder they were made in."""
    moved = checkout.rename(checkout.with_name("elsewhere"))
    monkeypatch.setattr(install, "ROOT", moved)
    monkeypatch.setattr(install, "VENV", moved / ".venv")
    monkeypatch.setattr(install, "STAMP", moved / ".venv" / ".installed")
    assert install.STAMP.exists() and not install.packages_installed()


def test_an_overwritten_axolotl_command_is_put_back_and_nothing_else(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[tuple[str, ...]] = []
    monkeypatch.setattr(install, "run", lambda title, *command: started.append((title, *command)))
    (checkout / ".venv" / "bin" / "axolotl").write_text("from axolotl.cli.main import main\n")
    install.main()
    [(_, *command)] = started
    assert command[-5:] == ["--quiet", "--no-deps", "--no-build-isolation", "-e", "."]


def test_a_lost_model_is_converted_again_and_nothing_else(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[tuple[str, ...]] = []
    monkeypatch.setattr(install, "run", lambda title, *command: started.append(command))
    install.MODEL_RECORD.unlink()
    install.main()
    assert [command[-1] for command in started] == ["lora_recipes.models.bundled"]


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
