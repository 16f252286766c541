from __future__ import annotations

import pytest

from quire.api.errors import KVCacheInvariantError
from quire.kvcache.digests import DigestChains


def test_every_part_of_the_key_matters():
    chains = DigestChains(2)
    digests = {
        chains.root_digest(""),
        chains.root_digest("a"),
        DigestChains(2, b"a").root_digest(""),
        DigestChains(4).root_digest(""),
        DigestChains(2, b"ab").root_digest("c"),
        DigestChains(2, b"a").root_digest("bc"),
        chains.child_digest(chains.root_digest(""), [1, 2]),
        chains.child_digest(chains.root_digest(""), [2, 1]),
        chains.child_digest(chains.root_digest("a"), [1, 2]),
        chains.child_digest(chains.root_digest(""), [1, 2 + 2**32]),
    }
    assert len(digests) == 10
    assert chains.root_digest("\ud800") != chains.root_digest("")
    assert DigestChains(2).root_digest("a") == chains.root_digest("a")
    with pytest.raises(KVCacheInvariantError, match="3 tokens as a block of 2"):
        chains.child_digest(b"", [1, 2, 3])


def test_a_new_fingerprint_is_for_new_requests():
    chains = DigestChains(2, b"a")
    first = chains.root_digest("")
    chains.set_fingerprint(b"b")
    assert chains.root_digest("") == DigestChains(2, b"b").root_digest("") != first
