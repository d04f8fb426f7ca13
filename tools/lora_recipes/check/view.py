"""One training row as the trainer sees it: what carries loss, what does not."""

from lora_recipes.check.parts import Part
from lora_recipes.check.subject import CheckedRun
from lora_recipes.data import prompts

import click


def row(checked: CheckedRun, training: list[Part], number: int) -> str:
    """Row `number`, from 1, of all training rows: trained tokens green between ⟦ and ⟧, masked ones dim.

    Raises click.ClickException when there is no such row.
    """
    examples = [example for part in training if not part.made_up for example in part.examples]
    if not 1 <= number <= len(examples):
        raise click.ClickException(
            f"there is no row {number}: {len(examples)} training rows could be tokenized, counted from 1."
        )
    ids, labels = examples[number - 1]["input_ids"], examples[number - 1]["labels"]
    pieces, start = [], 0
    for at in range(1, len(ids) + 1):
        if at == len(ids) or (labels[at] == prompts.IGNORED) != (labels[start] == prompts.IGNORED):
            text = checked.tokenizer.decode(ids[start:at])
            masked = labels[start] == prompts.IGNORED
            pieces.append(click.style(text, dim=True) if masked else click.style(f"⟦{text}⟧", fg="green"))
            start = at
    trained = sum(label != prompts.IGNORED for label in labels)
    head = click.style(f"row {number}: {len(ids)} tokens, {trained} of them trained (between ⟦ and ⟧)", bold=True)
    return f"{head}\n{''.join(pieces)}"
