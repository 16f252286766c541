"""One engine configuration, of small sections.

Keywords of `LLM`, CLI flags, `quire.toml` keys and the reference tables are derived from these
models: every field name is unique over the sections, and its description is its help text.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, cast, get_args

from pydantic import BeforeValidator, Field, ValidationError

from quire.api.batch import DTypeName, KVCacheDTypeName
from quire.api.errors import ConfigError
from quire.api.foreign_keywords import check_foreign_keyword
from quire.api.plugin_settings import (
    ENVIRONMENT_VARIABLE,
    OrderSettings,
    PluginSettings,
    merge_plugin_settings,
    read_environment,
)
from quire.api.section import Section
from quire.api.speculative_config import SpeculativeConfig, take_older_keywords

__all__ = [
    "SECTIONS",
    "CacheSettings",
    "DTypeSetting",
    "DeviceSettings",
    "EngineConfig",
    "KVCacheDTypeSetting",
    "ModelSettings",
    "PathOrName",
    "PluginSettings",
    "SchedulerSettings",
    "Section",
    "Size",
    "SpeculationSettings",
    "SpeculativeConfig",
    "layered_plugin_settings",
    "read_toml",
]

_SUFFIXES = {
    "k": 10**3,
    "m": 10**6,
    "g": 10**9,
    "ki": 2**10,
    "mi": 2**20,
    "gi": 2**30,
    "K": 2**10,
    "M": 2**20,
    "G": 2**30,
}


def _parse_size(value: object) -> object:
    """Read "16k" (16000), "16K" or "16Ki" (16384), "4GiB" and the like; leave anything else alone."""
    if not isinstance(value, str):
        return value
    text = value.strip().removesuffix("B").removesuffix("b")
    for suffix in sorted(_SUFFIXES, key=len, reverse=True):
        key = suffix if len(suffix) == 1 else suffix.capitalize()
        if text.endswith(key) or text.endswith(suffix):
            number = text[: -len(suffix)].strip()
            try:
                return int(float(number) * _SUFFIXES[suffix])
            except ValueError:
                return value
    return text


def _parse_dtype(value: object) -> object:
    """Take torch dtypes and the aliases "half" and "float" by name."""
    name = str(value).removeprefix("torch.")
    return {"half": "float16", "float": "float32", "double": "float64"}.get(name, name)


def _parse_kv_cache_dtype(value: object) -> object:
    """Say what to do instead of naming a dtype that a model may have."""
    name = str(value).removeprefix("torch.")
    if name in get_args(DTypeName):
        raise ValueError(
            "the KV cache has the model's dtype by default: set dtype, and leave kv_cache_dtype out"
        )
    return name


def _parse_path(value: object) -> object:
    return str(value) if isinstance(value, Path) else value


Size = Annotated[int, BeforeValidator(_parse_size)]
PathOrName = Annotated[str, BeforeValidator(_parse_path)]
DTypeSetting = Annotated[
    Literal["auto", "bfloat16", "float16", "float32", "float64"], BeforeValidator(_parse_dtype)
]

KVCacheDTypeSetting = Annotated[
    Literal["auto", "fp8", "fp8_e4m3", "int8"], BeforeValidator(_parse_kv_cache_dtype)
]


class ModelSettings(Section):
    """Which model, and how its weights and text are read."""

    model: PathOrName = Field(
        "tiny", min_length=1, description="a folder, a name that a plugin resolves (tiny), or a hub id"
    )
    tokenizer: PathOrName | None = Field(
        None, description="folder or hub id of the tokenizer, if not the model's"
    )
    skip_tokenizer_init: bool = Field(
        False, description="load no tokenizer: prompts are token ids, texts are empty"
    )
    chat_template: PathOrName | None = Field(
        None, description="a jinja chat template, or a file that holds one"
    )
    dtype: DTypeSetting = Field(
        "auto",
        description="of weights, activations and KV cache; auto: the checkpoint's (float16 as bfloat16 on CPUs)",
    )
    quantization: str | None = Field(
        None,
        min_length=1,
        description=(
            "quantization method; by default what claims the checkpoint's label; "
            "int8 and int4 quantize a 16-bit checkpoint while loading"
        ),
    )
    max_model_len: Size | None = Field(
        None, ge=1, description="longest context in tokens; by default what the model supports"
    )
    seed: int = Field(
        0, ge=0, lt=2**63, description="what requests without a seed of their own draw theirs from"
    )
    revision: str | None = Field(None, description="branch, tag or commit of a hub id")
    trust_remote_code: bool = Field(False, description="refused: code comes from plugins only")


class CacheSettings(Section):
    """The KV cache."""

    block_size: int = Field(16, ge=1, le=1024, description="tokens per KV block")
    kv_cache_memory_bytes: Size | None = Field(
        None, ge=1, description="size of the KV cache; overrides gpu_memory_utilization"
    )
    gpu_memory_utilization: float = Field(
        0.9,
        gt=0,
        le=1,
        description=(
            "share of the GPU's memory for weights and KV cache; "
            "on a CPU half this share of the free memory is the KV cache's limit"
        ),
    )
    num_kv_blocks: int | None = Field(
        None, ge=1, description="exact number of KV blocks; overrides the two above"
    )
    kv_cache_dtype: KVCacheDTypeSetting = Field(
        "auto",
        description=(
            "what keys and values are kept in; auto: the model's dtype; fp8 (fp8_e4m3) and int8 hold about "
            "twice the tokens of 16 bits, with a scale per token and head"
        ),
    )
    prefault_kv_cache: bool = Field(
        True,
        description=(
            "on a CPU, bring the KV cache's memory in the background after the start, so that steps do not wait "
            "for it; off: memory is taken as it is used"
        ),
    )
    enable_prefix_caching: bool = Field(True, description="share the KV blocks of common prefixes")

    @property
    def kv_cache_dtype_name(self) -> KVCacheDTypeName:
        """`kv_cache_dtype` by one name."""
        return "fp8_e4m3" if self.kv_cache_dtype == "fp8" else self.kv_cache_dtype


class SchedulerSettings(Section):
    """What runs in a step."""

    max_num_seqs: Size = Field(256, ge=1, le=65536, description="most requests in one step")
    max_num_batched_tokens: Size | None = Field(
        None,
        ge=1,
        description="token budget of a step; by default 2048 (without chunked prefill at least max_model_len)",
    )
    enable_chunked_prefill: bool = Field(True, description="compute long prompts in parts, beside decodes")
    scheduling_policy: str = Field("fcfs", min_length=1, description="order of requests: fcfs or priority")
    async_scheduling: bool | None = Field(
        None,
        description=(
            "plan and launch the next step while one runs, without changing results; by default on CUDA devices, "
            "where nothing is drafted"
        ),
    )


class SpeculationSettings(Section):
    """Drafting tokens that one step verifies together."""

    speculative_config: SpeculativeConfig | None = Field(
        None,
        description=(
            "drafter and its settings, an object such as "
            '{"method": "ngram", "num_speculative_tokens": 5}; by default nothing is drafted'
        ),
    )


class DeviceSettings(Section):
    """Where it runs."""

    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    attention_backend: str | None = Field(
        None, description="name of an attention backend, if not the best that supports the device"
    )
    tensor_parallel_size: int = Field(1, ge=1, description="ranks that share each layer; this version runs 1")
    enforce_eager: bool = Field(
        False, description="run every step call by call: record and replay none, capture no graphs"
    )


SECTIONS: Mapping[str, type[Section]] = {
    "model": ModelSettings,
    "cache": CacheSettings,
    "scheduler": SchedulerSettings,
    "speculation": SpeculationSettings,
    "device": DeviceSettings,
}
"""The sections whose fields are keywords of `LLM` and CLI flags; `plugins` has names of its own."""


class EngineConfig(Section):
    """Everything that an engine is told."""

    model: ModelSettings = ModelSettings()
    cache: CacheSettings = CacheSettings()
    scheduler: SchedulerSettings = SchedulerSettings()
    speculation: SpeculationSettings = SpeculationSettings()
    device: DeviceSettings = DeviceSettings()
    plugins: PluginSettings = PluginSettings()

    @classmethod
    def from_keywords(cls, keywords: Mapping[str, object], file: str | Path | None = None) -> EngineConfig:
        """Build from flat keywords over the sections of a `quire.toml`.

        The plugins' settings come from keywords over the variable QUIRE_PLUGINS over the file; deny
        lists add up.

        Args:
            keywords: field names of any section, and `plugins` (a PluginSettings or a mapping).
            file: a TOML file of sections; its values yield to keywords.

        Raises:
            ConfigError: an unknown name (with the nearest valid one), a value out of bounds, or a
                malformed file.
        """
        sections: dict[str, dict[str, object]] = {} if file is None else read_toml(Path(file))
        given: object = None
        owner = {name: section for section, model in SECTIONS.items() for name in model.model_fields}
        for name, value in take_older_keywords(keywords).items():
            if value is None:
                continue  # None is the default, whatever that is
            if name == "plugins":
                given = value
            elif name in owner:
                sections.setdefault(owner[name], {})[name] = value
            else:
                check_foreign_keyword(name, value, [*owner, "plugins"])
        from_file = sections.pop("plugins", {})
        plugins = layered_plugin_settings(from_file, _plugin_keywords(given))
        return cls.validated({**sections, "plugins": plugins})

    @classmethod
    def validated(cls, sections: Mapping[str, object]) -> EngineConfig:
        """Validate nested sections; pydantic's complaints become one ConfigError."""
        try:
            config = cls.model_validate(sections)
        except ValidationError as error:
            raise ConfigError(_describe(error)) from None
        if config.model.trust_remote_code:
            raise ConfigError(
                "trust_remote_code=True is refused: Quire runs no code from checkpoints. Install a plugin that "
                "registers the architecture (quire_register_models) and leave the setting out"
            )
        if config.device.tensor_parallel_size != 1:
            raise ConfigError(
                f"tensor_parallel_size={config.device.tensor_parallel_size}: this version runs one rank; give 1"
            )
        return config


