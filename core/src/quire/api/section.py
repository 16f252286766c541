"""What every section of the settings is: frozen down to its mappings, and unknown keys are errors."""

from __future__ import annotations

from typing import NoReturn, TypeVar

from pydantic import BaseModel, ConfigDict

ValueT = TypeVar("ValueT")


class FrozenDict(dict[str, ValueT]):
    """A mapping in the settings: plugins are handed the settings and cannot change them."""

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise TypeError("settings are read-only: build a new EngineConfig")

    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (dict(self),))


class Section(BaseModel):
    """Base of the sections: frozen, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())
