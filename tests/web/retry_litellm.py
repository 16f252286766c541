"""As retry_openai.py; run by the Python that has litellm."""

from __future__ import annotations

import sys

import litellm

print("ready", flush=True)
sys.stdin.readline()
answer = litellm.completion(
    "openai/tiny",
    [{"role": "user", "content": "Spell cat"}],
    api_base=sys.argv[1] + "/v1",
    api_key=sys.argv[2],
    max_tokens=16,
    temperature=0,
    max_retries=12,
)
print(answer.choices[0].message.content)
