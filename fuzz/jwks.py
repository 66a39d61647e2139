"""The key set of another issuer: any bytes are refused, or give public keys of the algorithms that were asked for."""

from __future__ import annotations

import json

from cryptography.hazmat.primitives.serialization import load_pem_public_key

from security.errors import KeySetUnusable
from security.jwks import MAX_KEYS, read_key_set

ISSUER = "https://login.example/00000000-0000-4000-8000-000000000001/v2.0"


def one_input(data: bytes) -> None:
    """Read the set, and look at every key with another library than the one that will use it."""
    try:
        found = read_key_set(data, issuer=ISSUER, algorithms=("ES256", "RS256"))
    except KeySetUnusable:
        return
    entries = json.loads(data)["keys"]
    assert len(found.keys) + len(found.skipped) == len(entries) <= MAX_KEYS
    for kid, key in found.keys.items():
        kind = "EC" if key.algorithm == "ES256" else "RSA"
        named = [entry for entry in entries if (entry.get("kid"), entry.get("kty")) == (kid, kind)]
        assert any(entry.get("alg", key.algorithm) == key.algorithm and entry.get("use", "sig") == "sig" for entry in named)
        load_pem_public_key(key.jose_key.to_pem())
    if found.keys:
        assert not any({"d", "p", "q", "k"} & entry.keys() for entry in entries)
