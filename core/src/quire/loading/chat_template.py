"""Renders conversations with a model's Jinja chat template, in a sandbox."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from datetime import datetime

import jinja2
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import CallBlock, Node
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment

from quire.api.errors import PromptError, TokenizerError

Message = Mapping[str, object]

MAX_RENDERED_CHARS = 16 * 1024 * 1024

_MAX_PRODUCT = 1_000_000
_MAX_DEPTH = 64
_MARK = "QUIRE_CONTINUE_FINAL_MESSAGE "
_RESERVED = frozenset(
    (
        *("messages", "conversation", "chat_template", "add_generation_prompt", "continue_final_message"),
        *("tokenize", "padding", "truncation", "max_length", "tokenizer_kwargs"),
        *("return_tensors", "return_dict", "return_assistant_tokens_mask"),
        *("raise_exception", "strftime_now", "namespace", "dict", "range", "cycler", "joiner", "lipsum"),
        *("self", "caller"),
    )
)


class ChatTemplate:
    """A compiled chat template.

    The sandbox bounds memory (output, products), not time: a template comes from the model's folder
    or from whoever runs the engine. Do not render one that a remote user sent.

    Args:
        source: the template's text.
        special_tokens: what templates see as `bos_token`, `eos_token` and so on.
        max_chars: longest output.

    Raises:
        TokenizerError: the template is not valid Jinja.
    """

    def __init__(
        self,
        source: str,
        special_tokens: Mapping[str, str] | None = None,
        max_chars: int = MAX_RENDERED_CHARS,
    ) -> None:
        self.source = source
        self._special_tokens = dict(special_tokens or {})
        self._max_chars = max_chars
        environment = _make_environment()
        try:
            self._template = environment.from_string(source)
        except (jinja2.TemplateError, RecursionError) as error:
            raise TokenizerError(
                f"the chat template is not valid Jinja: {error}; give another one"
            ) from error

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        **values: object,
    ) -> str:
        """The conversation as a prompt.

        Args:
            messages: each with a "role" and "content": a string, a list of text parts (joined by
                newlines), or None.
            add_generation_prompt: end with the opening of an assistant's message.
            continue_final_message: leave the last message open, to be continued.
            **values: what the template reads besides: `tools`, `documents`, `enable_thinking` and
                the like; plain JSON values only.

        Raises:
            PromptError: a message or value is malformed, or the template refused the conversation.
        """
        if add_generation_prompt and continue_final_message:
            raise PromptError("add_generation_prompt and continue_final_message exclude each other: drop one")
        chat = [_plain_message(message, index) for index, message in enumerate(_check_messages(messages))]
        variables = _check_values(values, self._special_tokens)
        variables |= {"messages": chat, "add_generation_prompt": add_generation_prompt}
        if not continue_final_message:
            return self._render(variables)
        return self._render_open(chat, variables)

    def _render_open(self, chat: list[dict[str, object]], variables: dict[str, object]) -> str:
        final = chat[-1]["content"]
        if not isinstance(final, str) or not final:
            raise PromptError("continue_final_message needs text in the last message: give it content")
        chat[-1]["content"] = final + _MARK
        text = self._render(variables)
        position = text.rfind(_MARK.strip())
        if position < 0 or final.strip() not in text:
            raise PromptError("the chat template does not keep the last message, so it cannot be continued")
        is_exact = text.startswith(_MARK, position)
        return text[:position] if is_exact else text[:position].rstrip()

    def _render(self, variables: Mapping[str, object]) -> str:
        pieces: list[str] = []
        num_chars = 0
        try:
            for piece in self._template.generate(**{"tools": None, "documents": None, **variables}):
                pieces.append(piece)
                num_chars += len(piece)
                if num_chars > self._max_chars:
                    limit = self._max_chars
                    raise PromptError(
                        f"the chat template gave more than {limit} characters: shorten the chat"
                    )
        except PromptError:
            raise
        except Exception as error:  # a template can raise anything that Python can
            raise PromptError(f"the chat template failed: {type(error).__name__}: {error}") from error
        return "".join(pieces)


def choose_template(templates: str | Mapping[str, str], *, has_tools: bool) -> str:
    """The template to use of several named ones: "tool_use" for tools, else "default".

    Raises:
        TokenizerError: neither exists.
    """
    if isinstance(templates, str):
        return templates
    name = "tool_use" if has_tools and "tool_use" in templates else "default"
    if name not in templates:
        raise TokenizerError(
            f"the model has chat templates {sorted(templates)} and no default: give chat_template"
        )
    return templates[name]


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox, with bounds on products (`"x" * 10**9`, `10 ** 10 ** 9`)."""

    intercepted_binops = frozenset(("*", "**"))

    def call_binop(
        self, context: jinja2.runtime.Context, operator: str, left: object, right: object
    ) -> object:
        if operator == "**":
            raise SecurityError("chat templates cannot use **")
        sizes = [len(v) if isinstance(v, str | list | tuple) else v for v in (left, right)]
        if not all(isinstance(v, int | float) for v in (left, right)):
            product = math.prod(max(0, v) for v in sizes if isinstance(v, int | float))
            if product > _MAX_PRODUCT:
                raise SecurityError(f"a product of {product} items is more than the limit of {_MAX_PRODUCT}")
        return super().call_binop(context, operator, left, right)


