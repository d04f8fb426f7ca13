"""Running a causal language model whose weights stay in its files: those of a layer are read when its turn comes.

What is resident is the activations and a few rows of one weight, so a model of any size is run in the
memory of a small one. It costs a pass over the files for each call: worth it for one batch, not for answers.
accelerate's hooks, with a whole weight in float32 at a time, took 146 s of processor time for a verified merge of 1.7B
parameters where this took 109, and 3.8 GB where this took 1.0.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_recipes.merging.folding import nf4
from lora_recipes.models import shards
from lora_recipes.models.shards import Stored

_PART = 1 << 20
"""Elements that are read at a time: they stay in the processor's cache."""

ADAPTER = "default"
"""PEFT's name for the adapter of an opened model."""


class Unknown(Exception):
    """A weight of the model is not in its files under its own name and shape: transformers converts it on loading."""


@dataclass(frozen=True)
class Lora:
    """What PEFT adds to one weight: its own A, B, scale and DoRA's magnitudes."""

    a: Any
    b: Any
    scale: float
    magnitude: Any


class Weights:
    """The weights of a model folder by the names of its modules, read a few rows at a time.

    pool: threads that read and multiply, those of shards.workers().
    quantized: weights that are rounded to NF4, from the dtype `coarse`, to which the others are rounded too.
    added, replaced: what PEFT holds for a weight, folded in float32.
    """

    def __init__(
        self, folder: Path, pool: Executor, quantized: frozenset[str] = frozenset(), coarse: Any = None
    ) -> None:
        self.folder, self.pool = folder, pool
        self.stored = shards.tensors_of(folder)
        self.quantized, self.coarse = quantized, coarse
        self.tied: dict[str, str] = {}
        self.added: dict[str, Lora] = {}
        self.replaced: dict[str, Any] = {}
        self._own = threading.local()
        self._lock = threading.Lock()
        self._whole: tuple[str, Any] = ("", None)

    def entry(self, name: str) -> Stored:
        """Where a weight lies; that of a tied one where its source lies. Raises Unknown."""
        found = self.stored.get(self.tied.get(name, name)) or self.stored.get(name)
        if found is None or shards.dtype_of(found) is None:
            raise Unknown(name)
        return found

    def rows(self, name: str, begin: int, end: int, dtype: Any) -> Any:
        """Rows begin to end of a weight in a dtype; good until the thread's next call."""
        import torch

        if name in self.replaced:
            return self.replaced[name][begin:end].to(dtype)
        found = self._base(name, begin, end)
        if self.coarse is not None:
            found = found.to(self.coarse)
        if name in self.added:
            found = _folded(self._in(torch.float32, found), self.added[name], begin, end)
        return found if found.dtype == dtype else self._in(dtype, found)

    def whole(self, name: str, dtype: Any) -> Any:
        """All of a weight in memory of its own."""
        shape = self.entry(name).shape
        return self.rows(name, 0, shape[0], dtype).clone() if shape else shards.read(self.entry(name)).to(dtype)

    def _base(self, name: str, begin: int, end: int) -> Any:
        entry = self.entry(name)
        if name in self.quantized:
            with self._lock:
                if self._whole[0] != name:  # the scales of NF4's scales are of the whole weight
                    self._whole = (name, nf4(shards.read(entry).to(self.coarse)))
                return self._whole[1][begin:end]
        needed = entry.size // max(1, entry.shape[0]) * (end - begin)
        if len(getattr(self._own, "raw", b"")) < needed:
            self._own.raw = bytearray(needed)
        return shards.read_rows(entry, begin, end, self._own.raw)

    def _in(self, dtype: Any, values: Any) -> Any:
        """A copy in a dtype, in memory that is used again."""
        import torch

        cast = self._own.__dict__.setdefault("cast", {})
        if dtype not in cast or cast[dtype].numel() < values.numel():
            cast[dtype] = torch.empty(values.numel(), dtype=dtype)
        return cast[dtype][: values.numel()].view(values.shape).copy_(values)


def _folded(weight: Any, lora: Lora, begin: int, end: int) -> Any:
    """W + s·B·A, and DoRA's m·W'/‖W'‖, in place."""
    weight.addmm_(lora.b[begin:end], lora.a, alpha=lora.scale)
    if lora.magnitude is not None:
        weight *= (lora.magnitude[begin:end] / weight.norm(dim=1))[:, None]
    return weight


def opened(weights: Weights, dtype: Any, adapter: Path | None = None) -> Any:
    """The model of `weights` in a dtype, with an adapter of PEFT's around it; to be called without gradients.

    Raises Unknown when the files do not hold the weights as the model names them.
    """
    from accelerate import init_empty_weights
    from peft import PeftModel
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(weights.folder, trust_remote_code=False)
    with init_empty_weights(include_buffers=False):
        try:
            model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa").eval()
        except ValueError:  # its attention is not among PyTorch's
            model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="eager").eval()
    weights.tied = dict(model.all_tied_weights_keys)
    modules = dict(model.named_modules())
    for name, module in modules.items():
        for key, parameter in list(module.named_parameters(recurse=False)):
            if weights.entry(_join(name, key)).shape != tuple(parameter.shape):
                raise Unknown(_join(name, key))
            module._parameters[key] = _nothing(parameter.shape, dtype)
        for key, buffer in module.named_buffers(recurse=False):
            if _join(name, key) in weights.stored:
                buffer.copy_(weights.whole(_join(name, key), buffer.dtype))
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(adapter), adapter_name=ADAPTER, low_cpu_mem_usage=True).eval()
    whole = {id(wrapper.base_layer): wrapper for wrapper in model.modules() if _scales_rows(wrapper)}
    for name, module in modules.items():
        _stream(module, name, weights, dtype, whole.get(id(module), module))
    return model


