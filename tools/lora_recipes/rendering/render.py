"""Recipe + variant -> run file. Imports nothing heavy: `tools/render.py` answers in a fraction of a second."""

import functools
import shlex
from pathlib import Path
from typing import Any

from lora_recipes import ROOT
from lora_recipes.config import keys, yamlfile
from lora_recipes.rendering import computed_keys, ingredients, memory_model
from lora_recipes.rendering.ingredients import Rendered
from lora_recipes.support import files

import click
import jinja2

VARIANTS = ROOT / "templates" / "variants"


@functools.cache
def variants() -> dict[str, dict[str, Any]]:
    """Name -> the `variant:` section of its template, in the order in which variants apply.

    words: what it is, for headers. order: its place among the others. checked_in: the combinations with variants
    before it that are kept under recipes/, by default itself alone. excludes: variant -> why the two make no sense.
    """
    nothing = Rendered("", "", {"cpu": False}, {}, {}, "")
    defaults: dict[str, Any] = {"order": 99, "excludes": {}}
    found = {
        path.stem: defaults | {"checked_in": [path.stem]} | _delta(nothing, path.stem)[0]
        for path in ingredients.templates(VARIANTS)
    }
    return dict(sorted(found.items(), key=lambda item: item[1]["order"]))


def _rank(variant: str) -> list[int]:
    return [list(variants()).index(name) for name in variant.split("+")]


def usual() -> list[str]:
    """The variants that are kept under recipes/ of a recipe that does not name its own."""
    return sorted((name for section in variants().values() for name in section["checked_in"]), key=_rank)


def checked_in(recipe: str) -> tuple[str, ...]:
    """The variants of a recipe that are kept under recipes/.

    Raises click.UsageError for an unknown or senseless variant in the recipe's own list.
    """
    own = ingredients.load_recipe(recipe).facts["variants"]
    return tuple(_joined(parse_variant(name)) for name in own or usual())


def _joined(names: list[str]) -> str:
    return "+".join(name for name in names if name != "lora" or len(names) == 1)


def render(
    recipe: str,
    variant: str,
    settings: tuple[str, ...] = (),
    inline_deepspeed: bool = False,
    output: Path | None = None,
) -> str:
    """The text of a run file; output: the path it will be written to, for the commands in its header.

    Raises click.UsageError for an unknown recipe or variant, a combination that makes no sense or
    a bad setting, and click.ClickException for a mistake in an ingredients file.
    """
    made = ingredients.load_recipe(recipe)
    deltas = parse_variant(variant)
    made.variant = _joined(deltas)
    for name in deltas:
        _apply_delta(made, name)
    for setting in settings:
        _apply_setting(made, setting)
    computed_keys.derive(made)
    if inline_deepspeed:
        computed_keys.inline_deepspeed(made)
    return _fill(made, _commands(made, settings, output))


def parse_variant(variant: str) -> list[str]:
    """The parts of a variant in the order in which they apply. Raises click.UsageError for one that makes no sense."""
    names, known = variant.split("+"), variants()
    for name in names:
        if name not in known:
            raise click.UsageError(
                f"no variant {name!r}{keys.nearest(name, known)} Known: {', '.join(known)}, joined with +."
            )
    if repeated := {name for name in names if names.count(name) > 1}:
        raise click.UsageError(f"variant {variant!r} names {repeated.pop()!r} twice; once is enough.")
    for name in names:
        for other, reason in known[name]["excludes"].items():
            if other in names:
                raise click.UsageError(f"variant {variant!r} makes no sense: {reason}")
    return sorted(names, key=_rank)


def _delta(made: Rendered, name: str) -> tuple[dict[str, Any], yamlfile.Document]:
    """A variant's own section and its keys."""
    path = VARIANTS / f"{name}.yaml"
    text = _jinja(path, recipe=made.facts, run=made.run)
    document = yamlfile.load(text, files.relative(path))
    return document.data.pop("variant", {}), document


