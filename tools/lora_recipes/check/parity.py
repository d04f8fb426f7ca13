"""Prompt parity: what the model is asked at evaluation is, token by token, the beginning of what it is trained on."""

from typing import Any

from lora_recipes.check import conversations
from lora_recipes.check.checked_run import CheckedRun
from lora_recipes.check.parts import Part
from lora_recipes.data import prompts
from lora_recipes.support import libraries

_MARK = "the-answer"


def check(checked: CheckedRun, training: list[Part]) -> dict[str, list[int | None]]:
    """Compare every row; gives the length of each row's prompt in tokens, None where the two differ."""
    _same_system_prompt(checked)
    lengths: dict[str, list[int | None]] = {}
    if checked.tokenizer is None:
        return lengths
    if not checked.tokenizer.chat_template:
        checked.report.fact("prompt", None, "the base model has no chat template: asked as the run file spells it out")
    for part in training:
        if part.examples:
            lengths[part.key] = _compare(checked, part)
    return lengths


def _compare(checked: CheckedRun, part: Part) -> list[int | None]:
    tokenizer, lengths = checked.tokenizer, list[int | None]()
    first: tuple[int, list[int]] | None = None
    begin: str | None = None  # the begin token that the template writes and the tokenizer adds by itself
    for number, (row, example) in enumerate(zip(part.rows, part.examples, strict=False)):
        asked = _asked(checked, part, row)
        if asked is None:
            return []
        ids = example["input_ids"]
        text = part.format.prompt(row) if part.format else ""
        if text and begin is not None and asked == begin + text:  # the same text gives the same tokens
            lengths.append(_prompt_length(example))
            continue
        tokens = prompts.text_ids(tokenizer, asked)
        same = ids[: len(tokens)] == tokens
        begin = asked.removesuffix(text) if same else begin
        lengths.append(len(tokens) if same else None)
        first = first if same or first else (number, tokens)
    differing = sum(length is None for length in lengths)
    if first:
        _differ(checked, part, first, differing)
    elif tokenizer.chat_template:
        words = "a made-up row" if part.made_up else f"all {len(lengths):,} rows"
        text = f"the evaluation prompt begins the training text, token by token, in {words}"
        checked.report.fact("prompt", True, text)
    return lengths


def _asked(checked: CheckedRun, part: Part, row: dict[str, Any]) -> str | None:
    """The prompt at evaluation; None (said once) where the template refuses it or there is none."""
    tokenizer = checked.tokenizer
    try:
        if part.format:
            return prompts.chat_prompt(tokenizer, part.format, row, _options(checked))
        if not tokenizer.chat_template:
            return None
        turns = conversations.before_answer(conversations.turns(part.entry, row))
        return rendered(checked, part, row, turns)
    except Exception as error:  # a template may raise anything about the turns that it is given
        words = f"the chat template refuses the prompt ({libraries.reason(error)})"
        fix = "leave out what the template does not take, or write a chat_template that takes it"
        checked.error("prompt-parity", f"{part.key}.type", words, "a prompt that evaluation can ask", fix)
        return None


def _options(checked: CheckedRun) -> dict[str, Any]:
    options = checked.config.get("chat_template_kwargs")
    return options if isinstance(options, dict) else {}


def rendered(
    checked: CheckedRun, part: Part, row: dict[str, Any], turns: list[dict[str, Any]], asking: bool = True
) -> str:
    """Turns of a row through the chat template; `asking` for an answer. Raises what the template raises."""
    options = {"add_generation_prompt": asking, "tools": conversations.tools(part.entry, row), **_options(checked)}
    return str(checked.tokenizer.apply_chat_template(turns, tokenize=False, **options))


def _prompt_length(example: dict[str, list[int]]) -> int:
    """Tokens before the first label; 0 with train_on_inputs, where the whole row carries loss."""
    labels = example["labels"]
    return next((n for n, label in enumerate(labels) if label != prompts.IGNORED), len(labels))


def _differ(checked: CheckedRun, part: Part, first: tuple[int, list[int]], differing: int) -> None:
    number, tokens = first
    ids = part.examples[number]["input_ids"]
    length = _prompt_length(part.examples[number]) or len(tokens) + 8
    where = "a made-up row" if part.made_up else f"row {number + 1} of {len(part.rows):,}, {differing:,} in all"
    same = next((n for n, (a, b) in enumerate(zip(ids, tokens, strict=False)) if a != b), min(len(ids), len(tokens)))
    checked.error(
        "prompt-parity",
        f"{part.key}.type",
        f"trained on another prompt than asked, from token {same + 1} on ({where})\n"
        f"trained {checked.tokenizer.decode(ids[:length])!r}\n"
        f"asked   {checked.tokenizer.decode(tokens)!r}",
        "the evaluation prompt is the beginning of the training text, token by token",
        "spell the chat template out under type: (system_format, format, no_input_format), as the recipes do"
        if not part.format
        else "write system_format, format and no_input_format as the model's chat template has them",
    )


def _same_system_prompt(checked: CheckedRun) -> None:
    """Training and validation rows with different system prompts are two tasks."""
    trained = {_system(entry) for entry in checked.entries("datasets")}
    for index, entry in enumerate(checked.entries("test_datasets")):
        system = _system(entry)
        if system is None or None in trained or not trained or system in trained:
            continue
        shown = "\n".join(f"trained {one!r}" for one in sorted(trained, key=str))
        checked.error(
            "system-prompt",
            f"test_datasets.{index}.type.system_prompt",
            f"evaluation has another system prompt than training\n{shown}\nasked   {system!r}",
            "one system prompt",
            "write the same text in datasets and test_datasets",
        )


def _system(entry: dict[str, Any]) -> str | None:
    kind = entry.get("type")
    return str(kind.get("system_prompt") or "") if isinstance(kind, dict) else None


def end_of_turn(checked: CheckedRun) -> int | None:
    """The token that ends the assistant's turn in the chat template; the tokenizer's end token without one."""
    tokenizer = checked.tokenizer
    turns = [{"role": "user", "content": "a question"}, {"role": "assistant", "content": _MARK}]
    if tokenizer.chat_template:
        try:
            text = tokenizer.apply_chat_template(turns, tokenize=False, **_options(checked))
            after = tokenizer(text.rpartition(_MARK)[2].lstrip(), add_special_tokens=False)["input_ids"]
            special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
            return next((token for token in after if token in special), tokenizer.eos_token_id)
        except Exception:  # the template refuses these turns: the end token has to do
            return tokenizer.eos_token_id
    return tokenizer.eos_token_id
