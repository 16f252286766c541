"""From a configuration to an engine."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import cast

from quire.api.batch import DeviceInfo, DTypeName
from quire.api.config import EngineConfig
from quire.api.errors import CapacityError, ConfigError, QuireError, TokenizerError, UnsupportedModelError
from quire.api.protocols import ModelConfig, ModelFactory
from quire.engine.engine import Engine
from quire.engine.inputs import InputProcessor
from quire.engine.logs import show_engine_log
from quire.engine.parts import EngineParts
from quire.execution.batch_builder import BatchLimits
from quire.execution.device import detect_device
from quire.execution.executor import InProcessExecutor
from quire.execution.kv_memory import KVBudget, KVDemand, size_kv_cache
from quire.execution.model_builder import BuildSettings, BuiltModel, build_model
from quire.execution.runner import ModelRunner
from quire.kvcache.block_manager import BlockManager
from quire.loading.checkpoint import open_checkpoint
from quire.loading.generation_config import GenerationConfig, load_generation_config
from quire.loading.hf_config import architectures_of, checkpoint_dtype, read_hf_config
from quire.loading.resolve import resolve_model_folder
from quire.loading.tokenizer import Tokenizer
from quire.loading.weight_map import load_weights
from quire.ops.backend_choice import BackendRequest, choose_attention_backend
from quire.ops.table import OpTable
from quire.plugins import PluginHost, resolve_factory
from quire.scheduling.plan import SchedulerLimits
from quire.scheduling.policies import create_policy
from quire.scheduling.scheduler import Scheduler

DEFAULT_MAX_NUM_BATCHED_TOKENS = 2048

logger = logging.getLogger("quire")


def build_engine(config: EngineConfig, host: PluginHost | None = None) -> Engine:
    """Load plugins, model and tokenizer, allocate the KV cache, and say what was decided.

    Args:
        config: validated settings.
        host: plugins loaded already; by default those that the configuration selects.

    Raises:
        QuireError: whatever cannot be served, before memory is taken where that can be known.
    """
    show_engine_log()
    host = host or PluginHost.discover(config.plugins)
    folder = resolve_model_folder(config.model.model, config.model.revision, host.resolve_model)
    hf_config = read_hf_config(folder)
    factory = _find_factory(hf_config, host)
    _refuse_quantized(hf_config, folder)
    model_config = factory.parse_config(hf_config)
    device = detect_device(config.device.device)
    dtype = _choose_dtype(config, hf_config, device)
    max_model_len = _context_length(config, model_config)
    tokenizer = None if config.model.skip_tokenizer_init else _load_tokenizer(config, folder, host)
    generation = load_generation_config(folder, hf_config)
    policy = create_policy(config.scheduler.scheduling_policy)
    registrations = host.attention_backends.registrations()
    request = BackendRequest(device, dtype, config.device.attention_backend)
    op_registrations = [*host.ops.registrations(), *host.op_impls.registrations()]
    ops = OpTable(op_registrations, device, dtype, resolve_factory)
    settings = BuildSettings(
        dtype=dtype,
        device=device,
        ops=ops,
        attention_backend=choose_attention_backend(registrations, request, resolve_factory),
        max_model_len=max_model_len,
    )
    load = partial(load_weights, checkpoint=open_checkpoint(folder))
    with _allocating(f"the model in {folder}"):
        built = build_model(factory, model_config, settings, load)
    budget = _size_cache(config, built, detect_device(config.device.device), max_model_len)
    limits = _limits(config, budget)
    with _allocating("the KV cache and the step's buffers"):
        runner = _make_runner(settings, built, limits, budget)
    manager = BlockManager(
        num_blocks=budget.num_blocks,
        block_size=budget.block_size,
        enable_prefix_caching=config.cache.enable_prefix_caching,
    )
    logger.info("plugins: %s", host.summary())
    logger.info(
        "%s: %s in %s on %s (%s)",
        config.model.model,
        type(built.model).__name__,
        dtype,
        device.type,
        device.name,
    )
    logger.info("kernels: attention %s; %s", settings.attention_backend.name, ops.summary())
    logger.info("%s", budget.describe())
    return Engine(
        EngineParts(
            config=config,
            host=host,
            inputs=InputProcessor(model_config.vocab_size, budget.max_model_len, tokenizer),
            scheduler=Scheduler(limits, manager, policy),
            executor=InProcessExecutor(runner),
            tokenizer=tokenizer,
            eos_token_ids=_eos_token_ids(generation, tokenizer),
            chat_template=_read_template(config.model.chat_template),
            generation=generation,
            rope_switch_len=model_config.rope_switch_len,
            runner_times=runner.times,
        )
    )


@contextmanager
def _allocating(what: str) -> Iterator[None]:
    """Turn a failed allocation, whoever reports it, into a CapacityError."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, QuireError):
            raise
        text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CapacityError(
            f"{what} could not be allocated: {text}. Check the sizes in config.json, or lower max_model_len, "
            "max_num_seqs, max_num_batched_tokens or kv_cache_memory_bytes"
        ) from error


