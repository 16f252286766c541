"""The engine's log: on standard error, unless the program has configured logging itself."""

from __future__ import annotations

import logging
import sys


def show_engine_log() -> None:
    """Print the `quire` logger's messages from INFO on; leaves a configured logger alone."""
    logger = logging.getLogger("quire")
    if logger.handlers or logging.getLogger().handlers:
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("quire: %(message)s"))
    logger.addHandler(handler)
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)
