"""GPTQModel's `dynamic`: modules whose names match a pattern are quantized in another way, or not at all."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from quire.api.errors import QuantizationError


@dataclass(slots=True, frozen=True)
class DynamicRule:
    """An entry of `dynamic`.

    Attributes:
        key: as the config spells it. pattern: matches from the start of a module's name.
        overrides: settings of the modules that match, by key; None: these are in 16 bits.
    """

    key: str
    pattern: re.Pattern[str]
    overrides: Mapping[str, object] | None

    @property
    def place(self) -> str:
        """What messages call it."""
        return f"dynamic[{self.key!r}]"


def parse_dynamic(dynamic: object) -> tuple[DynamicRule, ...]:
    """The rules of a config; none where it has no `dynamic`, or null.

    Raises:
        QuantizationError: it is no object of regular expressions and overrides.

    Source: quantization/config.py of GPTQModel 7.6.
    """
    if dynamic is None:
        return ()
    if not isinstance(dynamic, Mapping):
        raise QuantizationError(
            f"quantization_config has dynamic={dynamic!r}: it must map regular expressions to overrides"
        )
    return tuple(_rule(str(key), overrides) for key, overrides in dynamic.items())


def first_match(rules: Sequence[DynamicRule], name: str) -> DynamicRule | None:
    """The rule that decides about a module, if there is one.

    As in GPTQModel 7.6: the first whose expression matches the beginning of the name; "^name$" the whole of it.
    """
    return next((rule for rule in rules if rule.pattern.match(name)), None)


def _rule(key: str, overrides: object) -> DynamicRule:
    is_skip = key.startswith("-:")
    try:
        pattern = re.compile(key.removeprefix("-:" if is_skip else "+:"))
    except re.error as error:
        raise QuantizationError(f"dynamic has {key!r}, which is no regular expression: {error}") from None
    if is_skip:
        return DynamicRule(key, pattern, None)
    if not isinstance(overrides, Mapping):
        raise QuantizationError(
            f"quantization_config has dynamic[{key!r}]={overrides!r}: it must be a JSON object of overrides"
        )
    return DynamicRule(key, pattern, overrides)
