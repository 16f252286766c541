"""From a configuration to an engine."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import cast

from torch import nn

from quire.api.batch import DeviceInfo, DTypeName
from quire.api.config import EngineConfig
from quire.api.errors import ConfigError
from quire.api.extensions import EngineInfo, ExtensionContext
from quire.api.quantization import QuantizationRequest
from quire.engine.draft_models import Target
from quire.engine.engine import Engine
from quire.engine.extensions import load_extensions
from quire.engine.inputs import InputProcessor
from quire.engine.logs import show_engine_log
from quire.engine.model_loading import ModelFiles, allocating, load_model
from quire.engine.model_source import read_model
from quire.engine.observers import Observers
from quire.engine.parts import EngineParts
from quire.engine.processor_desk import ProcessorDesk
from quire.engine.quantization import choose_method, log_summary
from quire.engine.sizing import choose_dtype, context_length, runs_ahead, size_cache, step_limits
from quire.engine.speculation import Speculation, choose_drafter
from quire.execution.batch_builder import BatchLimits
from quire.execution.capture import StepCaptures
from quire.execution.device import detect_device
from quire.execution.executor import InProcessExecutor
from quire.execution.kv_memory import KVBudget
from quire.execution.model_builder import BuildSettings, BuiltModel
from quire.execution.opaque import OpaqueCalls
from quire.execution.processors import ProcessorTable
from quire.execution.runner import ModelRunner
from quire.execution.sampler import SamplingOps
from quire.kvcache.block_manager import BlockManager
from quire.loading.generation_config import GenerationConfig, load_generation_config
from quire.loading.quantization_config import read_quantization_config
from quire.loading.resolve import resolve_model_folder
from quire.loading.template_setting import read_template
from quire.loading.tokenizer import Tokenizer
from quire.ops.backend_choice import BackendRequest, choose_attention_backend
from quire.ops.table import OpTable
from quire.plugins import PluginHost, resolve_factory
from quire.plugins.capabilities import Combination
from quire.scheduling.plan import SchedulerLimits
from quire.scheduling.scheduler import Scheduler

logger = logging.getLogger("quire")


def build_engine(config: EngineConfig, host: PluginHost | None = None) -> Engine:
    """Load plugins, model and tokenizer, allocate the KV cache, and say what was decided.

    Hooks are called in this order: resolve_model, open_checkpoint, check_config, prepare_model,
    create_observers, engine_started.

    Args:
        config: validated settings.
        host: plugins loaded already; by default those that the configuration selects.

    Raises:
        QuireError: whatever cannot be served, before memory is taken where that can be known.
    """
    show_engine_log()
    if host is None:
        host = PluginHost.discover(config.plugins)
    else:
        _warn_of_unused(config, host)
    source = read_model(config, host)
    reader = host.open_checkpoint(source.folder)
    quantization_config = read_quantization_config(source.folder, source.hf_config)
    device = detect_device(config.device.device)
    dtype = choose_dtype(config, source.hf_config, device)
    max_model_len = context_length(config, source.config)
    host.check_config(config, device)
    is_ahead = runs_ahead(config, device)
    tokenizer = None if config.model.skip_tokenizer_init else _load_tokenizer(config, source.folder, host)
    generation = load_generation_config(source.folder, source.hf_config)
    settings, ops = _build_settings(host, config, device, dtype, max_model_len)
    request = QuantizationRequest(quantization_config, device, dtype)
    quantization = choose_method(config.model.quantization, host, request, ops)
    chosen_drafter = choose_drafter(config, host)
    extensions = load_extensions(host, ExtensionContext(config, device, source.config.vocab_size))
    combination = Combination(
        config=config,
        device=device,
        dtype=dtype,
        architecture=source.architecture,
        attention_backend=settings.attention_backend.name,
        policy=extensions.policy.name,
        quantization=None if quantization is None else quantization.name,
        drafter=None if chosen_drafter is None else chosen_drafter.spec.name,
    )
    host.check_capabilities(combination)
    loaded = load_model(host, ModelFiles(source, reader, quantization), settings, combination)
    built = loaded.built
    _withhold_processors(host, loaded.combination, extensions.processors)
    host.prepare_model(built.model, config)
    speculation, bytes_per_block = None, built.kv_bytes_per_block(config.cache.block_size)
    if chosen_drafter is not None:
        target = Target(config, source, settings, ops, combination, tokenizer)
        speculation = Speculation(chosen_drafter, host, target)
        bytes_per_block += speculation.kv_bytes_per_block
    budget = size_cache(config, dtype, bytes_per_block, detect_device(config.device.device), max_model_len)
    limits = step_limits(config, budget, 0 if speculation is None else speculation.num_lookahead_tokens)
    table = ProcessorTable(extensions.processors.loaded, host.calls.call)
    with allocating("the KV cache and the step's buffers"):
        runner = _make_runner(settings, built, limits, budget, table, speculation, ops)
        steps = _record_steps(runner, host, settings, budget, config)
    if speculation is not None:
        with allocating(
            "the draft model's steps" if speculation.num_lookahead_tokens else "steps with drafts"
        ):
            speculation.prepare(runner, budget.num_blocks)
    manager = BlockManager(
        num_blocks=budget.num_blocks,
        block_size=budget.block_size,
        enable_prefix_caching=config.cache.enable_prefix_caching,
        fingerprint=host.fingerprint().encode(),
    )
    logger.info("plugins: %s", host.summary())
    _log_model(config, built, settings, ops, steps)
    if quantization is not None:
        log_summary(quantization, loaded.modules, cast(nn.Module, built.model), ops)
    logger.info("%s", budget.describe())
    info = EngineInfo(
        config=config,
        device=device,
        model=config.model.model,
        architecture=source.architecture,
        num_kv_blocks=budget.num_blocks,
        fingerprint=host.fingerprint(),
        plugins=host.enabled_names(),
        dtype=dtype,
    )
    engine = Engine(
        EngineParts(
            config=config,
            host=host,
            inputs=InputProcessor(source.config.vocab_size, budget.max_model_len, tokenizer),
            scheduler=Scheduler(limits, manager, extensions.policy.policy),
            executor=InProcessExecutor(runner, is_ahead),
            tokenizer=tokenizer,
            eos_token_ids=_eos_token_ids(generation, tokenizer),
            chat_template=read_template(config.model.chat_template),
            generation=generation,
            rope_switch_len=source.config.rope_switch_len,
            runner_times=runner.times,
            policy=extensions.policy,
            fallback_policy=extensions.fallback_policy,
            processors=extensions.processors,
            observers=Observers(
                host.create_observers(config), host.calls, config.plugins.observer_time_limit_s
            ),
            failures=extensions.failures,
            drafter_plugin=None if speculation is None else speculation.plugin,
            info=info,
        )
    )
    _end_start(host, info, runner)
    return engine


def _end_start(host: PluginHost, info: EngineInfo, runner: ModelRunner) -> None:
    """Tell plugins, and begin what runs beside the engine: a start that fails before leaves no thread behind."""
    host.engine_started(info)
    if info.config.cache.prefault_kv_cache and info.device.type == "cpu":
        runner.prefault(info.num_kv_blocks)


def _warn_of_unused(config: EngineConfig, host: PluginHost) -> None:
    """A host that is given has loaded its plugins; what the configuration says of loading comes too late."""
    names = ("allow", "deny", "autoload", "prefer", "order", "options", "trace")
    unused = [
        name
        for name in names
        if name in config.plugins.model_fields_set
        and getattr(config.plugins, name) != getattr(host.settings, name)
    ]
    if unused:
        logger.warning(
            "plugins.%s of the configuration (keywords, QUIRE_PLUGINS or file) does nothing, since a host was "
            "given: make it with PluginHost.discover(settings)",
            ", plugins.".join(unused),
        )


def _build_settings(
    host: PluginHost, config: EngineConfig, device: DeviceInfo, dtype: DTypeName, max_model_len: int
) -> tuple[BuildSettings, OpTable]:
    cache_dtype = config.cache.kv_cache_dtype_name
    request = BackendRequest(device, dtype, config.device.attention_backend, cache_dtype)
    op_registrations = [*host.ops.registrations(), *host.op_impls.registrations()]
    ops = OpTable(op_registrations, device, dtype, resolve_factory)
    backend = choose_attention_backend(host.attention_backends.registrations(), request, resolve_factory)
    is_compiled = config.device.compile and not config.device.enforce_eager
    settings = BuildSettings(
        dtype=dtype,
        device=device,
        ops=ops,
        attention_backend=backend,
        max_model_len=max_model_len,
        kv_cache_dtype=cache_dtype,
        opaque=OpaqueCalls(ops, backend) if is_compiled else None,
    )
    return settings, ops


def _withhold_processors(host: PluginHost, combination: Combination, desk: ProcessorDesk) -> None:
    """Let requests not name processors that do not go with this engine; those always on were checked before."""
    unavailable = dict(desk.unavailable)
    for name, processor in desk.loaded.items():
        if processor.is_always_on:
            continue
        try:
            host.check_capabilities(replace(combination, logits_processors=(name,)))
        except ConfigError as error:
            logger.info("%s; requests that name it are refused", error)
            unavailable[name] = str(error)
    desk.set_unavailable(unavailable)


def _eos_token_ids(generation: GenerationConfig, tokenizer: Tokenizer | None) -> frozenset[int]:
    """What ends an output: the model's ids, and the tokenizer's where chat models keep another one."""
    ids = set(generation.eos_token_ids)
    if tokenizer is not None and tokenizer.eos_token_id is not None:
        ids.add(tokenizer.eos_token_id)
    return frozenset(ids)


def _load_tokenizer(config: EngineConfig, folder: Path, host: PluginHost) -> Tokenizer:
    if config.model.tokenizer is not None:
        folder = resolve_model_folder(config.model.tokenizer, None, host.resolve_model)
    return Tokenizer.from_folder(folder)


def _record_steps(
    runner: ModelRunner, host: PluginHost, settings: BuildSettings, budget: KVBudget, config: EngineConfig
) -> str:
    """Let the model's steps be recorded; what became of it."""
    if config.device.enforce_eager:
        return "call by call (enforce_eager)"
    registrations = host.step_captures.registrations()
    captures = StepCaptures(registrations, resolve_factory, settings.device, settings.dtype, settings.opaque)
    return runner.capture(budget.num_blocks, captures)


