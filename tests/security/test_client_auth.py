from __future__ import annotations

import base64
import contextlib
from urllib.parse import quote_plus, urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from security.client_auth import ClientCredentials, parse_basic, parse_form, presented_credentials
from security.errors import OAuthError

FORM_HEADERS = [(b"content-type", b"application/x-www-form-urlencoded")]


def basic(pair: bytes) -> bytes:
    return b"Basic " + base64.b64encode(pair)


def refusal_of_basic(header: bytes) -> None:
    with pytest.raises(OAuthError) as refused:
        parse_basic(header)
    assert refused.value.code == "invalid_client"


def refusal_of_form(body: bytes, headers: list[tuple[bytes, bytes]] | None = None, query: bytes = b"") -> OAuthError:
    with pytest.raises(OAuthError) as refused:
        parse_form(FORM_HEADERS if headers is None else headers, query, body)
    assert refused.value.code == "invalid_request"
    return refused.value


def test_basic_credentials_are_read() -> None:
    assert parse_basic(basic(b"client_a:lgs_b:c")) == ClientCredentials("client_a", "lgs_b:c")


@pytest.mark.parametrize("scheme", [b"basic ", b"BASIC ", b"Basic   "])
def test_the_scheme_is_read_as_rfc_9110_writes_it(scheme: bytes) -> None:
    assert parse_basic(scheme + base64.b64encode(b"a:b")).client_id == "a"


@given(client_id=st.text(st.characters(codec="utf-8"), min_size=1, max_size=40), secret=st.text(st.characters(codec="utf-8"), max_size=40))
def test_whatever_is_form_encoded_into_basic_comes_out_again(client_id: str, secret: str) -> None:
    pair = f"{quote_plus(client_id)}:{quote_plus(secret)}".encode()
    assert parse_basic(basic(pair)) == ClientCredentials(client_id, secret)


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"Basic",
        b"Basic ",
        b"Basic !!!!",
        b"Basic YTpi YTpi",
        b"Basic YTpi=",
        b"Basic YTp",
        b"Basic YTpi\n",
        b"Basic \xff\xff",
        b"Bearer YTpi",
        b"BasicYTpi",
        basic(b"no colon"),
        basic(b":no id"),
        basic(b""),
        basic(b"\xff:\xff"),
        basic(b"a:%ff"),
        basic(b"a:%zz"),
        basic(b"a:%"),
        basic(b"a:" + b"x" * 1024),
    ],
)
def test_33_what_is_no_basic_authenticates_nobody(header: bytes) -> None:
    refusal_of_basic(header)


@given(header=st.binary(max_size=200) | st.binary(max_size=100).map(basic))
def test_whatever_the_header_there_is_an_id_or_an_oauth_error(header: bytes) -> None:
    with contextlib.suppress(OAuthError):
        assert parse_basic(header).client_id


def test_a_secret_shows_in_no_representation() -> None:
    assert "hunter2" not in repr(ClientCredentials("a", "hunter2"))


@pytest.mark.parametrize(
    "content_type",
    [b"application/x-www-form-urlencoded", b"Application/X-WWW-Form-URLencoded ; charset=utf-8", b" application/x-www-form-urlencoded"],
)
def test_a_form_is_read(content_type: bytes) -> None:
    form = parse_form([(b"content-type", content_type)], b"", b"grant_type=client_credentials&scope=predict+metrics%20x&%C3%A9=1")
    assert form == {"grant_type": "client_credentials", "scope": "predict metrics x", "é": "1"}


def test_an_empty_parameter_counts_as_absent() -> None:
    assert parse_form(FORM_HEADERS, b"", b"a=&b=1&c&&") == {"b": "1"}


def test_27_json_is_an_invalid_request() -> None:
    refusal_of_form(b"{}", [(b"content-type", b"application/json")])


@pytest.mark.parametrize("headers", [[], [(b"content-type", b"multipart/form-data")], [(b"content-type", b"")], FORM_HEADERS * 2])
def test_anything_but_one_form_content_type_is_an_invalid_request(headers: list[tuple[bytes, bytes]]) -> None:
    refusal_of_form(b"a=1", headers)


@pytest.mark.parametrize("body", [b"a=1&a=2", b"a=1&a=1", b"a=&a=1", b"a&a", b"client%5Fid=a&client_id=b"])
def test_31_a_repeated_parameter_is_an_invalid_request(body: bytes) -> None:
    refusal_of_form(body)


@pytest.mark.parametrize("query", [b"client_secret=hunter2", b"client%5Fsecret=hunter2", b"x", b"="])
def test_32_parameters_in_the_url_are_an_invalid_request(query: bytes) -> None:
    assert "hunter2" not in str(refusal_of_form(b"a=1", query=query))


@pytest.mark.parametrize(
    "body", [b"\xff=1", b"a=\xc3\xa9", b"a=%ff", b"a=%f", b"a=%", b"%zz=1", "&".join(f"{n}=1" for n in range(17)).encode()]
)
def test_43_a_form_that_is_malformed_is_an_invalid_request_that_echoes_nothing(body: bytes) -> None:
    assert str(refusal_of_form(body)) == "The request body is not a well-formed form."


def test_a_form_of_8_kib_is_read_and_a_byte_more_is_not() -> None:
    assert len(parse_form(FORM_HEADERS, b"", b"a=" + b"x" * 8190)["a"]) == 8190
    refusal_of_form(b"a=" + b"x" * 8191)


@given(
    form=st.dictionaries(
        st.text(st.characters(codec="utf-8"), max_size=10), st.text(st.characters(codec="utf-8"), min_size=1, max_size=10), max_size=16
    )
)
def test_whatever_is_form_encoded_comes_out_again(form: dict[str, str]) -> None:
    assert parse_form(FORM_HEADERS, b"", urlencode(form).encode()) == form


@given(body=st.binary(max_size=100))
def test_whatever_the_body_there_is_a_form_or_an_oauth_error(body: bytes) -> None:
    with contextlib.suppress(OAuthError):
        assert all(parse_form(FORM_HEADERS, b"", body).values())


def test_credentials_are_read_from_the_body() -> None:
    assert presented_credentials([], {"client_id": "a", "client_secret": "b"}) == ClientCredentials("a", "b")


@pytest.mark.parametrize("form", [{}, {"client_id": "a"}])
def test_credentials_are_read_from_basic(form: dict[str, str]) -> None:
    assert presented_credentials([(b"authorization", basic(b"a:b"))], form) == ClientCredentials("a", "b")


@pytest.mark.parametrize("form", [{"client_id": "a", "client_secret": "b"}, {"client_secret": "b"}, {"client_id": "other"}])
def test_30_basic_and_body_together_are_an_invalid_request(form: dict[str, str]) -> None:
    with pytest.raises(OAuthError) as refused:
        presented_credentials([(b"authorization", basic(b"a:b"))], form)
    assert refused.value.code == "invalid_request"


def test_two_authorization_headers_are_an_invalid_request() -> None:
    with pytest.raises(OAuthError) as refused:
        presented_credentials([(b"authorization", basic(b"a:b"))] * 2, {})
    assert refused.value.code == "invalid_request"


@pytest.mark.parametrize("form", [{}, {"client_id": "a"}, {"client_secret": "b"}])
def test_no_credentials_authenticate_nobody(form: dict[str, str]) -> None:
    with pytest.raises(OAuthError) as refused:
        presented_credentials([], form)
    assert refused.value.code == "invalid_client"
