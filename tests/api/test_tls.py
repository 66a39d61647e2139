"""What is said of a certificate and a key that cannot be served."""

from __future__ import annotations

from pathlib import Path

import pytest
import trustme

from api.http_settings import HttpSettings
from api.settings import ConfigurationError
from api.tls import check_tls


@pytest.fixture
def http(tmp_path: Path) -> HttpSettings:
    """A pair that can be served."""
    made = trustme.CA().issue_cert("127.0.0.1")
    made.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    made.private_key_pem.write_to_path(tmp_path / "key.pem")
    return HttpSettings(tls_cert=tmp_path / "cert.pem", tls_key=tmp_path / "key.pem")


def test_a_pair_is_good_and_so_is_none(http: HttpSettings) -> None:
    check_tls(http)
    check_tls(HttpSettings())


@pytest.mark.parametrize(("name", "setting"), [("cert.pem", "LENSGATE_HTTP__TLS_CERT"), ("key.pem", "LENSGATE_HTTP__TLS_KEY")])
def test_the_file_that_is_to_blame_is_named(http: HttpSettings, tmp_path: Path, name: str, setting: str) -> None:
    path = tmp_path / name
    whole = path.read_text()
    for damaged in ("nothing", "", whole[: len(whole) // 2]):
        path.write_text(damaged)
        with pytest.raises(ConfigurationError, match=f"^{setting}: {path} is no PEM .*, or a damaged one$"):
            check_tls(http)
    path.unlink()
    with pytest.raises(ConfigurationError, match=f"^{setting}: {path} cannot be read: No such file or directory$"):
        check_tls(http)
    path.mkdir()
    with pytest.raises(ConfigurationError, match=f"^{setting}: {path} cannot be read: Is a directory$"):
        check_tls(http)


def test_a_pair_that_does_not_go_together_is_told_from_files_that_are_none(http: HttpSettings, tmp_path: Path) -> None:
    trustme.CA().issue_cert("127.0.0.1").private_key_pem.write_to_path(tmp_path / "key.pem")
    with pytest.raises(ConfigurationError, match=f"do not go together: {tmp_path}/key.pem is not the key of {tmp_path}/cert.pem$"):
        check_tls(http)
