"""Choosing the attention backend."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

from quire.api.batch import DeviceInfo, DTypeName, KVCacheDTypeName
from quire.api.errors import DeviceError, PluginError, QuireError
from quire.api.protocols import AttentionBackend
from quire.api.specs import AttentionBackendSpec, Registration
from quire.ops.support import origin, refusal_of
from quire.ops.table import Resolve


@dataclass(slots=True, frozen=True)
class BackendRequest:
    """What a backend is chosen for; `name` overrides the choice."""

    device: DeviceInfo
    dtype: DTypeName
    name: str | None = None
    kv_cache_dtype: KVCacheDTypeName = "auto"


def choose_attention_backend(
    registrations: Iterable[Registration], request: BackendRequest, resolve: Resolve
) -> AttentionBackend:
    """Build the named backend, else the supported one of the highest priority.

    Args:
        registrations: of AttentionBackendSpecs; others are passed over.
        request: device, dtype, and maybe a name.
        resolve: imports the chosen spec's factory.

    Raises:
        PluginError: no backend has that name, or one fails when it is asked or made.
        DeviceError: the named one, or every one, does not support the device and the dtypes.
    """
    known = [entry for entry in registrations if isinstance(entry.spec, AttentionBackendSpec)]
    ranked = sorted(known, key=lambda entry: (-_spec(entry).priority, _spec(entry).name))
    if request.name is not None:
        ranked = [entry for entry in ranked if _spec(entry).name == request.name]
        if not ranked:
            names = ", ".join(sorted(_spec(entry).name for entry in known)) or "none"
            raise PluginError(f"no attention backend is called {request.name!r}; registered are {names}")
    refusals = []
    for entry in ranked:
        spec = _spec(entry)
        refusal = refusal_of(entry, request.device, request.dtype) or _cache_refusal(spec, request)
        if refusal is None:
            return _make(entry, resolve)
        refusals.append(f"{spec.name}: {refusal}")
    reasons = "; ".join(refusals) or "none is registered"
    cache, remedy = "", ""
    if request.kv_cache_dtype != "auto":
        cache = f" with kv_cache_dtype={request.kv_cache_dtype}"
        remedy = "; leave kv_cache_dtype out" + (", or attention_backend" if request.name is not None else "")
    raise DeviceError(
        f"no attention backend for {request.dtype}{cache} on {request.device.type}: {reasons}{remedy}"
    )


def _cache_refusal(spec: AttentionBackendSpec, request: BackendRequest) -> str | None:
    if request.kv_cache_dtype in spec.kv_cache_dtypes:
        return None
    return f"its KV caches are {' or '.join(spec.kv_cache_dtypes)}, not {request.kv_cache_dtype}"


def _make(entry: Registration, resolve: Resolve) -> AttentionBackend:
    who = f"the attention backend {_spec(entry).name!r} of {origin(entry)}"
    factory = resolve(_spec(entry).factory, entry)
    if not callable(factory):
        raise PluginError(f"{who} is not callable")
    try:
        backend: object = factory()
    except QuireError:
        raise
    except (Exception, SystemExit) as error:
        raise PluginError(f"{who}: its factory failed: {type(error).__name__}: {error}") from error
    if not isinstance(backend, AttentionBackend):
        raise PluginError(f"{who}: its factory gave {backend!r}, expected an AttentionBackend")
    return backend


def _spec(entry: Registration) -> AttentionBackendSpec:
    return cast(AttentionBackendSpec, entry.spec)