def _apply_delta(made: Rendered, name: str) -> None:
    section, document = _delta(made, name)
    made.words.append(section["words"])
    for key, value in document.data.items():
        made.run[key] = value
        computed_keys.forget_comments(made, (key,))
    made.comments |= {path: text for path, text in document.comments.items() if path[0] != "variant"}


def _jinja(path: Path, **context: Any) -> str:
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    return environment.from_string(files.read_text(path)).render(**context)


def _apply_setting(made: Rendered, setting: str) -> None:
    key, equals, text = setting.partition("=")
    key = key.strip()
    if not equals or not key:
        raise click.UsageError(f"--set {setting!r}: expected key=value, as in --set learning_rate=2e-4.")
    if key in ("gpus", "global_batch"):
        value = keys.typed(key, text, "int")
        if value < 1:
            raise click.UsageError(f"--set {setting}: expected a whole number from 1.")
        made.facts[key] = value
        return
    path = tuple(int(part) if part.isdigit() else part for part in key.split("."))
    types = keys.known_type(path)
    if types is None:
        raise click.UsageError(f"--set {key}: Axolotl has no such key{keys.nearest_key(path)}")
    _put(made.run, path, keys.typed(key, text, types), key)
    computed_keys.forget_comments(made, path)
    made.set_keys.add(str(path[0]))


def _put(node: Any, path: yamlfile.Path, value: Any, key: str) -> None:
    for part in path[:-1]:
        if isinstance(node, list):
            if not isinstance(part, int) or part >= len(node):
                raise click.UsageError(
                    f"--set {key}: the list has {len(node)} entries, counted from 0; no entry {part!r}."
                )
            node = node[part]
        elif isinstance(node, dict):
            node = node.setdefault(part, {})
        else:
            raise click.UsageError(f"--set {key}: {part!r} is below a plain value, not a mapping.")
    if isinstance(node, list) and (not isinstance(path[-1], int) or path[-1] >= len(node)):
        raise click.UsageError(f"--set {key}: the list has {len(node)} entries, counted from 0; no entry {path[-1]!r}.")
    if not isinstance(node, (list, dict)):
        raise click.UsageError(f"--set {key}: {path[-2]!r} is a plain value, not a mapping.")
    node[path[-1]] = value  # type: ignore[index]


def _commands(made: Rendered, settings: tuple[str, ...], output: Path | None) -> list[str]:
    """The commands that train the run file: from its path where it has one, else by rendering it again."""
    processes = made.facts["gpus"]
    launcher = f" --launcher torchrun -- --nproc-per-node={processes}" if processes > 1 else ""
    own = made.source != f"templates/recipes/{made.name}.yaml"
    if not output and (settings or own or launcher):
        rendered = ["tools/render.py", "--recipe", made.source if own else made.name, "--variant", made.variant]
        rendered += [part for setting in settings for part in ("--set", setting)]
        return [f"{' '.join(map(_quoted, rendered))} | axolotl train -{launcher}"]
    path = _quoted(str(output)) if output else f"recipes/{made.name}/{made.variant}.yaml"
    commands = [f"axolotl train {path}{launcher}"]
    if "peft" in made.variant.split("+") and not made.name.endswith("-as-published"):  # these may be refused
        commands.append(f"tools/train.py {path}   (needs no Axolotl)")
    return commands


def _quoted(word: str) -> str:
    """A word quoted for a shell, on one line."""
    if word.isprintable():
        return shlex.quote(word)
    escaped = word.replace("\\", "\\\\").replace("'", "\\'")
    return "$'" + "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in escaped) + "'"


def _fill(made: Rendered, commands: list[str]) -> str:
    def entries(keys: list[str]) -> str:
        return "".join(yamlfile.entry(key, made.run[key], made.comments) for key in keys).rstrip("\n")

    return _jinja(
        ROOT / "templates" / "run.yaml.j2",
        recipe=made.facts,
        hardware=memory_model.hardware(made, plain=len(commands) > 1),
        notes=made.facts["notes"],
        words=" + ".join(w for w in made.words if w != "LoRA" or len(made.words) == 1),
        commands=commands,
        source=made.source,
        variant=made.variant,
        keys=list(made.run),
        entries=entries,
    )
