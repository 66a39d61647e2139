"""What a mutation run over windows, verdicts, heads and foreign tokens found that no other test asserts: see docs/proof.md."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

import pytest
from structlog.testing import capture_logs

from fuzz import token as fuzzed
from security.client_records import AuthenticatedClient
from security.errors import ClientAuthenticationFailed, InvalidToken, OAuthError
from security.foreign_tokens import ForeignTokenVerifier
from security.introspection import introspect
from security.limit_windows import SharedWindows
from security.rate_limits import Limit, Quota, Window, check_storage_url, judge
from security.tiers import Tiers, TierSettings
from security.token_grant import grant
from security.token_revocation import revoke
from security.wire_request import WireRefusal, check_head

_HOST = (b"host", b"gate.test")
_LENGTH = (b"content-length", b"1")
QUOTA = Quota("images", Limit(10, 60))


def test_a_window_tells_both_counts_and_how_long_each_lives(limits_file: int) -> None:
    windows = SharedWindows(limits_file, clock=lambda: 130.0)
    assert windows.take("key", 10, 60, 3) == (True, (0, 50.0, 3, 110.0))


def test_what_another_storage_counted_is_remembered_without_what_the_last_window_still_weighs(limits_file: int) -> None:
    now = [0.0]
    windows = SharedWindows(limits_file, clock=lambda: now[0])
    windows.take("key", 10, 60, 4)
    now[0] = 90.0
    windows.remember("key", 60, 5)
    windows.remember("new", 60, 0)
    assert windows.take("key", 10, 60, 0)[1].current_count == 3
    assert windows.take("new", 10, 60, 0)[1].current_count == 0


@pytest.mark.parametrize(
    ("window", "cost", "admitted", "remaining", "retry_after_s"),
    [
        (Window(10, 30.0, 2, 90.0), 1, True, 3, 0),
        (Window(10, 42.0, 4, 102.0), 1, False, 0, 7),  # at 36 s left the old ten weigh six, and at that moment it is still refused
        (Window(0, 30.0, 10, 90.0), 1, False, 0, 31),
        (Window(0, 30.0, 5, 90.0), 5, False, 5, 1),
    ],
)
def test_a_verdict_tells_what_is_left_and_when_to_come_back(
    window: Window, cost: int, admitted: bool, remaining: int, retry_after_s: int
) -> None:
    verdict = judge(QUOTA, window, admitted=admitted, cost=cost)
    assert (verdict.remaining, verdict.retry_after_s) == (remaining, retry_after_s)


def _head(target: bytes = b"/", *, method: bytes = b"POST", version: str = "1.1", **headers: bytes) -> Any:  # noqa: ANN401
    named = [(b"host", b"gate.test"), *((name.replace("_", "-").encode(), value) for name, value in headers.items())]
    return check_head(method, version, target, named)


@pytest.mark.parametrize(
    ("length", "expected"), [(b"0", (0, False)), (b"1", (1, True)), (b" 7\t", (7, True)), (b"7".rjust(20, b"0"), (7, True))]
)
def test_a_body_of_one_byte_is_a_body(length: bytes, expected: tuple[int, bool]) -> None:
    head = _head(content_length=length)
    assert (head.content_length, head.has_body) == expected


@pytest.mark.parametrize("length", [b"\x0b7", b"7\x0b", b"X7", b"+7", b"", b"\xb2", b"0" * 21])
def test_a_content_length_is_digits_and_nothing_else(length: bytes) -> None:
    with pytest.raises(WireRefusal):
        _head(content_length=length)


@pytest.mark.parametrize("coding", [b"chunked\x0b", b"\x0bchunked", b"Xchunked", b"identity", b"gzip, chunked"])
def test_the_only_transfer_coding_is_chunked_to_the_letter(coding: bytes) -> None:
    assert _head(transfer_encoding=b"\tChunked ").has_body
    with pytest.raises(WireRefusal):
        _head(transfer_encoding=coding)


@pytest.mark.parametrize(
    ("target", "path", "host"),
    [
        (b"http://other.test/a//b?c=//d/e?f", b"/a//b?c=//d/e?f", b"other.test"),
        (b"HTTPS://other.test:8443", b"/", b"other.test:8443"),
        (b"http://other.test?u=http://x/", b"/?u=http://x/", b"other.test"),
    ],
)
def test_an_absolute_target_names_the_host_and_the_path(target: bytes, path: bytes, host: bytes) -> None:
    headers = [(b"host", b"gate.test")]
    assert check_head(b"GET", "1.1", target, headers).target == path
    assert headers == [(b"host", host)]


@pytest.mark.parametrize(
    ("method", "version", "target", "headers", "reason", "sentence"),
    [
        (b"GET", "2.0", b"/", [_HOST], "version", "Only HTTP/1.0 and HTTP/1.1 are spoken here."),
        (b"CONNECT", "1.1", b"a.test:1", [_HOST], "connect", "This server is no proxy: CONNECT is refused."),
        (b"GET", "1.1", b"/a#b", [_HOST], "target", "A request target has no fragment."),
        (b"GET", "1.1", b"ftp://a.test/", [_HOST], "target", "The request target must be a path or an http URL."),
        (b"GET", "1.1", b"http://a.test:x/", [_HOST], "target", "The request target is not valid."),
        (b"GET", "1.1", b"http://user@a.test/", [_HOST], "target", "The request target's authority is not valid."),
        (b"GET", "1.1", b"/", [_HOST, _HOST], "host", "A request has exactly one Host header."),
        (b"GET", "1.1", b"/", [(b"host", b"\x0ba.test")], "host", "The Host header is not valid."),
        (b"GET", "1.1", b"/", [_HOST, _LENGTH, _LENGTH], "framing", "A body has one Content-Length or one Transfer-Encoding."),
        (
            b"GET",
            "1.0",
            b"/",
            [_HOST, (b"transfer-encoding", b"chunked")],
            "framing",
            "The only Transfer-Encoding that is read here is chunked, in HTTP/1.1.",
        ),
        (b"GET", "1.1", b"/", [_HOST, (b"content-length", b"x")], "framing", "The Content-Length is not a number."),
    ],
)
def test_each_refusal_of_a_head_says_what_is_wrong_and_counts_under_one_word(
    method: bytes, version: str, target: bytes, headers: list[tuple[bytes, bytes]], reason: str, sentence: str
) -> None:
    with pytest.raises(WireRefusal) as refused:
        check_head(method, version, target, list(headers))
    refusal = refused.value
    assert (refusal.code, refusal.reason, refusal.cause, refusal.detail, str(refusal)) == (
        "malformed_body",
        reason,
        None,
        sentence,
        sentence,
    )
    assert WireRefusal("malformed_body", sentence, reason, "why").cause == "why"


@pytest.mark.parametrize(("url", "good"), [("redis://cache:1/0", True), ("redis://cache:0/0", False), ("redis:///0", False)])
def test_a_storage_is_a_host_with_a_port_that_can_be(url: str, good: bool) -> None:
    if good:
        check_storage_url(url)
    else:
        with pytest.raises(ValueError, match="Redis"):
            check_storage_url(url)


def test_a_key_that_the_last_window_did_not_have_carries_nothing_over(limits_file: int) -> None:
    windows = SharedWindows(limits_file, clock=lambda: 60.0)
    windows.remember("key", 60, 5)
    assert windows.take("key", 10, 60, 0)[1].current_count == 5


def test_a_tier_that_is_not_there_counts_under_a_name_of_its_own_and_the_log_says_what_it_means() -> None:
    tiers = Tiers({"standard": TierSettings(images="5/minute", in_flight=2), "slow": TierSettings(images="1/minute", in_flight=9)})
    assert tiers.get("standard").name == "standard"
    with capture_logs() as events:
        strictest = tiers.get("gone")
    assert (strictest.name, strictest.quota.amount, strictest.in_flight) == ("strictest", 1, 2)
    [event] = events
    assert event["tier"] == "gone"
    assert event["known"] == ["slow", "standard"]
    assert event["effect"] == "its clients have the strictest limits of all tiers"


@pytest.mark.parametrize(
    ("body", "code", "sentence"),
    [
        (b"grant_type=password", "unsupported_grant_type", "Only the grant type client_credentials is supported."),
        (b"grant_type=client_credentials&scope=a++b", "invalid_scope", "The parameter scope is malformed."),
        (b"grant_type=client_credentials&scope=metrics", "invalid_scope", "The client may not have a scope that it asks for."),
        (b"grant_type=client_credentials&client_id=nobody", "invalid_client", "Client authentication failed."),
    ],
)
async def test_each_refusal_of_a_grant_says_what_is_wrong(body: bytes, code: str, sentence: str) -> None:
    class Registry:
        async def authenticate(self, client_id: str, client_secret: str) -> AuthenticatedClient | None:
            return None if client_id == "nobody" else AuthenticatedClient(client_id, ("predict",), "standard")

    client = b"nobody" if b"nobody" in body else b"client"
    headers = [(b"content-type", b"application/x-www-form-urlencoded"), (b"authorization", b"Basic " + base64.b64encode(client + b":s"))]
    nobody: Any = None
    registry: Any = Registry()
    with pytest.raises(OAuthError) as refused:
        await grant(registry, nobody, headers=headers, query=b"", body=body, now=0.0)
    assert (refused.value.code, str(refused.value)) == (code, sentence)
    if isinstance(refused.value, ClientAuthenticationFailed):
        assert refused.value.client_id == "nobody"


async def test_no_oauth_endpoint_takes_a_parameter_from_the_url() -> None:
    request: dict[str, Any] = {
        "headers": [(b"content-type", b"application/x-www-form-urlencoded")],
        "query": b"client_secret=hush",
        "body": b"grant_type=client_credentials&token=t",
        "now": 0.0,
    }
    nobody: Any = None
    for call in (
        grant(nobody, nobody, **request),
        introspect(nobody, nobody, issuer="https://gate.test", **request),
        revoke(nobody, nobody, issuer="https://gate.test", **request),
    ):
        with pytest.raises(OAuthError, match=r"^Parameters belong in the request body, not in the URL\.$"):
            await call


_CLAIMS: dict[str, object] = {
    "iss": fuzzed.FOREIGN_ISSUER,
    "sub": "s",
    "aud": fuzzed.AUDIENCE,
    "exp": fuzzed.NOW + 600,
    "iat": fuzzed.NOW,
    "azp": "app",
}


def _verify_foreign(**claims: object) -> Any:  # noqa: ANN401
    header = json.dumps({"alg": "ES256", "kid": fuzzed.KID, "typ": "JWT"}).encode()
    token = fuzzed.signed(header, json.dumps(_CLAIMS | claims).encode()).decode()
    verifier = ForeignTokenVerifier(fuzzed._foreign_profile(), fuzzed._ForeignKeys(), clock_skew_s=0)
    return token, verifier.verify(token, fuzzed.NOW)


def test_a_foreign_token_is_known_by_its_jti_or_else_by_its_claims_whatever_its_signature() -> None:
    assert _verify_foreign(jti="one")[1].token_id == "entra:one"
    token, principal = _verify_foreign()
    again, same = _verify_foreign()
    digest = base64.urlsafe_b64encode(hashlib.sha256(token.split(".")[1].encode()).digest()).rstrip(b"=").decode()
    assert token != again  # ECDSA signs differently each time
    assert principal.token_id == same.token_id == f"entra:sha256-{digest}"


def test_foreign_permissions_are_divided_by_spaces_only_and_bounded() -> None:
    assert _verify_foreign(roles="predict\tmetrics")[1].scopes == frozenset()
    assert _verify_foreign(roles="predict metrics")[1].scopes == {"predict", "metrics"}
    assert _verify_foreign(roles=["predict"] + ["x"] * 255)[1].scopes == {"predict"}
    with pytest.raises(InvalidToken):
        _verify_foreign(roles=["predict"] + ["x"] * 256)
