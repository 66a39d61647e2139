"""Which GPUs get an engine: with NVML's own functions replaced."""

from __future__ import annotations

import os
from importlib.machinery import ModuleSpec
from pathlib import Path

import pynvml
import pytest

from inference import gpus
from inference.gpus import Gpu, gpus_for_engines, visible_gpus

UUIDS = ["GPU-8932f937-d72c", "GPU-8a00aaaa-0000", "GPU-77777777-1111"]


@pytest.fixture(autouse=True)
def three_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(gpus, "_torch_is_built_for_cuda", lambda: True)
    for name, answer in {
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlDeviceGetCount": lambda: len(UUIDS),
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetUUID": UUIDS.__getitem__,
    }.items():
        monkeypatch.setattr(pynvml, name, answer)


def test_without_the_variable_all_are_visible() -> None:
    assert visible_gpus({}) == [Gpu(0, "0"), Gpu(1, "1"), Gpu(2, "2")]


@pytest.mark.parametrize(
    ("variable", "names"),
    [
        ("2,0", ["2", "0"]),
        (" 1 , 2 ", ["1", "2"]),
        ("GPU-8932f937-d72c,GPU-77777777-1111", ["GPU-8932f937-d72c", "GPU-77777777-1111"]),
        ("GPU-89,1", ["GPU-89", "1"]),
        ("MIG-d9a47cfb-d1f2,MIG-GPU-8932f937-d72c/1/0", ["MIG-d9a47cfb-d1f2", "MIG-GPU-8932f937-d72c/1/0"]),
        ("0,2,-1,1", ["0", "2"]),
        ("0,3,1", ["0"]),
        ("1,GPU-nobody,0", ["1"]),
        ("1,,0", ["1"]),
        ("NoDevFiles", []),
        ("-1", []),
        ("", []),
    ],
)
def test_the_variable_is_read_as_cuda_reads_it(variable: str, names: list[str]) -> None:
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": variable}) == [Gpu(number, name) for number, name in enumerate(names)]


@pytest.mark.parametrize("error", [pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_DRIVER_NOT_LOADED, pynvml.NVML_ERROR_UNKNOWN])
def test_without_a_driver_there_are_none(error: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise pynvml.NVMLError(error)

    monkeypatch.setattr(pynvml, "nvmlInit", fail)
    assert visible_gpus({}) == ()
    assert gpus_for_engines("auto") == (None,)


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_each_of_several_gpus_gets_an_engine(device: str) -> None:
    assert gpus_for_engines(device) == [Gpu(0, "0"), Gpu(1, "1"), Gpu(2, "2")]


@pytest.mark.parametrize("device", ["cpu", "cuda:1"])
def test_one_device_that_is_named_gets_one_engine(device: str) -> None:
    assert gpus_for_engines(device) == (None,)


@pytest.mark.parametrize("variable", ["", "2", "GPU-8932"])
def test_a_single_visible_gpu_or_none_is_found_by_the_engine_itself(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    assert gpus_for_engines("auto") == (None,)


def test_a_build_of_torch_for_cpus_gets_one_engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.undo()
    spec = ModuleSpec("torch", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(gpus, "find_spec", lambda _: spec)
    monkeypatch.setattr(gpus, "visible_gpus", lambda: [Gpu(0, "0"), Gpu(1, "1")])
    assert gpus_for_engines("auto") == (None,)
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "libtorch_cuda.so").touch()
    assert gpus_for_engines("auto") == [Gpu(0, "0"), Gpu(1, "1")]


def test_an_engine_hides_all_gpus_but_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,0")
    Gpu(1, "0").make_the_only_one()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0"
