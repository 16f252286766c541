"""Quire in Triton's Python backend: each request streams its text, all share the engine's steps."""

from __future__ import annotations

import asyncio
import json
import threading
from contextlib import aclosing
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from quire import AsyncLLM, SamplingParams


class TritonPythonModel:
    """What Triton loads; see config.pbtxt."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the model that the configuration's parameter "model" names."""
        config = json.loads(args["model_config"])
        self._llm = AsyncLLM(config["parameters"]["model"]["string_value"])
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="quire", daemon=True)
        self._thread.start()

    def execute(self, requests: list[Any]) -> None:
        """Start the requests and return at once: answers go through their senders."""
        for request in requests:
            asyncio.run_coroutine_threadsafe(self._answer(request, request.get_response_sender()), self._loop)

    def finalize(self) -> None:
        """End the engine and what still runs in it."""
        self._llm.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _answer(self, request: Any, sender: Any) -> None:
        final = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
        try:
            params = SamplingParams(**json.loads(_text(request, "sampling_parameters") or "{}"))
            prompt = _text(request, "text_input") or ""
            # Leaving early closes the stream, which aborts the request.
            async with aclosing(self._llm.stream_deltas(prompt, params)) as deltas:
                async for delta in deltas:
                    if sender.is_cancelled():
                        break
                    if delta.error is not None:
                        raise delta.error
                    text = "".join(choice.text for choice in delta.choices)
                    if text:
                        tensor = pb_utils.Tensor("text_output", np.array([text.encode()], dtype=np.object_))
                        sender.send(pb_utils.InferenceResponse([tensor]))
        except Exception as error:
            # It belongs to this request; the client waits for ever unless it hears of it.
            sender.send(pb_utils.InferenceResponse([], pb_utils.TritonError(str(error))), flags=final)
        else:
            sender.send(flags=final)


def _text(request: Any, name: str) -> str | None:
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    if tensor is None:
        return None
    text: str = tensor.as_numpy().reshape(-1)[0].decode()
    return text
