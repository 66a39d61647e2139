"""Base64 of pictures, as people and programs write it: what is accepted, and that nothing else is."""

from __future__ import annotations

import base64
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from api.body import decode_base64
from api.errors import InvalidRequest
from security.errors import BodyTooLarge

_STRICT = re.compile(r"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?")
_TEXT = st.text(st.sampled_from("AQZaz059+/=-_ \n\0é,;:data") | st.characters(), max_size=40)
_HEAD = st.from_regex(r"\A(data|DATA):[a-z]{0,9}/?[a-z+.]{0,9}(;[a-z]+=[a-z0-9]+)?;(base64|BASE64),\Z")
_ENOUGH = 1000


@given(_TEXT)
@example("QUI=")
@example("QUI")
@example("QU I=")
@example("QUI==")
@example("QUJD=")  # binascii takes it
@example("QUJDQQ==")
@example("QUJDR===")
@example("QUI=QUI=")
@example("QUJ\n")
@example("=")
@example("QUI_")
@example("ＱＵＩ＝")  # full-width letters, which are letters too
def test_only_strict_base64_is_accepted(text: str) -> None:
    """RFC 4648 section 3: no white space, no other alphabet, padding where it belongs and nowhere else."""
    try:
        decoded = decode_base64(text, max_bytes=_ENOUGH)
    except InvalidRequest:
        assert not _STRICT.fullmatch(text)
    else:
        assert _STRICT.fullmatch(text.rpartition(",")[2])
        assert base64.b64encode(decoded).decode()[:-3] == text.rpartition(",")[2][:-3]


@given(st.binary(), _HEAD)
def test_a_data_url_stands_for_the_same_bytes_as_its_base64(data: bytes, head: str) -> None:
    text = base64.b64encode(data).decode()
    assert decode_base64(head + text, max_bytes=_ENOUGH) == decode_base64(text, max_bytes=_ENOUGH) == data


@given(st.text(st.sampled_from("data:,;base64=/ Q"), max_size=40).map("data:".__add__))
def test_a_data_url_without_its_word_base64_is_refused(text: str) -> None:
    head = text.partition(",")[0].lower()
    if not head.endswith(";base64") or "," not in text:
        with pytest.raises(InvalidRequest):
            decode_base64(text, max_bytes=_ENOUGH)


@given(_TEXT, st.integers(0, 30))
def test_what_is_decoded_is_never_longer_than_was_allowed(text: str, max_bytes: int) -> None:
    try:
        assert len(decode_base64(text, max_bytes=max_bytes)) <= max_bytes
    except (InvalidRequest, BodyTooLarge) as refusal:
        assert text not in str(refusal) or len(text) < 3  # noqa: PT017 # the refusal repeats nothing
