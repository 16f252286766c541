"""What a configuration leaves open: dtype, context length, cache size and the limits of a step."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from quire.api.batch import DeviceInfo, DTypeName
from quire.api.config import EngineConfig
from quire.api.errors import ConfigError
from quire.api.protocols import ModelConfig
from quire.execution.kv_memory import KVBudget, KVDemand, size_kv_cache
from quire.loading.hf_config import checkpoint_dtype
from quire.scheduling.plan import SchedulerLimits

DEFAULT_MAX_NUM_BATCHED_TOKENS = 2048

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
    config: EngineConfig, bytes_per_block: int, device: DeviceInfo, max_model_len: int
) -> KVBudget:
    """How many blocks the KV cache gets, and the context length that they hold.

    Args:
        config: the settings.
        bytes_per_block: over all layers of all models.
        device: its free memory is that of now.
        max_model_len: what the settings and the model allow.
    """
    demand = KVDemand(
        bytes_per_block=bytes_per_block,
        max_num_seqs=config.scheduler.max_num_seqs,
        max_model_len=max_model_len,
        is_max_model_len_explicit=config.model.max_model_len is not None,
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
