"""The process that runs GPTQModel: `python -m` this module with a task file; reports are lines on standard output."""

from __future__ import annotations

import importlib
import json
import os
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

Send = Callable[[dict[str, object]], None]

_BATCH = 4


class LayerReports:
    """What GPTQModel calls after each layer."""

    def __init__(self, send: Send) -> None:
        self._send = send

    def layer_complete(self, *, layer_idx: int, submodule_finalized: bool) -> None:
        """Report a layer; `submodule_finalized` comes when its packed weights are written too."""
        self._send({"event": "layer", "index": layer_idx})


def run(task: dict[str, Any], send: Send) -> None:
    """Do a task: load, quantize and save.

    Args:
        task: "model", "config" (of QuantizeConfig), "device", "samples" (token ids), "state" and "offload"
            (folders), "out" (a folder that does not exist).
        send: takes reports.
    """
    gptqmodel = importlib.import_module("gptqmodel")
    config = gptqmodel.QuantizeConfig(
        **task["config"], offload_to_disk=True, offload_to_disk_path=task["offload"]
    )
    device = _device(task["device"])
    model = gptqmodel.GPTQModel.load(task["model"], config, device=device)
    send({"event": "start", "num_layers": getattr(model.model.config, "num_hidden_layers", None)})
    model.layer_callback = LayerReports(send)
    samples = [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in task["samples"]]
    is_awq = task["config"]["method"] == "awq"
    # The packing kernel that GPTQModel takes by default wants CUDA.
    backend = gptqmodel.BACKEND.AWQ_TORCH if is_awq and device == "cpu" else gptqmodel.BACKEND.AUTO
    model.quantize(samples, batch_size=_BATCH, backend=backend, checkpoint=_state(task, model))
    send({"event": "saving"})
    model.save(task["out"])


def _device(name: str) -> str:
    if name != "auto":
        return name
    torch = importlib.import_module("torch")
    return "cuda" if torch.cuda.is_available() else "cpu"


def _state(task: dict[str, Any], model: Any) -> object:
    """GPTQModel's state per layer, where it keeps one.

    None for AWQ: what version 7.6.0 writes for it, it does not take back.
    """
    if task["config"]["method"] != "gptq":
        return None
    validate = importlib.import_module("gptqmodel.looper.gptq_checkpoint").validate_checkpoint_support
    try:
        validate(model)
    except (NotImplementedError, ValueError) as error:
        print(f"no state per layer: {error}", file=sys.stderr)
        return None
    store = importlib.import_module("gptqmodel.looper.checkpoint_store")
    state: object = store.CheckpointConfig(path=task["state"])
    return state


def _end_with_parent() -> None:
    """Leave when standard input closes: the process that started this one is gone."""
    sys.stdin.read()
    os._exit(1)


def main(path: str) -> int:
    """Do the task of a file; everything that GPTQModel prints goes to standard error."""
    reports = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    threading.Thread(target=_end_with_parent, daemon=True).start()

    def send(report: dict[str, object]) -> None:
        reports.write(json.dumps(report) + "\n")
        reports.flush()

    try:
        run(json.loads(Path(path).read_text(encoding="utf-8")), send)
    except Exception as error:
        traceback.print_exc()
        text = " ".join(str(error).split())
        send({"event": "error", "text": f"{type(error).__name__}: {text}"})
        return 1
    return 0


if __name__ == "__main__":
    status = main(sys.argv[1])
    sys.stdout.flush()
    os._exit(status)  # its idle threads are not waited for
