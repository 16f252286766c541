"""What litellm makes of a live server, as one JSON object; run by the Python that has litellm."""

from __future__ import annotations

import json
import sys

import litellm

common = {"api_base": sys.argv[1] + "/v1", "api_key": sys.argv[2], "temperature": 0, "num_retries": 0}
messages = [{"role": "user", "content": "What is 2 + 3?"}]
found: dict[str, object] = {}

chat = litellm.completion("hosted_vllm/tiny", messages, max_tokens=16, **common)
found["text"] = chat.choices[0].message.content
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

text = litellm.text_completion(
    model="text-completion-openai/tiny", prompt="San Francisco is a", max_tokens=7, **common
)
found["completion"] = text.usage.completion_tokens

parameters = {"type": "object", "properties": {"country": {"type": "string"}}}
asked = {
    "model": "hosted_vllm/tiny",
    "messages": [{"role": "user", "content": "What is the capital of France? Answer as JSON."}],
    "tools": [{"type": "function", "function": {"name": "capital_of", "parameters": parameters}}],
    "max_tokens": 60,
    **common,
}
called = litellm.completion(**asked).choices[0]
found["tool_finish"] = called.finish_reason
whole = litellm.stream_chunk_builder(list(litellm.completion(stream=True, **asked)))
for name, message in (("tool", called.message), ("streamed_tool", whole.choices[0].message)):
    function = message.tool_calls[0].function
    found[name] = {"name": function.name, "country": json.loads(function.arguments)["country"]}

for name, values in {"unknown_model": {"model": "openai/other"}, "bad_key": {"api_key": "wrong"}}.items():
    try:
        litellm.completion(**{"model": "openai/tiny", "messages": messages, **common, **values})
    except Exception as error:
        found[name] = type(error).__name__

print(json.dumps(found))