def read_toml(file: Path) -> dict[str, dict[str, object]]:
    """The sections of a TOML file; ConfigError when it cannot be read or is not made of tables."""
    try:
        data = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not valid TOML: {error}") from None
    for key, value in data.items():
        if key not in EngineConfig.model_fields or not isinstance(value, dict):
            valid = ", ".join(f"[{name}]" for name in EngineConfig.model_fields)
            raise ConfigError(f"{file}: {key!r} is not a section; the sections are {valid}")
    return cast("dict[str, dict[str, object]]", data)


def layered_plugin_settings(
    from_file: Mapping[str, object], given: PluginSettings, environment: Mapping[str, str] = os.environ
) -> PluginSettings:
    """The plugins' settings of a file, the environment and a program or command line, weakest first.

    Raises:
        ConfigError: the section of the file, or the variable QUIRE_PLUGINS, is malformed.
    """
    layers = [_plugin_section(from_file, "")]
    from_environment = read_environment(environment.get(ENVIRONMENT_VARIABLE))
    if from_environment:
        layers.append(_plugin_section(from_environment, f"{ENVIRONMENT_VARIABLE}: "))
    return merge_plugin_settings([*layers, given])


def _plugin_section(section: Mapping[str, object], source: str) -> PluginSettings:
    try:
        return EngineConfig.validated({"plugins": section}).plugins
    except ConfigError as error:
        raise ConfigError(f"{source}{error}") from None


