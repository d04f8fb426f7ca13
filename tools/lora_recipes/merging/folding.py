"""Folding a LoRA adapter into its base model, some rows of one weight in memory at a time.

A weight becomes W + s·B·A, summed in float32 and rounded once to the dtype in which the base stores
it; s is alpha/r, or alpha/√r for rsLoRA (https://arxiv.org/abs/2312.03732). DoRA then scales each row
to its trained magnitude m: m·(W + s·B·A)/‖W + s·B·A‖ (https://arxiv.org/abs/2402.09353, eq. 5).

QLoRA trains on a base whose linear layers are rounded to NF4, so W is that rounded weight when the
adapter is merged onto the quantized base. Embeddings, norms and lm_head are not rounded in training
and not here.

Some threads read and fold the parts of a file while one hashes and one writes those before them. One whole weight
at a time takes a third more processor time and a fifth more memory (1.7B parameters: 46 and 49 s against 34 and 36,
1,020 MB against 840, in turn on a busy machine): `bench/merging.py --ways whole-weights,ours-tensors-only`.
"""

import json
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_recipes.config.runfile import RunFile
from lora_recipes.merging.merge_plan import Change, Plan
from lora_recipes.models import loading, shards
from lora_recipes.models.shards import Stored
from lora_recipes.support import files

_PART = 1 << 20
"""Elements that are folded at a time: they stay in the processor's cache."""

_AHEAD = 6


def rounded_to_nf4(plan: Plan, entry: Stored) -> Any:
    """A whole weight that training in 4 bit rounds, as training has it."""
    return nf4(shards.read(entry).to(plan.quantized_from))


def nf4(weight: Any) -> Any:
    """A weight after 4-bit NormalFloat with double quantization and back (https://arxiv.org/abs/2305.14314)."""
    import bitsandbytes.functional as bnb
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    codes, state = bnb.quantize_4bit(weight.to(device), blocksize=64, compress_statistics=True, quant_type="nf4")
    return bnb.dequantize_4bit(codes, state).cpu()


