"""The turns of a row whose prompt Axolotl defines, as a chat template takes them.

As Axolotl 0.19 makes them of rows, prompt_strategies/chat_template.py; also of rows that it does not tokenize.
"""

import contextlib
import json
from typing import Any

_ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}


def turns(entry: dict[str, Any], row: dict[str, Any]) -> list[dict[str, Any]]:
    """All turns of a row of the data set `entry`, each with what it holds beside role and content, as tool calls.

    A row of columns is one turn of the user's.
    """
    found = row.get(entry.get("field_messages") or "messages") or row.get("conversations")
    if isinstance(found, list) and all(isinstance(turn, dict) for turn in found):
        said, system = [_turn(entry, turn) for turn in found], row.get(entry.get("field_system") or "system")
        if system is not None and said and said[0]["role"] != "system":
            said.insert(0, {"role": "system", "content": str(system)})
        return said
    asked = [str(row[name]) for name in ("question", "instruction", "prompt", "input") if row.get(name)]
    return [{"role": "user", "content": "\n".join(asked)}]


def _turn(entry: dict[str, Any], turn: dict[str, Any]) -> dict[str, Any]:
    names = entry.get("message_property_mappings") or {}
    role = names.get("role") or entry.get("message_field_role") or "role"
    content = names.get("content") or entry.get("message_field_content") or "content"
    known = {role, content, "from", "value"}
    more = {name: value for name, value in turn.items() if value is not None and name not in known}
    said, name = turn.get(content, turn.get("value")), str(turn.get(role, turn.get("from")))
    if isinstance(more.get("tool_calls"), list):
        more["tool_calls"] = [_call(call) for call in more["tool_calls"]]
    own = {theirs: role for role, several in (entry.get("roles") or {}).items() for theirs in several}
    return {"role": (own or _ROLES).get(name, name), "content": "" if said is None else str(said), **more}


def _call(call: Any) -> Any:
    """Arguments that are JSON text are a mapping, as Axolotl makes them."""
    function = call.get("function") if isinstance(call, dict) else None
    if isinstance(function, dict) and isinstance(function.get("arguments"), str):
        with contextlib.suppress(ValueError):
            return {**call, "function": {**function, "arguments": json.loads(function["arguments"])}}
    return call


def tools(entry: dict[str, Any], row: dict[str, Any]) -> list[Any] | None:
    """The functions that the assistant of a row may call."""
    found = row.get(entry.get("field_tools") or "tools")
    if isinstance(found, str):
        with contextlib.suppress(ValueError):
            found = json.loads(found)
    return found if isinstance(found, list) and found else None


def before_answer(said: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The turns before the last answer; all where there is none."""
    last = max((number for number, turn in enumerate(said) if turn["role"] == "assistant"), default=len(said))
    return said[:last]


def question(entry: dict[str, Any], row: dict[str, Any]) -> str:
    """What a row asks: its turns before the last answer, but for the system's, which is often one for all rows."""
    asked = before_answer(turns(entry, row))
    return "\n".join(turn["content"] for turn in asked if turn["role"] not in ("system", "developer"))
