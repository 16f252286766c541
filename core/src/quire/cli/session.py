"""What `generate` and `chat` share: the flags of an engine, and building one from them."""

from __future__ import annotations

import argparse
import logging
import sys
from typing import TYPE_CHECKING, Any

from quire.api.config import EngineConfig
from quire.cli.flags import add_engine_flags, add_sampling_flags, engine_keywords, sampling_params
from quire.cli.plugin_flags import add_plugin_flags, plugin_settings

if TYPE_CHECKING:
    from quire.engine.llm import LLM


def add_session_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of the engine, of sampling, and of plugins."""
    parser.add_argument(
        "--quiet", action="store_true", help="say nothing on standard error but warnings and errors"
    )
    add_engine_flags(parser)
    add_sampling_flags(parser)
    add_plugin_flags(parser)


def open_llm(args: argparse.Namespace) -> LLM:
    """Build the engine that the flags describe; what it says goes to standard error.

    Raises:
        QuireError: a flag or the model is refused. Flags are checked before torch is imported.
    """
    keywords: dict[str, Any] = {**engine_keywords(args), "plugins": plugin_settings(args)}
    EngineConfig.from_keywords(keywords, args.config)
    sampling_params(args)
    if args.quiet:
        logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(name)s: %(message)s")
    from quire.engine.llm import LLM

    model = keywords.pop("model", None)
    if model is None:
        model = EngineConfig.from_keywords({}, args.config).model.model
    return LLM(model=str(model), config_file=args.config, **keywords)


def has_chat_template(llm: LLM) -> bool:
    """Whether the model, or the configuration, brings a chat template."""
    return llm.engine.chat_template is not None or llm.get_tokenizer().chat_template is not None
