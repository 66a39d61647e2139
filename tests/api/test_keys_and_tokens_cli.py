"""`lensgate keys` and `lensgate tokens`: what they do and what they say."""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from api.cli import app
from security.clients import ClientRegistry
from security.database import Database
from security.errors import KeysError, RegistryError
from security.key_files import read_key
from security.keys import create_key
from security.tokens import MAX_TOKEN_LIFETIME_S


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty working directory, and no setting of the person who runs the tests."""
    monkeypatch.chdir(tmp_path)
    for name in os.environ:
        if name.startswith("LENSGATE_"):
            monkeypatch.delenv(name)
    return tmp_path


@pytest.fixture
def registry(folder: Path) -> Path:
    """The folder is the service's: it has a client registry."""
    run("db", "upgrade")
    return folder / "lensgate.db"


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments, catch_exceptions=False)


def listed() -> list[tuple[str, str, str]]:
    return [(key["kid"], key["algorithm"], key["state"]) for key in json.loads(run("keys", "list", "--json").stdout)]


def test_keys_from_the_first_to_the_one_after_the_last(folder: Path) -> None:
    assert "signs from now on" in run("keys", "rotate").stdout
    [(first, algorithm, state)] = listed()
    assert (algorithm, state) == ("ES256", "signing")
    said = run("keys", "rotate", "--algorithm", "RS256").stdout
    assert "published within 2 s, it signs in 9 s" in said
    assert [(algorithm, state) for _, algorithm, state in listed()] == [("ES256", "signing"), ("RS256", "published")]
    assert "Deleted nothing" in run("keys", "prune").stdout
    assert {path.stem for path in (folder / "keys").iterdir()} == {kid for kid, *_ in listed()}
    assert first in run("keys", "list").stdout


def test_a_key_for_replicas_far_away_signs_later(folder: Path) -> None:
    run("keys", "rotate")
    said = run("keys", "rotate", "--sign-after-s", "3600").stdout
    assert "it signs in 3600 s" in said
    newest = read_key(max((folder / "keys").iterdir()))
    assert newest.created_at > time.time() + 3000


def test_an_old_key_is_shown_with_how_long_it_is_needed_and_pruned_by_name(folder: Path) -> None:
    now = time.time()
    old, new = (create_key(folder / "keys", created_at=now - days * 86_400) for days in (9, 2))
    lines = run("keys", "list").stdout.splitlines()
    assert [line.split()[0] for line in lines] == [old, new]
    assert "retired" in lines[0]
    assert "needed until" in lines[0]
    assert run("keys", "prune").stdout == f"Deleted the key {old}.\n"
    assert [kid for kid, *_ in listed()] == [new]


def test_a_warning_about_a_key_file_does_not_stand_in_the_json(folder: Path) -> None:
    kid = create_key(folder / "keys")
    (folder / "keys" / f"{kid}.pem").chmod(0o644)
    result = run("keys", "list", "--json")
    assert [key["kid"] for key in json.loads(result.stdout)] == [kid]
    assert "key_file_readable_by_everyone" in result.stderr


@pytest.mark.parametrize("command", ["list", "prune"])
def test_without_a_folder_there_is_one_clear_line_and_no_folder_is_made(folder: Path, command: str) -> None:
    with pytest.raises(KeysError, match="lensgate keys rotate"):
        run("keys", command)
    assert not (folder / "keys").exists()


@pytest.mark.parametrize(
    "command",
    [
        ["tokens", "revoke", "7Jz0yVw2sQk3cT1xRb9uAg"],
        *(["clients", command, "app"] for command in ("show", "rotate-secret", "disable", "enable", "delete")),
        ["clients", "set-tier", "app", "standard"],
    ],
    ids=" ".join,
)
def test_in_a_folder_that_is_not_the_services_nothing_is_made_and_nothing_succeeds(folder: Path, command: list[str]) -> None:
    where = f"there is no client registry at {folder}/lensgate.db (LENSGATE_SECURITY__DATABASE_URL; is this the service's folder?)"
    with pytest.raises(RegistryError, match=re.escape(where)):
        run(*command)
    assert list(folder.iterdir()) == []


def test_where_there_is_no_registry_no_clients_are_listed_and_none_is_made(folder: Path) -> None:
    listed = run("clients", "list", "--json")
    assert (listed.exit_code, json.loads(listed.stdout)) == (0, [])
    assert f"there is no client registry at {folder}/lensgate.db" in listed.stderr
    assert list(folder.iterdir()) == []


def test_a_first_key_says_where_it_is_and_whether_that_was_new(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "keys").mkdir(mode=0o700)
    assert f" in {folder}/keys: it signs from now on" in run("keys", "rotate").stdout
    # Replicas need theirs before the first start; but in a folder that is not the service's it would be for nobody.
    monkeypatch.setenv("LENSGATE_SECURITY__KEYS_DIR", "replicas")
    assert f" in {folder}/replicas, which is new, for services that read it there: it signs from now on" in run("keys", "rotate").stdout


@pytest.mark.parametrize(
    "jti",
    ["7Jz0yVw2sQk3cT1xRb9uAg", "-4z0yVw2sQk3cT1xRb9uAg", "--z0yVw2sQk3cT1xRb9uAg", "-hJz0yVw2sQk3cT1xRb9uA", "-Jhz0yVw2sQk3cT1xRb9uA"],
)
def test_a_token_revoked_by_its_id_stays_so_for_as_long_as_any_token_lives(registry: Path, jti: str) -> None:
    began = time.time()
    said = run("tokens", "revoke", jti).stdout
    assert said == f"Revoked the token {jti}: every worker refuses it within 2 s.\n"

    async def revoked_at(now: float) -> frozenset[str]:
        database = Database("sqlite+aiosqlite:///lensgate.db")
        try:
            return (await ClientRegistry(database, clock=lambda: now).snapshot()).revoked_tokens
        finally:
            await database.aclose()

    assert asyncio.run(revoked_at(began + MAX_TOKEN_LIFETIME_S - 2)) == {jti}
    assert asyncio.run(revoked_at(time.time() + MAX_TOKEN_LIFETIME_S + 3600)) == frozenset()


def test_a_whole_token_is_told_from_its_id_and_not_shown(registry: Path) -> None:
    short, long = (f"eyJhbGciOiJFUzI1NiJ9.{'x' * length}.c2lnbmF0dXJl" for length in (20, 900))
    for token in (short, long):
        with pytest.raises(RegistryError, match="that is a whole token; revoke it by its id, which is its claim `jti`") as refused:
            run("tokens", "revoke", token)
        assert token not in str(refused.value)


@pytest.mark.parametrize("jti", ["", "x" * 256, "a\nb"])
def test_what_cannot_be_a_token_id_is_refused(registry: Path, jti: str) -> None:
    with pytest.raises(RegistryError, match="1 to 255 printable"):
        run("tokens", "revoke", jti)
