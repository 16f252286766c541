"""Writes the reference pages from the code. `--check` writes nothing and fails where one is stale."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pydantic.fields import FieldInfo

from quire.api import extensions, hf_config, hookspecs, specs
from quire.api.batch import ForwardBatch
from quire.api.config import SECTIONS, PluginSettings
from quire.api.plugin_settings import OrderSettings
from quire.api.protocols import AttentionParams, BuildContext, Model, ModelConfig, ModelFactory
from quire.api.request import SamplingParams
from quire.cli.flags import CLI_SAMPLING_DEFAULTS, Setting, engine_settings, sampling_settings
from quire.cli.help import subcommands
from quire.cli.main import build_parser
from quire.cli.plugin_flags import add_plugin_flags
from quire.nn import activation, dtypes, linear, mlp, norm, rope_config, rotary
from quire.plugins import PluginHost
from quire.plugins.builtin import quire_register_ops

REFERENCE = Path(__file__).parent / "reference"
SECTIONS_OF_DOCSTRINGS = {
    "Attributes:": "Attributes:",
    "Args:": "Arguments:",
    "Returns:": "Returns:",
    "Raises:": "Raises:",
}
SETTINGS_GROUPS = frozenset({*engine_settings(), "sampling", "plugins"})
DISTRIBUTIONS = ("quire-core", "quire-quantization", "quire-serving")
NOTE = "<!-- Written by docs/generate.py from the code: change the code, then run `make docs`. -->\n"


def pages() -> dict[str, str]:
    """File name to text."""
    return {
        "settings.md": settings_page(),
        "cli.md": cli_page(),
        "hooks.md": hooks_page(),
        "models.md": models_page(),
    }


def settings_page() -> str:
    """Every setting of the engine and of sampling."""
    lines = [NOTE, "# Settings", ""]
    lines += [
        "Each setting is a keyword of `LLM(...)`, a flag of the command line, and a key of `quire.toml` in",
        "the section below which it stands. Keywords and flags win over the file.",
        "",
    ]
    for section, settings in engine_settings().items():
        lines += [f"## `[{section}]`", "", _first_line(SECTIONS[section].__doc__), ""]
        lines += _setting_table(settings)
    lines += ["## `[plugins]`", "", _first_line(PluginSettings.__doc__), ""]
    lines += [
        "As a keyword: `LLM(plugins={...})`; as flags: see [the command line](cli.md#flags-of-plugins); in the",
        "environment: `QUIRE_PLUGINS`, either names separated by commas, of which `-name` denies (`llama,tiny`",
        'loads these two only, `-awq` all but one), or this section as a JSON object (`{"autoload": false}`).',
        "Keywords and flags win over the variable, the variable over the file, the file over the defaults. Deny",
        "lists add up; `prefer`, `order` and `options` are merged key by key. `quire plugins info NAME` shows a",
        "plugin's options.",
        "",
    ]
    lines += _fields_table(PluginSettings.model_fields)
    lines += ["In `quire.toml` the order of plugin `NAME` is the table `[plugins.order.NAME]`:", ""]
    lines += _fields_table(OrderSettings.model_fields)
    changed = ", ".join(f"`{name}` is {value}" for name, value in CLI_SAMPLING_DEFAULTS)
    lines += [
        "## Sampling parameters",
        "",
        "Keywords of `SamplingParams(...)` and flags of the command line.",
    ]
    lines += [f"On the command line the defaults differ in two places: {changed}.", ""]
    defaults = {entry.name: entry.default for entry in dataclasses.fields(SamplingParams)}
    lines += _setting_table(
        [dataclasses.replace(entry, default=defaults[entry.name]) for entry in sampling_settings()]
    )
    return _join(lines)


def cli_page() -> str:
    """Every command of Quire's own distributions and its flags; those of settings are left to that page."""
    lines = [NOTE, "# Command line", ""]
    lines += [
        "`quire COMMAND --help` says the same. Errors are one line on standard error and exit status 2;",
        "`--debug` adds the traceback. Commands that run a model also take a flag for every",
        "[setting](settings.md), and those that sample one for every",
        "[sampling parameter](settings.md#sampling-parameters).",
        "",
    ]
    shared = argparse.ArgumentParser(add_help=False)
    add_plugin_flags(shared)
    lines += _command("Flags of plugins", "every command takes these", shared, left_out=frozenset())
    host = PluginHost.discover(PluginSettings(), strict=False)
    commands = host.commands
    ours = [
        spec.name
        for spec in commands.specs()
        if commands.registration(spec.name).distribution in DISTRIBUTIONS
    ]
    parser, _ = build_parser(host, ours)
    for name, child in subcommands(parser).items():
        if name in ours:
            lines += _command(f"quire {name}", commands.spec(name).help, child)
    return _join(lines)


