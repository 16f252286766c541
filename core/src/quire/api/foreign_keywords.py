"""Engine keywords of vLLM that have no setting here: taken where they change nothing, else explained."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from quire.api.errors import ConfigError

_ACCEPTED_DEFAULTS: Mapping[str, tuple[object, str]] = {
    "use_v2_block_manager": (True, "block manager v2 is the only one"),
    "pipeline_parallel_size": (1, "this version runs one rank"),
    "tokenizer_mode": ("auto", "there is one kind of tokenizer; leave it out"),
    "load_format": ("auto", "only safetensors are read"),
}
"""vLLM keywords without a setting here: the value that changes nothing, and what to say of others."""


_IGNORED = frozenset({"disable_log_stats", "swap_space"})
"""vLLM keywords that change no result here: statistics are always counted, preempted requests recomputed."""


def check_foreign_keyword(name: str, value: object, valid: list[str]) -> None:
    """Pass over a keyword that changes nothing.

    Raises:
        ConfigError: its value asks for something that is not served, or nothing knows it; the nearest
            of the `valid` names is given.
    """
    if name in _IGNORED:
        return
    if name in _ACCEPTED_DEFAULTS:
        neutral, explanation = _ACCEPTED_DEFAULTS[name]
        if value == neutral:
            return
        raise ConfigError(f"{name}={value!r} is not served: {explanation}")
    near = difflib.get_close_matches(name, valid, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else f"; valid are {', '.join(sorted(valid))}"
    raise ConfigError(f"unknown setting {name!r}{hint}")
