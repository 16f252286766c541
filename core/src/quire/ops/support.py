"""Asking what plugins bring whether it serves a device and dtype; what fails is named."""

from __future__ import annotations

from typing import cast

from quire.api.batch import DeviceInfo, DTypeName
from quire.api.errors import PluginError
from quire.api.specs import AttentionBackendSpec, OpImplSpec, Registration


def origin(registration: Registration) -> str:
    """Plugin, distribution and version, for messages and tables."""
    distribution = f"{registration.distribution} {registration.version}".strip()
    return f"{registration.plugin} ({distribution})"


def refusal_of(registration: Registration, device: DeviceInfo, dtype: DTypeName) -> str | None:
    """Why an op implementation or attention backend does not serve here; None when it does.

    Raises:
        PluginError: its `supports` raised, or answered something else than None or a reason.
    """
    spec = cast("OpImplSpec | AttentionBackendSpec", registration.spec)
    try:
        answer: object = spec.supports(device, dtype)
    except (Exception, SystemExit) as error:
        raise PluginError(
            f"{origin(registration)}, {spec.name}: supports() raised {type(error).__name__}: {error}"
        ) from error
    if answer is None or isinstance(answer, str):
        return answer
    raise PluginError(
        f"{origin(registration)}, {spec.name}: supports() answered {answer!r}: "
        "it must be None or the reason why not"
    )
