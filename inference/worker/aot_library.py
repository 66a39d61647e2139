"""Runs a model that AOTInductor compiled to a shared library, through that library's C interface.

PyTorch's own loader (`torch._inductor.aoti_load_package`) holds Python's global lock for the whole forward pass: the engine could read no
picture and send no answer meanwhile. `ctypes` releases it. The interface is the one that the library is built to
(torch/csrc/inductor/aoti_runtime/interface.h; tensors by torch/csrc/inductor/aoti_torch/c/shim.h), a C interface that PyTorch keeps stable.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, byref, c_char_p, c_int32, c_int64, c_size_t, c_void_p
from pathlib import Path
from typing import Final

import torch

from inference.errors import ModelLoadError

_CPU: Final = 0
_UINT8: Final = 0
"""PyTorch's codes of the device and the type (c10/core/DeviceType.h and ScalarType.h), part of the C interface."""
_DIMENSIONS: Final = 4


class AotLibrary:
    """One compiled model: uint8 pictures in, float32 logits out.

    May be called from as many threads at once as it was opened for; more wait for one another. Each call uses its own thread's number of
    OpenMP threads.

    Args:
        path: the shared library. It is code that will run in this process.
        classes: how many logits there are for a picture.
        concurrency: how many calls run at once.

    Raises:
        ModelLoadError: this is no such library, or not one for this PyTorch.
    """

    def __init__(self, path: Path, *, classes: int, concurrency: int) -> None:
        self._classes = classes
        try:
            # Resolved by the dynamic linker among what `import torch` has loaded already.
            self._library = ctypes.CDLL(str(path))
            self._torch = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
            self._declare()
        except (OSError, AttributeError) as error:
            raise ModelLoadError("The compiled model cannot be loaded.") from error
        self._container = c_void_p()
        code = self._library.AOTInductorModelContainerCreateWithDevice(byref(self._container), concurrency, b"cpu", None)
        if code != 0:
            raise ModelLoadError("The compiled model does not fit this PyTorch.")

    def _declare(self) -> None:
        handles, sizes = POINTER(c_void_p), POINTER(c_int64)
        self._library.AOTInductorModelContainerCreateWithDevice.argtypes = (handles, c_size_t, c_char_p, c_char_p)
        self._library.AOTInductorModelContainerRun.argtypes = (c_void_p, handles, c_size_t, handles, c_size_t, c_void_p, c_void_p)
        blob = (c_void_p, c_int64, sizes, sizes, c_int64, c_int32, c_int32, c_int32, handles)
        self._torch.aoti_torch_create_tensor_from_blob.argtypes = blob
        self._torch.aoti_torch_get_data_ptr.argtypes = (c_void_p, handles)
        self._torch.aoti_torch_get_numel.argtypes = (c_void_p, sizes)
        self._torch.aoti_torch_delete_tensor_object.argtypes = (c_void_p,)

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """Run one forward pass.

        Args:
            pixels: `[N, crop_px, crop_px, 3]` uint8, on the CPU.

        Returns:
            The logits `[N, classes]` float32.

        Raises:
            RuntimeError: the pass failed; torch has written the reason to standard error.
        """
        picture = c_void_p()
        sizes, strides = (c_int64 * _DIMENSIONS)(*pixels.shape), (c_int64 * _DIMENSIONS)(*pixels.stride())
        self._check(
            self._torch.aoti_torch_create_tensor_from_blob(
                pixels.data_ptr(), _DIMENSIONS, sizes, strides, 0, _UINT8, _CPU, 0, byref(picture)
            )
        )
        inputs, outputs = (c_void_p * 1)(picture), (c_void_p * 1)()
        # It owns the input from here on, and we own the output.
        self._check(self._library.AOTInductorModelContainerRun(self._container, inputs, 1, outputs, 1, None, None))
        try:
            data, count = c_void_p(), c_int64()
            self._check(self._torch.aoti_torch_get_data_ptr(outputs[0], byref(data)))
            self._check(self._torch.aoti_torch_get_numel(outputs[0], byref(count)))
            logits = torch.empty((pixels.shape[0], self._classes), dtype=torch.float32)
            if count.value != logits.numel():
                raise RuntimeError("the compiled model gives another number of logits than the model has classes")
            ctypes.memmove(logits.data_ptr(), data.value or 0, logits.numel() * logits.element_size())
        finally:
            self._torch.aoti_torch_delete_tensor_object(outputs[0])
        return logits

    @staticmethod
    def _check(code: int) -> None:
        if code != 0:
            raise RuntimeError("the compiled model failed")
