"""The checks of a request's head: what any parser might let through, without one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from security.wire_request import Head, WireRefusal, check_head

HOST = (b"host", b"a.example:8000")


@pytest.mark.parametrize(
    ("headers", "head"),
    [
        ([], Head(b"/x?y", 0, has_body=False)),
        ([(b"content-length", b"0")], Head(b"/x?y", 0, has_body=False)),
        ([(b"content-length", b" 12\t")], Head(b"/x?y", 12, has_body=True)),
        ([(b"transfer-encoding", b"Chunked")], Head(b"/x?y", None, has_body=True)),
    ],
)
def test_the_framing_of_a_good_head_is_known(headers: list[tuple[bytes, bytes]], head: Head) -> None:
    assert check_head(b"POST", "1.1", b"/x?y", [HOST, *headers]) == head


@pytest.mark.parametrize(
    ("target", "path", "authority"),
    [
        (b"http://b.example/x?y", b"/x?y", b"b.example"),
        (b"HTTPS://b.example:9", b"/", b"b.example:9"),
        (b"http://[::1]?y", b"/?y", b"[::1]"),
    ],
)
def test_an_absolute_target_becomes_a_path_and_its_authority_the_host(target: bytes, path: bytes, authority: bytes) -> None:
    headers = [(b"accept", b"*/*"), HOST]
    assert check_head(b"GET", "1.1", target, headers).target == path
    assert headers == [(b"accept", b"*/*"), (b"host", authority)]


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ([], "host"),
        ([HOST, HOST], "host"),
        ([(b"host", b"a\x00b")], "host"),
        ([(b"host", b"a" * 256)], "host"),
        ([HOST, (b"content-length", b"1"), (b"transfer-encoding", b"chunked")], "framing"),
        ([HOST, (b"content-length", b"1"), (b"content-length", b"1")], "framing"),
        ([HOST, (b"transfer-encoding", b"chunked"), (b"transfer-encoding", b"chunked")], "framing"),
        ([HOST, (b"transfer-encoding", b"gzip, chunked")], "framing"),
        ([HOST, (b"transfer-encoding", b"identity")], "framing"),
        ([HOST, (b"content-length", "٣".encode())], "framing"),
        ([HOST, (b"content-length", b"0" * 21)], "framing"),
        ([HOST, (b"content-length", b"-1")], "framing"),
    ],
)
def test_an_ambiguous_head_is_refused(headers: list[tuple[bytes, bytes]], reason: str) -> None:
    with pytest.raises(WireRefusal) as refused:
        check_head(b"POST", "1.1", b"/", headers)
    assert (refused.value.code, refused.value.reason) == ("malformed_body", reason)


@pytest.mark.parametrize(
    "target", [b"*", b"a.example:80", b"http://", b"http:///x", b"http://u@a/", b"ftp://a/", b"/x#y", b"", b"http://a b/"]
)
def test_a_target_that_is_not_for_an_origin_server_is_refused(target: bytes) -> None:
    with pytest.raises(WireRefusal, match="target"):
        check_head(b"GET", "1.1", target, [HOST])


def test_http_1_0_needs_no_host_and_has_no_chunks() -> None:
    assert check_head(b"GET", "1.0", b"/", []).target == b"/"
    with pytest.raises(WireRefusal):
        check_head(b"POST", "1.0", b"/", [(b"transfer-encoding", b"chunked")])


@pytest.mark.parametrize(("method", "version"), [(b"CONNECT", "1.1"), (b"GET", "0.9"), (b"GET", "2.0")])
def test_other_protocols_are_refused(method: bytes, version: str) -> None:
    with pytest.raises(WireRefusal):
        check_head(method, version, b"/", [HOST])


_VALUES = st.binary(max_size=40) | st.sampled_from([b"1", b"chunked", b"a.example", b"[::1]:80", b"0" * 30, b"\xff"])
_HEADERS = st.lists(st.tuples(st.sampled_from([b"host", b"content-length", b"transfer-encoding", b"x"]), _VALUES), max_size=6)
_TARGETS = st.binary(max_size=60) | st.builds(lambda rest: b"http://" + rest, st.binary(max_size=60))


@given(target=_TARGETS, headers=_HEADERS, version=st.sampled_from(["0.9", "1.0", "1.1", "2.0"]))
def test_any_head_is_refused_or_leaves_one_path_one_host_and_one_framing(
    target: bytes, headers: list[tuple[bytes, bytes]], version: str
) -> None:
    try:
        head = check_head(b"POST", version, target, headers)
    except WireRefusal:
        return
    assert head.target.startswith(b"/")
    assert b"#" not in head.target
    names = [name for name, _ in headers]
    assert names.count(b"host") == 1 or (version == "1.0" and b"host" not in names)
    assert names.count(b"content-length") + names.count(b"transfer-encoding") <= 1
