"""The `axolotl` of this environment: stock Axolotl that also takes `-` for a run file on stdin.

Stock Axolotl wants a path, and only one of several processes can read stdin. So stdin is read once,
kept beside the outputs, and Axolotl is started on that file, with the plugin that makes a run survive its
machine. `axolotl train - --overwrite` trains anew over what the output folder holds. Every other call goes
through unchanged.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

from lora_recipes import files, prepared, results, rows, runfile, supervising

import click

_PLUGIN = "lora_recipes.plugin.RunPlugin"


def main() -> None:
    """Console script `axolotl`; Axolotl looks for its launchers in PATH, where they are in an activated environment."""
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    args = sys.argv[1:]
    if _stdin(args) is None:
        return _axolotl()
    try:
        given = from_stdin()
        if args[0] == "train":
            return _train(given, args)
        sys.argv[1:] = with_path(args, given.keep(plugins(given)))
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    return _axolotl_quietly()


def from_stdin() -> runfile.RunFile:
    """The run file on stdin, with plugins and local inputs that are there. Raises click.ClickException."""
    given = runfile.load("-")
    _require_plugins(given)
    _require_inputs(given)
    return given


def _stdin(args: list[str]) -> int | None:
    """The place of a bare `-` before any `--`, after the command."""
    own = args[: args.index("--")] if "--" in args else args
    return own.index("-", 1) if "-" in own[1:] else None


def with_path(args: list[str], path: object) -> list[str]:
    """The arguments with a path in the place of stdin."""
    at = _stdin(args)
    return args if at is None else [*args[:at], str(path), *args[at + 1 :]]


def without_overwrite(args: list[str]) -> tuple[bool, list[str]]:
    """Whether `--overwrite` stands before any `--`, and the arguments without it: Axolotl does not know it."""
    own = args[: args.index("--")] if "--" in args else args
    return "--overwrite" in own, [*(arg for arg in own if arg != "--overwrite"), *args[len(own) :]]


def quietly(args: list[str]) -> list[str]:
    """The arguments with `--quiet` for accelerate's launcher: the trainer has said why it failed."""
    at = args.index("--") if "--" in args else len(args)
    if {"torchrun", "python", "--launcher=torchrun", "--launcher=python"} & set(args[:at]):
        return args
    return [*args[:at], "--", "--quiet", *args[at + 1 :]]


def plugins(run: runfile.RunFile) -> tuple[str, ...]:
    """What the kept run file names beside its own plugins."""
    ours = (_PLUGIN, "lora_recipes.plugin.CpuPlugin")
    return () if set(ours) & set(run.config.get("plugins") or []) else (_PLUGIN,)


def _train(given: runfile.RunFile, args: list[str]) -> None:
    """Start the trainer, or go on with it; nothing where this very run file was trained to its end."""
    overwrite, args = without_overwrite(args)
    with files.claimed(given.output_dir):
        if overwrite:
            from lora_recipes import checkpoints

            checkpoints.remove(given)
        run = runfile.load(given.keep(plugins(given)))
        if results.finished(run):
            click.echo(f"{run.output_dir}: this run file was trained to its end; nothing to do.", err=True)
            return
        prepared.remove_unfinished(prepared.folder(run.config.get("dataset_prepared_path")))
        click.echo(f"run file kept as {run.name}", err=True)
        sys.argv[1:] = quietly(with_path(args, run.name))
        supervising.run(_axolotl_quietly)


def _axolotl() -> None:
    from axolotl.cli.main import main as axolotl_main

    axolotl_main()


def _axolotl_quietly() -> None:
    """The trainer has said why it failed; the launcher's traceback adds nothing."""
    try:
        _axolotl()
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode if error.returncode >= 0 else 128 - error.returncode)


def _require_inputs(run: runfile.RunFile) -> None:
    """What can be seen before Axolotl's half minute of start-up: the DeepSpeed file and local rows."""
    deepspeed = run.config.get("deepspeed")
    if isinstance(deepspeed, str) and not run.path(deepspeed).is_file():
        raise run.error("deepspeed", f"there is no file {deepspeed}; take one of deepspeed_configs/.")
    for key, part in (("datasets", "train"), ("test_datasets", "validation")):
        entries = run.config.get(key) or []
        if entries and all(
            isinstance(entry.get("type"), dict) and run.path(entry["path"]).exists() for entry in entries
        ):
            rows.load_rows(run, part)


def _require_plugins(run: runfile.RunFile) -> None:
    """Axolotl logs a plugin that it cannot import and trains without it."""
    for index, name in enumerate(run.config.get("plugins") or []):
        if not isinstance(name, str):
            raise run.error(f"plugins.{index}", f"expected the name of a plugin, found {name!r}.")
        module = name.rpartition(".")[0]
        try:
            found = importlib.util.find_spec(module) if module else None
        except ImportError:
            found = None
        if found is None:
            raise run.error(f"plugins.{index}", f"{name} cannot be imported here; install it or delete the line.")
