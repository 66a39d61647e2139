"""Which GPUs there are, asked of NVIDIA's management library: the supervisor wants to know without loading torch."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from itertools import takewhile
from pathlib import Path
from typing import Final, NamedTuple

import pynvml
import structlog

_VARIABLE: Final = "CUDA_VISIBLE_DEVICES"

_log: Final = structlog.get_logger()


class Gpu(NamedTuple):
    """One engine's share of the machine."""

    number: int
    """As CUDA counts those that are visible to this service, from 0: `cuda:0` and so on."""
    name: str
    """As CUDA_VISIBLE_DEVICES names it: an index, the beginning of a UUID (`GPU-…`), or a part of a GPU (`MIG-…`)."""

    def make_the_only_one(self) -> None:
        """Hide all other GPUs from this process. Before torch is loaded: CUDA reads the variable once."""
        os.environ[_VARIABLE] = self.name


def gpus_for_engines(device: str) -> Sequence[Gpu | None]:
    """The GPU of each engine that the setting DEVICE asks for; None for a single engine, which finds its device itself."""
    if device not in {"auto", "cuda"} or not _torch_is_built_for_cuda():
        return (None,)
    visible = visible_gpus()
    return visible if len(visible) > 1 else (None,)


def visible_gpus(environment: Mapping[str, str] = os.environ) -> Sequence[Gpu]:
    """Those that CUDA will show to a process with this environment, in its order; none where there is no NVIDIA driver.

    CUDA_VISIBLE_DEVICES is read as CUDA reads it (CUDA Programming Guide, CUDA environment variables): what follows a name that is nobody's
    is not visible either.
    """
    try:
        pynvml.nvmlInit()
        try:
            count = pynvml.nvmlDeviceGetCount()
            uuids = [pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetHandleByIndex(index)) for index in range(count)]
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError as error:
        _log.debug("no_gpus_listed", reason=str(error))
        return ()
    named = environment.get(_VARIABLE)
    names = [str(index) for index in range(count)] if named is None else [name.strip() for name in named.split(",")]
    return [Gpu(number, name) for number, name in enumerate(takewhile(lambda name: _is_known(name, uuids), names))]


def _is_known(name: str, uuids: Sequence[str]) -> bool:
    if name.isdecimal():
        return int(name) < len(uuids)
    # Parts of GPUs are left to CUDA: their names have had several forms.
    return name.startswith("MIG-") or (name.startswith("GPU-") and any(uuid.startswith(name) for uuid in uuids))


def _torch_is_built_for_cuda() -> bool:
    """A GPU is of no use to PyTorch's build for CPUs: several engines would then share the same cores."""
    torch = find_spec("torch")
    return torch is not None and any(
        (Path(folder) / "lib" / "libtorch_cuda.so").exists() for folder in torch.submodule_search_locations or ()
    )
