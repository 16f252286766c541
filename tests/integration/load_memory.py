"""Loads a model in a process of its own and prints, as JSON, what memory that takes; see test_quantized_memory."""

from __future__ import annotations

import gc
import json
import logging
import sys
import threading
import time
from pathlib import Path

from quire import LLM, SamplingParams
from quire.loading.freed_memory import release_freed_memory

PERIOD_S = 0.001
SETTINGS: dict[str, object] = {
    "dtype": "bfloat16",
    "skip_tokenizer_init": True,
    "max_model_len": 64,
    "max_num_seqs": 2,
    "max_num_batched_tokens": 32,
    "kv_cache_memory_bytes": 2 << 20,
}


def anonymous_bytes() -> int:
    """Resident bytes of this process that no file backs: mapped checkpoints do not count until written to."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) * 1024


class PeakWatch(threading.Thread):
    """Polls the anonymous bytes until stopped."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = self.samples = 0
        self._stopped = threading.Event()

    def run(self) -> None:
        while not self._stopped.wait(PERIOD_S):
            self.peak = max(self.peak, anonymous_bytes())
            self.samples += 1

    def stop(self) -> None:
        self._stopped.set()
        self.join()


class Summary(logging.Handler):
    """What the engine's start says of quantization."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage().startswith("quantization: "):
            self.lines.append(record.getMessage())


def generate(llm: LLM) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True)
    llm.generate([{"prompt_token_ids": list(range(20))}, {"prompt_token_ids": [3]}], params, use_tqdm=False)


def settled_bytes() -> int:
    """The anonymous bytes without those that were freed and not given back."""
    gc.collect()
    release_freed_memory()
    return anonymous_bytes()


def main(small: str, large: str, quantization: str | None, plugins: dict[str, object]) -> dict[str, object]:
    """Load and run a model of one layer, for what is imported, compiled or kept by threads once; then measure."""
    sys.setswitchinterval(PERIOD_S / 4)
    # eager: loading alone is measured, not the steps that are run to be recorded
    settings = {**SETTINGS, "quantization": quantization, "plugins": plugins, "enforce_eager": True}
    with LLM(small, **settings) as llm:
        generate(llm)
    del llm
    summary = Summary()
    logging.getLogger("quire").addHandler(summary)
    baseline = settled_bytes()
    watch = PeakWatch()
    watch.start()
    begin = time.perf_counter()
    with LLM(large, **settings) as llm:
        load_s = time.perf_counter() - begin
        watch.stop()
        loaded = anonymous_bytes()
        generate(llm)
        used = settled_bytes()
    return {
        "peak": max(watch.peak, loaded) - baseline,
        "samples": watch.samples,
        "loaded": loaded - baseline,
        "used": used - baseline,
        "summary": summary.lines,
        "load_s": load_s,
    }


if __name__ == "__main__":
    print(json.dumps(main(*json.loads(sys.argv[1]))))
