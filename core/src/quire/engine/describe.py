"""An engine in words and numbers, for a server."""

from __future__ import annotations

import dataclasses

from quire.api.client import EngineDescription
from quire.api.errors import EngineClosedError
from quire.api.request import SamplingParams
from quire.engine.parts import EngineParts
from quire.scheduling.plan import SchedulerLimits


def describe(parts: EngineParts, limits: SchedulerLimits) -> EngineDescription:
    """What an engine of these parts is."""
    info = parts.info
    if info is None:
        raise EngineClosedError("this engine was put together without its description: use build_engine")
    params, plain = parts.generation.default_sampling_params(), SamplingParams()
    values = {field.name: getattr(params, field.name) for field in dataclasses.fields(SamplingParams)}
    return EngineDescription(
        config=info.config,
        architecture=info.architecture,
        dtype=info.dtype,
        device=info.device.name,
        max_model_len=parts.inputs.max_model_len,
        max_num_seqs=limits.max_num_seqs,
        vocab_size=parts.inputs.vocab_size,
        num_kv_blocks=info.num_kv_blocks,
        block_size=info.config.cache.block_size,
        fingerprint=info.fingerprint,
        default_sampling_params={
            name: value for name, value in values.items() if value != getattr(plain, name)
        },
        chat_template=parts.chat_template,
        plugins=info.plugins,
    )