def hooks_page() -> str:
    """Every hook, every extension point, and what hooks return and are given."""
    version = ".".join(str(part) for part in hookspecs.HOOK_API_VERSION)
    lines = [NOTE, "# Hooks and specs", "", f"Hook API version {version}.", ""]
    lines += [
        "A plugin is a module with functions of these names, each marked with",
        "`quire.api.hookspecs.hookimpl`. A function takes those of the arguments that it names. Hooks return",
        'data; what is expensive to import is named as `"module:attribute"` and imported when first used. No',
        "hook is called while a step runs.",
        "",
        "## All hooks, in the order of an engine's life",
        "",
        'A failure in the scope "start" ends the start and names the plugin (a plugin in `plugins.optional` is',
        'left out whole instead, while it is being loaded); in the scope "observer" it is logged and counted;',
        'in the scope "request" it fails one request.',
        "",
    ]
    rows = [
        (f"[`{name}`](#{name})", policy.scope, ".".join(str(part) for part in policy.since))
        for name, policy in hookspecs.HOOKS.items()
    ]
    lines += _table(("hook", "scope of a failure", "since"), rows)
    lines += ["Plugins' objects are called at these points while requests run:", ""]
    points = [(f"`{name}`", scope) for name, scope in hookspecs.EXTENSION_POINTS.items()]
    lines += [*_table(("extension point", "scope of a failure"), points), "## Hooks", ""]
    for name in hookspecs.HOOKS:
        hook = getattr(hookspecs, name)
        lines += [f"### `{name}`", "", "```python", _signature(name, hook), "```", ""]
        lines += [*_hook_text(hook.__doc__ or ""), ""]
    lines += ["## Specs", ""]
    for name, kind in inspect.getmembers(specs, inspect.isclass):
        if name in specs.__all__:
            lines += _class(name, kind)
    lines += ["## Extensions", "", _first_line(extensions.__doc__), ""]
    for name, kind in inspect.getmembers(extensions, inspect.isclass):
        if kind.__module__ == extensions.__name__:
            lines += _class(name, kind)
    return _join(lines)


def models_page() -> str:
    """What the author of a model imports: the protocol, the context, the layers, the readers, the ops."""
    lines = [NOTE, "# What models are made of", ""]
    lines += [
        "A model plugin imports from `quire.api` and `quire.nn` only. In shapes T is the tokens of a step, L",
        "those whose logits are needed, E the hidden size, H and K the query and KV heads, D a head's size, V",
        "the vocabulary. How the parts go together is in the",
        "[tutorial](../tutorial/a-new-architecture.md).",
        "",
        "## The model",
        "",
        "`quire.api.protocols` says what core calls.",
        "",
    ]
    for kind in (Model, ModelFactory, ModelConfig):
        lines += _class(kind.__name__, kind)
    lines += ["## What it is given", "", "`quire.api.protocols` and `quire.api.batch`.", ""]
    for kind in (BuildContext, AttentionParams, ForwardBatch):
        lines += _class(kind.__name__, kind)
    lines += ["## Layers", ""]
    layers = (norm.RMSNorm, norm.LayerNorm, mlp.GatedMLP, rotary.RotaryEmbedding, linear.TensorSlot)
    for kind in layers:
        lines += _layer(kind)
    for function in (dtypes.torch_dtype, dtypes.torch_device):
        lines += _function(function, dtypes.__name__)
    lines += ["## Rotary configuration", "", "`quire.nn.rope_config`.", ""]
    for function in (rope_config.parse_rope_config, rope_config.parse_full_rope):
        lines += _function(function)
    lines += _class("RopeConfig", rope_config.RopeConfig)
    lines += ["## Ops", ""]
    lines += [
        "`ctx.ops.NAME` is the fastest implementation for this device and dtype; a name that is read from a",
        "configuration is `getattr(ctx.ops, name)`. Core has these, and plugins add to them:",
        "",
    ]
    rows = [(f"`{op.name}`", f"`{op.schema}`") for op in quire_register_ops() if isinstance(op, specs.OpSpec)]
    lines += _table(("op", "schema"), rows)
    lines += ["`quire.nn.activation.ACTIVATION_OPS` has the ops of the names that configurations use:", ""]
    lines += _table(
        ("`hidden_act`", "op"),
        [(f"`{name}`", f"`{op}`") for name, op in activation.ACTIVATION_OPS.items()],
    )
    lines += ["## Readers of config.json", "", *_docstring(hf_config.__doc__ or ""), ""]
    for _, function in sorted(vars(hf_config).items()):
        if inspect.isfunction(function) and function.__module__ == hf_config.__name__:
            lines += _function(function) if not function.__name__.startswith("_") else []
    return _join([*lines, *_class("HeadLayout", hf_config.HeadLayout)])


