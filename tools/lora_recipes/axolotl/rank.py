"""One process of a run that a launcher starts: Axolotl's trainer, which minds signals from its first moment."""

import runpy

from lora_recipes.support import signals

if __name__ == "__main__":
    signals.begin()
    runpy.run_module("axolotl.cli.train", run_name="__main__", alter_sys=True)
