#!/usr/bin/env python3
"""Render a run file: a recipe and a variant in, one self-contained Axolotl YAML out."""

import difflib
from pathlib import Path

from lora_recipes import ROOT
from lora_recipes.rendering import ingredients, render
from lora_recipes.support import files, terminal

import click


def _print_list() -> None:
    for name in ingredients.recipe_names():
        facts = ingredients.load_recipe(name).facts
        only = f"; only {' '.join(render.checked_in(name))}" if facts["variants"] else ""
        click.echo(f"recipe   {name:<31} {facts['title']}; {facts['hardware']}{only}")
    for name, section in render.variants().items():
        click.echo(f"variant  {name:<31} {section['words']}")


def _checked_in() -> dict[Path, str]:
    return {
        ROOT / "recipes" / recipe / f"{variant}.yaml": render.render(recipe, variant)
        for recipe in ingredients.recipe_names()
        for variant in render.checked_in(recipe)
    }


def _diff(old: str, new: str, old_name: str, new_name: str) -> str:
    lines = difflib.unified_diff(old.splitlines(True), new.splitlines(True), old_name, new_name)
    return "".join(lines)


def _check() -> None:
    """Exit 1 with a diff when a file under recipes/ is not what the templates give."""
    drifted = 0
    expected = _checked_in()
    for path, text in expected.items():
        found = files.read_text(path) if path.exists() else ""
        if found != text:
            drifted += 1
            name = files.relative(path)
            click.echo(_diff(found, text, name, f"{name} as rendered"), nl=False)
    strangers = sorted(set((ROOT / "recipes").rglob("*.yaml")) - set(expected))
    for path in strangers:
        click.echo(f"{files.relative(path)}: no recipe and variant renders this file")
    if drifted or strangers:
        raise click.ClickException(
            f"{drifted} of {len(expected)} files differ from the templates and {len(strangers)} are unknown; "
            "`tools/render.py --all` writes them anew."
        )
    click.echo(f"{len(expected)} files are what the templates give.", err=True)


@click.command(cls=terminal.Tool)
@click.option(
    "--recipe",
    default="phi4-mini-african-history",
    show_default=True,
    metavar="NAME|FILE",
    help="recipe, or your own ingredients",
)
@click.option("--variant", default="lora", show_default=True, metavar="V[+V]", help="variant, or several joined with +")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="change a key; dots go down")
@click.option("--inline-deepspeed", is_flag=True, help="put the DeepSpeed JSON into the file")
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="write here, not to stdout")
@click.option("--diff", "other", metavar="V", help="show what another variant changes")
@click.option("--list", "list_", is_flag=True, help="show recipes and variants")
@click.option("--all", "all_", is_flag=True, help="write every file under recipes/")
@click.option("--check", is_flag=True, help="fail when recipes/ has drifted")
def main(
    recipe: str,
    variant: str,
    settings: tuple[str, ...],
    inline_deepspeed: bool,
    output: Path | None,
    other: str | None,
    list_: bool,
    all_: bool,
    check: bool,
) -> None:
    """Render a run file from a recipe and a variant.

    \b
    Example:
      tools/render.py --variant ds2 --set num_epochs=1 | axolotl train -
    """
    if sum((list_, all_, check, other is not None)) > 1:
        raise click.UsageError("--list, --all, --check and --diff exclude each other; choose one.")
    if list_:
        return _print_list()
    if check:
        return _check()
    if all_:
        for path, text in _checked_in().items():
            files.write_text(path, text)
            click.echo(files.relative(path), err=True)
        return None
    names = [variant] if other is None else [variant, other]
    kept = output if other is None else None
    texts = [render.render(recipe, name, settings, inline_deepspeed, kept) for name in names]
    if inline_deepspeed and not any("\ndeepspeed:" in text for text in texts):
        raise click.UsageError(f"--inline-deepspeed: {' and '.join(names)} without DeepSpeed; use it with ds2 or ds3.")
    text = _diff(texts[0], texts[1], *names) if len(texts) == 2 else texts[0]
    if output:
        files.write_text(output, text)
    else:
        click.echo(text, nl=False)
    return None


if __name__ == "__main__":
    main()
