#!/usr/bin/env python3
"""Train a run file with transformers' Trainer and PEFT; needs no Axolotl."""

from lora_recipes.config import runfile
from lora_recipes.support import libraries, processes, signals, terminal

import click


@click.command(cls=terminal.Tool)
@click.argument("run", metavar="RUN")
@click.option("--overwrite", is_flag=True, help="train anew over what output_dir holds")
def main(run: str, overwrite: bool) -> None:
    """Train the adapter of a run file; - reads it from stdin.

    Runs under torchrun and accelerate launch as well.

    \b
    Example:
      tools/train.py recipes/smollm2-african-history/peft.yaml
    """
    signals.begin()
    if run == "-" and processes.world_size() > 1:
        raise click.UsageError("of several processes only one can read stdin; save the run file and give its path.")
    loaded = runfile.load(run)
    libraries.quiet()
    from lora_recipes.training import trainer

    trainer.train(loaded, overwrite)


if __name__ == "__main__":
    main()
