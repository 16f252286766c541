"""What one forward pass sees: the flat batch, and plain descriptions of device and dtype."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

DTypeName = Literal["bfloat16", "float16", "float32", "float64"]
KVCacheDTypeName = Literal["auto", "fp8_e4m3", "int8"]
"""How keys and values are kept; auto: in the model's dtype."""


@dataclass(slots=True, frozen=True)
class DeviceInfo:
    """A device, in words and numbers; specs see this and never a torch object.

    Attributes:
        type: "cpu", "cuda" (ROCm too).
        index: which one of its type.
        name: as the vendor calls it.
        capabilities: of a CPU its instruction sets ("avx2", "avx512f", "avx512_bf16", ...); of a
            CUDA device "sm_80" and the like, of a ROCm device "gfx942" and the like.
        total_memory_bytes, free_memory_bytes: at the time of asking.
        num_threads: CPU threads that torch will use.
    """

    type: str
    index: int = 0
    name: str = ""
    capabilities: frozenset[str] = frozenset()
    total_memory_bytes: int = 0
    free_memory_bytes: int = 0
    num_threads: int = 1


@dataclass(slots=True)
class ForwardBatch:
    """T tokens of R requests, flat. Tensors are views of persistent buffers, valid for one step.

    Rows (requests) with one scheduled token come first: `num_decode_rows` of them.

    Attributes:
        token_ids, positions: int64 [T].
        rope_lens: int64 [T], max(prompt length, position + 1): the sequence length that
            length-dependent rotary scalings (dynamic, longrope) see for each token. A function of
            the request alone, so that chunking does not change it.
        query_start: int32 [R + 1], where each request's tokens begin.
        seq_lens: int32 [R], context length with this step's tokens.
        slot_mapping: int64 [T], `block_id * block_size + offset`: where each token's KV goes; -1: nowhere.
        block_tables: int32 [R, max_blocks]; entries past a request's length are arbitrary valid ids.
        logits_rows: int64 [L], the tokens (indices into T) whose logits are needed.
        query_lens, context_lens: host copies per request; context_lens are `seq_lens`.
        block_size: slots per block.
        attention: what the attention backend prepared for this step; only it reads this.
        scratch: values that the layers of one step share, by the key of their maker (rows of rope
            tables and the like); empty at the start of every step.
    """

    token_ids: Tensor
    positions: Tensor
    rope_lens: Tensor
    query_start: Tensor
    seq_lens: Tensor
    slot_mapping: Tensor
    block_tables: Tensor
    logits_rows: Tensor
    query_lens: list[int]
    context_lens: list[int]
    num_decode_rows: int
    block_size: int
    attention: object | None = None
    scratch: dict[object, object] = field(default_factory=dict)

    @property
    def num_tokens(self) -> int:
        """T."""
        return int(self.token_ids.shape[0])

    @property
    def num_requests(self) -> int:
        """R."""
        return len(self.query_lens)
