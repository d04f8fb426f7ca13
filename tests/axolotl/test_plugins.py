"""What our plugins do inside Axolotl, on a GPU as well as on a CPU."""

from types import SimpleNamespace

import pytest

pytestmark = pytest.mark.slow  # imports Axolotl


@pytest.mark.parametrize(("seed", "expected"), [("0", 0), ("7", 7), ("null", 42)])
def test_the_seed_covers_the_adapter_on_a_gpu_too(run_file, seed, expected):
    """Axolotl itself seeds after the adapter is made; 0 is a seed."""
    from lora_recipes.plugin import RunPlugin

    import torch

    cfg = SimpleNamespace(axolotl_config_path=run_file("lora", f"seed={seed}"))
    RunPlugin().pre_lora_load(cfg, None)
    assert torch.initial_seed() == expected


def test_axolotl_s_trainer_takes_one_gpu_and_notes_its_speed(run_file, monkeypatch, capsys):
    from lora_recipes.plugin import RunPlugin
    from lora_recipes.training import checkpoints
    from lora_recipes.training.progress import Speed

    class Arguments(SimpleNamespace):
        n_gpu = property(lambda self: self._n_gpu)
        train_batch_size = property(lambda self: 2 * self._n_gpu)

    monkeypatch.setattr(checkpoints, "make_interruptible", lambda trainer: None)
    cfg = SimpleNamespace(axolotl_config_path=run_file("lora"))
    trainer = SimpleNamespace(args=Arguments(_n_gpu=4, world_size=1), train=lambda: "trained", _train_batch_size=8)
    plugin = RunPlugin()
    plugin.post_trainer_create(cfg, trainer)
    assert (trainer.args._n_gpu, trainer._train_batch_size, trainer.train()) == (1, 2, "trained")
    assert "4 GPUs are here" in capsys.readouterr().err
    assert any(isinstance(one, Speed) for one in plugin.add_callbacks_post_trainer(cfg, trainer))


def test_too_little_memory_under_axolotl_is_a_sentence_with_what_to_lower(run_file, monkeypatch):
    from lora_recipes.plugin import RunPlugin
    from lora_recipes.training import checkpoints

    import click
    import torch

    def train():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

    monkeypatch.setattr(checkpoints, "make_interruptible", lambda trainer: None)
    trainer = SimpleNamespace(args=SimpleNamespace(n_gpu=1, world_size=1), train=train)
    RunPlugin().post_trainer_create(SimpleNamespace(axolotl_config_path=run_file("lora")), trainer)
    with pytest.raises(click.ClickException, match=r"out of memory .* micro_batch_size"):
        trainer.train()