def _layer(kind: type) -> list[str]:
    """A layer: how it is made, what it says, and what its call takes and gives."""
    made = f"{kind.__module__}.{kind.__name__}{inspect.signature(kind)}".replace("'", "")
    lines = [f"### `{kind.__name__}`", "", "```python", made.removesuffix(" -> None"), "```", ""]
    lines += [*_docstring(kind.__doc__ or ""), ""]
    forward = vars(kind).get("forward")
    if inspect.isfunction(forward):
        lines += ["```python", _signature("forward", forward), "```", ""]
        lines += [*_docstring(forward.__doc__ or ""), ""]
    return lines


def _function(function: Callable[..., object], module: str = "") -> list[str]:
    signature = _signature(function.__name__, function)
    signature = signature.replace("def ", f"{module}.", 1) if module else signature
    text = _docstring(function.__doc__ or "")
    return [f"### `{function.__name__}`", "", "```python", signature, "```", "", *text, ""]


def _class(name: str, kind: type) -> list[str]:
    """A class: what it says, then its fields, or its methods."""
    lines = [f"### `{name}`", "", *_docstring(kind.__doc__ or ""), ""]
    if dataclasses.is_dataclass(kind):
        rows = [(f"`{entry.name}`", f"`{entry.type}`", _default(entry)) for entry in dataclasses.fields(kind)]
        return lines + _table(("field", "type", "default"), rows)
    for method, member in vars(kind).items():
        function = member.__func__ if isinstance(member, staticmethod) else member
        if isinstance(member, property) and member.fget is not None and member.__doc__:
            lines += [f"- `{method}`: {' '.join(inspect.cleandoc(member.__doc__).split())}", ""]
        is_own = inspect.isfunction(function) and function.__module__ == kind.__module__
        if is_own and function.__doc__ and method not in ("__init__", "__subclasshook__"):
            lines += ["```python", _signature(method, function), "```", ""]
            lines += [*_docstring(function.__doc__), ""]
    return lines


def _hook_text(doc: str) -> list[str]:
    """A hook's docstring: its arguments, and When, Returns, Ordering, Errors and Since, as lists."""
    lines: list[str] = []
    for line in inspect.cleandoc(doc).splitlines():
        key, separator, text = line.strip().partition(": ")
        if line == "Args:":
            lines += ["Arguments:", ""]
        elif line.startswith("    ") and separator:
            lines.append(f"- `{key}`: {text}")
        elif separator and key in ("When", "Returns", "Ordering", "Errors", "Since"):
            lines.append(f"- **{key}**: {text}")
        else:
            lines.append(f"  {line.strip()}" if line and lines and lines[-1].startswith("- ") else line)
    return lines


