from __future__ import annotations

import hashlib
import os
import socket
import ssl
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import trustme

from inference.errors import ModelLoadError
from inference.worker.download import Bounds, fetch, fetch_hashed, hub_checkpoints
from support.weights_server import WeightsServer

QUICK = Bounds(read_timeout_s=0.3, total_s=60, backoff_s=0)


def test_a_download_lands_whole_in_the_cache_and_reports_its_progress(weights_server: WeightsServer, tmp_path: Path) -> None:
    reports: list[tuple[int, int | None]] = []
    path, digest = fetch_hashed(weights_server.url, directory=tmp_path / "hub", progress=lambda *report: reports.append(report))
    total = len(weights_server.content)
    assert path == tmp_path / "hub" / weights_server.name
    assert path.read_bytes() == weights_server.content
    assert digest == hashlib.sha256(weights_server.content).hexdigest()
    assert reports == sorted(reports)
    assert reports[0] == (0, total)
    assert reports[-1] == (total, total)
    assert not path.with_name(f"{path.name}.part").exists()


def test_the_cache_is_where_torch_keeps_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert hub_checkpoints() == tmp_path / "hub" / "checkpoints"


def test_a_good_cached_file_needs_neither_network_nor_a_writable_folder(weights_server: WeightsServer, tmp_path: Path) -> None:
    (tmp_path / weights_server.name).write_bytes(weights_server.content)
    assert fetch(weights_server.url, directory=tmp_path).read_bytes() == weights_server.content
    assert weights_server.ranges == []
    assert [path.name for path in tmp_path.iterdir()] == [weights_server.name]


def test_a_damaged_cached_file_is_fetched_again(weights_server: WeightsServer, tmp_path: Path) -> None:
    (tmp_path / weights_server.name).write_bytes(weights_server.content[:-1])
    assert fetch(weights_server.url, directory=tmp_path).read_bytes() == weights_server.content


def test_a_broken_transfer_goes_on_where_it_stopped(weights_server: WeightsServer, tmp_path: Path) -> None:
    weights_server.script = [weights_server.breaking_after(100_000), weights_server.whole]
    assert fetch(weights_server.url, directory=tmp_path, bounds=QUICK).read_bytes() == weights_server.content
    assert weights_server.ranges == [None, "bytes=100000-"]


def test_a_transfer_that_goes_silent_goes_on_where_it_stopped(weights_server: WeightsServer, tmp_path: Path) -> None:
    weights_server.script = [weights_server.hanging_after(100_000), weights_server.whole]
    assert fetch(weights_server.url, directory=tmp_path, bounds=QUICK).read_bytes() == weights_server.content
    assert weights_server.ranges == [None, "bytes=100000-"]


def test_any_number_of_breaks_is_borne_while_each_attempt_brings_something(weights_server: WeightsServer, tmp_path: Path) -> None:
    weights_server.script = [weights_server.breaking_after(20_000)]
    assert fetch(weights_server.url, directory=tmp_path, bounds=QUICK).read_bytes() == weights_server.content
    assert len(weights_server.ranges) == len(weights_server.content) // 20_000


def test_what_an_earlier_process_downloaded_is_used(weights_server: WeightsServer, tmp_path: Path) -> None:
    (tmp_path / f"{weights_server.name}.part").write_bytes(weights_server.content[:250_000])
    assert fetch(weights_server.url, directory=tmp_path).read_bytes() == weights_server.content
    assert weights_server.ranges == ["bytes=250000-"]


def test_a_server_that_ignores_ranges_is_read_from_the_start(weights_server: WeightsServer, tmp_path: Path) -> None:
    (tmp_path / f"{weights_server.name}.part").write_bytes(b"x" * 1000)
    weights_server.script = [weights_server.ignoring_range()]
    assert fetch(weights_server.url, directory=tmp_path).read_bytes() == weights_server.content
    assert weights_server.ranges == ["bytes=1000-"]


def test_a_spoiled_partial_file_costs_one_clean_download(weights_server: WeightsServer, tmp_path: Path) -> None:
    (tmp_path / f"{weights_server.name}.part").write_bytes(b"x" * 1000)
    assert fetch(weights_server.url, directory=tmp_path).read_bytes() == weights_server.content
    assert weights_server.ranges == ["bytes=1000-", None]


