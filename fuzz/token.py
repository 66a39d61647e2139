"""The way from an Authorization header to a principal: any bytes are refused, or speak for whom a second reader says they do.

The first byte says what the rest is: `R` a header's value, `P` a payload that is signed with the real key under a good header, `H` a
header and a payload, divided by a zero byte, that are signed so. Without the last two no mutation would get past the signature.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Coroutine
from functools import cache
from types import SimpleNamespace
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from jose import jwk
from starlette.types import Message, Scope

from security.compact_jws import MAX_TOKEN_BYTES
from security.errors import InsufficientScope, InvalidToken, MissingToken
from security.key_files import SigningKey, VerificationKey, describe_key
from security.key_ring import KeyRing
from security.middleware.authentication import AuthenticationMiddleware
from security.principal import STATE_KEY, Principal
from security.tokens import ACCESS_TOKEN_TYPES, MAX_TOKEN_LIFETIME_S, TokenVerifier

NOW = 1_800_000_000
SKEW_S = 30
ISSUER = "https://gate.example"
AUDIENCE = "lensgate"
KID = "20260101T000000Z-fuzzing0"
HEADER = json.dumps({"alg": "ES256", "kid": KID, "typ": "at+jwt"}).encode()
_SECRET_NUMBER = 20261123  # a key that everyone knows, so that kept seeds stay valid


def one_input(data: bytes) -> None:
    """Ask the authentication layer twice, since the second answer may come from its memory."""
    mode, rest = data[:1], data[1:]
    if mode == b"R":
        authorization = rest
    elif mode == b"H":
        header, _, payload = rest.partition(b"\0")
        authorization = b"Bearer " + signed(header, payload)
    else:
        authorization = b"Bearer " + signed(HEADER, rest)
    verifier = TokenVerifier(SimpleNamespace(ring=_ring()), issuer=ISSUER, audience=AUDIENCE, clock_skew_s=SKEW_S)
    first = _authenticate(verifier, authorization)
    second = _authenticate(verifier, authorization)
    assert first == second
    if isinstance(first, Principal):
        _check(first, authorization.decode("ascii").split(" ", 1)[1].strip(" "))


def signed(header: bytes, payload: bytes) -> bytes:
    """The compact JWS of these bytes, whatever they are, with the real key's signature."""
    signing_input = _base64url(header) + b"." + _base64url(payload)
    return signing_input + b"." + _base64url(_key().jose_key.sign(signing_input))


def _authenticate(verifier: TokenVerifier, authorization: bytes) -> Principal | str:
    """The principal, or the kind and cause of the refusal."""
    scope: Scope = {"type": "http", "path": "/predict", "headers": [(b"authorization", authorization)]}
    layer = AuthenticationMiddleware(
        _nothing,
        access={"/predict": "predict"},
        verifier=verifier,
        revocations=SimpleNamespace(is_refused=lambda _: None),
        clock=lambda: float(NOW),
    )
    try:
        _run(layer(scope, _receive, _send))
    except MissingToken:
        return "missing"
    except InvalidToken as error:
        assert str(error) == "The access token is not valid."
        return error.cause
    except InsufficientScope:
        assert "predict" not in scope["state"][STATE_KEY].scopes
    principal = scope["state"][STATE_KEY]
    assert isinstance(principal, Principal)
    return principal


def _check(principal: Principal, token: str) -> None:
    """Read the accepted token again with other means, strictly by RFC 7515 and RFC 9068."""
    assert len(token) <= MAX_TOKEN_BYTES
    header_bytes, payload, signature = (base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)) for part in token.split("."))
    assert b".".join(map(_base64url, (header_bytes, payload, signature))).decode() == token
    assert len(signature) == 64
    der = encode_dss_signature(int.from_bytes(signature[:32]), int.from_bytes(signature[32:]))
    _private_key().public_key().verify(der, token.rpartition(".")[0].encode(), ec.ECDSA(SHA256()))
    header, claims = json.loads(header_bytes), json.loads(payload)
    assert header.keys() <= {"alg", "typ", "kid", "cty"}
    assert (header["alg"], header["kid"]) == ("ES256", KID)
    assert header["typ"].lower() in ACCESS_TOKEN_TYPES
    assert claims["iss"] == ISSUER
    assert AUDIENCE in (claims["aud"] if isinstance(claims["aud"], list) else [claims["aud"]])
    assert isinstance(claims["sub"], str)
    assert NOW < claims["exp"] <= claims["iat"] + MAX_TOKEN_LIFETIME_S
    assert max(claims["iat"], claims.get("nbf", 0)) <= NOW + SKEW_S
    assert principal == Principal(
        client_id=claims["client_id"],
        scopes=frozenset(claims.get("scope", "").split()),
        issuer=ISSUER,
        token_id=claims["jti"],
        expires_at=claims["exp"],
    )
    assert (principal.client_id + principal.token_id).isprintable()


@cache
def _private_key() -> ec.EllipticCurvePrivateKey:
    return ec.derive_private_key(_SECRET_NUMBER, ec.SECP256R1())


@cache
def _key() -> SigningKey:
    private_key = _private_key()
    algorithm, numbers = describe_key("fuzzing", private_key)
    public = VerificationKey(KID, algorithm, jwk.construct(private_key.public_key(), algorithm))
    return SigningKey(KID, algorithm, 0.0, public, numbers, jwk.construct(private_key, algorithm))


@cache
def _ring() -> KeyRing:
    return KeyRing([_key()], publication_delay_s=0)


def _base64url(octets: bytes) -> bytes:
    return base64.urlsafe_b64encode(octets).rstrip(b"=")


def _run(coroutine: Coroutine[Any, Any, None]) -> None:
    """Drive a coroutine that waits for nothing."""
    try:
        coroutine.send(None)
    except StopIteration:
        return
    raise AssertionError("the layer waited for something")


async def _nothing(scope: Scope, receive: object, send: object) -> None:
    pass


async def _receive() -> Message:
    raise AssertionError("the layer read the body")


async def _send(_: Message) -> None:
    raise AssertionError("the layer answered by itself")
