"""LocalEngine and the command line's tools: an engine behind the interface that servers use."""

from __future__ import annotations

import argparse
import asyncio
from contextlib import aclosing

import pytest

from quire import LLM, SamplingParams
from quire.api.client import EngineRequest
from quire.api.errors import ConfigError, EngineClosedError, PluginError, PromptError
from quire.api.section import Section
from quire.cli.tools import HostTools
from quire.engine.local_client import LocalEngine
from quire.plugins import PluginHost

PROMPT = [5, 6, 7, 8]


class Colours(Section):
    paper: str = "white"
    ink_percent: int = 5


def tools_and_parser() -> tuple[HostTools, argparse.ArgumentParser]:
    tools, parser = HostTools(PluginHost.discover()), argparse.ArgumentParser()
    tools.add_engine_flags(parser)
    tools.add_flags(parser, "colours", Colours)
    return tools, parser


def test_flags_make_the_configuration() -> None:
    tools, parser = tools_and_parser()
    args = parser.parse_args(["--max-num-seqs", "3", "--ink-percent", "7"])
    assert tools.given(args, Colours) == {"ink_percent": 7}
    assert tools.engine_config(args, "tiny").scheduler.max_num_seqs == 3
    with pytest.raises(ConfigError, match="max_num_seqs"):
        tools.engine_config(parser.parse_args(["--max-num-seqs", "0"]))


def test_what_plugins_bring_for_a_server() -> None:
    tools, parser = tools_and_parser()
    extensions = tools.server_extensions(tools.engine_config(parser.parse_args(["--no-plugin", "ngram"])))
    states = {plugin.name: plugin.is_enabled for plugin in extensions.plugins}
    assert states["core"] and states["llama"] and not states["ngram"]


def test_streams_what_the_model_says() -> None:
    tools, parser = tools_and_parser()
    config = tools.engine_config(parser.parse_args([]), "tiny")
    params = SamplingParams(temperature=0.0, max_tokens=100, ignore_eos=True)

    async def main() -> tuple[list[int], LocalEngine]:
        engine = await tools.start_engine(config)
        assert isinstance(engine, LocalEngine) and engine.status().is_ready
        assert engine.description.dtype == "bfloat16" and engine.description.vocab_size > 8
        assert engine.description.fingerprint == PluginHost.discover(config.plugins).fingerprint()
        tokens: list[int] = []
        async for delta in engine.stream(EngineRequest("a", PROMPT, params)):
            if not tokens:  # later ones may be read when the engine is done
                assert engine.status().num_running == 1
            tokens += [token for choice in delta.choices for token in choice.token_ids]
        assert engine.status().num_requests == 0
        with pytest.raises(PromptError, match="outside"):
            await anext(engine.stream(EngineRequest("b", [10**9], params)))
        async with aclosing(engine.stream(EngineRequest("c", PROMPT, params))) as deltas:
            await anext(deltas)
        assert engine.status().num_requests == 0
        with pytest.raises(PluginError, match="core"):
            await engine.set_plugin("core", is_enabled=False)
        metrics = {metric.name: metric.value for metric in await engine.get_metrics()}
        assert metrics["quire:num_requests"] == 2 and metrics["quire:num_requests_running"] == 0
        await engine.close()
        with pytest.raises(EngineClosedError):
            await anext(engine.stream(EngineRequest("d", PROMPT, params)))
        return tokens, engine

    tokens, engine = asyncio.run(main())
    assert not engine.status().is_ready
    with LLM("tiny") as llm:
        [output] = llm.generate([PROMPT], params, use_tqdm=False)
    assert tokens == output.outputs[0].token_ids
