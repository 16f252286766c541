"""Plugins for servers in processes of their own: distributions that a test writes into a folder."""

from __future__ import annotations

from pathlib import Path

FORCED = '''
from quire.api.hookspecs import hookimpl
from quire.api.specs import LogitsProcessorSpec, PluginInfo


@hookimpl
def quire_plugin_info():
    return PluginInfo(api=">=1,<2", description="made for a test")


@hookimpl
def quire_register_logits_processors():
    return [LogitsProcessorSpec("forced", "forced:Factory")]


class Factory:
    """Takes the token ids that the model shall say."""

    def __init__(self, context):
        pass

    def for_request(self, arguments, params):
        return None if arguments is None else Forced(arguments)


class Forced:
    def __init__(self, token_ids):
        self.token_ids = token_ids

    def __call__(self, prompt_token_ids, output_token_ids, logits):
        chosen = self.token_ids[len(output_token_ids)]
        logits[:chosen] = logits[chosen + 1 :] = float("-inf")
        return logits
'''


def write_plugin(folder: Path, name: str, source: str) -> None:
    """Make a plugin of one module, both of this name, that Python finds when the folder is on its path."""
    metadata = folder / f"quire_{name}-1.0.dist-info"
    metadata.mkdir(parents=True)
    (folder / f"{name}.py").write_text(source)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: quire-{name}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[quire]\n{name} = {name}\n")
