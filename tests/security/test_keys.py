from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from structlog.testing import capture_logs

from security.errors import KeysError
from security.key_files import MAX_KEYS, key_files, read_key
from security.keys import create_key, ensure_keys

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey


def write_key(path: Path, key: PrivateKey, encryption: KeySerializationEncryption | None = None) -> Path:
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption or NoEncryption()))
    path.chmod(0o600)
    return path


def test_a_new_key_is_readable_by_its_owner_only_even_under_an_open_umask(tmp_path: Path) -> None:
    previous = os.umask(0)
    try:
        kid = create_key(tmp_path / "keys")
    finally:
        os.umask(previous)
    assert stat.S_IMODE((tmp_path / "keys").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "keys" / f"{kid}.pem").stat().st_mode) == 0o600


def test_a_new_key_is_called_by_its_time_and_its_thumbprint(tmp_path: Path) -> None:
    kid = create_key(tmp_path, created_at=1_800_000_000)
    public = read_key(tmp_path / f"{kid}.pem").public_jwk
    canonical = json.dumps({"crv": "P-256", "kty": "EC", "x": public["x"], "y": public["y"]}, separators=(",", ":"))
    thumbprint = base64.urlsafe_b64encode(hashlib.sha256(canonical.encode()).digest()).decode()
    assert kid == f"20270115T080000Z-{thumbprint[:8]}"


def test_a_new_key_leaves_no_other_file_behind(tmp_path: Path) -> None:
    kid = create_key(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [f"{kid}.pem"]


def test_a_key_read_back_has_the_time_of_its_name(tmp_path: Path) -> None:
    kid = create_key(tmp_path, created_at=1_800_000_000)
    assert read_key(tmp_path / f"{kid}.pem").created_at == 1_800_000_000


@pytest.mark.parametrize("name", ["blue", "20271399T000000Z-AAAAAAAA"])
def test_a_key_whose_name_holds_no_time_counts_from_its_modification_time(tmp_path: Path, name: str) -> None:
    path = write_key(tmp_path / f"{name}.pem", ec.generate_private_key(ec.SECP256R1()))
    os.utime(path, (1_700_000_000, 1_700_000_000))
    assert read_key(path).created_at == 1_700_000_000


def test_an_rsa_key_can_be_made_and_is_published_without_private_members(tmp_path: Path) -> None:
    key = read_key(tmp_path / f"{create_key(tmp_path, algorithm='RS256')}.pem")
    assert set(key.public_jwk) == {"kty", "n", "e", "kid", "use", "alg"}
    assert (key.public_jwk["alg"], key.public_jwk["e"], key.public_jwk["use"]) == ("RS256", "AQAB", "sig")


def test_coordinates_keep_their_leading_zeros(tmp_path: Path) -> None:
    for secret in range(1, 5000):
        key = ec.derive_private_key(secret, ec.SECP256R1())
        if key.public_key().public_numbers().x >> 248 == 0:
            break
    public = read_key(write_key(tmp_path / "zero.pem", key)).public_jwk
    assert len(public["x"]) == len(public["y"]) == 43
    assert public["x"].startswith("A")


def test_the_private_half_shows_in_no_representation(tmp_path: Path) -> None:
    key = read_key(tmp_path / f"{create_key(tmp_path)}.pem")
    assert "jose" not in repr(key)


def test_a_key_behind_kubernetes_links_and_group_readable_is_accepted_in_silence(tmp_path: Path) -> None:
    (tmp_path / "..data").mkdir()
    write_key(tmp_path / "..data" / "blue.pem", ec.generate_private_key(ec.SECP256R1())).chmod(0o440)
    (tmp_path / "blue.pem").symlink_to(Path("..data") / "blue.pem")
    with capture_logs() as events:
        assert [read_key(path).kid for path in key_files(tmp_path)] == ["blue"]
    assert events == []


def test_a_key_that_everyone_may_read_is_accepted_with_a_warning(tmp_path: Path) -> None:
    path = write_key(tmp_path / "blue.pem", ec.generate_private_key(ec.SECP256R1()))
    path.chmod(0o444)
    with capture_logs() as events:
        read_key(path)
    assert events == [{"event": "key_file_readable_by_everyone", "file": "blue.pem", "mode": "0o444", "log_level": "warning"}]


def test_a_key_that_everyone_may_write_is_refused(tmp_path: Path) -> None:
    path = write_key(tmp_path / "blue.pem", ec.generate_private_key(ec.SECP256R1()))
    path.chmod(0o602)
    with pytest.raises(KeysError, match=r"'blue\.pem' can be written by everyone"):
        read_key(path)


@pytest.mark.parametrize(
    "key",
    [
        pytest.param(ec.generate_private_key(ec.SECP384R1()), id="P-384"),
        pytest.param(ec.generate_private_key(ec.SECP256K1()), id="secp256k1"),
        pytest.param(ed25519.Ed25519PrivateKey.generate(), id="Ed25519"),
        pytest.param(rsa.generate_private_key(public_exponent=65537, key_size=1024), id="RSA-1024"),
    ],
)
def test_a_key_of_the_wrong_kind_is_refused_by_name(tmp_path: Path, key: PrivateKey) -> None:
    with pytest.raises(KeysError, match=r"'blue\.pem' is of the wrong kind"):
        read_key(write_key(tmp_path / "blue.pem", key))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a key",
        b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
        ec.generate_private_key(ec.SECP256R1()).public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        ec.generate_private_key(ec.SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")),
        ec.generate_private_key(ec.SECP256R1()).private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()),
    ],
    ids=["empty", "text", "garbage", "public", "encrypted", "DER"],
)
def test_a_file_that_is_no_plain_private_key_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "blue.pem").write_bytes(content)
    with pytest.raises(KeysError, match=r"'blue\.pem' is not an unencrypted PEM private key"):
        read_key(tmp_path / "blue.pem")


