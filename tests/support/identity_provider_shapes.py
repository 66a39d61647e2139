"""The tokens and key sets of Keycloak, Auth0 and Entra as they document them, and of a provider after RFC 9068.

It shares no code with Lensgate and does not use its JOSE library, so that both can only agree on the standards.
"""

from __future__ import annotations

import base64
import hashlib
import json
import time
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding

TENANT = "8f1f6b0a-3c55-4f43-9c3d-2b7f4e9d1a60"
PERSONAL_ACCOUNTS = "9188040d-6c67-4c5b-b112-36a304b66dad"
APP = "c7d0a7a2-5f0e-4a37-8c1b-0d9f3f1e2b11"
CLIENT = "4b1d2a34-90aa-4c9b-8a77-1e5c1a2b3c4d"


def b64(octets: bytes) -> str:
    return base64.urlsafe_b64encode(octets).rstrip(b"=").decode("ascii")


def number(value: int, length: int | None = None) -> str:
    return b64(value.to_bytes(length or (value.bit_length() + 7) // 8, "big"))


class Key:
    """A signing key of a provider, with the certificate that Keycloak, Auth0 and Entra publish beside it."""

    def __init__(self, algorithm: str) -> None:
        self.algorithm = algorithm
        self.private: Any = (
            rsa.generate_private_key(public_exponent=65537, key_size=2048)
            if algorithm == "RS256"
            else ec.generate_private_key(ec.SECP256R1())
        )
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "provider")])
        now = datetime.now(UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(self.private.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
            .sign(self.private, hashes.SHA256())
            .public_bytes(Encoding.DER)
        )
        self.x5c = [base64.b64encode(certificate).decode("ascii")]
        self.x5t = b64(hashlib.sha1(certificate, usedforsecurity=False).digest())
        self.kid = b64(hashlib.sha256(certificate).digest())

    def members(self) -> dict[str, Any]:
        numbers = self.private.public_key().public_numbers()
        if self.algorithm == "RS256":
            return {"kty": "RSA", "n": number(numbers.n), "e": number(numbers.e)}
        return {"kty": "EC", "crv": "P-256", "x": number(numbers.x, 32), "y": number(numbers.y, 32)}

    def sign(self, message: bytes) -> bytes:
        if self.algorithm == "RS256":
            signature: bytes = self.private.sign(message, padding.PKCS1v15(), hashes.SHA256())
            return signature
        r, s = decode_dss_signature(self.private.sign(message, ec.ECDSA(hashes.SHA256())))
        return r.to_bytes(32, "big") + s.to_bytes(32, "big")


class Provider:
    """One identity provider. Subclasses know the shapes."""

    algorithm = "RS256"

    def __init__(self, base: str, prefix: str) -> None:
        self.prefix = prefix
        self.issuer = f"{base}/{prefix}"
        self.keys = [Key(self.algorithm)]
        self.other_key = Key(self.algorithm)
        """One that it publishes for something else."""
        self.mode = "ok"

    def rotate(self) -> None:
        """Sign with a new key, and publish it alone."""
        self.keys = [Key(self.algorithm)]

    def jwks(self) -> list[dict[str, Any]]:
        return [{**key.members(), "kid": key.kid, "use": "sig", "alg": key.algorithm} for key in self.keys]

    def header(self, kind: str) -> dict[str, Any]:
        return {"alg": self.algorithm, "typ": "JWT", "kid": self.keys[-1].kid}

    def claims(self, kind: str, permission: str) -> dict[str, Any]:
        raise NotImplementedError

    def token(self, order: dict[str, Any], signer: Provider) -> str:
        kind = order.get("kind", "access")
        header = {**self.header(kind), **order.get("header", {})}
        claims = {**self.claims(kind, order.get("permission", "predict")), **order.get("claims", {})}
        for name in order.get("without", ()):
            claims.pop(name, None)
            header.pop(name, None)
        signing_input = f"{b64(json.dumps(header).encode())}.{b64(json.dumps(claims).encode())}"
        return f"{signing_input}.{b64(signer.keys[-1].sign(signing_input.encode()))}"


class Keycloak(Provider):
    """Keycloak 26: a realm's tokens, for a client with a service account and an audience mapper."""

    def jwks(self) -> list[dict[str, Any]]:
        encryption = {**self.other_key.members(), "kid": "encryption", "use": "enc", "alg": "RSA-OAEP"}
        signing = [{**entry, "x5c": key.x5c, "x5t": key.x5t} for entry, key in zip(super().jwks(), self.keys, strict=True)]
        return [encryption, *signing]

    def claims(self, kind: str, permission: str) -> dict[str, Any]:
        now = int(time.time())
        shared = {
            "exp": now + 300,
            "iat": now,
            "jti": f"trrtcc:{uuid.uuid4()}",
            "iss": self.issuer,
            "sub": str(uuid.uuid4()),
            "azp": "camera",
        }
        if kind == "id":
            return {**shared, "typ": "ID", "aud": "camera", "at_hash": "9Xg3", "sid": str(uuid.uuid4()), "auth_time": now, "acr": "1"}
        if kind == "refresh":
            return {**shared, "typ": "Refresh", "aud": self.issuer, "scope": f"profile email {permission}"}
        return {
            **shared,
            "typ": "Bearer",
            "aud": ["lensgate", "account"],
            "acr": "1",
            "allowed-origins": ["/*"],
            "realm_access": {"roles": ["offline_access", f"realm-{permission}", "uma_authorization"]},
            "resource_access": {"lensgate": {"roles": [f"client-{permission}"]}, "account": {"roles": ["view-profile"]}},
            "scope": f"profile email {permission}",
            "clientHost": "192.0.2.7",
            "email_verified": False,
            "preferred_username": "service-account-camera",
            "clientAddress": "192.0.2.7",
            "client_id": "camera",
        }


class Auth0(Provider):
    """Auth0: a tenant's tokens for a machine-to-machine application, in its own profile and (`rfc9068`) in the standard's."""

    def jwks(self) -> list[dict[str, Any]]:
        return [{**entry, "x5c": key.x5c, "x5t": key.x5t} for entry, key in zip(super().jwks(), self.keys, strict=True)]

    def header(self, kind: str) -> dict[str, Any]:
        return {**super().header(kind), "typ": "at+jwt" if kind == "rfc9068" else "JWT"}

    def claims(self, kind: str, permission: str) -> dict[str, Any]:
        now = int(time.time())
        shared = {"iss": self.issuer, "sub": "cAmErA0client@clients", "iat": now, "exp": now + 86_400}
        if kind == "id":
            return {**shared, "aud": "cAmErA0client", "sub": "auth0|123456", "name": "jane", "nonce": "n-0S6_WzA2Mj", "sid": "s"}
        access = {**shared, "aud": "https://gate.example.com/", "scope": permission, "gty": "client-credentials"}
        if kind == "rfc9068":
            return {**access, "client_id": "cAmErA0client", "jti": b64(uuid.uuid4().bytes)}
        return {**access, "azp": "cAmErA0client", "https://gate.example.com/roles": [f"custom-{permission}"]}


class Entra(Provider):
    """Entra ID: one tenant's tokens for an application with an app role, of version 2.0 and (`v1`) 1.0."""

    def jwks(self) -> list[dict[str, Any]]:
        # Without `alg`, but with the issuer whose tokens the key signs; that of personal accounts stands beside the tenant's.
        personal = {**self.other_key.members(), "kid": "personal", "issuer": self.issuer.replace(TENANT, PERSONAL_ACCOUNTS)}
        own = [{**key.members(), "kid": key.kid, "x5t": key.x5t, "x5c": key.x5c, "issuer": self.issuer} for key in self.keys]
        return [{**key, "use": "sig", "cloud_instance_name": "local"} for key in (*own, personal)]

    def header(self, kind: str) -> dict[str, Any]:
        return {"typ": "JWT", "alg": "RS256", "x5t": self.keys[-1].x5t, "kid": self.keys[-1].kid}

    def claims(self, kind: str, permission: str) -> dict[str, Any]:
        now = int(time.time())
        shared = {
            "aud": APP,
            "iss": self.issuer,
            "iat": now,
            "nbf": now,
            "exp": now + 3900,
            "oid": str(uuid.uuid4()),
            "rh": "1.AXkA",
            "sub": str(uuid.uuid4()),
            "tid": TENANT,
            "uti": b64(uuid.uuid4().bytes),
        }
        if kind == "id":  # of the API's own app registration: the same audience, and a role that a user may have
            return {**shared, "name": "Jane", "preferred_username": "jane@example.com", "roles": [permission], "ver": "2.0"}
        if kind == "v1":
            return {**shared, "appid": CLIENT, "appidacr": "1", "idp": self.issuer, "roles": [permission], "ver": "1.0"}
        return {**shared, "aio": "ASQ", "azp": CLIENT, "azpacr": "1", "roles": [permission], "ver": "2.0"}


class Standard(Provider):
    """A provider after RFC 9068, with elliptic curves."""

    algorithm = "ES256"

    def header(self, kind: str) -> dict[str, Any]:
        return {**super().header(kind), "typ": "at+jwt"}

    def claims(self, kind: str, permission: str) -> dict[str, Any]:
        now = int(time.time())
        return {
            "iss": self.issuer,
            "sub": "camera",
            "aud": "lensgate",
            "exp": now + 600,
            "iat": now,
            "jti": str(uuid.uuid4()),
            "client_id": "camera",
            "scope": permission,
        }
