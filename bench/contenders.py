"""The contenders of bench/training.py, one class each: to add one, add a class.

The peers are set up for speed as their documentation advises, as far as it works on a CPU: bf16 base
weights, rows of like length together or packed, activations kept, SDPA (FlashAttention, Liger's and
Unsloth's kernels need a GPU); TRL makes logits for labels only (its default). Packs that have one shape
are also tried with torch.compile, which none of the three advises.
"""

import sys
from pathlib import Path
from typing import Any, ClassVar

from lora_recipes import ROOT
from lora_recipes.config.runfile import RunFile

import measuring
import peers
from timed import Trained

PACKED = ("sample_packing=true", "micro_batch_size=1", "gradient_accumulation_steps=4")


class Contender:
    """A way of training; its subclasses are what `--ways` takes, by their names, in the order below."""

    name: ClassVar[str]
    words: ClassVar[str]
    """What it is, in the result file."""
    settings: ClassVar[tuple[str, ...]] = ()
    """What its run file sets beyond the common settings, as for `tools/render.py --set`."""
    is_peer: ClassVar[bool] = True
    """Another project's, set up for speed: the best of these is what ours is compared with."""
    once: ClassVar[bool] = False
    """In the first round only: it compiles for minutes."""

    def absent(self) -> str:
        """Why it cannot run here; '' when it can."""
        return ""

    def prepare(self, work: Path, base: str, sequence_len: int) -> None:
        """Write what it reads beside its run file into the benchmark's folder; base: the base model's folder."""

    def train(self, run: RunFile, work: Path, sequence_len: int) -> Trained:
        """One pass over the rows of its run file, the adapter left in work / "out" / name."""
        raise NotImplementedError


def named(name: str) -> Contender:
    return next(contender for contender in ALL if contender.name == name)


class Reference(Contender):
    name, words = "reference", "transformers' Trainer as LoRAfrica used it: fp32, file order, batches of 2, full logits"
    settings: ClassVar[tuple[str, ...]] = ("bf16=false",)
    is_peer = False

    def train(self, run: RunFile, work: Path, sequence_len: int) -> Trained:
        import trainers

        return trainers.reference(run, work / "out" / self.name, sequence_len)


class ReferenceInBf16(Reference):
    name, words, settings = "reference-bf16", "the same in bf16", ()

    def absent(self) -> str:
        return "" if measuring.dtype() == "bfloat16" else "this processor emulates bf16"


class Trl(Contender):
    name, words = "trl", "TRL's SFTTrainer, completion only, batches of 8 of like length"
    more: ClassVar[dict[str, Any]] = {}
    """SFTConfig's settings beyond those of trainers.trl."""

    def train(self, run: RunFile, work: Path, sequence_len: int) -> Trained:
        import trainers

        return trainers.trl(run, work / "out" / self.name, sequence_len, **self.more)


class TrlPacked(Trl):
    name, words = "trl-packed", "the same, packed to sequence_len, 4 packs a step"
    more: ClassVar[dict[str, Any]] = {
        "packing": True,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 4,
        "train_sampling_strategy": "random",
    }


class TrlPaddingFree(Trl):
    name, words = "trl-padding-free", "the same, batches of 8 in one row without padding"
    more: ClassVar[dict[str, Any]] = {"padding_free": True, "max_length": None}


class TrlCompiled(Trl):
    name, words = "trl-compiled", "the same as trl-packed with torch_compile, each pack padded to sequence_len"
    more: ClassVar[dict[str, Any]] = {**TrlPacked.more, "torch_compile": True}
    once = True

    def train(self, run: RunFile, work: Path, sequence_len: int) -> Trained:
        import trainers

        more = {**self.more, "pad_to_multiple_of": sequence_len}  # one shape, compiled once
        return trainers.trl(run, work / "out" / self.name, sequence_len, **more)


class Axolotl(Contender):
    name, words = "axolotl", "Axolotl, batches of 8 of like length"
    settings: ClassVar[tuple[str, ...]] = ("group_by_length=true", "include_tokens_per_second=true")

    def train(self, run: RunFile, work: Path, sequence_len: int) -> Trained:
        import timed

        axolotl = str(Path(sys.executable).parent / "axolotl")
        return timed.from_run_file([axolotl, "train", run.name, "--launcher", "python"], run)


class AxolotlPacked(Axolotl):
    name, words = "axolotl-packed", "Axolotl, packed to sequence_len, 4 packs a step"
    settings = (*PACKED, "include_tokens_per_second=true")


class AxolotlCompiled(Axolotl):
    name, words = "axolotl-compiled", "the same as axolotl-packed with torch_compile"
    settings, once = (*AxolotlPacked.settings, "torch_compile=true"), True


class LlamaFactory(Contender):
    name, words = "llamafactory", "LLaMA-Factory, batches of 8 of like length"
    more: ClassVar[dict[str, Any]] = {}
    """Its own settings beyond those of peers.configuration."""

    def absent(self) -> str:
        return peers.absent()

    def prepare(self, work: Path, base: str, sequence_len: int) -> None:
        peers.write_configuration(work, self.name, base, sequence_len, **self.more)

    def train(self, run: RunFile, work: Path, sequence_len: int) -> Trained:
        import timed

        command = [str(peers.COMMAND), "train", str(peers.configuration_path(work, self.name))]
        return timed.from_trainer_state(command, work / "out" / self.name)


class LlamaFactoryPacked(LlamaFactory):
    name, words = "llamafactory-packed", "LLaMA-Factory, neat_packing, 4 packs a step"
    more: ClassVar[dict[str, Any]] = {
        "packing": True,
        "neat_packing": True,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 4,
        "train_sampling_strategy": "random",
        "include_num_input_tokens_seen": "all",  # its packs' mask numbers the rows and is no count
    }


class LlamaFactoryCompiled(LlamaFactory):
    name, words = "llamafactory-compiled", "the same as llamafactory-packed with torch_compile"
    more: ClassVar[dict[str, Any]] = {**LlamaFactoryPacked.more, "torch_compile": True}
    once = True


class Plain(Contender):
    name, words = "plain", "tools/train.py, batches of 8 in the shuffled order of Axolotl, without padding"
    is_peer = False

    def train(self, run: RunFile, work: Path, sequence_len: int) -> Trained:
        import timed

        return timed.from_run_file([sys.executable, str(ROOT / "tools" / "train.py"), run.name], run)


class PlainCompiled(Plain):
    name, words, settings = "plain-compiled", "the same with torch_compile", ("torch_compile=true",)


class PlainWithLogits(Plain):
    """Ours without training/chunked_loss.py: what the chunks are worth."""

    name, words = "plain-logits", "the same with a micro batch's logits in memory at once"

    def train(self, run: RunFile, work: Path, sequence_len: int) -> Trained:
        import timed

        code = (
            "import runpy, sys; from lora_recipes.training import chunked_loss; "
            "chunked_loss.bypass_lm_head = lambda model: None; runpy.run_path(sys.argv.pop(1), run_name='__main__')"
        )
        return timed.from_run_file([sys.executable, "-c", code, str(ROOT / "tools" / "train.py"), run.name], run)


def _all(kind: type[Contender]) -> list[type[Contender]]:
    return [one for below in kind.__subclasses__() for one in (below, *_all(below))]


ALL = [contender() for contender in _all(Contender)]
