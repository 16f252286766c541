"""A hash of everything installed that can change logits or KV."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable

from pydantic import BaseModel

from quire.plugins.record import PluginRecord

OUTPUT_KINDS = frozenset(
    {
        "architecture",
        "attention backend",
        "executor",
        "logits processor",
        "op",
        "op implementation",
        "quantization",
    }
)
"""Kinds of specs whose code stands between a prompt and its logits. A drafter's tokens are verified."""

OUTPUT_HOOKS = frozenset({"quire_open_checkpoint", "quire_prepare_model"})
"""Hooks that can change weights or layers."""


def affects_outputs(record: PluginRecord) -> bool:
    """Whether an enabled plugin can change logits or KV: by its own word, else by what it brings."""
    if record.info is not None and record.info.affects_outputs is not None:
        return record.info.affects_outputs
    kinds = {entry.kind for entry in record.registered}
    return bool(kinds & OUTPUT_KINDS or OUTPUT_HOOKS & set(record.hooks))


def fingerprint(records: Iterable[PluginRecord], without: Collection[str] = ()) -> str:
    """SHA-256, in hex, over the plugins that can change outputs, in load order.

    Of each: name, distribution, version, options, and what of it serves (`prefer` may give a part of it
    to another plugin). Of a plugin that a program passed in the version is not known.

    Args:
        records: of all plugins.
        without: names of plugins that are switched off for now.
    """
    described = [
        [
            record.name,
            record.candidate.distribution,
            record.candidate.version,
            _plain(record.options),
            sorted(f"{entry.kind}:{entry.name}" for entry in record.registered if entry.kind in OUTPUT_KINDS),
        ]
        for record in records
        if record.is_enabled and record.name not in without and affects_outputs(record)
    ]
    return hashlib.sha256(json.dumps(described, sort_keys=True, default=repr).encode()).hexdigest()


def _plain(options: object) -> object:
    return options.model_dump(mode="json", fallback=repr) if isinstance(options, BaseModel) else None