def _command(
    title: str,
    text: str,
    parser: argparse.ArgumentParser,
    level: int = 2,
    left_out: frozenset[str] = SETTINGS_GROUPS,
) -> list[str]:
    """A command's flags by group, then its own commands."""
    lines = [f"{'#' * level} `{title}`", "", f"{text[:1].upper()}{text[1:]}.", ""]
    below: list[str] = []
    for group in parser._action_groups:
        if group.title in left_out:
            continue
        rows = []
        for action in group._group_actions:
            if isinstance(action, argparse._SubParsersAction):
                for choice in action._choices_actions:
                    child = action.choices[choice.dest]
                    below += _command(f"{title} {choice.dest}", choice.help or "", child, level + 1)
            elif action.help != argparse.SUPPRESS and action.dest not in ("help", "debug"):
                rows.append((f"`{_named(action)}`", (action.help or "").replace("%%", "%")))
        if rows:
            head = "argument" if group.title == "positional arguments" else "flag"
            named = "" if group.title in ("options", "positional arguments") else f" ({group.title})"
            lines += _table((head + named, "meaning"), rows)
    return lines + below


def _named(action: argparse.Action) -> str:
    """A flag or an argument as one writes it."""
    metavar = action.metavar or ("|".join(str(choice) for choice in action.choices) if action.choices else "")
    words = ", ".join(action.option_strings)
    return f"{words} {metavar}".strip() if action.nargs != 0 else words


def _fields_table(fields: Mapping[str, FieldInfo]) -> list[str]:
    rows = [
        (
            f"`{name}`",
            f"`{_type(entry.annotation)}`",
            "empty" if entry.default_factory else f"`{entry.default!r}`",
            entry.description or "",
        )
        for name, entry in fields.items()
    ]
    return _table(("key", "type", "default", "meaning"), rows)


def _setting_table(settings: list[Setting]) -> list[str]:
    rows = [
        (
            f"`{entry.name}`",
            f"`--{entry.flag}`",
            f"`{_type(entry.annotation)}`",
            f"`{entry.default!r}`",
            entry.help,
        )
        for entry in settings
    ]
    return _table(("keyword", "flag", "type", "default", "meaning"), rows)


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    def line(cells: tuple[str, ...]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    return [line(head), "|" + " --- |" * len(head), *(line(row) for row in rows), ""]


def _type(annotation: object) -> str:
    if typing.get_origin(annotation) is typing.Annotated:
        return _type(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) is typing.Literal:
        return " | ".join(repr(choice) for choice in typing.get_args(annotation))
    options = typing.get_args(annotation)
    if options and type(None) in options:
        return " | ".join(_type(option) for option in options)
    if annotation is type(None):
        return "None"
    if isinstance(annotation, type) and not typing.get_args(annotation):
        return annotation.__name__
    return str(annotation).replace("collections.abc.", "").replace("typing.", "")


def _default(entry: dataclasses.Field[object]) -> str:
    if entry.default is not dataclasses.MISSING:
        return f"`{entry.default!r}`"
    return "empty" if entry.default_factory is not dataclasses.MISSING else "required"


def _docstring(text: str) -> list[str]:
    """A docstring as Markdown: its sections of named things as lists, what is returned or raised as text."""
    lines: list[str] = []
    section = ""
    for line in inspect.cleandoc(text).splitlines():
        if line in SECTIONS_OF_DOCSTRINGS:
            section = SECTIONS_OF_DOCSTRINGS[line]
            lines += [section, ""]
        elif not line.startswith("    "):
            section = section if not line else ""
            lines.append(line)
        elif section and section != "Returns:" and not line.startswith("     "):
            lines.append(f"- {line.strip()}")
        else:
            lines.append(f"  {line.strip()}" if lines[-1].startswith(("- ", "  ")) else line.strip())
    return lines


def _signature(name: str, hook: Callable[..., object]) -> str:
    return f"def {name}{inspect.signature(hook)}".replace("'", "")


def _first_line(text: str | None) -> str:
    return (text or "").strip().splitlines()[0]


def _join(lines: list[str]) -> str:
    return "\n".join(lines).rstrip() + "\n"


def main() -> int:
    """Write the pages, or check them."""
    is_check = "--check" in sys.argv[1:]
    stale = []
    for name, text in pages().items():
        file = REFERENCE / name
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            stale.append(name)
            if not is_check:
                file.write_text(text, encoding="utf-8")
    if stale:
        print(f"{'stale' if is_check else 'written'}: {', '.join(stale)}")
    return 1 if stale and is_check else 0


if __name__ == "__main__":
    raise SystemExit(main())
