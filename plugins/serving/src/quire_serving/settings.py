"""The server's settings: flags of `quire serve`, and options of the plugin `openai-server`."""

from __future__ import annotations

from pydantic import Field

from quire.api.section import Section


class ServeSettings(Section):
    """How the server listens, whom it lets in, and what it bounds."""

    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0 is every interface")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    served_model_name: tuple[str, ...] = Field(
        (), description="name of the model in requests, instead of what it was loaded by"
    )
    api_key: tuple[str, ...] = Field((), description="a key that clients must give; any one of several")
    api_key_file: str | None = Field(None, description="a file of keys, one a line; # begins a comment")
    allowed_origins: tuple[str, ...] = Field((), description="browser origin that may call (CORS)")
    allowed_hosts: tuple[str, ...] = Field(
        (), description="Host header that is answered; by default any, on loopback only its names"
    )
    root_path: str = Field("", description="path prefix that a proxy in front takes off")
    page: bool = Field(True, description="serve the playground at /")
    docs: bool = Field(True, description="serve the OpenAPI pages at /docs")
    access_log: bool = Field(True, description="log each request as a line of JSON on standard error")
    metrics_prefix: str = Field(
        "quire", pattern="^[a-zA-Z_][a-zA-Z0-9_]*$", description="of the names of metrics: quire or vllm"
    )
    tool_call_parser: str | None = Field(
        None, description="parser of tool calls; by default no calls are looked for"
    )
    enable_auto_tool_choice: bool = Field(
        True, description='serve tool_choice "auto"; needs a tool_call_parser'
    )
    reasoning_parser: str | None = Field(
        None, description="parser that splits reasoning from answers; by default none"
    )
    max_queued_requests: int = Field(
        256, ge=0, description="requests that may wait, each choice counted; more are refused with 429"
    )
    max_queued_tokens: int | None = Field(
        None,
        ge=1,
        description="prompt tokens that may wait; by default 4 contexts for each sequence of a step",
    )
    max_body_bytes: int = Field(8 * 2**20, ge=1024, description="largest request body")
    max_n: int = Field(16, ge=1, le=16384, description="most choices of a request")
    max_logprobs: int = Field(20, ge=0, description="most logprobs of a position")
    max_prompts: int = Field(256, ge=1, description="most prompts of a completions request")
    body_timeout_s: float = Field(10.0, gt=0, description="seconds in which a body must have come")
    template_timeout_s: float = Field(1.0, gt=0, description="seconds that a chat template may take")
    drain_s: float = Field(30.0, ge=0, description="seconds that requests have to end after SIGTERM")
    watchdog_s: float = Field(
        8.0, gt=0, description="restart an engine that has made no progress for so many seconds"
    )
    engine_process: bool = Field(True, description="run the engine in a supervised process of its own")
