"""The output items of a response while they grow, and the events that tell of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from quire.api.serving import ParsedText, ToolCallDelta
from quire_serving.submission import new_request_id

Event = dict[str, Any]

_PARTS = {"message": "output_text", "reasoning": "reasoning_text"}
_PREFIXES = {"message": "msg", "reasoning": "rs", "function_call": "fc"}


class OutputItems:
    """Items of one response, the last one growing.

    Attributes:
        items: as they are sent; changed in place.
    """

    def __init__(self, max_calls: int | None = None) -> None:
        """Begin without items; calls after the first `max_calls` are dropped."""
        self._max_calls = max_calls
        self.items: list[dict[str, Any]] = []
        self._pieces: list[str] = []  # of the open item's text or arguments
        self._is_open = False
        self._num_calls = 0

    def add(self, parsed: ParsedText) -> Iterator[Event]:
        """Add what a parser gave; yields the events."""
        if parsed.reasoning:
            yield from self._add_text("reasoning", parsed.reasoning)
        if parsed.content:
            yield from self._add_text("message", parsed.content)
        for call in parsed.tool_calls:
            if self._max_calls is not None and call.index >= self._max_calls:
                return
            yield from self._add_call(call)

    def finish(self, status: str) -> Iterator[Event]:
        """End the last item; a response without any gets an empty message."""
        if not self.items:
            yield from self._open("message")
        yield from self._close(status)

    def _add_text(self, kind: str, text: str) -> Iterator[Event]:
        if not self._is_open or self.items[-1]["type"] != kind:
            yield from self._close("completed")
            yield from self._open(kind)
        self._pieces.append(text)
        yield self._of_part(f"{_PARTS[kind]}.delta", kind, delta=text)

    def _add_call(self, call: ToolCallDelta) -> Iterator[Event]:
        if call.index == self._num_calls:
            yield from self._close("completed")
            yield from self._open(
                "function_call", call_id=new_request_id("call"), name=call.name, arguments=""
            )
            self._num_calls += 1
        if call.arguments:
            self._pieces.append(call.arguments)
            yield self._of_item("function_call_arguments.delta", delta=call.arguments)

    def _open(self, kind: str, **fields: object) -> Iterator[Event]:
        item = {"id": new_request_id(_PREFIXES[kind]), "type": kind, "status": "in_progress", **fields}
        if kind == "message":
            item |= {"role": "assistant", "content": []}
        elif kind == "reasoning":
            item |= {"summary": [], "content": []}
        self.items.append(item)
        self._is_open, self._pieces = True, []
        yield {"type": "response.output_item.added", "output_index": len(self.items) - 1, "item": dict(item)}
        if kind in _PARTS:
            yield self._of_item("content_part.added", content_index=0, part=_part(kind, ""))

    def _close(self, status: str) -> Iterator[Event]:
        if not self._is_open:
            return
        item, text = self.items[-1], "".join(self._pieces)
        kind = item["type"]
        item["status"] = status
        self._is_open = False
        if kind == "function_call":
            item["arguments"] = text
            yield self._of_item("function_call_arguments.done", arguments=text, name=item["name"])
        else:
            item["content"] = [_part(kind, text)]
            yield self._of_part(f"{_PARTS[kind]}.done", kind, text=text)
            yield self._of_item("content_part.done", content_index=0, part=_part(kind, text))
        yield {"type": "response.output_item.done", "output_index": len(self.items) - 1, "item": dict(item)}

    def _of_part(self, event: str, kind: str, **fields: object) -> Event:
        more: dict[str, object] = {"logprobs": []} if kind == "message" else {}
        return self._of_item(event, content_index=0, **fields, **more)

    def _of_item(self, event: str, **fields: object) -> Event:
        place = {"item_id": self.items[-1]["id"], "output_index": len(self.items) - 1}
        return {"type": f"response.{event}", **place, **fields}


def _part(kind: str, text: str) -> dict[str, Any]:
    part: dict[str, Any] = {"type": _PARTS[kind], "text": text}
    return part | {"annotations": [], "logprobs": []} if kind == "message" else part