class _Folder:
    """Folds row ranges of weights; its buffers are used again, so it belongs to one thread."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.raw = bytearray()
        self.floats: list[Any] = [None, None]

    def fold(self, entry: Stored, begin: int, end: int, buffer: bytearray) -> memoryview:
        """Rows begin to end of the merged weight, as bytes in the buffer."""
        import torch

        change = self.plan.changes.get(entry.name, Change())
        base = self._base(entry, change, begin, end)
        weight = self._float(0, base.shape).copy_(base)
        if change.left is not None:
            product = self._float(1, base.shape)
            torch.mm(change.left[begin:end], change.right, out=product.view(end - begin, -1)).mul_(change.scale)
            weight += product
        if change.magnitude is not None:
            weight *= (change.magnitude[begin:end] / weight.norm(dim=1)).unsqueeze(1)
        held = memoryview(buffer)[: entry.size // entry.shape[0] * (end - begin)]
        torch.frombuffer(held, dtype=shards.dtype_of(entry)).view(base.shape).copy_(weight)
        return held

    def _base(self, entry: Stored, change: Change, begin: int, end: int) -> Any:
        if change.value is not None:
            return change.value[begin:end]
        if entry.name in self.plan.quantized:
            return rounded_to_nf4(self.plan, entry)[begin:end]
        if len(self.raw) < (needed := entry.size // entry.shape[0] * (end - begin)):
            self.raw = bytearray(needed)
        return shards.read_rows(entry, begin, end, self.raw)

    def _float(self, number: int, shape: Sequence[int]) -> Any:
        import torch

        count = int(torch.Size(shape).numel())
        if self.floats[number] is None or len(self.floats[number]) < count:
            self.floats[number] = torch.empty(count)
        return self.floats[number][:count].view(shape)


@dataclass(frozen=True)
class _Piece:
    """A part of a merged weight: rows that are folded, or bytes that stay as they are."""

    entry: Stored
    folded: bool
    begin: int
    end: int
    size: int

    @property
    def last(self) -> bool:
        return self.end == (self.entry.shape[0] if self.folded else self.entry.size)


def _pieces(plan: Plan, entries: Sequence[Stored]) -> Iterator[_Piece]:
    rewritten = {entry.name for entry in plan.rewritten}
    for entry in entries:
        folded = entry.name in rewritten
        count, size = (entry.shape[0], entry.size // entry.shape[0]) if folded else (entry.size, 1)
        step = max(1, 2 * _PART // size)
        if entry.name in plan.quantized:  # the scales of NF4's scales are of the whole weight
            step = count
        for begin in range(0, count, step):
            end = min(begin + step, count)
            yield _Piece(entry, folded, begin, end, (end - begin) * size)


def write(run: RunFile, plan: Plan, folder: Path, step: Callable[[], None]) -> dict[str, str]:
    """Write the merged model with its configuration and tokenizer; `step` is called once a weight.

    Returns the sha256 of each safetensors file as it was meant to be written.
    """
    hashes: dict[str, str] = {}
    with ThreadPoolExecutor(1) as flusher, shards.workers() as pool:
        flushed = []
        for name, entries in plan.files.items():
            hashes[name] = shards.write(folder / name, entries, _parts(plan, entries, pool, step))
            flushed.append(flusher.submit(shards.flush, folder / name))
        _write_companions(run, plan, folder)
        for each in flushed:
            each.result()
    return hashes


def _parts(
    plan: Plan, entries: Sequence[Stored], pool: ThreadPoolExecutor, step: Callable[[], None]
) -> Iterator[memoryview]:
    """The bytes of the merged entries in order, made some parts ahead of the one that is asked for."""
    own = threading.local()
    pieces = _pieces(plan, entries)
    waiting: deque[tuple[_Piece, bytearray, Future[memoryview]]] = deque()

    def make(piece: _Piece, buffer: bytearray) -> memoryview:
        if not hasattr(own, "folder"):
            own.folder = _Folder(plan)
        if piece.folded:
            return own.folder.fold(piece.entry, piece.begin, piece.end, buffer)
        held = memoryview(buffer)[: piece.size]
        shards.read_into(piece.entry, piece.begin, held)
        return held

    def start(buffer: bytearray) -> None:
        if piece := next(pieces, None):
            buffer = buffer if len(buffer) >= piece.size else bytearray(piece.size)
            waiting.append((piece, buffer, pool.submit(make, piece, buffer)))

    for _ in range(_AHEAD):
        start(bytearray())
    while waiting:
        piece, buffer, made = waiting.popleft()
        yield made.result()
        if piece.last:
            step()
        start(buffer)


def _write_companions(run: RunFile, plan: Plan, folder: Path) -> None:
    """Index, configuration, generation settings and tokenizer; an end token of the run file ends answers too."""
    if len(plan.files) > 1:
        index = {
            "metadata": {"total_size": sum(entry.size for entry in plan.weights)},
            "weight_map": {entry.name: name for name, entries in plan.files.items() for entry in entries},
        }
        _write_json(folder / shards.INDEX, index)
    tokenizer = loading.load_tokenizer(run)
    tokenizer.save_pretrained(folder)
    for name in ("config.json", "generation_config.json"):
        if not (plan.base / name).is_file():
            continue
        settings = files.read_json(plan.base / name)
        settings.pop("quantization_config", None)
        if plan.untied and name == "config.json":
            settings["tie_word_embeddings"] = False
        ends = settings.get("eos_token_id")
        ends = ends if isinstance(ends, list) else [] if ends is None else [ends]
        if "eos_token" in run.special_tokens and tokenizer.eos_token_id not in ends:
            settings["eos_token_id"] = [tokenizer.eos_token_id, *ends]
        _write_json(folder / name, settings)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
