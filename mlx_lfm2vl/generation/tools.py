"""Tool calls: from what a model writes between `<|tool_call_start|>` and `<|tool_call_end|>` to names and arguments.

Nothing is evaluated. Two spellings are read: calls in Python's manner, `[name(a="x", n=3)]`, and JSON objects,
`[{"name": "name", "arguments": {"a": "x"}}]`, also with other names in use for their parts (`NAMES`, `ARGUMENTS`) or
nested as OpenAI's are. Without the brackets calls need no comma between them, as in JSON lines; there may be several
lists. Values are strings, finite numbers, true/True, false/False, null/None, lists, tuples (which become lists) and
dictionaries with string keys. Unlike in Python a parameter may be called `from` or `class`.
"""

from __future__ import annotations

import warnings

from ..errors import ToolCallError, ToolCallWarning
from ..processing.conversation import CALL_START
from .tool_call_reader import ToolCall, ToolCallReader


def parse_tool_calls(text: str) -> list[ToolCall]:
    """All calls in a text, in order.

    Args:
        text: a `tool_text`, or a whole answer decoded with its special tokens. What stands outside the two tokens is
            passed over.

    Returns:
        Those that can be read whole. A `ToolCallWarning` says of each other one beside them what is wrong with it.

    Raises:
        ToolCallError: no call can be read, or the only one is cut off. It names the place, and what is wrong there.
    """
    if not isinstance(text, str):
        raise ToolCallError(f"the text of tool calls is {type(text).__name__}, expected str")
    calls: list[ToolCall] = []
    errors: list[ToolCallError] = []
    at = 0
    while (at := text.find(CALL_START, at)) >= 0:
        reader = ToolCallReader(text, at, whole=True)
        for event in reader.feed(""):
            if isinstance(event, ToolCall):
                calls.append(event)
            elif isinstance(event, ToolCallError):
                errors.append(event)
        at = reader.at
    if errors and not calls:
        raise errors[0]
    for error in errors:
        warnings.warn(str(error), ToolCallWarning, stacklevel=2)
    return calls
