"""The engine's settings, section by section.

Keywords of `LLM`, CLI flags, `quire.toml` keys and the reference tables are derived from these
models: every field name is unique over the sections, and its description is its help text.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field

from quire.api.batch import KVCacheDTypeName
from quire.api.section import Section
from quire.api.setting_types import DTypeSetting, KVCacheDTypeSetting, PathOrName, Size
from quire.api.speculative_config import SpeculativeConfig


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
    compile: bool = Field(
        False,
        description=(
            "compile the model's layers with torch.compile when the engine starts; enforce_eager leaves it out"
        ),
    )


SECTIONS: Mapping[str, type[Section]] = {
    "model": ModelSettings,
    "cache": CacheSettings,
    "scheduler": SchedulerSettings,
    "speculation": SpeculationSettings,
    "device": DeviceSettings,
}
"""The sections whose fields are keywords of `LLM` and CLI flags; `plugins` has names of its own."""
