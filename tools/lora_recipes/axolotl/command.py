"""The `axolotl` command of this environment: Axolotl's own, whose `train` also reads a run file from stdin.

Axolotl takes a path, and of several processes only one can read stdin. So the run file, from stdin or a path, is read
once and kept beside the outputs, with RunPlugin added, and Axolotl trains the kept file. `--overwrite` trains anew
over what the output folder holds. Sweeps, clouds and all other commands are passed on unchanged; one that is given
`-` gets the path of the kept run file.
"""

import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

from lora_recipes.axolotl import launcher
from lora_recipes.config import keys, runfile
from lora_recipes.data import builders, prepared, rows
from lora_recipes.results import result_files
from lora_recipes.support import processes, signals, terminal

import click

_PLUGIN = "lora_recipes.plugin.RunPlugin"


def main() -> None:
    """The console script. Axolotl finds its launchers in PATH, where only an activated environment has them."""
    terminal.standard_streams()
    processes.use_own_programs()
    args = sys.argv[1:]
    if args[:1] == ["train"]:
        signals.begin()
    try:
        if call := train_call(args):
            return _train(call)
        if "-" in _own(args)[1:]:
            given = read("-")
            sys.argv[1:] = with_path(args, "-", given.keep(plugins(given)))
    except click.ClickException as error:
        terminal.show(error)
        sys.exit(error.exit_code)
    return _axolotl_quietly()


@dataclass(frozen=True)
class TrainCall:
    """`axolotl train …`, as Axolotl's own parser understands it."""

    args: list[str]
    """All arguments but `--overwrite`."""
    source: str
    """The run file's path, or `-`."""
    settings: dict[str, Any]
    """Keys of the run file that are given as options, by name."""
    overwrite: bool
    launched: bool
    """A launcher that starts other processes, or arguments for one, are given."""


def train_call(args: list[str]) -> TrainCall | None:
    """The training that is asked for; None for another command, for help, and for a sweep or a cloud."""
    if args[:1] != ["train"] or "--help" in _own(args):
        return None
    from axolotl.cli.main import cli

    overwrite, args = without_overwrite(args)
    command = cli.commands["train"]
    parser = command.make_parser(click.Context(command, **command.context_settings))
    try:
        options, more, _ = parser.parse_args(args[1:])
    except click.UsageError:
        return None  # Axolotl says what is wrong
    given = {name: value for name, value in options.items() if isinstance(value, (str, bool))}
    source = given.pop("config", None)
    if source not in _own(args) or {"sweep", "cloud", "use_ray"} & set(given):
        return None
    chosen = given.pop("launcher", "accelerate" if more or "num_processes" in given else None)
    return TrainCall(args, str(source), given, overwrite, chosen not in (None, "python"))


def read(source: str, settings: dict[str, Any] | None = None) -> runfile.RunFile:
    """The run file at a path or on stdin. Raises click.ClickException when a plugin or a local input is missing."""
    given = runfile.load(source)
    changed = {}
    for name, value in (settings or {}).items():
        if types := keys.known_type((name,)):  # the others are about the call, as --debug is
            changed[name] = value if isinstance(value, bool) else keys.typed(name, value, types)
    given = given.replaced(**changed)
    given.require_plugins()
    _require_readable(given)
    return given


def _own(args: list[str]) -> list[str]:
    """The arguments before any `--`: those after it are a launcher's."""
    return args[: args.index("--")] if "--" in args else args


def with_path(args: list[str], source: str, path: object) -> list[str]:
    """The arguments with another path in the place of the run file's."""
    at = _own(args).index(source, 1)
    return [*args[:at], str(path), *args[at + 1 :]]


def without_overwrite(args: list[str]) -> tuple[bool, list[str]]:
    """Whether `--overwrite` stands before any `--`, and the arguments without it: Axolotl does not know it."""
    own = _own(args)
    return "--overwrite" in own, [*(arg for arg in own if arg != "--overwrite"), *args[len(own) :]]


def plugins(run: runfile.RunFile) -> tuple[str, ...]:
    """The plugins that the kept run file gets in addition."""
    ours = (_PLUGIN, "lora_recipes.plugin.CpuPlugin")
    return () if set(ours) & set(run.plugins) else (_PLUGIN,)


def _train(call: TrainCall) -> None:
    """Train, or resume; does nothing when this very run file was trained to its end."""
    given = read(call.source, call.settings)
    processes.require_accelerator(given.name, given.plugins)
    with given.claimed() as claim:
        if call.overwrite:
            from lora_recipes.training import checkpoints

            checkpoints.remove(given)
        run = runfile.load(given.keep(plugins(given)))
        if result_files.finished(run):
            click.echo(f"{run.output_dir}: this run file was trained to its end; nothing to do.", err=True)
            return
        prepared.remove_unfinished(run.path(run.config.get(runfile.PREPARED) or runfile.DEFAULT_PREPARED))
        click.echo(f"run file kept as {run.name}", err=True)
        args = with_path(call.args, call.source, run.name)
        if call.launched or not _one_device():
            sys.argv[1:] = args
            os.execvpe = launcher.run  # type: ignore[assignment]  # Axolotl would let a launcher replace this process
            return _axolotl_quietly()
        # In this very process. Its data loaders outlive it by seconds: they do not hold the claim.
        held = [claim]  # emptied in a child: what it forks in turn has nothing to close
        os.register_at_fork(after_in_child=lambda: os.close(held.pop()) if held else None)
        sys.argv[1:] = [args[0], "--launcher", "python", *args[1:]]
        return _axolotl_quietly()


def _one_device() -> bool:
    """Whether accelerate's launcher would start one process: at most one GPU, and no accelerate configuration."""
    import torch
    from accelerate.commands.config.config_args import default_config_file

    return torch.cuda.device_count() <= 1 and not os.path.isfile(default_config_file)


def _axolotl_quietly() -> None:
    """Run Axolotl without the launcher's traceback: the trainer has printed the reason."""
    from axolotl.cli.main import main as axolotl_main

    try:
        axolotl_main()
    except subprocess.CalledProcessError as error:
        sys.exit(launcher.status(error.returncode))


def _require_readable(run: runfile.RunFile) -> None:
    """Read what can be read before Axolotl's half minute of start-up: the DeepSpeed file and local rows."""
    builders.require_readable(run)
    _ = run.deepspeed
    for entries, part in ((run.datasets, "train"), (run.test_datasets, "validation")):
        local = [isinstance(entry.get("type"), dict) and run.path(entry["path"]).exists() for entry in entries]
        if local and all(local):
            rows.load_rows(run, part)
