"""The `axolotl` of this environment: stock Axolotl that also takes `-` for a run file on stdin.

Stock Axolotl wants a path, and only one of several processes can read stdin. So stdin is read once,
kept beside the outputs, and Axolotl is started on that file. Every other call goes through unchanged.
"""

import importlib.util
import subprocess
import sys

from lora_recipes import results, rows, runfile

import click


def main() -> None:
    """Console script `axolotl`."""
    try:
        args = with_stdin_kept(sys.argv[1:])
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    if args is None:
        return
    from_stdin, sys.argv[1:] = args != sys.argv[1:], args
    from axolotl.cli.main import main as axolotl_main

    try:
        axolotl_main()
    except subprocess.CalledProcessError as error:
        if not from_stdin:
            raise
        sys.exit(error.returncode)  # the trainer has said why; the launcher's traceback adds nothing


def with_stdin_kept(args: list[str]) -> list[str] | None:
    """The arguments with a bare `-` before any `--` replaced by the path of the kept run file.

    None when there is nothing to do: this very run file was trained to its end, and Axolotl would
    resume it and train a step more.
    """
    own = args[: args.index("--")] if "--" in args else args
    if len(own) < 2 or "-" not in own[1:]:
        return args
    at = own.index("-", 1)
    given = runfile.load("-")
    _require_plugins(given)
    _require_inputs(given)
    run = runfile.load(given.keep())
    if args[0] == "train" and results.finished(run):
        click.echo(f"{run.output_dir}: this run file was trained to its end; nothing to do.", err=True)
        return None
    click.echo(f"run file kept as {run.name}", err=True)
    return [*args[:at], run.name, *args[at + 1 :]]


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
        module = name.rpartition(".")[0]
        try:
            found = importlib.util.find_spec(module) if module else None
        except ImportError:
            found = None
        if found is None:
            raise run.error(f"plugins.{index}", f"{name} cannot be imported here; install it or delete the line.")