def test_a_partial_file_longer_than_the_whole_is_thrown_away(weights_server: WeightsServer, tmp_path: Path) -> None:
    (tmp_path / f"{weights_server.name}.part").write_bytes(b"x" * 400_000)
    assert fetch(weights_server.url, directory=tmp_path, bounds=QUICK).read_bytes() == weights_server.content
    assert weights_server.ranges == ["bytes=400000-", None]


def test_a_range_other_than_the_one_asked_for_is_not_appended(weights_server: WeightsServer, tmp_path: Path) -> None:
    (tmp_path / f"{weights_server.name}.part").write_bytes(weights_server.content[:1000])
    lie = weights_server.status(206, **{"Content-Range": "bytes 5-299999/300000"})
    weights_server.script = [lie, weights_server.whole]
    assert fetch(weights_server.url, directory=tmp_path, bounds=QUICK).read_bytes() == weights_server.content
    assert weights_server.ranges == ["bytes=1000-", None]


def test_a_file_of_unknown_length_is_accepted_by_its_hash(weights_server: WeightsServer, tmp_path: Path) -> None:
    weights_server.script = [weights_server.without_length]
    reports: list[tuple[int, int | None]] = []
    fetch(weights_server.url, directory=tmp_path, progress=lambda *report: reports.append(report))
    assert reports[-1] == (len(weights_server.content), None)


def test_a_wrong_hash_is_refused_after_a_second_try_and_leaves_nothing(weights_server: WeightsServer, tmp_path: Path) -> None:
    weights_server.script = [weights_server.ignoring_range(b"y" * 300_000)]
    with pytest.raises(ModelLoadError, match="wrong SHA-256"):
        fetch(weights_server.url, directory=tmp_path)
    assert len(weights_server.ranges) == 2
    assert [path.name for path in tmp_path.iterdir() if not path.name.endswith(".lock")] == []


def test_a_passing_server_error_is_tried_again(weights_server: WeightsServer, tmp_path: Path) -> None:
    weights_server.script = [weights_server.status(503), weights_server.status(429), weights_server.whole]
    assert fetch(weights_server.url, directory=tmp_path, bounds=QUICK).read_bytes() == weights_server.content


def test_a_damaged_file_that_cannot_be_replaced_is_named_with_the_hash_that_it_should_have(
    weights_server: WeightsServer, tmp_path: Path
) -> None:
    weights_server.script = [weights_server.status(404)]
    file = tmp_path / weights_server.name
    file.write_bytes(b"damaged")
    start = file.stem.rpartition("-")[2]
    with pytest.raises(
        ModelLoadError, match=f"^{file} cannot be used: its SHA-256 must begin with {start}, and it could not be downloaded"
    ):
        fetch(weights_server.url, directory=tmp_path)


@pytest.mark.parametrize("code", [403, 404])
def test_a_final_server_error_is_not_tried_again(weights_server: WeightsServer, tmp_path: Path, code: int) -> None:
    weights_server.script = [weights_server.status(code)]
    with pytest.raises(ModelLoadError, match=f"the server answered {code}"):
        fetch(weights_server.url, directory=tmp_path)
    assert len(weights_server.ranges) == 1


def test_attempts_that_bring_nothing_are_bounded(weights_server: WeightsServer, tmp_path: Path) -> None:
    weights_server.script = [weights_server.ignoring_range(length=5000)]
    with pytest.raises(ModelLoadError, match="broke after 5000 of 300000 bytes"):
        fetch(weights_server.url, directory=tmp_path, bounds=QUICK)
    assert len(weights_server.ranges) == 1 + QUICK.fruitless_attempts


def test_a_file_that_promises_too_many_bytes_is_not_read(weights_server: WeightsServer, tmp_path: Path) -> None:
    reports: list[tuple[int, int | None]] = []
    with pytest.raises(ModelLoadError, match="300000 bytes long, more than the 1000"):
        fetch(weights_server.url, directory=tmp_path, progress=lambda *report: reports.append(report), bounds=Bounds(max_bytes=1000))
    assert reports == []


