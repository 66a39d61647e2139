"""The way from an Authorization header to a principal: any bytes are refused, or speak for whom a second reader says they do.

The first byte says what the rest is: `R` a header's value, `P` a payload that is signed with the real key under a good header, `H` a
header and a payload, divided by a zero byte, that are signed so, `F` the same for a token of a trusted issuer. Without the last three no
mutation would get past the signature.
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

from security.compact_jws import MAX_TOKEN_BYTES, unverified_issuer
from security.errors import InsufficientScope, InvalidToken, MissingToken
from security.foreign_tokens import ForeignTokenVerifier
from security.issuer_profiles import TrustedIssuer
from security.key_files import SigningKey, VerificationKey, describe_key
from security.key_ring import KeyRing
from security.middleware.authentication import AuthenticationMiddleware
from security.principal import STATE_KEY, Principal
from security.tokens import ACCESS_TOKEN_TYPES, MAX_TOKEN_LIFETIME_S, TokenVerifier

NOW = 1_800_000_000
SKEW_S = 30
ISSUER = "https://gate.example"
FOREIGN_ISSUER = "https://login.example/tenant/v2.0"
AUDIENCE = "lensgate"
KID = "20260101T000000Z-fuzzing0"
HEADER = json.dumps({"alg": "ES256", "kid": KID, "typ": "at+jwt"}).encode()
_SECRET_NUMBER = 20261123  # a key that everyone knows, so that kept seeds stay valid


def one_input(data: bytes) -> None:
    """Ask the authentication layer twice, since the second answer may come from its memory."""
    mode, rest = data[:1], data[1:]
    if mode == b"R":
        authorization = rest
    elif mode in (b"H", b"F"):
        header, _, payload = rest.partition(b"\0")
        authorization = b"Bearer " + signed(header, payload)
    else:
        authorization = b"Bearer " + signed(HEADER, rest)
    if mode == b"F":
        _ask_the_foreign_verifier(authorization.removeprefix(b"Bearer ").decode())
        return
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


def _ask_the_foreign_verifier(token: str) -> None:
    """As `TrustedIssuers` does: the unverified issuer chooses, and then must be the verified one."""
    named = unverified_issuer(token)
    try:
        principal = ForeignTokenVerifier(_foreign_profile(), _ForeignKeys(), clock_skew_s=SKEW_S).verify(token, NOW)
    except InvalidToken:
        return
    claims = json.loads(_decode(token.split(".")[1]))
    assert named == principal.issuer == claims["iss"] == FOREIGN_ISSUER
    assert principal.client_id in {f"entra:{claims.get('azp')}", f"entra:{claims.get('appid')}"}
    assert principal.token_id.startswith("entra:")
    assert principal.tier == "standard"
    assert NOW < principal.expires_at == claims["exp"]
    roles = claims.get("roles") or []
    assert principal.scopes == {"predict", "metrics", "introspect"} & set(roles.split(" ") if isinstance(roles, str) else roles)
    assert not {"nonce", "cnf", "at_hash"} & claims.keys()


def _check(principal: Principal, token: str) -> None:
    """Read the accepted token again with other means, strictly by RFC 7515 and RFC 9068."""
    assert len(token) <= MAX_TOKEN_BYTES
    header_bytes, payload, signature = map(_decode, token.split("."))
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


def public_jwk() -> dict[str, str]:
    """The public half of the key: kty, crv, x and y."""
    return dict(_key().public_jwk)


@cache
def _ring() -> KeyRing:
    return KeyRing([_key()], publication_delay_s=0)


class _ForeignKeys:
    def find(self, kid: str) -> VerificationKey | None:
        return _ring().verification_key(kid)


@cache
def _foreign_profile() -> TrustedIssuer:
    return TrustedIssuer.model_validate(
        {
            "name": "entra",
            "profile": "entra",
            "issuer": FOREIGN_ISSUER,
            "audience": AUDIENCE,
            "jwks_file": "keys.json",
            "algorithms": ["ES256"],
        }
    )


def _decode(segment: str) -> bytes:
    return base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4))


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