def _log_model(
    config: EngineConfig, built: BuiltModel, settings: BuildSettings, ops: OpTable, steps: str
) -> None:
    name, device = type(built.model).__name__, settings.device
    logger.info("%s: %s in %s on %s (%s)", config.model.model, name, settings.dtype, device.type, device.name)
    logger.info("kernels: attention %s; %s", settings.attention_backend.name, ops.summary())
    logger.info("steps: %s", steps)


def _make_runner(
    settings: BuildSettings,
    built: BuiltModel,
    limits: SchedulerLimits,
    budget: KVBudget,
    processors: ProcessorTable,
    speculation: Speculation | None,
    ops: OpTable,
) -> ModelRunner:
    buffers = BatchLimits(
        max_num_seqs=limits.max_num_seqs,
        max_num_batched_tokens=limits.max_num_batched_tokens,
        max_model_len=limits.max_model_len,
        block_size=budget.block_size,
        max_drafts=0 if speculation is None else speculation.max_drafts,
    )
    caches = built.allocate_kv_caches(budget.num_blocks, budget.block_size)
    backend = settings.attention_backend
    make_speculator = None if speculation is None else partial(speculation.make_speculator, budget.num_blocks)
    sampling = SamplingOps.of(ops)
    return ModelRunner(
        built.model,
        backend,
        caches,
        buffers,
        built.vocab_size,
        processors,
        make_speculator,
        sampling,
    )
