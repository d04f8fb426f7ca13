"""Axolotl's data-set types and chat templates, read from its installed source without importing it."""

import ast
import functools
import importlib.util
import re
from pathlib import Path

_PREFERENCE = {"orpo": "orpo", "kto": "kto", "ebft": "ebft"}
"""`rl:` -> the folder of its strategies; all others are dpo's."""


@functools.cache
def package() -> Path | None:
    """The folder of the installed Axolotl."""
    spec = importlib.util.find_spec("axolotl")
    found = list(spec.submodule_search_locations or []) if spec else []
    return Path(found[0]) if found else None


@functools.cache
def chat_templates() -> set[str]:
    """The names that chat_template: takes, without the tokenizer_default_fallback_ ones."""
    folder = (package() or Path()) / "utils" / "chat_templates" / "templates"
    return {path.stem for path in folder.glob("*.jinja")} | {"tokenizer_default", "jinja"}


def chat_template_text(name: object) -> str | None:
    """The text of one of Axolotl's own templates; None where it has none of that name."""
    if not isinstance(name, str) or not re.fullmatch(r"\w+", name):
        return None
    path = (package() or Path()) / "utils" / "chat_templates" / "templates" / f"{name}.jinja"
    return path.read_text(encoding="utf-8") if path.is_file() else None


@functools.cache
def _base_types() -> set[str]:
    """The keys of DATASET_HANDLERS: what may stand before a `:style`."""
    source = _source("utils.data.wrappers") or ""
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            names = [target.id for target in node.targets if isinstance(target, ast.Name)]
            if names == ["DATASET_HANDLERS"]:
                return {str(key.value) for key in node.value.keys if isinstance(key, ast.Constant)}
    return set()


@functools.cache
def _source(module: str) -> str | None:
    """The text of a module of Axolotl, by its name below `axolotl`; None where there is none."""
    root = package()
    if root is None or not all(part.isidentifier() for part in module.split(".")):
        return None
    path = root.joinpath(*module.split("."))
    for file in (path.with_suffix(".py"), path / "__init__.py"):
        if file.is_file():
            return file.read_text(encoding="utf-8")
    return None


def _functions(module: str) -> set[str]:
    """What can be called at the top level of a module: functions, and names assigned to."""
    return set(re.findall(r"(?m)^(?:def\s+)?(\w+)\s*[=(]", _source(module) or ""))


def _has(module: str, function: str) -> bool:
    return function in _functions(module)


def importable(module: str, here: Path) -> bool:
    """Whether a module outside of Axolotl can be imported, from the environment or the working directory."""
    parts = module.split(".")
    if not all(part.isidentifier() for part in parts):
        return False
    path = here.joinpath(*parts)
    if path.with_suffix(".py").is_file() or path.is_dir():
        return True
    try:
        return importlib.util.find_spec(module) is not None
    except Exception:  # whatever a parent package raises when it is imported
        return False


def known(kind: str, rl: object, here: Path) -> bool:
    """Whether Axolotl resolves a `type:` text, as its prompt_strategies and data wrappers do."""
    return _known_preference(kind, rl, here) if rl else _known_supervised(kind, here)


def _known_preference(kind: str, rl: object, here: Path) -> bool:
    parts = kind.split(".") if "." in kind else [kind, "default"]
    base = f"prompt_strategies.{_PREFERENCE.get(str(rl), 'dpo')}"
    if _has(".".join([base, *parts[:-1]]), parts[-1]):
        return True
    return importable(parts[-2], here) or importable(".".join(parts[:-1]), here)


def _known_supervised(kind: str, here: Path) -> bool:
    if kind.startswith("bradley_terry"):
        return _loads("prompt_strategies.bradley_terry", kind.partition(".")[2])
    base, _, style = kind.partition(":")
    if _loads("prompt_strategies", kind) or (base in _base_types() and (not style or style in _styles())):
        return True
    module, _, last = kind.rpartition(".")
    return bool(module) and not last.startswith("load") and importable(kind, here)


def _loads(base: str, strategy: str) -> bool:
    """Whether a module has the `load` or `load_…` that a type names."""
    module, _, last = strategy.rpartition(".")
    if last.startswith("load_") or last == "load":
        return _has(f"{base}.{module}", last)
    return _has(f"{base}.{strategy}", "load")


def _styles() -> list[str]:
    """The prompt styles that may stand after `alpaca:`."""
    block = (_source("prompters") or "").partition("class PromptStyle")[2].partition("\nclass ")[0]
    return re.findall(r'(?m)^\s+[A-Z]+ = "(\w+)"', block)


@functools.cache
def names(rl: object) -> list[str]:
    """All types by name, for the nearest one to a typing mistake."""
    if rl:
        folder = _PREFERENCE.get(str(rl), "dpo")
        return [
            f"{module}.{function}"
            for module in _modules(f"prompt_strategies/{folder}")
            for function in sorted(_functions(f"prompt_strategies.{folder}.{module}"))
            if not function.startswith(("_", "load")) and function.islower()
        ]
    found = sorted(_base_types()) + [f"alpaca:{style}" for style in _styles()]
    for module in _modules("prompt_strategies"):
        functions = sorted(_functions(f"prompt_strategies.{module}"))
        found += [module] if "load" in functions else []
        found += [f"{module}.{function}" for function in functions if function.startswith("load_")]
    return [*found, "bradley_terry.chat_template"]


def _modules(folder: str) -> list[str]:
    root = package()
    paths = sorted((root / folder).iterdir()) if root else []
    return [
        path.stem for path in paths if path.suffix == ".py" and not path.stem.startswith("_") and path.stem != "base"
    ]
