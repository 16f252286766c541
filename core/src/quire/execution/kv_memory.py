"""How many KV blocks fit: from bytes, or from a share of the device's memory."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from quire.api.batch import DeviceInfo, DTypeName, KVCacheDTypeName
from quire.api.config import CacheSettings
from quire.api.errors import CapacityError

CPU_SHARE = 0.5

logger = logging.getLogger("quire")


@dataclass(slots=True, frozen=True)
class KVDemand:
    """What the model and the limits ask of the KV cache.

    Attributes:
        bytes_per_block: over all layers, keys and values.
        max_num_seqs, max_model_len: more than their product is never needed.
        is_max_model_len_explicit: if not, the context may be cut to what the cache holds.
        dtype: what keys and values are kept in; for the log.
        reserved_bytes: of `gpu_memory_utilization`, what is left for others; not used on a CPU.
    """

    bytes_per_block: int
    max_num_seqs: int
    max_model_len: int
    is_max_model_len_explicit: bool
    dtype: DTypeName | KVCacheDTypeName
    reserved_bytes: int = 0


@dataclass(slots=True, frozen=True)
class KVBudget:
    """The KV cache that an engine gets.

    Attributes:
        max_model_len: the context, cut to what the cache holds where it was not given.
        dtype: see KVDemand.
    """

    num_blocks: int
    block_size: int
    bytes_per_block: int
    max_model_len: int
    dtype: DTypeName | KVCacheDTypeName

    @property
    def num_tokens(self) -> int:
        """Tokens that the cache holds."""
        return self.num_blocks * self.block_size

    def describe(self) -> str:
        """One line for the log."""
        size = self.num_blocks * self.bytes_per_block / 2**20
        requests = self.num_tokens / self.max_model_len
        token_bytes = self.bytes_per_block // self.block_size
        return (
            f"KV cache: {size:.1f} MiB of {self.dtype}, {token_bytes} bytes a token, {self.num_blocks} blocks of "
            f"{self.block_size} = {self.num_tokens} tokens, {requests:.1f} requests of {self.max_model_len} tokens"
        )


def size_kv_cache(settings: CacheSettings, device: DeviceInfo, demand: KVDemand) -> KVBudget:
    """Decide the number of blocks.

    `num_kv_blocks` wins over `kv_cache_memory_bytes`, which wins over `gpu_memory_utilization`. On a
    CPU the last one means half of that share of the memory free now. Never more than
    `max_num_seqs` requests of `max_model_len`.

    Raises:
        CapacityError: not one request of `max_model_len` (given explicitly) fits, or no block does, or the
            machine has less memory.
    """
    block_size = settings.block_size
    blocks_per_request = -(-demand.max_model_len // block_size)
    most = demand.max_num_seqs * blocks_per_request
    if settings.num_kv_blocks is not None:
        available, source = settings.num_kv_blocks, f"num_kv_blocks={settings.num_kv_blocks}"
    else:
        size, source = _memory_bytes(settings, device, demand.reserved_bytes)
        available = size // demand.bytes_per_block
    num_blocks = min(available, most)
    taken = num_blocks * demand.bytes_per_block
    if device.type == "cpu" and taken > max(device.total_memory_bytes, device.free_memory_bytes):
        raise CapacityError(
            f"the KV cache ({source}) would take {taken} bytes of {device.total_memory_bytes}, all the memory there "
            "is: lower it"
        )
    if device.type == "cpu" and taken > device.free_memory_bytes:
        logger.warning(
            "the KV cache (%s) may grow to %d bytes; %d are free now", source, taken, device.free_memory_bytes
        )
    if num_blocks < 1 or num_blocks * block_size < 2:
        raise CapacityError(
            f"the KV cache ({source}) holds {num_blocks} blocks of {block_size} tokens; a block takes "
            f"{demand.bytes_per_block} bytes and one request needs room for 2 tokens: raise kv_cache_memory_bytes"
        )
    max_model_len = demand.max_model_len
    if num_blocks < blocks_per_request:
        if demand.is_max_model_len_explicit:
            needed = blocks_per_request * demand.bytes_per_block
            raise CapacityError(
                f"the KV cache ({source}) holds {num_blocks * block_size} tokens, one request of "
                f"max_model_len={max_model_len} needs {blocks_per_request} blocks = {needed} bytes: "
                "raise kv_cache_memory_bytes or gpu_memory_utilization, or lower max_model_len"
            )
        max_model_len = num_blocks * block_size
    return KVBudget(num_blocks, block_size, demand.bytes_per_block, max_model_len, demand.dtype)


def _memory_bytes(settings: CacheSettings, device: DeviceInfo, reserved_bytes: int) -> tuple[int, str]:
    if settings.kv_cache_memory_bytes is not None:
        return settings.kv_cache_memory_bytes, f"kv_cache_memory_bytes={settings.kv_cache_memory_bytes}"
    share = settings.gpu_memory_utilization
    if device.type == "cpu":
        return int(device.free_memory_bytes * share * CPU_SHARE), f"{share:g} of half the free memory"
    used = device.total_memory_bytes - device.free_memory_bytes + reserved_bytes
    return max(0, int(device.total_memory_bytes * share) - used), f"gpu_memory_utilization={share:g}"
