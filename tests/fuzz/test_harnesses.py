"""Every fuzz harness holds on all of its kept seeds, and would notice if what it guards broke."""

from __future__ import annotations

import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from fuzz import client_auth, picture, token
from fuzz.run import HARNESSES, ROOT, SEEDS, load, seeds
from inference.image.png import SIGNATURE
from security import client_auth as parser
from security.errors import OAuthError
from security.principal import Principal
from support.pictures import encode, gradient

MAX_SEED_BYTES = 300_000
_SEEDS = [pytest.param(name, data, id=f"{name}-{title}") for name in HARNESSES for title, data in seeds(name)]


@pytest.mark.parametrize(("name", "data"), _SEEDS)
def test_the_harness_holds_on_the_seed(name: str, data: bytes) -> None:
    load(name)(data)


def test_every_harness_has_seeds_and_is_run_by_make_fuzz() -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert sorted(path.name for path in SEEDS.iterdir()) == sorted(HARNESSES)
    assert [name for name in HARNESSES if f"fuzz.run {name} --seconds $(SECONDS)" not in makefile] == []


def test_the_seeds_stay_small() -> None:
    assert sum(path.stat().st_size for path in SEEDS.rglob("*") if path.is_file()) < MAX_SEED_BYTES


def test_a_replay_from_the_command_line_says_how_many_seeds_held() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "fuzz.run", "client_auth", "--replay"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert run.stdout == f"client_auth: {len(list((SEEDS / 'client_auth').iterdir()))} seeds, nothing wrong\n"


def test_the_seeds_reach_a_principal_and_credentials() -> None:
    """Or the harnesses would look at refusals only."""
    accepted = (SEEDS / "token" / "payload-good").read_bytes()[1:]
    header = b"Bearer " + token.signed(token.HEADER, accepted)
    with pytest.raises(AssertionError):
        token._check(Principal("another", frozenset(), token.ISSUER, "id", token.NOW + 1), header.decode()[7:])
    form = parser.parse_form([(b"content-type", b"application/x-www-form-urlencoded")], b"", b"client_id=a&client_secret=b")
    assert parser.presented_credentials([], form).client_secret == "b"


def test_the_token_harness_notices_an_unchecked_signature(monkeypatch: pytest.MonkeyPatch) -> None:
    payload = (SEEDS / "token" / "payload-good").read_bytes()[1:]
    good = token.signed(token.HEADER, payload)
    forged = good[:-8] + (b"AAAAAAAA" if good[-8:] != b"AAAAAAAA" else b"BBBBBBBB")
    token.one_input(b"RBearer " + forged)
    monkeypatch.setattr("security.compact_jws.jws.verify", lambda *_, **__: payload)
    with pytest.raises(Exception, match=r"^$"):  # cryptography's InvalidSignature has no text
        token.one_input(b"RBearer " + forged)


def test_the_picture_harness_notices_an_exception_of_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise IndexError

    data = encode(gradient(9, 7), "PNG")
    picture.one_input(data)
    monkeypatch.setattr("inference.image.intake.to_rgb", broken)
    monkeypatch.setattr(picture, "_OWN_FOLDER", Path(__file__).parent)
    with pytest.raises(IndexError):
        picture.one_input(data)


def test_the_picture_harness_repairs_checksums() -> None:
    data = encode(gradient(9, 7), "PNG")
    broken = bytearray(data)
    broken[20] ^= 1
    repaired = picture.repaired_png(bytes(broken))
    assert repaired[:29] == bytes(broken[:29])
    assert int.from_bytes(repaired[29:33]) == zlib.crc32(repaired[12:29])
    assert picture.repaired_png(data) == data
    assert picture.repaired_png(SIGNATURE + b"\xff" * 30) == SIGNATURE + b"\xff" * 30


def test_the_form_harness_notices_an_echo(monkeypatch: pytest.MonkeyPatch) -> None:
    def echo(authorization: bytes) -> None:
        raise OAuthError("invalid_client", f"What is {authorization!r}?")

    monkeypatch.setattr(client_auth, "_sentences", set())
    monkeypatch.setattr(parser, "parse_basic", echo)
    for number in range(client_auth._MAX_SENTENCES):
        client_auth.one_input(b"A%d" % number)
    with pytest.raises(AssertionError):
        client_auth.one_input(b"A one more")
