"""What litellm makes of a live server, as one JSON object; run by the Python that has litellm."""

from __future__ import annotations

import json
import sys
from typing import Any

import litellm
from openai import APIStatusError

common = {"api_base": sys.argv[1] + "/v1", "api_key": sys.argv[2], "temperature": 0, "num_retries": 0}
messages = [{"role": "user", "content": "What is 2 + 3?"}]
found: dict[str, Any] = {}

found["models"] = litellm.get_valid_models(
    check_provider_endpoint=True,
    custom_llm_provider="openai",
    api_base=common["api_base"],
    api_key=common["api_key"],
)

chat = litellm.completion(
    "hosted_vllm/tiny", messages, max_tokens=16, n=2, logprobs=True, top_logprobs=2, **common
)
found["texts"] = [choice.message.content for choice in chat.choices]
found["logprobs"] = [len(each.top_logprobs) for choice in chat.choices for each in choice.logprobs.content]
found["usage"] = chat.usage.completion_tokens

pieces, usage = [], 0
options = {"include_usage": True}
for chunk in litellm.completion(
    "openai/tiny", messages, max_tokens=16, stream=True, stream_options=options, **common
):
    if chunk.choices:
        pieces.append(chunk.choices[0].delta.content or "")
    usage = getattr(chunk, "usage", None) and chunk.usage.completion_tokens or usage
found["streamed"], found["streamed_usage"] = "".join(pieces), usage

stop = found["streamed"][1]
stopped = litellm.completion("openai/tiny", messages, max_tokens=16, stop=[stop], **common)
found["stop"], found["stopped"] = stop, stopped.choices[0].message.content

prompted = {
    "model": "text-completion-openai/tiny",
    "prompt": "San Francisco is a",
    "max_tokens": 7,
    **common,
}
text = litellm.text_completion(n=2, logprobs=2, **prompted)
found["completions"] = [choice.text for choice in text.choices]
found["completion_tokens"] = "".join(text.choices[0].logprobs.tokens)
chunks = litellm.text_completion(stream=True, **prompted)
found["streamed_completion"] = "".join(chunk.choices[0].text or "" for chunk in chunks)

parameters = {"type": "object", "properties": {"country": {"type": "string"}}}
asked: dict[str, Any] = {
    "model": "hosted_vllm/tiny",
    "messages": [{"role": "user", "content": "What is the capital of France? Answer as JSON."}],
    "tools": [{"type": "function", "function": {"name": "capital_of", "parameters": parameters}}],
    "max_tokens": 60,
    **common,
}
calling = litellm.completion(**asked)
called = calling.choices[0]
found["tool_finish"] = called.finish_reason
whole = litellm.stream_chunk_builder(list(litellm.completion(stream=True, **asked)))
for name, message in (("tool", called.message), ("streamed_tool", whole.choices[0].message)):
    function = message.tool_calls[0].function
    found[name] = {"name": function.name, "country": json.loads(function.arguments)["country"]}

result = {"role": "tool", "tool_call_id": called.message.tool_calls[0].id, "content": "Paris"}
again = litellm.completion(**{**asked, "messages": [*asked["messages"], called.message, result]})
found["told_of_result"] = again.usage.prompt_tokens - calling.usage.prompt_tokens
untold = litellm.completion(tool_choice="none", **asked).choices[0]
found["untold"] = {"text": untold.message.content, "calls": untold.message.tool_calls or []}

failures: dict[str, dict[str, Any]] = {
    "unknown_model": {"model": "openai/other"},
    "bad_key": {"api_key": "wrong"},
    "bad_value": {"temperature": -1},
    "forced_tool": {**asked, "tool_choice": "required"},
}
for name, values in failures.items():
    try:
        litellm.completion(**{"model": "openai/tiny", "messages": messages, **common, **values})
    except APIStatusError as error:
        found[name] = {"name": type(error).__name__, "status": error.status_code, "text": str(error)}

print(json.dumps(found))
