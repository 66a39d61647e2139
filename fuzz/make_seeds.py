"""Write the first seeds of every harness into fuzz/seeds: small, real, one of each kind.

Run it as `PYTHONPATH=tests python -m fuzz.make_seeds`.

What fuzzing found to be worth keeping lies beside them, under the name of its hash.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator

import numpy as np
from PIL import Image

from fuzz import token
from fuzz.run import SEEDS
from support import pictures
from support.pictures import encode, gradient


def main() -> None:
    """Write them all."""
    for name, seeds in (
        ("picture", _pictures()),
        ("token", _tokens()),
        ("client_auth", _client_auth()),
        ("client_address", _client_addresses()),
        ("jwks", _key_sets()),
    ):
        folder = SEEDS / name
        folder.mkdir(parents=True, exist_ok=True)
        for title, data in seeds:
            (folder / title.replace(" ", "-")).write_bytes(data)


def _pictures() -> Iterator[tuple[str, bytes]]:
    small, image = gradient(9, 7), gradient(24, 17)
    yield "jpeg", encode(small, "JPEG", quality=50)
    yield "jpeg grey", encode(small.convert("L"), "JPEG")
    yield "jpeg cmyk", pictures.cmyk_jpeg(small)
    yield "jpeg ycck", pictures.ycck_jpeg(small)
    yield "jpeg progressive", pictures.progressive_jpeg(image)
    yield "jpeg drafted", encode(gradient(200, 140), "JPEG", quality=10)
    yield "jpeg restarts", encode(image, "JPEG", quality=30, restart_marker_blocks=1)
    yield "jpeg exif", pictures.oriented(small, 6, "JPEG", quality=50)
    yield "jpeg many scans", pictures.with_scans(pictures.progressive_jpeg(small), 20)
    yield "jpeg mpo", pictures.mpo(small, small)
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
        converted = small.convert("L").convert("I").convert("I;16") if mode == "I;16" else small.convert(mode)
        yield f"png {mode.replace(';', '')}", encode(converted, "PNG")
    samples = np.arange(7 * 9 * 3, dtype=np.uint16).reshape(7, 9, 3) * 300
    yield "png 16-bit colour", pictures.png(samples, 2)
    yield "png transparent grey", pictures.png(samples[..., 0].astype(np.uint8), 0, before=pictures.png_chunk(b"tRNS", b"\0\x05"))
    yield "png transparent colour", pictures.png(samples.astype(np.uint8), 2, before=pictures.png_chunk(b"tRNS", bytes(6)))
    yield "png exif", pictures.oriented(small, 8, "PNG")
    yield "png animated", pictures.animation([small, small.transpose(Image.Transpose.FLIP_LEFT_RIGHT)], "PNG")
    yield "png text", pictures.with_png_chunks(encode(small, "PNG"), pictures.png_chunk(b"tEXt", b"Comment\0hello"))
    yield "png wide", encode(gradient(700, 2), "PNG")
    yield "webp", encode(small, "WEBP", quality=20)
    yield "webp lossless", encode(small, "WEBP", lossless=True)
    yield "webp alpha", encode(small.convert("RGBA"), "WEBP", quality=20)
    yield "webp exif", pictures.oriented(small, 3, "WEBP", quality=20)
    yield "webp animated", pictures.animation([small, small.transpose(Image.Transpose.FLIP_LEFT_RIGHT)], "WEBP")
    for name, data in pictures.huge_headers(16_000, 16_000).items():
        yield f"huge {name}", data
    for name in ("empty", "svg", "start of a PNG"):
        yield f"no picture {name}", pictures.NOT_PICTURES[name]


def _tokens() -> Iterator[tuple[str, bytes]]:
    claims: dict[str, object] = {
        "iss": token.ISSUER,
        "sub": "client",
        "aud": token.AUDIENCE,
        "exp": token.NOW + 600,
        "iat": token.NOW,
        "jti": "a-token-id",
        "client_id": "client",
        "scope": "predict metrics",
    }
    good = json.dumps(claims).encode()
    yield "payload good", b"P" + good
    yield "header good", b"H" + token.HEADER + b"\0" + good
    yield "raw good", b"RBearer " + token.signed(token.HEADER, good)
    changes: dict[str, dict[str, object]] = {
        "list of audiences": {"aud": ["other", token.AUDIENCE]},
        "nbf": {"nbf": token.NOW + 10},
        "expired": {"iat": token.NOW - 600, "exp": token.NOW},
        "no scope": {"scope": ""},
        "null": {"exp": None},
        "large numbers": {"exp": 2**53, "iat": -1},
        "float": {"exp": 1.5e9},
        "nested": {"aud": [[[[{}]]]]},
        "control characters": {"client_id": "a\nb"},
    }
    for name, changed in changes.items():
        yield f"payload {name}", b"P" + json.dumps(claims | changed).encode()
    yield "payload repeated name", b"P" + good[:-1] + b', "exp": 1}'
    yield "payload not finite", b"P" + good.replace(b"1800000600", b"NaN")
    for name, header in {
        "none": {"alg": "none", "kid": token.KID, "typ": "at+jwt"},
        "hs256": {"alg": "HS256", "kid": token.KID, "typ": "at+jwt"},
        "crit": {"alg": "ES256", "kid": token.KID, "typ": "at+jwt", "crit": ["exp"]},
        "jwk": {"alg": "ES256", "kid": token.KID, "typ": "at+jwt", "jwk": {"kty": "EC"}},
        "unknown key": {"alg": "ES256", "kid": "other", "typ": "at+jwt"},
        "other type": {"alg": "ES256", "kid": token.KID, "typ": "JWT"},
        "content type": {"alg": "ES256", "kid": token.KID, "typ": "application/at+JWT", "cty": "JWT"},
        "kid a path": {"alg": "ES256", "kid": "../../etc/passwd", "typ": "at+jwt"},
    }.items():
        yield f"header {name}", b"H" + json.dumps(header).encode() + b"\0" + good
    yield "header deep", b"H" + b'{"a":' * 60 + b"1" + b"}" * 60 + b"\0" + good
    yield from _foreign_tokens()
    yield "raw empty", b"RBearer "
    yield "raw basic", b"RBasic Zm9vOmJhcg=="
    yield "raw three segments", b"RBearer e30.e30.e30"


def _foreign_tokens() -> Iterator[tuple[str, bytes]]:
    header = {"alg": "ES256", "kid": token.KID, "typ": "JWT", "x5t": "abc"}
    claims: dict[str, object] = {
        "iss": token.FOREIGN_ISSUER,
        "sub": "s",
        "aud": token.AUDIENCE,
        "exp": token.NOW + 3600,
        "iat": token.NOW,
        "nbf": token.NOW,
        "azp": "app",
        "roles": ["predict", "Other.Role"],
    }
    changes: dict[str, dict[str, object]] = {
        "good": {},
        "jti and appid": {"jti": "id", "appid": "app", "azp": "other"},
        "text of roles": {"roles": "predict metrics"},
        "no roles": {"roles": None},
        "odd roles": {"roles": [1, None]},
        "id token": {"nonce": "n"},
        "bound": {"cnf": {"jkt": "x"}},
        "another issuer": {"iss": token.ISSUER},
    }
    for name, changed in changes.items():
        yield f"foreign {name}", b"F" + json.dumps(header).encode() + b"\0" + json.dumps(claims | changed).encode()


def _client_addresses() -> Iterator[tuple[str, bytes]]:
    for name, lines in {
        "no proxy": "192.0.2.1\n203.0.113.9",
        "one hop": "10.0.0.1\n203.0.113.9",
        "two hops": "10.0.0.1\n6.6.6.6, 203.0.113.9, 10.0.0.2",
        "two headers": "127.0.0.1\n6.6.6.6\n203.0.113.9:443",
        "ipv6": "fd00::1\n[2001:db8::7]:8443, fd00::2",
        "ipv6 zone": "fe80::1%eth0\nfe80::2%eth1",
        "mapped": "::ffff:10.0.0.1\n::ffff:203.0.113.9",
        "nonsense": "10.0.0.1\nunknown, _hidden, 10.0.0.2",
        "empty entries": "10.0.0.1\n,, ,10.0.0.2,",
        "ports": "10.0.0.1\n203.0.113.9:99999, 203.0.113.9:, [::1]x",
        "all trusted": "10.0.0.1\n10.0.0.2,10.0.0.3",
        "no peer": "\n203.0.113.9",
        "leading zeros": "10.0.0.1\n010.0.0.2",
    }.items():
        yield name, lines.encode()
    yield "many hops", b"10.0.0.1\n" + b",".join([b"203.0.113.9"] + [b"10.0.0.2"] * 40)
    yield "long", b"10.0.0.1\n" + b"a" * 3000 + b", 203.0.113.9"


def _key_sets() -> Iterator[tuple[str, bytes]]:
    public = {name: value for name, value in token.public_jwk().items() if name != "kid"}
    modulus = base64.urlsafe_b64encode((2**2047 + 2**1000 + 1).to_bytes(256)).rstrip(b"=").decode()
    weak = {"kty": "RSA", "n": "AQAB", "e": "AQAB"}
    sets: dict[str, list[dict[str, object]]] = {
        "good": [{**public, "kid": "a", "use": "sig", "alg": "ES256"}, {"kty": "RSA", "n": modulus, "e": "AQAB", "kid": "b"}],
        "skipped": [{**public, "kid": "a", "use": "enc"}, {**weak, "kid": "b"}, {"kty": "OKP"}, {**public, "kid": 1}],
        "operations": [{**public, "kid": "a", "key_ops": ["verify"]}, {**public, "kid": "b", "key_ops": "verify"}],
        "private": [{**public, "kid": "a", "d": "AQAB"}],
        "twice": [{**public, "kid": "a"}, {**public, "kid": "a"}],
        "tenants": [{**public, "kid": "a", "issuer": "https://login.example/{tenantid}/v2.0"}],
        "off the curve": [{**public, "kid": "a", "x": "AQAB"}],
        "none": [],
    }
    for name, keys in sets.items():
        yield name, json.dumps({"keys": keys}).encode()
    yield "no list", b'{"keys": {}}'
    yield "no json", b"<html>"
    yield "deep", b'{"keys":' + b"[" * 2000


def _client_auth() -> Iterator[tuple[str, bytes]]:
    form = b"application/x-www-form-urlencoded"
    grant = b"grant_type=client_credentials"
    for name, pair in {
        "plain": b"client:secret",
        "escaped": b"cl%20ient:sec%3Aret+x",
        "colons": b"a:b:c",
        "no colon": b"client",
        "no client": b":secret",
        "broken escape": b"a%2:b",
        "no utf8": b"\xff\xfe:b",
        "escaped no utf8": b"%ff:b",
    }.items():
        yield f"basic {name}", b"B" + pair
    for name, authorization in {
        "good": b"Basic " + base64.b64encode(b"client:secret"),
        "no base64": b"Basic ????",
        "surplus padding": b"Basic YTpi=",
        "unused bits": b"basic YTpiYW==",
        "bearer": b"Bearer a.b.c",
        "long": b"Basic " + b"A" * 1100,
    }.items():
        yield f"header {name}", b"A" + authorization
    for name, body in {
        "credentials": grant + b"&client_id=client&client_secret=s%C3%A9cret&scope=predict+metrics",
        "no secret": grant + b"&client_id=client",
        "repeated": grant + b"&" + grant,
        "broken": b"a=%zz",
        "no utf8": b"a=%C3",
        "empty values": b"grant_type=&scope&=x",
        "many fields": b"&".join(b"f%d=1" % number for number in range(20)),
        "empty": b"",
    }.items():
        yield f"form {name}", b"F" + body
    for name, request in {
        "same client twice": (form, b"", b"Basic YTpi", grant + b"&client_id=a"),
        "credentials twice": (form, b"", b"Basic YTpi", grant + b"&client_id=a&client_secret=b"),
        "json": (b"application/json", b"", b"", b'{"grant_type":"client_credentials"}'),
        "charset": (form.upper() + b"; charset=utf-8", b"", b"Basic YTpi", grant),
        "query": (form, b"client_secret=x", b"", grant),
    }.items():
        yield f"request {name}", b"*" + b"\0".join(request)


if __name__ == "__main__":
    main()
