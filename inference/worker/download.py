"""Fetches a weights file into PyTorch's own cache: once, whole, and only with the right hash."""

from __future__ import annotations

import fcntl
import hashlib
import re
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog

from inference.errors import ModelLoadError
from inference.worker.transfer import NoContact, Progress, TransferError, transfer

# torchvision's file names end in the first eight or more hexadecimal digits of the file's SHA-256, such as resnet50-11ad3fa6.pth.
_HASHED_NAME = re.compile(r"[\w.\-]+-([0-9a-f]{8,64})\.[a-z]+", re.ASCII)
_LOCK_POLL_S = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What a download may cost at the most."""

    read_timeout_s: float = 30.0
    """Between two pieces of the body."""
    total_s: float = 3600.0
    """The whole download, waiting for another process that has the same file in hand included."""
    max_bytes: int = 4 * 1024**3
    """torchvision's largest file, regnet_y_128gf, has 2.6 GB."""
    fruitless_attempts: int = 4
    """How many attempts in a row may bring nothing new before it is given up."""
    backoff_s: float = 0.5
    """The pause after the first fruitless attempt; it doubles, up to 10 s."""


DEFAULT_BOUNDS = Bounds()


def hub_checkpoints() -> Path:
    """Return the folder where PyTorch keeps downloaded weights; `TORCH_HOME` and `XDG_CACHE_HOME` move it."""
    import torch.hub

    return Path(torch.hub.get_dir()) / "checkpoints"


def fetch(
    url: str,
    *,
    directory: Path | None = None,
    progress: Progress | None = None,
    connect_timeout_s: float = 10.0,
    bounds: Bounds = DEFAULT_BOUNDS,
) -> Path:
    """Return the path of the file at `url`, downloaded unless a good copy lies in the cache already. Blocks.

    Any number of processes may ask for the same file at once: one downloads it, the others wait for it.

    Args:
        url: an http or https address whose file name ends in eight or more digits of its SHA-256.
        directory: the cache folder, PyTorch's own when None.
        progress: told the bytes so far and the total (None when unknown), from this thread.
        connect_timeout_s: the most seconds until the server's headers are here. If nothing answers the first time, it is not tried again.
        bounds: what the download may cost.

    Raises:
        ModelLoadError: the file cannot be had; the message says what to do without a network.
    """
    return fetch_hashed(url, directory=directory, progress=progress, connect_timeout_s=connect_timeout_s, bounds=bounds)[0]


def fetch_hashed(
    url: str,
    *,
    directory: Path | None = None,
    progress: Progress | None = None,
    connect_timeout_s: float = 10.0,
    bounds: Bounds = DEFAULT_BOUNDS,
) -> tuple[Path, str]:
    """As `fetch`; returns the path and the hexadecimal SHA-256, which is computed once."""
    parts = urllib.parse.urlsplit(url)
    name = parts.path.rpartition("/")[2]
    hashed = _HASHED_NAME.fullmatch(name)
    if parts.scheme not in ("http", "https") or hashed is None:
        raise ModelLoadError(f"{url} is no weights address: it must be https and its file name must end in the file's SHA-256.")
    target = (hub_checkpoints() if directory is None else directory) / name
    errand = _Errand(url, target, hashed[1], progress or _ignore, connect_timeout_s, bounds)
    try:
        # A good copy needs no lock, so that a read-only cache baked into an image works.
        return target, errand.cached() or errand.download()
    except TransferError as error:
        raise ModelLoadError(errand.advice(str(error))) from error
    except OSError as error:
        raise ModelLoadError(errand.advice(f"{error.strerror or error} ({target.parent})")) from error


def sha256_of(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True, slots=True)
class _Errand:
    url: str
    target: Path
    digest_start: str
    progress: Progress
    connect_timeout_s: float
    bounds: Bounds

    def cached(self) -> str | None:
        """Return the SHA-256 of the file in the cache, or None when there is none or it is damaged."""
        if not self.target.is_file():
            return None
        digest = sha256_of(self.target)
        if digest.startswith(self.digest_start):
            return digest
        reason, effect = "its SHA-256 is wrong", "it is downloaded again"
        structlog.get_logger().warning("weights_damaged", file=str(self.target), reason=reason, effect=effect)
        return None

    def download(self) -> str:
        """Download the file, unless another process does so first, and return its SHA-256."""
        deadline = time.monotonic() + self.bounds.total_s
        self.target.parent.mkdir(parents=True, exist_ok=True)
        part = self.target.with_name(f"{self.target.name}.part")
        with self._locked(part, deadline):
            digest = self.cached()
            if digest is not None:
                return digest
            for _clean_attempt in range(2):
                self._complete(part, deadline)
                digest = sha256_of(part)
                if digest.startswith(self.digest_start):
                    part.replace(self.target)
                    return digest
                part.unlink()
        raise TransferError(f"what the server sends has the wrong SHA-256: {digest}, not {self.digest_start}...", passing=False)

    def advice(self, reason: str) -> str:
        """What to do where it could not be downloaded."""
        failed = f"could not be downloaded from {self.url}: {reason}"
        setting = f"LENSGATE_INFERENCE__WEIGHTS=/path/to/{self.target.name}"
        if self.target.is_file():  # a good one would have been taken
            why = f"its SHA-256 must begin with {self.digest_start}"
            return f"{self.target} cannot be used: {why}, and it {failed}. Replace it by hand, or set {setting}."
        return f"The weights {failed}. Where there is no network, put the file at {self.target} by hand, or set {setting}."

    def _complete(self, part: Path, deadline: float) -> None:
        """Run transfers until `part` is whole, or nothing new has come for too often."""
        most_bytes = fruitless = 0
        had_contact = False
        while True:
            try:
                transfer(
                    self.url,
                    part,
                    connect_timeout_s=self.connect_timeout_s,
                    read_timeout_s=self.bounds.read_timeout_s,
                    deadline=deadline,
                    max_bytes=self.bounds.max_bytes,
                    progress=self.progress,
                )
            except TransferError as error:
                had_contact = had_contact or not isinstance(error, NoContact)
                held_bytes = part.stat().st_size if part.exists() else 0
                fruitless = 0 if held_bytes > most_bytes else fruitless + 1
                most_bytes = max(most_bytes, held_bytes)
                pause_s = min(self.bounds.backoff_s * 2**fruitless, 10.0)
                hopeless = not error.passing or not had_contact or fruitless >= self.bounds.fruitless_attempts
                if hopeless or time.monotonic() + pause_s > deadline:
                    raise
                time.sleep(pause_s)
            else:
                return

    @contextmanager
    def _locked(self, part: Path, deadline: float) -> Iterator[None]:
        """Hold the file's lock; while another process holds it, pass on how far that one has come."""
        # The lock file stays: removing it would let two processes hold locks on two files of the same name.
        with self.target.with_name(f".{self.target.name}.lock").open("ab") as lock:
            while not _try_lock(lock.fileno()):
                if time.monotonic() > deadline:
                    raise TransferError("another process has been downloading it for too long", passing=False)
                if part.exists():
                    self.progress(part.stat().st_size, None)
                time.sleep(_LOCK_POLL_S)
            yield


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _ignore(_received_bytes: int, _total_bytes: int | None) -> None:
    """Tell nobody."""
