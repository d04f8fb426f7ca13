"""A YAML loader that ends at limits: of size, of depth, of keys and values."""

from typing import Any

from lora_recipes.support import terminal

import yaml

TAG = "tag:yaml.org,2002:"
_KINDS = {"str", "int", "float", "bool", "null", "seq", "map"}

BYTES = 200_000
"""Of a file, a chat template and DeepSpeed settings in it: the longest of ours has 5,000."""
NODES = 5_000
"""Keys and values of a file, those that an alias repeats counted each time; read in half a second."""
DEPTH = 20


class Loader(yaml.SafeLoader):
    """Ends at a limit instead of after hours or memory, and names the line of a scalar that YAML cannot make."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.nodes = self.depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.nodes, self.depth = self.nodes + 1, self.depth + 1
        if self.nodes > NODES:
            raise self._refused(f"more than {NODES:,} keys and values, a run file has a hundred")
        if self.depth > DEPTH:
            raise self._refused("nested too deep, a run file has a few levels")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def _refused(self, problem: str) -> yaml.YAMLError:
        return yaml.MarkedYAMLError(problem=problem, problem_mark=self.get_mark())

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        if node.tag == f"{TAG}timestamp":
            return node.value  # as text, of which _walk says that YAML reads a date
        kind = node.tag.removeprefix(TAG)
        problem = f"{terminal.shown(node.value, 80)} is no {kind} that can be read"
        try:
            made = super().construct_object(node, deep)
            if kind in _KINDS and not (isinstance(made, int) and made.bit_length() > 64):
                return made
        except (ValueError, KeyError, AttributeError, TypeError, IndexError):
            pass
        if kind not in _KINDS:
            problem = f"{kind} is no kind of value that a run file has"
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
