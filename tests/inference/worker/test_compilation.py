"""A model compiled for this machine: that it answers as the model does, is found again, and what is said where it cannot be had."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from structlog.testing import capture_logs

from inference.errors import ModelLoadError
from inference.settings import InferenceSettings
from inference.types import Pixels, Preprocessing
from inference.worker.aot_library import AotLibrary
from inference.worker.compilation import compiled_model
from inference.worker.compiled_model import CompiledModel
from inference.worker.model import DeviceModel
from inference.worker.preparation import prepare_model
from inference.worker.weights import LoadedWeights, load_weights
from support.random_weights import random_classifier

Crop = Callable[[Image.Image, Preprocessing], Pixels]

CPU = torch.device("cpu")
needs_a_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler: apt-get install g++")


@pytest.fixture(scope="module")
def settings(photographs: dict[str, Image.Image], tmp_path_factory: pytest.TempPathFactory) -> InferenceSettings:
    """A small network of torchvision's, with random weights that tell the photographs apart."""
    path = tmp_path_factory.mktemp("weights") / "random.pth"
    torch.save(random_classifier("resnet18", list(photographs.values())).state_dict(), path)
    return InferenceSettings(model="resnet18", weights=str(path), device="cpu", precision="fp32", compile="on", max_batch=4)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def loaded(settings: InferenceSettings) -> LoadedWeights:
    return load_weights(settings)


@pytest.fixture(autouse=True)
def use_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))


def find(loaded: LoadedWeights, settings: InferenceSettings, *, mode: str = "on", precision: str = "fp32") -> Path | None:
    chosen = settings.model_copy(update={"compile": mode})
    return compiled_model(loaded, chosen, device=CPU, precision=precision, on_compiling=lambda: None)


