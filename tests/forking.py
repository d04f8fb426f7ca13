"""Programs run in forks of one parent that has imported the libraries: a run costs seconds instead of half a minute.

`Parent` starts this file as a process of its own. Each request brings a command, a working directory, an environment
and the three standard streams; the parent forks, and the child runs the program's file as `__main__`. `client` writes
a program that asks for the same: a shell finds it in PATH and pipes into it.

What a library reads from the environment while it is imported is the parent's. What has to start without a library, or
be the child of a certain process, is run as a real process instead.
"""

import atexit
import contextlib
import ctypes
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

CLIENT = """#!{python} -SE
import json, os, socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
request = [[{program!r}, *sys.argv[1:]], os.getcwd(), dict(os.environ)]
socket.send_fds(server, [b"+"], [0, 1, 2])
server.sendall(json.dumps(request).encode())
server.shutdown(socket.SHUT_WR)
answer = server.makefile()
answer.readline()
status = int(answer.readline())
sys.exit(status if status >= 0 else 128 - status)
"""


class Running:
    """A program in a fork, as Parent.start gives it."""

    def __init__(self, args: list[str], server: socket.socket, out: IO[str], err: IO[str]) -> None:
        self._args, self._server, self._out, self._err = args, server, out, err
        self._answer = server.makefile()
        self.pid = int(self._answer.readline())

    def wait(self) -> subprocess.CompletedProcess[str]:
        """Its exit status, negative where a signal ended it, and all that it said."""
        status = int(self._answer.readline())
        self._server.close()
        said = []
        for stream in (self._out, self._err):
            stream.seek(0)
            said.append(stream.read())
            stream.close()
        return subprocess.CompletedProcess(self._args, status, *said)


class Parent:
    """A process that has imported `modules`, of which others are forked."""

    def __init__(self, *modules: str) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="lora-recipes-forks-")
        self.address = f"{self._folder.name}/socket"
        command = [sys.executable, __file__, self.address, *modules]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdin and self._process.stdout
        if "ready\n" not in iter(self._process.stdout.readline, ""):  # libraries may say something before
            raise RuntimeError(f"{modules} cannot be imported")

    def close(self) -> None:
        self._process.communicate()  # the end of its stdin ends it
        self._folder.cleanup()

    def client(self, path: Path, program: Path) -> None:
        """Write an executable that runs `program` in a fork, with the streams of whoever starts it."""
        path.write_text(CLIENT.format(python=sys.executable, address=self.address, program=str(program)))
        path.chmod(0o755)

    def start(
        self,
        command: Sequence[object],
        cwd: Path | str = ".",
        env: dict[str, str] | None = None,
        input: str = "",
    ) -> Running:
        """Start the Python program command[0]."""
        args = [str(part) for part in command]
        out, err = _stream(), _stream()
        server = socket.socket(socket.AF_UNIX)
        server.connect(self.address)
        with _stream() as given:
            given.write(input)
            given.seek(0)
            socket.send_fds(server, [b"+"], [stream.fileno() for stream in (given, out, err)])
        server.sendall(json.dumps([args, os.path.abspath(cwd), env or dict(os.environ)]).encode())
        server.shutdown(socket.SHUT_WR)
        return Running(args, server, out, err)

    def run(self, command: Sequence[object], **options: Any) -> subprocess.CompletedProcess[str]:
        """As subprocess.run(command, capture_output=True, text=True); options are those of `start`."""
        return self.start(command, **options).wait()


def _stream() -> IO[str]:
    return tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")


def _serve(address: str, modules: list[str]) -> None:
    for module in modules:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()  # a collection in a child would write to, and so copy, every page
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(64)
    print("ready", flush=True)
    running: dict[int, socket.socket] = {}
    while True:
        ready = select.select([listener, 0], [], [], 0.02 if running else None)[0]
        if 0 in ready:
            return
        if listener in ready:
            connection = listener.accept()[0]
            streams = socket.recv_fds(connection, 1, 3)[1]
            request = json.loads(connection.makefile().read())
            if (child := os.fork()) == 0:
                listener.close()
                _become(request, streams)
            connection.sendall(f"{child}\n".encode())
            for stream in streams:
                os.close(stream)
            running[child] = connection
        running = {child: one for child, one in running.items() if not _ended(child, one)}


def _ended(child: int, connection: socket.socket) -> bool:
    found, status = os.waitpid(child, os.WNOHANG)
    if found:
        with contextlib.suppress(OSError), connection:  # the client may be gone
            connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
    return bool(found)


def _become(request: list, streams: list[int]) -> None:
    """Run the program to its end, and end as it does."""
    args, cwd, environment = request
    if sys.platform.startswith("linux"):  # nothing goes on by itself when the tests are ended
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG of sys/prctl.h
    os.setpgid(0, 0)  # as a shell does: its Ctrl-C is for this program and what it starts
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # the tests may run where they are ignored
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv, sys.orig_argv, sys.path[0] = args, [sys.executable, *args], str(Path(args[0]).parent)
    for folder in environment.get("PYTHONPATH", "").split(os.pathsep):
        if os.path.isfile(hook := os.path.join(folder, "sitecustomize.py")):  # as every Python does at its start
            runpy.run_path(hook)
    for name in ("lora_recipes.support.ctrl_c", "lora_recipes"):  # what they do to a program that imports them first
        if name in sys.modules:
            importlib.reload(sys.modules[name])
    code = 0
    try:
        runpy.run_path(args[0], run_name="__main__")
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]  # as the interpreter's own end: other threads first
    atexit._run_exitfuncs()
    for written in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            written.flush()
    os._exit(code)


if __name__ == "__main__":
    _serve(sys.argv[1], sys.argv[2:])