def _find_factory(hf_config: Mapping[str, object], host: PluginHost) -> ModelFactory:
    architectures = architectures_of(hf_config)
    for name in architectures:
        spec = host.models.get(name)
        if spec is not None:
            return cast(ModelFactory, resolve_factory(spec.factory, host.models.registration(name)))
    known = ", ".join(host.models) or "none"
    raise UnsupportedModelError(
        f"architecture {', '.join(architectures)} is served by no plugin; registered are {known}. "
        "Install or enable a plugin for it, or register one with quire_register_models"
    )


def _refuse_quantized(hf_config: Mapping[str, object], folder: Path) -> None:
    quantization = hf_config.get("quantization_config")
    if quantization is not None:
        method = quantization.get("quant_method") if isinstance(quantization, Mapping) else quantization
        raise UnsupportedModelError(
            f"{folder} is quantized (quant_method={method!r}) and no quantization method is registered: "
            "load its 16-bit checkpoint"
        )


def _eos_token_ids(generation: GenerationConfig, tokenizer: Tokenizer | None) -> frozenset[int]:
    """What ends an output: the model's ids, and the tokenizer's where chat models keep another one."""
    ids = set(generation.eos_token_ids)
    if tokenizer is not None and tokenizer.eos_token_id is not None:
        ids.add(tokenizer.eos_token_id)
    return frozenset(ids)


def _choose_dtype(config: EngineConfig, hf_config: Mapping[str, object], device: DeviceInfo) -> DTypeName:
    if config.model.dtype != "auto":
        return config.model.dtype
    dtype = checkpoint_dtype(hf_config) or "float32"
    if dtype == "float16" and device.type == "cpu":
        logger.info(
            "dtype: the checkpoint's float16 runs as bfloat16 on a CPU; give dtype to decide otherwise"
        )
        return "bfloat16"
    return dtype


def _context_length(config: EngineConfig, model_config: ModelConfig) -> int:
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


def _load_tokenizer(config: EngineConfig, folder: Path, host: PluginHost) -> Tokenizer:
    if config.model.tokenizer is not None:
        folder = resolve_model_folder(config.model.tokenizer, None, host.resolve_model)
    return Tokenizer.from_folder(folder)


def _read_template(setting: str | None) -> str | None:
    """A chat template given as text, or as the path of a file that holds it."""
    if setting is None or "{" in setting:
        return setting
    try:
        return Path(setting).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TokenizerError(
            f"chat_template={setting!r} is neither a template nor a readable file: {error}"
        ) from None


def _size_cache(config: EngineConfig, built: BuiltModel, device: DeviceInfo, max_model_len: int) -> KVBudget:
    block_size = config.cache.block_size
    demand = KVDemand(
        bytes_per_block=built.kv_bytes_per_block(block_size),
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


def _limits(config: EngineConfig, budget: KVBudget) -> SchedulerLimits:
    scheduler = config.scheduler
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
    )


def _make_runner(
    settings: BuildSettings, built: BuiltModel, limits: SchedulerLimits, budget: KVBudget
) -> ModelRunner:
    buffers = BatchLimits(
        max_num_seqs=limits.max_num_seqs,
        max_num_batched_tokens=limits.max_num_batched_tokens,
        max_model_len=limits.max_model_len,
        block_size=budget.block_size,
    )
    caches = built.allocate_kv_caches(budget.num_blocks, budget.block_size)
    return ModelRunner(built.model, settings.attention_backend, caches, buffers, built.vocab_size)
