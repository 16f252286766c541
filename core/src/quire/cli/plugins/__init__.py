"""`quire plugins`: one module per action. Nothing here imports torch before an action needs it."""

from quire.cli.plugins.command import PluginsCommand

__all__ = ["PluginsCommand"]
