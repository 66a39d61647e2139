"""A disk without a free byte, under the registry, the keys and the metrics' fallback. Uploads in that state are case 117 of the attacks."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence

import psutil
import pytest

from support.full_disk import Disk, small_disk
from support.oauth import post, wait_for_status
from support.pictures import encode, photo
from support.service import PACKAGED, Service


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Disk]:
    with small_disk(tmp_path_factory.mktemp("disk")) as one:
        yield one


@pytest.fixture(scope="module")
def service(disk: Disk, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with Service(disk.folder, PACKAGED | {"TMPDIR": str(tmp_path_factory.mktemp("tmp"))}) as one:
        one.wait_ready()
        yield one


def lensgate(service: Service, before: Sequence[str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*before, sys.executable, "-m", "api.cli", *arguments],
        cwd=service.folder,
        env=service.environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_a_full_disk_stops_what_must_be_written_with_one_clear_line_and_nothing_else(service: Service, disk: Disk) -> None:
    client = service.create_client("full")
    spare = service.token(client)
    picture = encode(photo(), "JPEG")
    keys = sorted(path.name for path in (service.folder / "keys").iterdir())
    after = len(service.log)
    family = psutil.Process(service.process.pid).children(recursive=True)
    with disk.full(family) as before:
        token = service.token(client)
        assert service.predict(picture, token, "image/jpeg").json()["label"] == "espresso"
        assert service.get("/readyz").status_code == 200
        refused = post(service, "/oauth2/revoke", {"token": spare}, client)
        assert (refused.status_code, refused.json()["error"]) == (503, "temporarily_unavailable")
        assert int(refused.headers["retry-after"]) >= 1
        assert service.get("/models", spare).status_code == 200, "it was told that it is not revoked"
        for arguments, says in (
            (["clients", "create", "more", "--scope", "predict"], "lensgate: error: The client registry is not available: "),
            (["clients", "disable", "full"], "lensgate: error: The client registry is not available: "),
            (["keys", "rotate"], "lensgate: error: No key can be written into the keys folder "),
        ):
            run = lensgate(service, before, *arguments)
            assert run.returncode == 1
            assert run.stdout == ""
            assert run.stderr.startswith(says), run.stderr
            assert len(run.stderr.splitlines()) == 1
            assert not disk.mounted or "disk is full" in run.stderr or "No space left on device" in run.stderr
    # With space again all of it works, without a restart, and nothing is half-made.
    assert sorted(path.name for path in (service.folder / "keys").iterdir()) == keys
    assert "more" not in lensgate(service, [], "clients", "list").stdout
    assert lensgate(service, [], "keys", "rotate").returncode == 0
    assert post(service, "/oauth2/revoke", {"token": spare}, client).status_code == 200
    wait_for_status(service, spare, 401)
    assert lensgate(service, [], "clients", "disable", "full").returncode == 0
    wait_for_status(service, token, 401)
    assert [line for line in service.log[after:] if line["level"] == "error" or line.get("status") == 500] == []