def _nothing(shape: Any, dtype: Any) -> Any:
    """A weight of a shape in the memory of one element: PEFT wants to know a device."""
    import torch

    return torch.nn.Parameter(torch.zeros((), dtype=dtype).expand(shape), requires_grad=False)


def _join(module: str, key: str) -> str:
    return f"{module}.{key}" if module else key


def _scales_rows(module: Any) -> bool:
    """Whether a module is DoRA's, which looks at the whole weight below it."""
    return bool(getattr(module, "lora_magnitude_vector", None))


def _stream(module: Any, name: str, weights: Weights, dtype: Any, hooked: Any) -> None:
    """Let a module read its weights when `hooked`, itself or the one around it, is called."""
    import torch

    def drop(keys: list[str]) -> Callable[..., None]:
        shapes = {key: module._parameters[key].shape for key in keys}

        def hook(_: Any, __: Any, output: Any) -> None:
            for key, shape in shapes.items():
                module._parameters[key] = _nothing(shape, dtype)

        return hook

    if isinstance(module, torch.nn.Embedding):
        module.register_forward_pre_hook(_asked_rows(name, weights, dtype))
        module.register_forward_hook(drop(["weight"]))
    elif type(module) is torch.nn.Linear and hooked is module:
        setattr(module, "forward", _by_rows(module, name, weights, dtype))  # noqa: B010
    elif keys := [key for key, _ in module.named_parameters(recurse=False)]:

        def take(_: Any, __: Any) -> None:
            for key in keys:
                module._parameters[key] = torch.nn.Parameter(weights.whole(_join(name, key), dtype), False)

        hooked.register_forward_pre_hook(take)
        hooked.register_forward_hook(drop(keys))


def _asked_rows(name: str, weights: Weights, dtype: Any) -> Callable[..., Any]:
    """A hook that gives an embedding only the rows that are asked for, and their numbers among those."""
    import torch

    def take(module: Any, arguments: Any) -> Any:
        asked, numbers = arguments[0].unique(return_inverse=True)
        rows = [weights.rows(f"{name}.weight", row, row + 1, dtype).clone() for row in asked.tolist()]
        module._parameters["weight"] = torch.nn.Parameter(torch.cat(rows), False)
        module.padding_idx = None  # means something to gradients only, and may lie outside now
        return (numbers, *arguments[1:])

    return take


def _by_rows(module: Any, name: str, weights: Weights, dtype: Any) -> Callable[[Any], Any]:
    """The product with a weight that is read as it goes."""
    import torch

    step = max(1, _PART // module.in_features)

    def forward(values: Any) -> Any:
        made = torch.empty(*values.shape[:-1], module.out_features, dtype=values.dtype)

        def part(begin: int) -> None:
            end = min(begin + step, module.out_features)
            with torch.no_grad():  # a thread has its own
                made[..., begin:end] = values @ weights.rows(f"{name}.weight", begin, end, dtype).T

        list(weights.pool.map(part, range(0, module.out_features, step)))
        return made if module.bias is None else made + weights.whole(f"{name}.bias", dtype)

    return forward


def fold(weights: Weights, adapted: Any) -> None:
    """Let `weights` be those of an opened model with its adapter folded in, by PEFT's own values of it."""
    from peft.tuners.lora import Embedding, LoraLayer
    from peft.utils import ModulesToSaveWrapper

    for path, module in adapted.get_base_model().named_modules():
        if isinstance(module, LoraLayer):
            magnitude = module.lora_magnitude_vector[ADAPTER].weight if _scales_rows(module) else None
            if isinstance(module, Embedding):
                b, a = module.lora_embedding_A[ADAPTER].T, module.lora_embedding_B[ADAPTER].T
            else:
                a, b = (part[ADAPTER].weight for part in (module.lora_A, module.lora_B))
                a, b = (b.T, a.T) if getattr(module, "fan_in_fan_out", False) else (a, b)
            weights.added[f"{path}.weight"] = Lora(a, b, module.scaling[ADAPTER], magnitude)
            if module.lora_bias[ADAPTER]:
                bias = module.lora_B[ADAPTER].bias * module.scaling[ADAPTER]
                weights.replaced[f"{path}.bias"] = weights.whole(f"{path}.bias", bias.dtype) + bias
        elif isinstance(module, ModulesToSaveWrapper):
            for key, parameter in module.modules_to_save[ADAPTER].named_parameters():
                weights.replaced[f"{path}.{key}"] = parameter
