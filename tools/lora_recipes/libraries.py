"""Keep what the libraries say about themselves at import and at load off the terminal."""

import logging
import warnings


def quiet() -> None:
    """Call it before the first heavy import of a tool; imports transformers' logging only (about 1 s).

    torchao names its missing GPU libraries, torch its deprecations, bitsandbytes a kernel it could
    not download, huggingface_hub a README without metadata, transformers each progress bar: none of it
    is about the user's run.
    """
    noisy = ("torchao", "torch.utils._pytree", "bitsandbytes", "bitsandbytes.backends.cpu.ops")
    for name in (*noisy, "huggingface_hub.repocard"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # DeepSpeed sets its level when it is imported, so a filter: it warns that a CPU is a CPU.
    logging.getLogger("DeepSpeed").addFilter(lambda record: "Setting accelerator" not in record.getMessage())
    warnings.filterwarnings("ignore", module="bitsandbytes")
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