def _plugin_keywords(value: object) -> PluginSettings:
    if value is None:
        return PluginSettings()
    if isinstance(value, PluginSettings):
        return value
    if isinstance(value, Mapping):
        return _plugin_section({str(key): entry for key, entry in value.items()}, "")
    names = ", ".join(PluginSettings.model_fields)
    raise ConfigError(f"plugins={value!r}: give a mapping with {names}")


def _section_at(place: Sequence[str]) -> type[Section]:
    if len(place) == 1:
        return EngineConfig
    return OrderSettings if place[:2] == ["plugins", "order"] else SECTIONS.get(place[0], PluginSettings)


def _describe(error: ValidationError) -> str:
    lines = []
    for problem in error.errors(include_url=False, include_context=False):
        place = [str(part) for part in problem["loc"]]
        name = place[-1] if place else "configuration"
        path = ".".join(place[1:]) or name
        if problem["type"] == "extra_forbidden":
            section = _section_at(place)
            near = difflib.get_close_matches(name, list(section.model_fields), n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"valid are {', '.join(section.model_fields)}"
            lines.append(f"unknown setting {'.'.join(place)!r}; {hint}")
        else:
            value: Any = problem.get("input")
            text = "give a list" if problem["type"] == "tuple_type" else problem["msg"]
            text = text.removeprefix("Value error, ")
            lines.append(f"{path}={value!r}: {text[0].lower()}{text[1:]}")
    return "; ".join(lines)
