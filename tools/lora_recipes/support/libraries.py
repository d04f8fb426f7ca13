"""What libraries print and raise: notices that are not about the run, and errors on one line."""

import logging
import os
import re
import warnings
from pathlib import Path


def quiet() -> None:
    """Silence notices that are not about the user's run; to be called before a tool's first heavy import.

    torchao lists missing GPU libraries, torch its deprecations, bitsandbytes a kernel that it could not download,
    huggingface_hub its retries and a README without metadata, transformers shows progress bars. Imports transformers'
    logging only (about 1 s).
    """
    noisy = ("torchao", "torch.utils._pytree", "bitsandbytes", "bitsandbytes.backends.cpu.ops")
    for name in (*noisy, "huggingface_hub.repocard", "huggingface_hub.utils._http"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # DeepSpeed sets its level when it is imported, so a filter: it warns that a CPU is a CPU.
    logging.getLogger("DeepSpeed").addFilter(lambda record: "Setting accelerator" not in record.getMessage())
    warnings.filterwarnings("ignore", module="bitsandbytes")
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


_OFFLINE = re.compile(
    "OfflineModeIsEnabled|client has been closed|couldn't connect to|Couldn't reach .* on the Hub|"
    "Name or service not known|Connection refused|Max retries exceeded|Network is unreachable",
    re.I,
)


def is_offline(error: BaseException) -> bool:
    """Whether an error says in one of its many wordings that the Hub cannot be reached."""
    return _OFFLINE.search(f"{error} {error.__cause__ or ''} {error.__context__ or ''}") is not None


def cache_refused(error: BaseException | None) -> str:
    """What is said of a cache of Hugging Face's that cannot be written, the user's HOME being read-only or full."""
    if error is None:
        return ""
    path = error.filename if isinstance(error, OSError) else None
    if isinstance(path, str):
        from huggingface_hub import constants

        caches = (constants.HF_HOME, constants.HF_HUB_CACHE, os.environ.get("HF_DATASETS_CACHE") or constants.HF_HOME)
        if any(Path(path).is_relative_to(cache) for cache in caches):
            assert isinstance(error, OSError)
            return f"the cache {path} cannot be written ({error.strerror}); set HF_HOME to a folder that can be"
    return cache_refused(error.__cause__ or error.__context__)


def reason(error: BaseException, length: int = 200) -> str:
    """What a library's error says, on one line of at most `length` characters."""
    if words := cache_refused(error):
        return words
    if is_offline(error):
        return "the Hub cannot be reached"
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= length else f"{text[: length - 1]}…"
