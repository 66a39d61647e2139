"""Finds the compiled form of a model, or has it made: once for a machine, a PyTorch and a weights file."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

import structlog
import torch

from inference.errors import ModelLoadError
from inference.settings import InferenceSettings
from inference.worker.weights import LoadedWeights

_FORM: Final = 3
"""Counted up when what is compiled changes; what has another form is never found."""
_TIMEOUT_S: Final = 900.0
_COMPILING: Final = "compiling-"
"""How the folder of one that is being made begins."""
_KEPT_MODELS: Final = 4
"""Some times as large as its weights each, and of no use once the weights or PyTorch have changed."""

_log: Final = structlog.get_logger()


class CompilationUnavailable(Exception):
    """The model cannot be compiled here; the message is the public reason."""


def compiled_model(
    loaded: LoadedWeights, settings: InferenceSettings, *, device: torch.device, precision: str, on_compiling: Callable[[], object]
) -> Path | None:
    """Return the folder of the compiled model, or None where the model is to run as it is. Blocks, for a minute or more at first.

    Args:
        loaded: names what is compiled.
        settings: `compile` is read: `off` never compiles, `auto` goes on without where it is not possible and says so in the log.
        device: only models on the CPU are compiled; a GPU runs CUDA graphs, which need no compiler.
        precision: `fp32`, `bf16` or `fp16`.
        on_compiling: called when the wait begins.

    Raises:
        ModelLoadError: `compile` is `on` and it is not possible here.
    """
    if settings.compile == "off" or (settings.compile == "auto" and device.type != "cpu"):
        return None
    if device.type != "cpu":
        raise ModelLoadError(f"LENSGATE_INFERENCE__COMPILE=on compiles for the CPU only, and the model runs on {device}: use auto.")
    try:
        return _find_or_make(loaded, settings, precision, on_compiling)
    except CompilationUnavailable as error:
        if settings.compile == "on":
            raise ModelLoadError(f"LENSGATE_INFERENCE__COMPILE=on, but {error}.") from error
        _log.warning("model_not_compiled", model=loaded.info.name, reason=str(error))
        return None


def _find_or_make(loaded: LoadedWeights, settings: InferenceSettings, precision: str, on_compiling: Callable[[], object]) -> Path:
    cache = _cache_folder()
    folder = cache / _key(loaded, precision, settings.max_batch)
    if folder.exists():
        for path in (folder, *folder.iterdir()):
            _refuse_what_others_can_write(path)
        os.utime(folder)
        return folder
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise CompilationUnavailable(f"there is no C++ compiler here ({compiler})")
    _log.info("model_compiling", model=loaded.info.name, hint="a minute or two, once for this machine; it is kept")
    on_compiling()
    began_s = time.monotonic()
    with _work_folder(cache) as work:
        made = work / "model"
        made.mkdir(mode=0o700)
        _compile(settings, precision, made, work)
        for library in made.iterdir():
            library.chmod(0o600)
        try:
            made.rename(folder)
        except OSError:
            if not folder.exists():  # else another service was quicker
                raise
    _log.info("model_compiled", model=loaded.info.name, seconds=round(time.monotonic() - began_s, 1))
    _forget_old(cache)
    return folder


def _compile(settings: InferenceSettings, precision: str, folder: Path, work: Path) -> None:
    job = {"settings": settings.model_dump(mode="json"), "precision": precision, "folder": str(folder)}
    with (work / "log").open("w+b") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "inference.worker.compile_process"],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(work / "inductor"), "TMPDIR": str(work)},
            # A process group of its own, so that it can end its compilers with itself.
            start_new_session=True,
        )
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(job).encode() + b"\n")
            process.stdin.flush()
            code = process.wait(_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise CompilationUnavailable(f"the compilation took longer than {_TIMEOUT_S:.0f} seconds") from None
        except BrokenPipeError:
            code = process.wait()
        finally:
            process.stdin.close()  # ends it, if it still runs
            process.wait()
        if code != 0:
            log.seek(0)
            lines = log.read().decode(errors="replace").strip().splitlines()
            raise CompilationUnavailable(f"the compilation failed: {lines[-1] if lines else f'exit code {code}'}")


@contextmanager
def _work_folder(cache: Path) -> Iterator[Path]:
    """A folder for what is made, locked by this process; those that ended processes have left behind are cleared.

    Made under the cache's own lock, so that no other engine finds it before it is locked.
    """
    with ExitStack() as held:
        with _locked(cache) as sure:
            if sure:
                for path in cache.glob(f"{_COMPILING}*"):
                    with suppress(FileNotFoundError), _locked(path, wait=False) as nobodys:
                        if nobodys:
                            shutil.rmtree(path, ignore_errors=True)
            work = Path(held.enter_context(tempfile.TemporaryDirectory(dir=cache, prefix=_COMPILING)))
            held.enter_context(_locked(work))
        yield work


@contextmanager
def _locked(folder: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold a folder's lock, which dies with the process. False: it is another's, or the file system knows no locks."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        ours = True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            ours = False
        yield ours
    finally:
        os.close(descriptor)


def _cache_folder() -> Path:
    """`$XDG_CACHE_HOME/lensgate/compiled`, as the XDG Base Directory Specification names it, made where it is not there."""
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = base / "lensgate" / "compiled"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except (OSError, RuntimeError) as error:
        raise CompilationUnavailable(f"there is no folder to keep the compiled model in ({error})") from error
    _refuse_what_others_can_write(folder)
    if not os.access(folder, os.W_OK):
        raise CompilationUnavailable(f"{folder} cannot be written")
    return folder


def _refuse_what_others_can_write(path: Path) -> None:
    """What lies there is run as our own code."""
    status = path.stat()
    if status.st_uid not in (os.geteuid(), 0) or status.st_mode & 0o022:
        raise CompilationUnavailable(f"{path} belongs to somebody else or can be written by others")


def _key(loaded: LoadedWeights, precision: str, max_batch: int) -> str:
    """Names all that the libraries depend on: a change of any gives another name."""
    info = loaded.info
    parts = (
        *(_FORM, torch.__version__, platform.machine(), _cpu_features()),
        *(info.name, info.digest, len(info.labels), info.preprocessing.crop_px, loaded.mean, loaded.std, precision, max_batch),
    )
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def _cpu_features() -> str:
    """The instruction sets that the compiler may use (`-march=native`)."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.lower().startswith(("flags", "features"))), "")


def _forget_old(cache: Path) -> None:
    others = [path for path in cache.iterdir() if not path.name.startswith(_COMPILING)]
    for path in sorted(others, key=lambda path: path.stat().st_mtime, reverse=True)[_KEPT_MODELS:]:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)  # the one library of an older form
