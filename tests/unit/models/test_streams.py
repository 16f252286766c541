"""What layers of the built-in models hand to each other: sums that the next norm makes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from quire.api.batch import DTypeName, ForwardBatch
from quire.nn.norm import Stream
from quire.plugins import PluginHost
from quire.testing import tiny_models
from quire.testing.forward import SequenceForward

MODELS: dict[Callable[..., Path], str] = {
    tiny_models.write_tiny_llama: "num_hidden_layers",
    tiny_models.write_tiny_mistral: "num_hidden_layers",
    tiny_models.write_tiny_qwen2: "num_hidden_layers",
    tiny_models.write_tiny_qwen3: "num_hidden_layers",
    tiny_models.write_tiny_gpt2: "n_layer",
    tiny_models.write_tiny_mpt: "n_layers",
}
"""What writes a tiny model, and its name of the number of layers."""


@pytest.mark.parametrize("write", MODELS, ids=lambda write: write.__name__)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_sum_is_left_to_the_next_layer(
    write: Callable[..., Path], dtype: DTypeName, tmp_path: Path, host: PluginHost
) -> None:
    """Two tensors give the bits that their sum gives, and the last layer gives one."""
    folder = write(tmp_path, **{MODELS[write]: 3})
    sequence = SequenceForward(folder, dtype, host=host)
    given: list[object] = []
    results: list[tuple[Stream, Stream]] = []

    def note(layer: nn.Module, arguments: tuple[Stream, ForwardBatch], result: Stream) -> None:
        x, batch = arguments
        given.append(x)
        if not isinstance(x, Tensor):
            results.append((result, layer.forward(x[0] + x[1], batch)))

    for layer in sequence.built.model.layers:
        layer.register_forward_hook(note)
    sequence.logits([5, 6, 7, 8, 9])
    assert [isinstance(x, tuple) for x in given] == [False, True, True]
    (middle, middle_of_sum), (last, last_of_sum) = results
    assert isinstance(middle, tuple) and isinstance(middle_of_sum, tuple)
    assert all(torch.equal(*pair) for pair in zip(middle, middle_of_sum, strict=True))
    assert isinstance(last, Tensor) and isinstance(last_of_sum, Tensor)
    assert torch.equal(last, last_of_sum)
