"""What the pinned Axolotl accepts and trains otherwise than meant; each was measured or read in its source."""

from pathlib import Path
from typing import Any

from lora_recipes.check.subject import Subject
from lora_recipes.config import keys
from lora_recipes.data import prepared

OLD_ATTENTION = (
    *("flash_attention", "sdp_attention", "xformers_attention", "flex_attention", "eager_attention", "sage_attention"),
)
_DATA = (".json", ".jsonl", ".csv", ".parquet", ".arrow", ".txt")


def check(subject: Subject) -> None:
    """Packing without isolation, a stale cache, half a QLoRA, unknown optimizers, a padding token that ends answers."""
    _packing(subject)
    _stale_cache(subject)
    _four_bit(subject)
    _optimizer(subject)

    _pad_token(subject)
    if subject.number("num_epochs") and subject.number("max_steps") > 0:
        subject.note(
            "epochs-and-steps",
            "max_steps",
            f"num_epochs: {subject.config['num_epochs']} and max_steps: {subject.config['max_steps']}",
            "one of them",
            "delete num_epochs: max_steps wins",
        )


def _packing(subject: Subject) -> None:
    config = subject.config
    if config.get("sample_packing") is not True:
        return
    if not config.get("attn_implementation") and not any(config.get(key) for key in OLD_ATTENTION):
        subject.error(
            "packing-attention",
            "sample_packing",
            "true, and no attention implementation: the rows of a pack see each other "
            "(loss 1.134 against 1.089 for the same rows in isolation)",
            "an implementation that keeps packed rows apart",
            "add attn_implementation: flash_attention_2 on a GPU, or sdpa",
        )
    if config.get("group_by_length") is True:
        subject.warning(
            "group-by-length",
            "group_by_length",
            "true together with sample_packing",
            "one of them: packs are full whatever the order of the rows",
            "delete group_by_length",
        )


def _stale_cache(subject: Subject) -> None:
    """Axolotl's cache of tokenized rows is found by path and settings; the content of local files does not count."""
    prepared = subject.config.get("dataset_prepared_path") or "last_run_prepared"
    cache = subject.local(prepared)
    if cache is None or not cache.is_dir() or subject.config.get("skip_prepare_dataset") is True:
        return
    named = {key: subject.entries(key) for key in ("datasets", "test_datasets")}
    data = [file for entries in named.values() for entry in entries for file in _local_data(subject, entry["path"])]
    ages = [max((_age(file) for file in folder.rglob("*")), default=_age(folder)) for folder in _folders(cache)]
    if not data or not ages or _has_digest(subject, cache, named):
        return
    newest = max(data, key=_age)
    old = [age for age in ages if age < _age(newest)]
    if old:
        subject.find(
            "error" if len(old) == len(ages) else "warning",
            "stale-cache",
            "dataset_prepared_path",
            f"{prepared} holds tokenized rows that are older than {newest.name}: Axolotl would train the old rows",
            "rows tokenized after the last change of the data",
            f"delete {prepared}, or give dataset_prepared_path a name that changes with the data",
        )


def _local_data(subject: Subject, value: str) -> list[Path]:
    path = subject.local(value)
    if path is None:
        return []
    return [path] if path.is_file() else [file for file in path.rglob("*") if file.suffix in _DATA and file.is_file()]


def _folders(cache: Path) -> list[Path]:
    """One folder for each set of settings that rows were tokenized with."""
    ours = cache / prepared.FOLDER
    folders = [*cache.iterdir(), *(ours.iterdir() if ours.is_dir() else ())]
    return [path for path in folders if path.is_dir() and path != ours and any(path.iterdir())]


def _age(path: Path) -> float:
    return path.stat().st_mtime


def _has_digest(subject: Subject, cache: Path, named: dict[str, list[dict[str, Any]]]) -> bool:
    """Whether the path ends in the hash of the rows, as those that tools/render.py writes."""
    from lora_recipes.rendering import computed_keys

    tail = cache.name.rpartition("-")[2]
    return len(tail) == 8 and tail == computed_keys.data_digest(named, subject.given.anchor)


def _four_bit(subject: Subject) -> None:
    adapter, four_bit = subject.config.get("adapter"), subject.config.get("load_in_4bit")
    if four_bit is True and adapter != "qlora":
        found = "Axolotl refuses it" if not adapter else "Axolotl trains unquantized weights and merges quantized ones"
        subject.error(
            "four-bit",
            "load_in_4bit",
            f"true with adapter: {adapter if adapter else 'none'}; {found}",
            "adapter: qlora together with load_in_4bit: true",
            "write adapter: qlora, or delete load_in_4bit",
        )
    elif adapter == "qlora" and four_bit is not True:
        subject.error(
            "four-bit",
            "adapter",
            f"qlora with load_in_4bit: {'not set' if four_bit is None else four_bit}",
            "adapter: qlora together with load_in_4bit: true",
            "add load_in_4bit: true, or write adapter: lora",
        )


def _optimizer(subject: Subject) -> None:
    value, known = subject.config.get("optimizer"), keys.table()["optimizers"]
    if isinstance(value, str) and value and value not in known:
        subject.error(
            "optimizer",
            "optimizer",
            f"{value}: Axolotl accepts the file and fails once the model is loaded",
            "an optimizer that Axolotl or transformers has",
            keys.nearest(value.lower(), known).removeprefix(", ") or "write adamw_torch",
        )


def _pad_token(subject: Subject) -> None:
    """Both reference projects lost their end token this way."""
    tokens = subject.config.get("special_tokens")
    pad = tokens.get("pad_token") if isinstance(tokens, dict) else None
    if not isinstance(tokens, dict) or not isinstance(pad, str) or not pad:
        return
    end = tokens.get("eos_token") or getattr(subject.tokenizer, "eos_token", None)
    if pad == end:
        subject.warning(
            "pad-token",
            "special_tokens.pad_token",
            f"{pad} is the end token too: a collator that masks padding by its id masks the end of each answer",
            "a padding token of its own; Axolotl and the plain trainer here mask by position",
            "take another token of the vocabulary that no row contains",
        )
