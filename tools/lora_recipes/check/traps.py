"""What the pinned Axolotl accepts and trains otherwise than meant; each was measured or read in its source."""

from pathlib import Path
from typing import Any

from lora_recipes.check.checked_run import CheckedRun
from lora_recipes.config import keys, runfile

OLD_ATTENTION = (
    *("flash_attention", "sdp_attention", "xformers_attention", "flex_attention", "eager_attention", "sage_attention"),
)
_DATA = (".json", ".jsonl", ".csv", ".parquet", ".arrow", ".txt")


def check(checked: CheckedRun) -> None:
    """Packing without isolation, a stale cache, half a QLoRA, unknown optimizers, a padding token that ends answers."""
    _packing(checked)
    _stale_cache(checked)
    _four_bit(checked)
    _optimizer(checked)

    _pad_token(checked)
    if checked.number("num_epochs") and checked.number("max_steps") > 0:
        checked.note(
            "epochs-and-steps",
            "max_steps",
            f"num_epochs: {checked.config['num_epochs']} and max_steps: {checked.config['max_steps']}",
            "one of them",
            "delete num_epochs: max_steps wins",
        )


def _packing(checked: CheckedRun) -> None:
    config = checked.config
    if config.get("sample_packing") is not True:
        return
    if not config.get("attn_implementation") and not any(config.get(key) for key in OLD_ATTENTION):
        checked.error(
            "packing-attention",
            "sample_packing",
            "true, and no attention implementation: the rows of a pack see each other "
            "(loss 1.134 against 1.089 for the same rows in isolation)",
            "an implementation that keeps packed rows apart",
            "add attn_implementation: flash_attention_2 on a GPU, or sdpa",
        )
    if config.get("group_by_length") is True:
        checked.warning(
            "group-by-length",
            "group_by_length",
            "true together with sample_packing",
            "one of them: packs are full whatever the order of the rows",
            "delete group_by_length",
        )


def _stale_cache(checked: CheckedRun) -> None:
    """Axolotl's cache of tokenized rows is found by path and settings; the content of local files does not count."""
    name = checked.config.get("dataset_prepared_path") or runfile.DEFAULT_PREPARED
    cache = checked.local(name)
    if cache is None or not cache.is_dir() or checked.config.get("skip_prepare_dataset") is True:
        return
    named = {key: checked.entries(key) for key in ("datasets", "test_datasets")}
    data = [file for entries in named.values() for entry in entries for file in _local_data(checked, entry["path"])]
    ages = [max((_age(file) for file in folder.rglob("*")), default=_age(folder)) for folder in _folders(cache)]
    if not data or not ages or _has_digest(checked, cache, named):
        return
    newest = max(data, key=_age)
    old = [age for age in ages if age < _age(newest)]
    if old:
        checked.find(
            "error" if len(old) == len(ages) else "warning",
            "stale-cache",
            "dataset_prepared_path",
            f"{name} holds tokenized rows that are older than {newest.name}: Axolotl would train the old rows",
            "rows tokenized after the last change of the data",
            f"delete {name}, or give dataset_prepared_path a name that changes with the data",
        )


def _local_data(checked: CheckedRun, value: str) -> list[Path]:
    path = checked.local(value)
    if path is None:
        return []
    return [path] if path.is_file() else [file for file in path.rglob("*") if file.suffix in _DATA and file.is_file()]


def _folders(cache: Path) -> list[Path]:
    """One folder for each set of settings that rows were tokenized with."""
    return [path for path in cache.iterdir() if path.is_dir() and any(path.iterdir())]


def _age(path: Path) -> float:
    return path.stat().st_mtime


def _has_digest(checked: CheckedRun, cache: Path, named: dict[str, list[dict[str, Any]]]) -> bool:
    """Whether the path ends in the hash of the rows, as those that tools/render.py writes."""
    from lora_recipes.rendering import computed_keys

    tail = cache.name.rpartition("-")[2]
    return len(tail) == 8 and tail == computed_keys.data_digest(named, checked.given.anchor)


def _four_bit(checked: CheckedRun) -> None:
    if checked.config.get("load_in_4bit") is True and checked.config.get("adapter") == "lora":
        checked.error(
            "four-bit",
            "load_in_4bit",
            "true with adapter: lora; Axolotl trains unquantized weights and merges quantized ones",
            "adapter: qlora together with load_in_4bit: true",
            "write adapter: qlora, or delete load_in_4bit",
        )


def _optimizer(checked: CheckedRun) -> None:
    value, known = checked.config.get("optimizer"), keys.table()["optimizers"]
    if isinstance(value, str) and value and value not in known:
        checked.error(
            "optimizer",
            "optimizer",
            f"{value}: Axolotl accepts the file and fails once the model is loaded",
            "an optimizer that Axolotl or transformers has",
            keys.nearest(value.lower(), known).removeprefix(", ") or "write adamw_torch",
        )


def _pad_token(checked: CheckedRun) -> None:
    """Both reference projects lost their end token this way."""
    tokens = checked.config.get("special_tokens")
    pad = tokens.get("pad_token") if isinstance(tokens, dict) else None
    if not isinstance(tokens, dict) or not isinstance(pad, str) or not pad:
        return
    end = tokens.get("eos_token") or getattr(checked.tokenizer, "eos_token", None)
    if pad == end:
        checked.warning(
            "pad-token",
            "special_tokens.pad_token",
            f"{pad} is the end token too: a collator that masks padding by its id masks the end of each answer",
            "a padding token of its own; Axolotl and the plain trainer here mask by position",
            "take another token of the vocabulary that no row contains",
        )
