"""Reads a state dict from an operator's file and puts it into a network, or says in one line why it does not fit."""

from __future__ import annotations

import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from inference.errors import ModelLoadError

StateDict = OrderedDict[str, torch.Tensor]

# Where training scripts put the state dict: timm and Lightning, torchvision's references.
_WRAPPERS = ("state_dict", "model")
# What DataParallel, torch.compile and a Lightning module, whose network mostly is its attribute `model`, put before every name.
_PREFIXES = ("module.", "_orig_mod.", "model.")


def read_state_dict(path: Path) -> StateDict:
    """Read a `.safetensors` file or a `.pth` one; no code in it is ever run.

    A dict that holds the state dict under `state_dict` or `model` is unwrapped; a `module.`, `_orig_mod.` or
    `model.` before every name is taken off.

    Raises:
        ModelLoadError: the file is broken or holds something other than a state dict.
    """
    loaded: object = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pth(path)
    if isinstance(loaded, Mapping):
        loaded = next((loaded[key] for key in _WRAPPERS if isinstance(loaded.get(key), Mapping)), loaded)
    if not isinstance(loaded, Mapping) or not loaded or not all(isinstance(key, str) for key in loaded):
        raise ModelLoadError(f"{path} holds no state dict. Save one with torch.save(model.state_dict(), {path.name!r}).")
    stranger = next((key for key, value in loaded.items() if not isinstance(value, torch.Tensor)), None)
    if stranger is not None:
        raise ModelLoadError(f"{path} is no plain state dict: its entry {stranger!r} is no tensor.")
    state: StateDict = OrderedDict(loaded)
    metadata = getattr(loaded, "_metadata", None)
    if isinstance(metadata, Mapping):
        _set_metadata(state, metadata)
    return _without_prefixes(state)


def fill(module: nn.Module, state: StateDict, *, model: str, classes: int, source: str) -> None:
    """Give `module` (from `without_memory`) the tensors of `state` as float32 of its own, and set it up for inference.

    `state` is used up: each tensor is let go of as soon as it is copied, so that a model lies in memory once.

    Args:
        module: the network; its parameters are replaced.
        state: the tensors, which may be views into a mapped file.
        model: what the settings call the network, for messages.
        classes: how many classes `module` was built for.
        source: what the state came from, for messages.

    Raises:
        ModelLoadError: a key is missing or unknown, or a tensor has another shape or kind.
    """
    expected = module.state_dict()
    misfit = f"{source} does not fit {model} (LENSGATE_INFERENCE__MODEL)"
    _check_tensors(expected, state, source, misfit)
    _check_shapes(expected, state, classes, source, misfit)
    for key in list(state):
        dtype = torch.float32 if state[key].is_floating_point() else state[key].dtype
        state[key] = state[key].detach().to(dtype, copy=True, memory_format=torch.contiguous_format)
    if not hasattr(state, "_metadata"):
        _set_metadata(state, {"": {"version": getattr(module, "_version", 1)}})
    try:
        # torchvision's own hooks rename keys of older files here, so what is missing is known only afterwards.
        result = module.load_state_dict(state, strict=False, assign=True)
    except Exception as error:
        raise ModelLoadError(f"{misfit}: {str(error).splitlines()[-1].strip()}") from error
    state.clear()
    # This counter of training steps is not used in inference; files written before torch 0.4.1 lack it.
    missing = [key for key in result.missing_keys if not key.endswith(".num_batches_tracked")]
    if missing or result.unexpected_keys:
        parts = [_count("is missing", missing), _count("is unknown", result.unexpected_keys)]
        raise ModelLoadError(f"{misfit}: {'; '.join(part for part in parts if part)}.")
    module.eval().requires_grad_(requires_grad=False)


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - the file object is no mapping
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelLoadError(f"{path} is no readable safetensors file: {error}.") from error


def _read_pth(path: Path) -> object:
    try:
        is_torchscript = _is_torchscript(path)
        # Only the zip format (torch 1.6 and later) can be mapped into memory.
        # torch warns of TorchScript in lines of its own.
        loaded: object = None if is_torchscript else torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except OSError as error:
        raise ModelLoadError(f"{path} cannot be read: {error.strerror or error}.") from error
    except Exception as error:
        # torch's message advises weights_only=False, which runs whatever code the file holds: it is not passed on.
        raise ModelLoadError(
            f"{path} is broken or holds more than tensors, so it is not loaded. Save the state dict alone: "
            f"torch.save(model.state_dict(), {path.name!r})."
        ) from error
    if is_torchscript:
        raise ModelLoadError(
            f"{path} is a TorchScript file, which holds code and is not served. Save the state dict of the network behind it: "
            f"torch.save(model.state_dict(), {path.name!r})."
        )
    return loaded


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _without_prefixes(state: StateDict) -> StateDict:
    prefix = next((prefix for prefix in _PREFIXES if all(key.startswith(prefix) for key in state)), None)
    if prefix is None:
        return state
    return _without_prefixes(OrderedDict((key.removeprefix(prefix), tensor) for key, tensor in state.items()))


def _check_tensors(expected: Mapping[str, torch.Tensor], state: StateDict, source: str, misfit: str) -> None:
    for key, tensor in state.items():
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_complex():
            raise ModelLoadError(f"{source} cannot be served: its tensor {key} is sparse, quantised or complex.")
        if key in expected and tensor.is_floating_point() != expected[key].is_floating_point():
            raise ModelLoadError(f"{misfit}: its tensor {key} is {tensor.dtype}, not {expected[key].dtype}.")


def _check_shapes(expected: Mapping[str, torch.Tensor], state: StateDict, classes: int, source: str, misfit: str) -> None:
    wrong = {
        key: (list(tensor.shape), list(expected[key].shape))
        for key, tensor in state.items()
        if key in expected and tensor.shape != expected[key].shape
    }
    if not wrong:
        return
    heads = {found[0] if found and found[1:] == wanted[1:] and wanted[0] == classes else None for found, wanted in wrong.values()}
    if len(heads) == 1 and None not in heads:
        has = heads.pop()
        raise ModelLoadError(
            f"{source} has {has} classes, and there are {classes} labels: LENSGATE_INFERENCE__LABELS must name a file of {has}, one a line."
        )
    key, (found, wanted) = next(iter(wrong.items()))
    more = f" ({len(wrong)} tensors differ)" if len(wrong) > 1 else ""
    raise ModelLoadError(f"{misfit}: {key} has the shape {found}, not {wanted}{more}.")


def _count(what: str, keys: list[str]) -> str:
    if not keys:
        return ""
    return f"{keys[0]} {what}" + (f", and {len(keys) - 1} more" if len(keys) > 1 else "")


def _set_metadata(state: StateDict, metadata: Mapping[str, object]) -> None:
    """Attach the versions of the modules that wrote the state dict; `load_state_dict` looks for them in this attribute."""
    state._metadata = metadata  # type: ignore[attr-defined]  # noqa: SLF001 - torch's own protocol, which has no public name
