"""Chat templates against transformers' apply_chat_template, and what the sandbox refuses."""

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from quire.api.errors import PromptError, TokenizerError
from quire.loading.chat_template import ChatTemplate, choose_template

LLAMA = (
    "{{ bos_token }}{% for message in messages %}\n"
    "  {% if message.role not in ['system', 'user', 'assistant'] %}\n"
    "    {{ raise_exception('unknown role ' + message.role) }}\n"
    "  {% endif %}\n"
    "<|{{ message['role'] }}|>{{ message['content'] | trim }}{{ eos_token }}\n"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TOOLS = (
    "{%- set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}"
    "{% if m.role == 'system' %}{% continue %}{% endif %}"
    "{% generation %}{{ ns.n }}:{{ m.content }};{% endgeneration %}{% endfor %}"
    "{% if tools %}{{ tools | tojson(indent=2) }}{% endif %}"
    "{% if enable_thinking is defined and enable_thinking %}<think>{% endif %}{{ dict(a=1) | tojson }}"
)
CHAT = [
    {"role": "system", "content": "Be <b>brief</b> & kind."},
    {"role": "user", "content": " What's 你好? "},
    {"role": "assistant", "content": "It is a "},
]
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}


def oracle(source, messages, **kwargs):
    return render_jinja_template([messages], chat_template=source, **SPECIAL, **kwargs)[0][0]


@pytest.mark.parametrize("source", [LLAMA, TOOLS])
@pytest.mark.parametrize(
    "values",
    [
        {},
        {"add_generation_prompt": True},
        {"continue_final_message": True},
        {"tools": [{"type": "function", "function": {"name": "f", "é": [1.5, None, True]}}]},
        {"enable_thinking": True, "documents": [{"title": "t", "text": "<x>"}]},
    ],
)
def test_rendering_equals_transformers(source, values):
    assert ChatTemplate(source, SPECIAL).render(CHAT, **values) == oracle(source, CHAT, **values)


def test_text_parts_are_joined_by_newlines():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert ChatTemplate("{{ messages[0].content }}").render([{"role": "user", "content": parts}]) == "a\nb"


def test_a_tool_call_needs_no_content():
    message = {"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]}
    template = ChatTemplate("[{{ messages[0].content }}]{{ messages[0].tool_calls[0].function.name }}")
    assert template.render([message]) == "[]f"


@pytest.mark.parametrize(
    "messages",
    [
        [], "text", {"role": "user", "content": "x"}, ["text"], [{"content": "x"}], [{"role": "user"}],
        [{"role": 1, "content": "x"}], [{"role": "", "content": "x"}], [{"role": "user", "content": 5}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}],
        [{"role": "user", "content": [{"type": "text"}]}],
        [{"role": "user", "content": "x", "extra": object()}],
        [{"role": "user", "content": "x", 5: "y"}],
    ],
)  # fmt: skip
def test_malformed_messages_are_refused(messages):
    with pytest.raises(PromptError):
        ChatTemplate("{{ messages }}").render(messages)


@pytest.mark.parametrize(
    "name", ["tokenize", "return_tensors", "bos_token", "raise_exception", "_x", "padding"]
)
def test_values_that_are_not_the_templates_are_refused(name):
    with pytest.raises(PromptError, match=name):
        ChatTemplate("x", SPECIAL).render(CHAT, **{name: True})


def test_values_must_be_plain_json():
    nested = []
    for _ in range(200):
        nested = [nested]
    for value in (object(), print, {1: 2}, nested, [b"x"]):
        with pytest.raises(PromptError):
            ChatTemplate("x").render(CHAT, value=value)


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('no') }}",
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__ }}{{ ''.__class__.__mro__[1] }}",
        "{{ cycler.__init__.__globals__.os }}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
        "{{ 'x' * 10000000 }}",
        "{{ 10 ** 10 ** 10 }}",
        "{% for i in range(10000000) %}{% endfor %}",
        "{{ messages[0].content.nothing.more }}",
        "{% for i in range(90000) %}{{ 'x' * 100 }}{% endfor %}",
    ],
)
def test_what_templates_may_not_do_fails_the_prompt(source):
    with pytest.raises(PromptError):
        ChatTemplate(source, max_chars=100_000).render(CHAT)


def test_output_up_to_the_limit_is_fine():
    assert len(ChatTemplate("{{ 'x' * 500 }}", max_chars=500).render(CHAT)) == 500
    with pytest.raises(PromptError, match="499"):
        ChatTemplate("{{ 'x' * 500 }}", max_chars=499).render(CHAT)


def test_a_broken_template_is_refused_when_compiled():
    with pytest.raises(TokenizerError, match="not valid Jinja"):
        ChatTemplate("{% for %}")


def test_continuing_needs_text_that_the_template_keeps():
    with pytest.raises(PromptError):
        ChatTemplate("fixed").render(CHAT, continue_final_message=True)
    with pytest.raises(PromptError):
        ChatTemplate(LLAMA).render([{"role": "user", "content": ""}], continue_final_message=True)
    with pytest.raises(PromptError, match="exclude"):
        ChatTemplate(LLAMA).render(CHAT, continue_final_message=True, add_generation_prompt=True)


def test_named_templates_prefer_tool_use_for_tools():
    named = {"default": "d", "tool_use": "t"}
    assert choose_template(named, has_tools=True) == "t"
    assert choose_template(named, has_tools=False) == "d"
    with pytest.raises(TokenizerError, match="rag"):
        choose_template({"rag": "r"}, has_tools=False)