def test_a_file_that_grows_past_the_bound_is_cut_off_and_removed(weights_server: WeightsServer, tmp_path: Path) -> None:
    weights_server.script = [weights_server.without_length]
    with pytest.raises(ModelLoadError, match="longer than the 1000 bytes"):
        fetch(weights_server.url, directory=tmp_path, bounds=Bounds(max_bytes=1000))
    assert not (tmp_path / f"{weights_server.name}.part").exists()


def test_a_download_past_its_total_time_is_given_up(weights_server: WeightsServer, tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="took too long"):
        fetch(weights_server.url, directory=tmp_path, bounds=Bounds(total_s=-1))


def test_a_server_that_never_answers_is_left_after_the_connect_timeout_and_not_asked_again(
    weights_server: WeightsServer, tmp_path: Path
) -> None:
    weights_server.script = [weights_server.silent]
    with pytest.raises(ModelLoadError, match=r"no answer within 0\.3 s"):
        fetch(weights_server.url, directory=tmp_path, connect_timeout_s=0.3)
    assert len(weights_server.ranges) == 1


def test_without_a_network_the_message_names_the_address_the_place_and_the_setting(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/models/resnet50-11ad3fa6.pth"
        with pytest.raises(ModelLoadError) as raised:
            fetch(url, directory=tmp_path)
    message = str(raised.value)
    assert url in message
    assert str(tmp_path / "resnet50-11ad3fa6.pth") in message
    assert "LENSGATE_INFERENCE__WEIGHTS=/path/to/resnet50-11ad3fa6.pth" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/net-11ad3fa6.pth",
        "ftp://127.0.0.1/net-11ad3fa6.pth",
        "https://127.0.0.1/net.pth",
        "https://127.0.0.1/net-11ad3fa.pth",
        "https://127.0.0.1/",
    ],
)
def test_an_address_of_another_kind_or_without_a_hash_is_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="no weights address"):
        fetch(url, directory=tmp_path)


def test_a_cache_that_cannot_be_made_is_named(weights_server: WeightsServer, tmp_path: Path) -> None:
    (tmp_path / "hub").write_text("a file where a folder should be")
    with pytest.raises(ModelLoadError, match="hub"):
        fetch(weights_server.url, directory=tmp_path / "hub" / "checkpoints")


def test_a_redirect_is_followed(weights_server: WeightsServer, tmp_path: Path) -> None:
    weights_server.script = [weights_server.status(302, Location=f"/elsewhere/{weights_server.name}"), weights_server.whole]
    assert fetch(weights_server.url, directory=tmp_path).read_bytes() == weights_server.content


def test_a_redirect_from_https_to_http_is_refused(weights_server: WeightsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    redirect = weights_server.status(302, Location=weights_server.url)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            redirect(self)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            """Keep the test's output clean."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.handle_request, daemon=True)
        thread.start()
        with pytest.raises(ModelLoadError, match="redirects from https to http"):
            fetch(f"https://127.0.0.1:{server.server_port}/{weights_server.name}", directory=tmp_path / "hub")
        thread.join()
    assert weights_server.ranges == []


_FETCH_IN_ANOTHER_PROCESS = """
import sys
from pathlib import Path
from inference.worker.download import fetch_hashed
def report(received, total):
    print("progress", received, total, flush=True)
print("done", *fetch_hashed(sys.argv[1], directory=Path(sys.argv[2]), progress=report), flush=True)
assert "torch" not in sys.modules
"""


def test_of_two_processes_one_downloads_while_the_other_waits_and_reports(weights_server: WeightsServer, tmp_path: Path) -> None:
    weights_server.script = [weights_server.hanging_after(100_000)]
    command = [sys.executable, "-c", _FETCH_IN_ANOTHER_PROCESS, weights_server.url, str(tmp_path)]

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})

    with start() as first:
        assert weights_server.asked.wait(timeout=60)
        with start() as second:
            assert second.stdout is not None
            # The waiting process tells how far the other one has come, so it has found the lock taken.
            assert second.stdout.readline().startswith("progress")
            weights_server.release.set()
            last_lines = [process.communicate(timeout=60)[0].splitlines()[-1] for process in (first, second)]
    digest = hashlib.sha256(weights_server.content).hexdigest()
    assert last_lines == [f"done {tmp_path / weights_server.name} {digest}"] * 2
    assert len(weights_server.ranges) == 1