@needs_a_compiler
@pytest.mark.timeout(600)
def test_a_compiled_model_answers_as_the_model_does_and_is_compiled_once(
    settings: InferenceSettings,
    loaded: LoadedWeights,
    photographs: dict[str, Image.Image],
    crop: Crop,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[str] = []
    compiled = prepare_model([settings], publish=lambda status: said.append(status.phase), connect_timeout_s=1)
    assert said == ["compiling", "warming"]
    assert compiled.compiled
    folder = find(loaded, settings)
    assert folder is not None
    assert [path.name for path in folder.parent.iterdir()] == [folder.name], "the compiler's own files are left behind"
    assert {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()} == {"1.so": 0o600, "2.so": 0o600, "4.so": 0o600}

    pixels = [crop(picture, loaded.info.preprocessing) for picture in photographs.values()]
    plain = DeviceModel(load_weights(settings), settings)
    assert not plain.compiled
    expected = plain.logits(pixels)
    np.testing.assert_allclose(compiled.logits(pixels), expected, atol=1e-4 * np.abs(expected).max())
    compiled.self_test()
    assert [compiled.batch_size(waiting) for waiting in range(1, 10)] == [1, 2, 2, 4, 4, 4, 4, 4, 4]
    assert [plain.batch_size(waiting) for waiting in range(1, 7)] == [1, 2, 3, 4, 4, 4]
    for count in (1, 2, 3, 4):  # all but three run in one piece
        ids, _ = compiled.infer([*pixels, pixels[0]][:count], lane=count % compiled.lanes, alone=False)
        assert ids[:, 0].tolist() == [*expected.argmax(1), expected[0].argmax()][:count]

    monkeypatch.setenv("CXX", "no-compiler-is-needed-any-more")
    assert find(loaded, settings) == folder
    # Of another number format, or for another largest batch, it would be another one.
    assert find(loaded, settings, mode="auto", precision="bf16") is None
    assert find(loaded, settings.model_copy(update={"max_batch": 8}), mode="auto") is None

    _lanes_run_beside_one_another_and_beside_python(folder, classes=len(loaded.info.labels), pixels=pixels)

    (folder / "1.so").chmod(0o622)
    says_why(loaded, settings, "can be written by others")


def _lanes_run_beside_one_another_and_beside_python(folder: Path, *, classes: int, pixels: list[Pixels]) -> None:
    run = CompiledModel(folder, classes=classes, concurrency=2)
    batch = torch.from_numpy(np.stack(pixels * 10))
    expected = run(batch)
    answers: list[torch.Tensor] = []
    inside, counted = threading.Event(), 0

    def forward() -> None:
        torch.set_num_threads(1)
        inside.set()
        answers.append(run(batch))

    threads = [threading.Thread(target=forward) for _ in range(2)]
    for thread in threads:
        thread.start()
    assert inside.wait(30)
    while any(thread.is_alive() for thread in threads):
        time.sleep(0)
        counted += 1
    assert counted > 100, "Python stood still during the forward pass"
    for answer in answers:
        torch.testing.assert_close(answer, expected)


def test_off_compiles_nothing(settings: InferenceSettings, loaded: LoadedWeights, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert find(loaded, settings, mode="off") is None
    assert list(tmp_path.iterdir()) == []


def test_a_gpu_needs_no_compiled_model(settings: InferenceSettings, loaded: LoadedWeights) -> None:
    def on(mode: str) -> Path | None:
        chosen = settings.model_copy(update={"compile": mode})
        return compiled_model(loaded, chosen, device=torch.device("cuda:0"), precision="bf16", on_compiling=lambda: None)

    assert on("auto") is None
    with pytest.raises(ModelLoadError, match="for the CPU only, and the model runs on cuda:0"):
        on("on")


def says_why(loaded: LoadedWeights, settings: InferenceSettings, reason: str) -> list[tuple[str, str, str]]:
    """Check that it does; return what was said before."""
    with capture_logs() as log:
        assert find(loaded, settings, mode="auto") is None
    *before, last = log
    assert (last["event"], last["log_level"]) == ("model_not_compiled", "warning")
    assert reason in last["reason"]
    with pytest.raises(ModelLoadError, match=r"LENSGATE_INFERENCE__COMPILE=on, but .*" + reason):
        find(loaded, settings)
    return [(line["event"], line["log_level"], line["model"]) for line in before]


def test_no_compiler(settings: InferenceSettings, loaded: LoadedWeights, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", "g++-that-is-not-there")
    assert says_why(loaded, settings, "compiler here") == []


def test_a_compiler_that_fails(settings: InferenceSettings, loaded: LoadedWeights, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    broken = settings.model_copy(update={"weights": str(tmp_path / "gone.pth")})  # by the time it is compiled
    assert says_why(loaded, broken, "the compilation failed: ModelLoadError") == [("model_compiling", "info", "resnet18")]
    assert list((tmp_path / "lensgate" / "compiled").iterdir()) == []


def test_what_an_ended_engine_has_left_behind_is_cleared_and_what_another_is_making_is_not(
    settings: InferenceSettings, loaded: LoadedWeights, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cache = tmp_path / "lensgate" / "compiled"
    script = (
        "import os, sys, pathlib\n"
        "from inference.worker.compilation import _work_folder\n"
        "with _work_folder(pathlib.Path(sys.argv[1])) as work:\n"
        "    (work / 'model').mkdir()\n"
        "    print(work, flush=True)\n"
        "    sys.stdin.read()\n"
        "    os._exit(0)\n"
    )
    cache.mkdir(parents=True, mode=0o700)
    with subprocess.Popen([sys.executable, "-c", script, str(cache)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        work = Path(other.stdout.readline().strip())
        broken = settings.model_copy(update={"weights": str(tmp_path / "gone.pth")})  # it fails soon
        assert find(loaded, broken, mode="auto") is None
        assert list(work.iterdir()), "another engine is making it"
        other.communicate("")
    assert work.exists(), "it has ended as an engine does"
    assert find(loaded, broken, mode="auto") is None
    assert list(cache.iterdir()) == []


def test_no_folder_to_keep_it_in(
    settings: InferenceSettings, loaded: LoadedWeights, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    says_why(loaded, settings, "there is no folder to keep the compiled model in")


def test_a_folder_that_others_can_write_is_never_loaded_from(
    settings: InferenceSettings, loaded: LoadedWeights, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "lensgate" / "compiled"
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    says_why(loaded, settings, "can be written by others")


def test_what_is_no_compiled_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.so").write_bytes(b"\x7fELF nothing more")
    with pytest.raises(ModelLoadError, match="cannot be loaded"):
        AotLibrary(tmp_path / "model.so", classes=2, concurrency=1)


def test_the_compiler_ends_with_the_engine() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", "import inference.worker.compile_process as c; c._end_with_the_engine()"],
        stdin=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(60) == -9