class _GenerationTag(Extension):
    """`{% generation %}` blocks, which mark the assistant's text for training: rendered as they are."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return CallBlock(self.call_method("_render_body"), [], [], body).set_lineno(line)

    def _render_body(self, caller: Macro) -> str:
        return caller()


class _Namespace(jinja2.utils.Namespace):
    """Jinja's namespace without names that begin with an underscore."""

    def __setitem__(self, name: str, value: object) -> None:
        if name.startswith("_"):
            raise SecurityError(f"chat templates cannot set {name!r}")
        super().__setitem__(name, value)


def _make_environment() -> _Environment:
    environment = _Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    environment.globals["namespace"] = _Namespace
    return environment


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def _check_messages(messages: object) -> Sequence[object]:
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence) or not messages:
        raise PromptError("a conversation is a non-empty list of messages with 'role' and 'content'")
    return messages


def _plain_message(message: object, index: int) -> dict[str, object]:
    if not isinstance(message, Mapping):
        raise PromptError(f"message {index} is a {type(message).__name__}; it must have 'role' and 'content'")
    plain = _plain(message, f"message {index}", 0)
    if not isinstance(plain, dict):  # pragma: no cover - a mapping becomes a dict
        raise PromptError(f"message {index} is malformed")
    if not isinstance(plain.get("role"), str) or not plain["role"]:
        raise PromptError(f"message {index} has role {plain.get('role')!r}; it must be a non-empty string")
    if "content" not in plain and "tool_calls" not in plain:
        raise PromptError(f"message {index} has no 'content'")
    plain["content"] = _flatten(plain.get("content"), index)
    return plain


def _flatten(content: object, index: int) -> str:
    """Content as one string: text parts are joined by newlines, as vLLM does; None is empty."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise PromptError(
            f"message {index} has content of type {type(content).__name__}; give a string or text parts"
        )
    texts: list[str] = []
    for part in content:
        text = part.get("text") if isinstance(part, dict) and part.get("type") == "text" else part
        if not isinstance(text, str):
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise PromptError(
                f"message {index} has a content part of type {kind!r}; only text parts are served"
            )
        texts.append(text)
    return "\n".join(texts)


def _check_values(values: Mapping[str, object], special_tokens: Mapping[str, str]) -> dict[str, object]:
    for name in values:
        if name in _RESERVED or name in special_tokens or name.startswith("_"):
            raise PromptError(
                f"{name!r} cannot be given to a chat template: it is not the template's to read"
            )
    plain = {name: _plain(value, name, 0) for name, value in values.items()}
    return {**special_tokens, **plain}


def _plain(value: object, where: str, depth: int) -> object:
    """A copy made of JSON types only, so that a template meets no object with methods."""
    if depth > _MAX_DEPTH:
        raise PromptError(f"{where} is nested more than {_MAX_DEPTH} deep")
    if value is None or isinstance(value, bool):
        return value
    for scalar in (str, int, float):
        if isinstance(value, scalar):
            return value if type(value) is scalar else scalar(value)
    if isinstance(value, Mapping):
        return {_plain_key(key, where): _plain(entry, where, depth + 1) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry, where, depth + 1) for entry in value]
    raise PromptError(f"{where} holds a {type(value).__name__}; give plain JSON values")


def _plain_key(key: object, where: str) -> str:
    if not isinstance(key, str):
        raise PromptError(f"{where} has a key of type {type(key).__name__}; keys are strings")
    return str(key)
