"""Stand-in model folders: the true dimensions of six models, and small tokenizers of ours that behave as theirs.

Nothing is downloaded. `model_folder` makes folders without weights: `AutoConfig` and `AutoTokenizer` load them, and
`AutoModelForCausalLM.from_config` makes the model on torch's meta device. `tiny_folder` makes a random model of the
true class and structure, with few and narrow layers, that can be trained. The tokenizers' vocabularies are ours; the
special tokens, where a begin token is added and the text of the chat templates are the models'.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SENTENCES = (
    "You are a helpful AI assistant specialised in African history which gives concise answers to questions asked.",
    "The kingdom of Aksum struck its own gold coins and traded with Rome, Arabia and India.",
    "Mansa Musa of Mali went on pilgrimage to Mecca in 1324; Ibn Battuta saw his brother's court in 1352.",
    "Great Zimbabwe was built of granite without mortar, and its people traded gold at Sofala.",
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.",
)

_TURNS = "{%- for message in messages %}"
_END = "{%- endfor %}"

_CHATML = (
    _TURNS
    + "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    + _END
    + "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
_PHI4 = (
    _TURNS
    + "{{- '<|' + message.role + '|>' + message.content + '<|end|>' }}"
    + _END
    + "{{- '<|assistant|>' if add_generation_prompt else eos_token }}"
)
_LLAMA = (  # a system turn with two dates always comes first; without date_string it is today's
    "{%- set today = date_string if date_string is defined else strftime_now('%d %b %Y') %}"
    "{%- set given = messages[0].role == 'system' %}"
    "{{- bos_token + '<|start_header_id|>system<|end_header_id|>\\n\\nCutting Knowledge Date: December 2023\\n' }}"
    "{{- 'Today Date: ' + today + '\\n\\n' + (messages[0].content | trim if given else '') + '<|eot_id|>' }}"
    "{%- for message in (messages[1:] if given else messages) %}"
    "{{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' + message.content | trim + '<|eot_id|>' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"
)
_GEMMA = (  # no system turn: its text opens the first user turn; the assistant is called model
    "{%- set given = messages[0].role == 'system' %}"
    "{{- bos_token }}"
    "{%- for message in (messages[1:] if given else messages) %}"
    "{%- set role = 'model' if message.role == 'assistant' else message.role %}"
    "{{- '<start_of_turn>' + role + '\\n' + (messages[0].content + '\\n\\n' if given and loop.first else '') }}"
    "{{- message.content | trim + '<end_of_turn>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<start_of_turn>model\\n' }}{%- endif %}"
)
_MISTRAL = (  # no system turn: its text opens the last turn, when that is the user's
    "{%- set given = messages[0].role == 'system' %}"
    "{{- bos_token }}"
    "{%- for message in (messages[1:] if given else messages) %}"
    "{%- if message.role == 'user' %}"
    "{{- '[INST] ' + (messages[0].content + '\\n\\n' if given and loop.last else '') + message.content + '[/INST]' }}"
    "{%- else %}{{- ' ' + message.content | trim + eos_token }}{%- endif %}"
    "{%- endfor %}"
)


@dataclass(frozen=True)
class _Family:
    config: str
    """Class of transformers."""
    dimensions: dict[str, Any]
    specials: tuple[str, ...]
    """Special tokens in the order of their ids."""
    roles: dict[str, str | None]
    """Arguments of the tokenizer: which special token is what, and its chat template."""
    bos_added: bool = False
    prefix_space: bool = False
    """A text starts with a space of the tokenizer's own, as SentencePiece has it."""
    rstrip: frozenset[str] = field(default_factory=frozenset)
    """Special tokens that swallow the white space behind them."""


_PHI4_TURNS = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")

