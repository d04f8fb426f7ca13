"""Run files of three steps, or of forty, that the literal pipe and `axolotl train` are tried on."""

from lora_recipes import ROOT
from lora_recipes.rendering import render

BIN = ROOT / ".venv" / "bin"
SMALL = (
    *("global_batch=4", "micro_batch_size=2", "max_steps=3", "bf16=false", "evals_per_epoch=1", "saves_per_epoch=4"),
    "adam_epsilon=1e-3",  # so that a gradient near zero does not magnify the order of a sum: see test_alpaca.py
)


def settings(rows, output_dir, *more):
    data = (f"base_model={rows.parent}/model", f"datasets.0.path={rows}", f"test_datasets.0.path={rows}")
    more = (f"output_dir={output_dir}", f"dataset_prepared_path={rows.parent}/prepared", *more)
    return [f"--set={setting}" for setting in (*SMALL, *data, *more)]


def write(folder, rows):
    """A run file of forty steps on the tiny model, a checkpoint each."""
    path = folder.parent / f"{folder.name}.yaml"
    options = settings(rows, folder, "max_steps=40", "evals_per_epoch=null", "saves_per_epoch=null", "save_steps=1")
    path.write_text(render.render("smollm2-african-history", "lora", tuple(o.removeprefix("--set=") for o in options)))
    return path


def tensors(folder):
    from safetensors.torch import load_file

    return {name: tensor.float() for name, tensor in load_file(folder / "adapter_model.safetensors").items()}
