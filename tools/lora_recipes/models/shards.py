"""The safetensors files of a model: found, read a tensor at a time, written as a stream, hashed.

The format is a header length, a JSON header and the raw tensors one after another
(https://github.com/huggingface/safetensors#format). Read and written in parts through buffers that are
used again, a model needs little memory however large its files are, and little time: the first touch
of fresh memory costs more than all else that is done to a weight.
"""

import contextlib
import hashlib
import itertools
import json
import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_recipes.config.runfile import RunFile
from lora_recipes.support import files, libraries

import click

INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Stored:
    """A tensor in a safetensors file: dtype as the format names it, place in bytes."""

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int

    @property
    def count(self) -> int:
        """The number of its elements."""
        elements = 1
        for length in self.shape:
            elements *= length
        return elements


def base_folder(run: RunFile) -> Path:
    """The folder of the base model; one on the Hub is fetched, its safetensors and JSON files only.

    Raises click.ClickException when there is no such folder or the Hub cannot be reached.
    """
    name = run.model()
    if Path(name).is_dir():
        return Path(name)
    if name.startswith("/"):
        raise run.error("base_model", f"there is no folder {name}; run `make setup`, or give a name on the Hub.")
    import huggingface_hub

    wanted = ["model*.safetensors", INDEX, "config.json", "generation_config.json"]
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=wanted))
    except Exception as error:  # the Hub's client and its HTTP library raise a dozen types
        remedy = "check the name, log in, or give a local folder"
        words = f"{name} cannot be fetched from the Hub; {remedy}. ({libraries.reason(error)})"
        raise run.error("base_model", words) from None


def tensors_of(folder: Path) -> dict[str, Stored]:
    """All tensors of a model by name, in the order of its files.

    Raises click.ClickException for a folder without safetensors, an index that names a file or a
    tensor that is not there, and a damaged file.
    """
    names = ["model.safetensors"]
    index: dict[str, str] = {}
    if (folder / INDEX).is_file():
        index = files.read_json(folder / INDEX).get("weight_map") or {}
        names = sorted(set(index.values())) or names
    found: dict[str, Stored] = {}
    for name in names:
        if not (folder / name).is_file():
            raise click.ClickException(f"{folder} holds no {name}; a model in safetensors is needed: fetch it again.")
        found.update(tensors_in(folder / name))
    if missing := sorted(set(index) - set(found)):
        raise click.ClickException(f"{folder / INDEX} names {missing[0]}, which no file holds; fetch the model again.")
    return found


def tensors_in(path: Path) -> dict[str, Stored]:
    """The tensors of one file by name, in the order of their bytes."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt"):  # checks header, offsets and length
            pass
    except (SafetensorError, OSError) as error:
        raise click.ClickException(f"{path}: not a whole safetensors file ({error}); restore it.") from None
    with path.open("rb") as file:
        length = struct.unpack("<Q", file.read(8))[0]
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    entries = sorted(header.items(), key=lambda entry: entry[1]["data_offsets"])
    return {
        name: Stored(name, path, entry["dtype"], tuple(entry["shape"]), 8 + length + begin, end - begin)
        for name, entry in entries
        for begin, end in [entry["data_offsets"]]
    }


def read_into(stored: Stored, begin: int, buffer: Any) -> None:
    """Fill a buffer with the bytes of a tensor from `begin` on."""
    with stored.file.open("rb", buffering=0) as file:
        file.seek(stored.start + begin)
        view = memoryview(buffer)
        while view:
            view = view[_read_some(file, view, stored) :]


def _read_some(file: Any, view: memoryview, stored: Stored) -> int:
    if count := file.readinto(view):
        return int(count)
    raise click.ClickException(f"{stored.file}: ends within {stored.name}; restore it.")


def dtype_of(stored: Stored) -> Any:
    """The torch dtype of a floating-point tensor; None for integers and 8-bit floats."""
    import torch

    return {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}.get(stored.dtype)


def read(stored: Stored) -> Any:
    """A floating-point tensor in its own dtype."""
    return read_rows(stored, 0, stored.shape[0] if stored.shape else 1, bytearray(stored.size)).reshape(stored.shape)


def read_rows(stored: Stored, begin: int, end: int, buffer: bytearray) -> Any:
    """Rows begin to end of a floating-point tensor in its own dtype, (end - begin, …), lying in the buffer.

    A row is all that lies under one index of the first dimension.
    """
    import torch

    row = stored.size // (stored.shape[0] if stored.shape else 1)
    held = memoryview(buffer)[: (end - begin) * row]
    read_into(stored, begin * row, held)
    return torch.frombuffer(held, dtype=dtype_of(stored)).reshape(end - begin, *stored.shape[1:])


def bytes_of(tensor: Any) -> Any:
    """The bytes of a tensor as they go into a file."""
    import torch

    return tensor.contiguous().view(torch.uint8).numpy().data


def write(path: Path, entries: Sequence[Stored], parts: Iterable[Any]) -> str:
    """Write tensors with the names, dtypes and shapes of the entries and, one after another, their bytes.

    A part may be used anew once the next one is asked for. It is hashed in a thread of its own while
    it is written. Returns the sha256 of what was meant to be written; on the disk it is after flush().
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    place = 0
    for entry in entries:
        offsets = [place, place := place + entry.size]
        header[entry.name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": offsets}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    head = struct.pack("<Q", len(text)) + text
    with path.open("wb", buffering=0) as file, ThreadPoolExecutor(1) as hasher:
        for part in itertools.chain([head], parts):
            hashed = hasher.submit(digest.update, part)
            view = memoryview(part).cast("B")
            while view:
                view = view[file.write(view) :]
            hashed.result()
        if file.tell() != len(head) + place:
            raise ValueError(f"{path}: {file.tell() - len(head)} bytes were given for {place}")
    return digest.hexdigest()


def flush(path: Path) -> None:
    """Wait until a file is on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


@contextlib.contextmanager
def workers() -> Iterator[ThreadPoolExecutor]:
    """A thread a core, in each of which torch computes alone.

    Independent parts in threads of their own need not wait for one another as torch's own threads do
    at the end of each operation, which takes ten times as long once another process wants a core.
    """
    import torch

    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool
    finally:
        torch.set_num_threads(threads)  # MKL's number is of the whole process
