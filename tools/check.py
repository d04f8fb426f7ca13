#!/usr/bin/env python3
"""The pre-flight: what is wrong with a run file, found here and now, before a GPU is rented."""

import json
import os
from pathlib import Path

from lora_recipes.check.findings import Report
from lora_recipes.support import libraries, terminal

import click


@click.command(cls=terminal.Tool)
@click.argument("run", metavar="RUN")
@click.option("--json", "as_json", is_flag=True, help="everything as JSON on stdout")
@click.option("--row", type=click.IntRange(1), metavar="N", help="show training row N with its mask")
@click.option(
    "--model-dir",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="folder with tokenizer and config",
)
@click.option("--gpus", default=1, show_default=True, type=click.IntRange(1), help="processes of the run")
def main(run: str, as_json: bool, row: int | None, model_dir: Path | None, gpus: int) -> None:
    """Check a run file before it is trained; - reads it from stdin.

    On a CPU, without weights: keys, target modules, kernels and attention, prompt and masks of every
    training row, batch arithmetic, DeepSpeed, leakage, secrets and the traps of the pinned Axolotl.
    Exit 1 on an error, and when a check itself fails.

    \b
    Example:
      tools/check.py recipes/smollm2-african-history/lora.yaml
      tools/render.py --variant ds2 | tools/check.py - --model-dir phi4/
    """
    os.environ["TOKENIZERS_PARALLELISM"] = "true"  # nothing forks here after a tokenizer was used
    libraries.quiet()
    from lora_recipes.check import preflight
    from lora_recipes.check.validation import Axolotl

    try:
        with Axolotl() as axolotl:
            checked, training = preflight.run(run, axolotl, model_dir, gpus)
    except click.UsageError:
        raise
    except click.ClickException as error:
        _show(preflight.failed(run, error), as_json)
        raise SystemExit(1) from None
    _show(checked.report, as_json)
    if row:
        from lora_recipes.check import masks

        click.echo("\n" + masks.shown_row(checked, training, row), err=as_json)
    raise SystemExit(checked.report.failed)


def _show(report: Report, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(report.as_json(), indent=2, ensure_ascii=False))
    else:
        click.echo("\n".join(report.as_text()))


if __name__ == "__main__":
    main()