_FAMILIES = {
    "phi4-mini": _Family(
        "Phi3Config",
        dict(
            num_hidden_layers=32, hidden_size=3072, intermediate_size=8192, num_attention_heads=24,
            num_key_value_heads=8, vocab_size=200064, tie_word_embeddings=True, max_position_embeddings=131072,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.75},
        ),
        ("<|endoftext|>", *_PHI4_TURNS),
        dict(
            bos_token="<|endoftext|>", eos_token="<|endoftext|>", pad_token="<|endoftext|>", chat_template=_PHI4
        ),
        rstrip=frozenset(_PHI4_TURNS),
    ),
    "phi1.5": _Family(
        "PhiConfig",
        dict(
            num_hidden_layers=24, hidden_size=2048, intermediate_size=8192, num_attention_heads=32, vocab_size=51200,
            max_position_embeddings=2048, tie_word_embeddings=False,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
        ),
        ("<|endoftext|>",),
        dict(bos_token="<|endoftext|>", eos_token="<|endoftext|>", unk_token="<|endoftext|>"),
    ),
    "qwen3": _Family(
        "Qwen3Config",
        dict(
            num_hidden_layers=36, hidden_size=2560, intermediate_size=9728, num_attention_heads=32,
            num_key_value_heads=8, head_dim=128, vocab_size=151936, tie_word_embeddings=True,
            max_position_embeddings=262144, rope_parameters={"rope_type": "default", "rope_theta": 5000000.0},
        ),
        ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        dict(eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=_CHATML),
    ),
    "llama3.2": _Family(
        "LlamaConfig",
        dict(
            num_hidden_layers=28, hidden_size=3072, intermediate_size=8192, num_attention_heads=24,
            num_key_value_heads=8, head_dim=128, vocab_size=128256, tie_word_embeddings=True,
            max_position_embeddings=131072,
            rope_parameters={
                "rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
            },
        ),
        (
            "<|begin_of_text|>", "<|end_of_text|>", "<|finetune_right_pad_id|>", "<|start_header_id|>",
            "<|end_header_id|>", "<|eot_id|>",
        ),
        dict(bos_token="<|begin_of_text|>", eos_token="<|eot_id|>", chat_template=_LLAMA),
        bos_added=True,
    ),
    "gemma3": _Family(
        "Gemma3TextConfig",
        dict(
            num_hidden_layers=26, hidden_size=1152, intermediate_size=6912, num_attention_heads=4,
            num_key_value_heads=1, head_dim=256, vocab_size=262144, tie_word_embeddings=True, sliding_window=512,
            max_position_embeddings=32768,
        ),
        ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"),
        dict(
            bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<unk>", chat_template=_GEMMA
        ),
        bos_added=True,
    ),
    "mistral": _Family(
        "MistralConfig",
        dict(
            num_hidden_layers=32, hidden_size=4096, intermediate_size=14336, num_attention_heads=32,
            num_key_value_heads=8, head_dim=128, vocab_size=32768, tie_word_embeddings=False, sliding_window=None,
            max_position_embeddings=32768, rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
        ),
        (
            "<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]",
            "[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[control_8]",
        ),
        dict(bos_token="<s>", eos_token="</s>", unk_token="<unk>", chat_template=_MISTRAL),
        bos_added=True,
        prefix_space=True,
    ),
}  # fmt: skip

NAMES = tuple(_FAMILIES)

BASES = {
    "microsoft/Phi-4-mini-instruct": "phi4-mini",
    "microsoft/phi-1_5": "phi1.5",
    "Qwen/Qwen3-4B-Instruct-2507": "qwen3",
    "meta-llama/Llama-3.2-3B-Instruct": "llama3.2",
    "google/gemma-3-1b-it": "gemma3",
    "mistralai/Mistral-7B-Instruct-v0.3": "mistral",
}
"""Base models that have a stand-in, and the family of each."""


def family_of(base_model: str) -> str:
    """The family that stands in for a base model: a Llama for one that has none of its own."""
    return BASES.get(base_model, "llama3.2")


_TINY = {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
_TINY_WHERE_NAMED = {"num_key_value_heads": 2, "head_dim": 32, "sliding_window": 32}


def model_folder(family: str, folder: Path) -> Path:
    """Write config.json and the tokenizer of one of NAMES into the folder, which is made; gives the folder."""
    import transformers

    made = _FAMILIES[family]
    config = getattr(transformers, made.config)(**made.dimensions, **_ids(made), dtype="bfloat16")
    config.architectures = [made.config.removesuffix("TextConfig").removesuffix("Config") + "ForCausalLM"]
    config.save_pretrained(folder)
    _tokenizer(made).save_pretrained(folder)
    return folder


def tiny_folder(family: str, folder: Path) -> Path:
    """As `model_folder`, with weights: two layers of 64, the true class, projections, norms, biases and tied head."""
    import torch
    import transformers

    made = _FAMILIES[family]
    tokenizer = _tokenizer(made)
    sizes = _TINY | {name: size for name, size in _TINY_WHERE_NAMED.items() if made.dimensions.get(name)}
    if "sliding_window" in sizes:
        sizes["layer_types"] = ["sliding_attention", "full_attention"]
    words = -(-len(tokenizer) // 64) * 64  # as the true ones: more rows than tokens
    dimensions = made.dimensions | sizes | {"vocab_size": words, "initializer_range": 0.2}
    config = getattr(transformers, made.config)(**dimensions, **_ids(made), dtype="bfloat16")
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def meta_model(folder: Path) -> Any:
    """The model of a folder with its true shapes and no weights, on torch's meta device."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))


def _ids(made: _Family) -> dict[str, int | None]:
    """The ids that a model's config names, as the stand-in tokenizer has them."""
    names = ("bos_token", "eos_token", "pad_token")
    return {f"{name}_id": made.specials.index(token) if (token := made.roles.get(name)) else None for name in names}


def _tokenizer(made: _Family) -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    base = Tokenizer(models.BPE())
    base.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=made.prefix_space)
    base.decoder = decoders.ByteLevel()
    tokens = [AddedToken(token, rstrip=token in made.rstrip, special=True) for token in made.specials]
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=tokens,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),  # every byte: any text comes back whole
        show_progress=False,
    )
    base.train_from_iterator(SENTENCES, trainer)
    if made.bos_added:
        bos = made.roles["bos_token"]
        base.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, made.specials.index(bos))]
        )
    return PreTrainedTokenizerFast(tokenizer_object=base, clean_up_tokenization_spaces=False, **made.roles)
