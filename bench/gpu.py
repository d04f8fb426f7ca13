#!/usr/bin/env python3
"""LoRA on one GPU: the reference projects' way, a strong setting of the peers, and the plain trainer's parts.

Needs torch, transformers, peft, triton, click and this checkout; no weights, no tokenizer, no network, no git. The
weights are random, the rows have true lengths, so speed and memory are those of the real thing, and the answers are
not. Axolotl's fused LoRA kernels are tried where Axolotl is installed, on the Llama only: they cannot rewrite Phi-3's
attention.

The figure to beat on full rows: NeMo AutoModel, Llama 3.1 8B, LoRA r=16 on all projections, 2 rows of 4,096 tokens a
pass, one H100: 12,473 tokens a second, 402 TFLOP/s, 40.6 % of the card's 989 (docs/performance-summary.mdx of
https://github.com/NVIDIA-NeMo/Automodel, June 2026). That fits 4 operations a token for each of its 8.0 billion
weights. Here its embeddings, which are looked up, do not count, and the adapter does: the same speed is 38.2 %.
"""

import importlib.util
from dataclasses import dataclass

import click
import gpu_models
import measuring

HOW = {
    "reference": "padded to the longest, a mask, logits for every position, as the reference projects",
    "padded": "padded to the longest, a mask, logits for every position",
    "axolotl": "the same with Axolotl's fused LoRA kernels",
    "plain": "the plain trainer: no padding, logits in chunks where a label is",
    "compiled": "the plain trainer with torch_compile",
    "one-by-one": "one question at a time",
    "answers": "what the questions share read once",
}


@dataclass(frozen=True)
class Setting:
    """What one way trains, or answers, and how."""

    shape: str
    """Of gpu_models.SHAPES."""
    length: int
    """Tokens of every row, all with loss; 0 for the lengths of the African-history set."""
    rows: int
    """A step; questions in all for answers."""
    micro: int
    """Rows a forward pass."""
    how: str
    """Of HOW."""

    @property
    def name(self) -> str:
        return f"{self.shape}-{self.length or 'history'}-{self.rows}x{self.micro}-{self.how}"

    @property
    def words(self) -> str:
        rows = f"rows of {self.length:,} tokens" if self.length else "rows of the African-history lengths"
        if self.how in ("one-by-one", "answers"):
            return f"{self.shape}, {self.rows} questions, {self.micro} at a time: {HOW[self.how]}"
        return f"{self.shape}, {self.rows} {rows} a step, {self.micro} a pass: {HOW[self.how]}"

    @property
    def absent(self) -> str:
        """Why it cannot be run here; '' when it can."""
        missing = self.how == "axolotl" and importlib.util.find_spec("axolotl") is None
        return "Axolotl is not installed here" if missing else ""


PHI, LLAMA = gpu_models.SHAPES
SETTINGS = {
    one.name: one
    for one in (
        Setting(PHI, 0, 8, 2, "reference"),
        *(Setting(PHI, 0, 8, 8, how) for how in ("padded", "plain", "compiled")),
        *(Setting(PHI, 0, 96, 32, how) for how in ("padded", "plain", "compiled")),  # some 8,000 tokens a step
        Setting(PHI, 2048, 2, 2, "plain"),  # the memory that the recipes' headers compute
        *(Setting(PHI, 4096, 2, 2, how) for how in ("reference", "plain", "compiled")),
        Setting(LLAMA, 0, 8, 2, "reference"),
        *(Setting(LLAMA, 0, 8, 8, how) for how in ("axolotl", "plain", "compiled")),
        *(Setting(LLAMA, 0, 96, 32, how) for how in ("axolotl", "plain", "compiled")),
        *(Setting(LLAMA, 4096, 2, 1, how) for how in ("padded", "axolotl", "plain", "compiled")),
        Setting(LLAMA, 4096, 2, 2, "plain"),
        Setting(PHI, 0, 10, 1, "one-by-one"),
        Setting(PHI, 0, 100, 100, "answers"),
    )
}
MATRIX, CHECK = "matmul", "check"
WAYS = {CHECK: "attention and logits against PyTorch's own: largest relative errors (bench/gpu_check.py)"} | {
    name: setting.words for name, setting in SETTINGS.items()
}


def ways(chosen: list[str], steps: int) -> list[measuring.Way]:
    """The card itself first, then the chosen ones, each a process of its own."""
    found = [measuring.Way(MATRIX, "the card itself: matrix products of 8192 x 8192", _command(MATRIX, steps))]
    for name in chosen:
        if name == CHECK:
            found.append(measuring.Way(name, WAYS[name], measuring.python("gpu_check.py"), once=True))
        else:
            found.append(measuring.Way(name, WAYS[name], _command(name, steps), absent=SETTINGS[name].absent))
    return found


def _command(name: str, steps: int) -> list[str]:
    return measuring.python("gpu_ways.py", name, steps)


def add_shares(measured: measuring.Measured, device: str) -> None:
    """Put beside the operations a second their share of the same round's matrix rate, and of the card's peak."""
    from lora_recipes.training.progress import peak_rate

    peak = peak_rate(device)
    for runs in measured.values():
        for one, matrix in zip(runs, measured[MATRIX], strict=False):
            if speed := one.get("model_tflops"):
                one["steady_rate_share"] = round(speed * 1e3 / matrix["gflops"], 4)
                if peak:
                    one["peak_rate_share"] = round(speed * 1e12 / peak, 4)


@click.command()
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1), help="runs of each way, in turn")
@click.option("--steps", default=20, show_default=True, type=click.IntRange(4, 60), help="timed training steps")
@click.option("--ways", "names", default=",".join(WAYS), metavar="A,B", help="which to run  [default: all]")
def main(rounds: int, steps: int, names: str) -> None:
    """Train and answer on a GPU with random weights of true shapes, each way in turn.

    The results are written after each way, into results/bench/gpu-<device>.json; an interruption loses the way that
    was under way.

    \b
    Example:
      bench/gpu.py --rounds 1 --ways check,phi4-mini-history-8x2-reference,phi4-mini-history-8x8-plain
    """
    chosen = names.split(",")
    if strange := set(chosen) - set(WAYS):
        raise click.UsageError(f"--ways {sorted(strange)[0]}: expected some of {', '.join(WAYS)}.")
    import torch

    if not torch.cuda.is_available():
        raise click.ClickException("no CUDA GPU here; bench/training.py and bench/evaluation.py measure on a CPU.")
    device = torch.cuda.get_device_name()
    file = f"gpu-{device.replace(' ', '-').lower()}"
    contenders = ways(chosen, steps)

    def save(measured: measuring.Measured) -> None:
        add_shares(measured, device)
        measuring.save("gpu", contenders, measured, file, steps=steps)

    log = measuring.RESULTS.parent.parent / ".cache" / "bench" / "gpu.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    measuring.interleave(contenders, rounds, log, save)
    click.echo(measuring.RESULTS / f"{file}.json", err=True)


if __name__ == "__main__":
    main()