def test_a_file_too_large_for_a_key_is_refused(tmp_path: Path) -> None:
    (tmp_path / "blue.pem").write_bytes(b"-" * 40_000)
    with pytest.raises(KeysError, match="too large"):
        read_key(tmp_path / "blue.pem")


def test_a_badly_named_key_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KeysError, match="badly named"):
        read_key(write_key(tmp_path / "my key.pem", ec.generate_private_key(ec.SECP256R1())))


def test_a_named_pipe_does_not_stop_the_reader(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "blue.pem")
    with pytest.raises(KeysError, match="not a regular file"):
        read_key(tmp_path / "blue.pem")


def test_a_dangling_link_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "blue.pem").symlink_to("nowhere")
    with pytest.raises(KeysError, match=r"'blue\.pem' cannot be read: No such file"):
        read_key(tmp_path / "blue.pem")


def test_other_files_and_hidden_ones_are_no_keys(tmp_path: Path) -> None:
    kid = create_key(tmp_path)
    for name in ("README", ".blue.pem", "blue.pem.bak", f".{kid}.unfinished"):
        (tmp_path / name).touch()
    assert [path.name for path in key_files(tmp_path)] == [f"{kid}.pem"]


def test_a_folder_with_too_many_keys_is_refused(tmp_path: Path) -> None:
    for number in range(MAX_KEYS + 1):
        (tmp_path / f"{number}.pem").touch()
    with pytest.raises(KeysError, match="at most 64"):
        key_files(tmp_path)


def test_a_missing_folder_is_reported_as_such(tmp_path: Path) -> None:
    with pytest.raises(KeysError, match="cannot be read: No such file or directory"):
        key_files(tmp_path / "keys")


def test_the_first_key_is_made_in_a_missing_folder(tmp_path: Path) -> None:
    kid = ensure_keys(tmp_path / "deep" / "keys", may_create=True)
    assert [path.stem for path in key_files(tmp_path / "deep" / "keys")] == [kid]


def test_a_folder_that_has_a_key_gets_no_other(tmp_path: Path) -> None:
    create_key(tmp_path)
    assert ensure_keys(tmp_path, may_create=True) is None
    assert ensure_keys(tmp_path, may_create=False) is None
    assert len(key_files(tmp_path)) == 1


@pytest.mark.parametrize("exists", [True, False])
def test_a_replica_never_invents_a_key(tmp_path: Path, exists: bool) -> None:
    folder = tmp_path / "keys"
    if exists:
        folder.mkdir()
    with pytest.raises(KeysError, match=re.escape("`lensgate keys rotate`")):
        ensure_keys(folder, may_create=False)
    assert not exists or list(folder.iterdir()) == []


def test_many_starting_at_once_make_one_key_between_them(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: ensure_keys(tmp_path / "keys", may_create=True), range(16)))
    assert len([kid for kid in made if kid]) == 1
    assert len(key_files(tmp_path / "keys")) == 1


@pytest.mark.parametrize("make", [create_key, lambda folder: ensure_keys(folder, may_create=True)])
def test_a_folder_that_cannot_be_made_is_one_clear_line(tmp_path: Path, make: object) -> None:
    (tmp_path / "file").touch()
    assert callable(make)
    with pytest.raises(KeysError, match=r"^[^\n]*: Not a directory\.$"):
        make(tmp_path / "file" / "keys")
