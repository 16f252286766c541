"""What a configuration leaves open: dtype, context length, cache size and the limits of a step."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from quire.api.batch import DeviceInfo, DTypeName
from quire.api.config import EngineConfig
from quire.api.errors import ConfigError
from quire.api.protocols import ModelConfig
from quire.execution.graph_rows import ladder
from quire.execution.kv_memory import KVBudget, KVDemand, size_kv_cache
from quire.loading.hf_config import checkpoint_dtype
from quire.scheduling.plan import SchedulerLimits

DEFAULT_MAX_NUM_BATCHED_TOKENS = 2048
BYTES_PER_GRAPH = 8 << 20
"""Memory that a captured step takes, about: vLLM's 35 of a model of 16 layers took 0.21 GiB (vllm-project/vllm
#11349)."""

logger = logging.getLogger("quire")


def choose_dtype(config: EngineConfig, hf_config: Mapping[str, object], device: DeviceInfo) -> DTypeName:
    """The dtype asked for, else the checkpoint's, else float32; float16 becomes bfloat16 on a CPU."""
    if config.model.dtype != "auto":
        return config.model.dtype
    dtype = checkpoint_dtype(hf_config) or "float32"
    if dtype == "float16" and device.type == "cpu":
        logger.info(
            "dtype: the checkpoint's float16 runs as bfloat16 on a CPU; give dtype to decide otherwise"
        )
        return "bfloat16"
    return dtype


def runs_ahead(config: EngineConfig, device: DeviceInfo) -> bool:
    """Whether the next step is planned while one runs; ConfigError where it is asked for and cannot be.

    With drafts it cannot: where a request goes on is known when its drafts are verified.
    """
    asked, is_drafting = config.scheduler.async_scheduling, config.speculation.speculative_config is not None
    if asked and is_drafting:
        raise ConfigError(
            "async_scheduling=True does not go with speculative_config: a step is planned when the drafts of the one "
            "before it are verified; leave one of them out"
        )
    return (device.type == "cuda" and not is_drafting) if asked is None else asked


def graphs_bytes(config: EngineConfig, device: DeviceInfo) -> int:
    """What the KV cache leaves for graphs of steps, which are captured when it is there; none on a CPU."""
    if device.type != "cuda" or config.device.enforce_eager:
        return 0
    scheduler, speculation = config.scheduler, config.speculation.speculative_config
    rows_per_request = 1 if speculation is None else 1 + speculation.num_speculative_tokens
    most_tokens = scheduler.max_num_batched_tokens or DEFAULT_MAX_NUM_BATCHED_TOKENS
    return len(ladder(min(scheduler.max_num_seqs * rows_per_request, most_tokens))) * BYTES_PER_GRAPH


def context_length(config: EngineConfig, model_config: ModelConfig) -> int:
    """The longest context to serve; ConfigError where the model does not support what was asked for."""
    longest = model_config.max_position_embeddings
    asked = config.model.max_model_len
    if asked is None:
        return longest
    if asked > longest:
        raise ConfigError(f"max_model_len={asked} is more than the model supports: give at most {longest}")
    if asked < 2:
        raise ConfigError(
            f"max_model_len={asked} leaves no room for a prompt and an output token: give at least 2"
        )
    return asked


def size_cache(
    config: EngineConfig, dtype: DTypeName, bytes_per_block: int, device: DeviceInfo, max_model_len: int
) -> KVBudget:
    """How many blocks the KV cache gets, and the context length that they hold.

    Args:
        config: the settings.
        dtype: the model's.
        bytes_per_block: over all layers of all models.
        device: its free memory is that of now.
        max_model_len: what the settings and the model allow.
    """
    reserved_bytes = graphs_bytes(config, device)
    if reserved_bytes:
        logger.info("memory: about %.0f MB are left for captured steps", reserved_bytes / 1e6)
    demand = KVDemand(
        bytes_per_block=bytes_per_block,
        max_num_seqs=config.scheduler.max_num_seqs,
        max_model_len=max_model_len,
        is_max_model_len_explicit=config.model.max_model_len is not None,
        dtype=dtype if config.cache.kv_cache_dtype == "auto" else config.cache.kv_cache_dtype_name,
        reserved_bytes=reserved_bytes,
    )
    budget = size_kv_cache(config.cache, device, demand)
    if budget.max_model_len < max_model_len:
        logger.warning(
            "max_model_len: lowered from %d to %d, what the KV cache holds",
            max_model_len,
            budget.max_model_len,
        )
    return budget


def step_limits(config: EngineConfig, budget: KVBudget, num_lookahead_tokens: int = 0) -> SchedulerLimits:
    """The scheduler's limits; ConfigError where a step cannot hold a prompt that may not be chunked."""
    scheduler, speculation = config.scheduler, config.speculation.speculative_config
    tokens = scheduler.max_num_batched_tokens
    if not scheduler.enable_chunked_prefill:
        if tokens is not None and tokens < budget.max_model_len:
            raise ConfigError(
                f"max_num_batched_tokens={tokens} is less than max_model_len={budget.max_model_len}, which a step must "
                "hold without chunked prefill: raise the one, lower the other, or enable chunked prefill"
            )
        tokens = tokens or max(DEFAULT_MAX_NUM_BATCHED_TOKENS, budget.max_model_len)
    return SchedulerLimits(
        max_num_seqs=scheduler.max_num_seqs,
        max_num_batched_tokens=min(
            tokens or DEFAULT_MAX_NUM_BATCHED_TOKENS, scheduler.max_num_seqs * budget.max_model_len
        ),
        max_model_len=budget.max_model_len,
        enable_chunked_prefill=scheduler.enable_chunked_prefill,
        num_lookahead_tokens=num_lookahead_tokens,
        max_drafting_requests=None if speculation is None else speculation.disable_by_batch_size,
    )
