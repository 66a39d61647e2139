"""What a mutation run over `security.client_auth` found that no other test asserts: see docs/proof.md."""

from __future__ import annotations

import base64

import pytest

from security.client_auth import FORM_TYPE, parse_basic, parse_form, presented_credentials, required_parameter
from security.errors import OAuthError

_FORM = [(b"content-type", FORM_TYPE.encode())]
_BASIC = (b"authorization", b"Basic " + base64.b64encode(b"client:secret"))


def _of_length(length: int) -> bytes:
    """A good Basic header of exactly so many bytes (a multiple of four and two more)."""
    pair_bytes = (length - len(b"Basic ")) // 4 * 3
    header = b"Basic " + base64.b64encode(b"client:" + b"s" * (pair_bytes - len(b"client:")))
    assert len(header) == length
    return header


def test_a_basic_header_of_exactly_the_bound_is_read_and_a_longer_one_is_not() -> None:
    longest = _of_length(1022)
    assert parse_basic(longest).client_id == "client"
    assert parse_basic(longest + b"  ").client_id == "client"
    with pytest.raises(OAuthError):
        parse_basic(longest + b"   ")


@pytest.mark.parametrize(
    ("headers", "form", "code", "sentence"),
    [
        ([_BASIC, _BASIC], {}, "invalid_request", "There is more than one Authorization header."),
        (
            [_BASIC],
            {"client_secret": "secret"},
            "invalid_request",
            "Use HTTP Basic or the request body for the client's credentials, not both.",
        ),
        ([], {}, "invalid_client", "Client authentication is needed."),
        (
            [(b"authorization", b"Basic ????")],
            {},
            "invalid_client",
            "The Authorization header holds no well-formed Basic credentials.",
        ),
    ],
)
def test_each_refusal_of_credentials_says_what_is_wrong_and_nothing_of_what_was_sent(
    headers: list[tuple[bytes, bytes]], form: dict[str, str], code: str, sentence: str
) -> None:
    with pytest.raises(OAuthError) as refused:
        presented_credentials(headers, form)
    assert (refused.value.code, str(refused.value)) == (code, sentence)


@pytest.mark.parametrize(
    ("query", "body", "sentence"),
    [
        (b"client_secret=hush", b"", "Parameters belong in the request body, not in the URL."),
        (b"", b"a=%zz", "The request body is not a well-formed form."),
        (b"", b"a=1&a=2", "A parameter is repeated."),
        (b"", b"a" * 8193, "The request body is too large."),
    ],
)
def test_each_refusal_of_a_form_says_what_is_wrong_and_nothing_of_what_was_sent(query: bytes, body: bytes, sentence: str) -> None:
    with pytest.raises(OAuthError) as refused:
        parse_form(_FORM, query, body)
    assert (refused.value.code, str(refused.value)) == ("invalid_request", sentence)


def test_a_body_of_another_kind_is_told_which_kind_is_needed() -> None:
    with pytest.raises(OAuthError, match=r"^The request body must be application/x-www-form-urlencoded\.$"):
        parse_form([(b"content-type", b"application/json")], b"", b"{}")


def test_a_form_of_exactly_the_bound_is_read() -> None:
    assert parse_form(_FORM, b"", b"a=" + b"b" * 8190) == {"a": "b" * 8190}


def test_a_missing_parameter_is_named_and_a_present_one_is_returned() -> None:
    assert required_parameter({"token": "value"}, "token") == "value"
    with pytest.raises(OAuthError) as refused:
        required_parameter({"other": "value"}, "token")
    assert (refused.value.code, str(refused.value)) == ("invalid_request", "The parameter token is missing.")
