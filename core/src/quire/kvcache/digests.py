"""Under which key the content of a request's full blocks is cached."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from hashlib import sha256

from quire.api.errors import KVCacheInvariantError
from quire.api.request import Request

_FORMAT = b"quire-kv-1"


class DigestChains:
    """One digest per leading full block of each request; they follow from the tokens alone.

    A digest is sha256 over the parent's digest and the block's token ids (64 bits each). The chain
    starts at a root made of format, block size, fingerprint and salt, each with its length, so that no
    two different inputs share an encoding. Digests are never taken from outside.

    Args:
        fingerprint: whatever else must match for KV to be reusable (model, adapters, plugins).
    """

    def __init__(self, block_size: int, fingerprint: bytes = b"") -> None:
        self.block_size = block_size
        self._fingerprint = fingerprint
        self._chains: dict[Request, list[bytes]] = {}

    def of(self, request: Request) -> list[bytes]:
        """The request's chain as far as it is known; `digest` extends this very list."""
        return self._chains.setdefault(request, [])

    def digest(self, request: Request, index: int) -> bytes:
        """The digest of the request's full block at `index`."""
        digests, size = self.of(request), self.block_size
        while len(digests) <= index:
            position = len(digests)
            parent = digests[-1] if digests else self.root_digest(request.salt)
            token_ids = request.token_ids(position * size, (position + 1) * size)
            digests.append(self.child_digest(parent, token_ids))
        return digests[index]

    def adopt(self, request: Request, digests: list[bytes]) -> None:
        """Take a chain that is known to be the request's own."""
        self._chains[request] = digests

    def forget(self, request: Request) -> None:
        """Drop the request's chain, if there is one."""
        self._chains.pop(request, None)

    def clear(self) -> None:
        """Drop all chains."""
        self._chains.clear()

    def set_fingerprint(self, fingerprint: bytes) -> None:
        """Start chains that are not known yet from another root."""
        self._fingerprint = fingerprint

    def root_digest(self, salt: str) -> bytes:
        """The parent of a chain's first block."""
        salt_bytes = salt.encode("utf-8", "surrogatepass")
        parts = (_FORMAT, str(self.block_size).encode(), self._fingerprint, salt_bytes)
        return sha256(b"".join(len(part).to_bytes(8, "little") + part for part in parts)).digest()

    def child_digest(self, parent: bytes, token_ids: Sequence[int]) -> bytes:
        """The digest of a full block with these tokens after the chain that ends in `parent`.

        Raises:
            KVCacheInvariantError: the number of tokens is not the block size.
        """
        if len(token_ids) != self.block_size:
            raise KVCacheInvariantError(f"hashed {len(token_ids)} tokens as a block of {self.block_size}")
        return sha256(parent + array("q", token_ids).tobytes()).digest()
