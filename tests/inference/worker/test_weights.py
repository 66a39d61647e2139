"""From settings to a network: torchvision's cards, files of every shape that operators bring, and files that must be refused."""

from __future__ import annotations

import hashlib
import io
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision import models  # type: ignore[import-untyped]  # torchvision ships no types

from inference.errors import ModelLoadError
from inference.settings import InferenceSettings
from inference.types import Preprocessing
from inference.worker.cards import build_empty, find_card, without_memory
from inference.worker.state_dict import fill, read_state_dict
from inference.worker.weights import LoadedWeights, fetch_weights, load_weights
from support.weights_server import serve_weights

State = OrderedDict[str, torch.Tensor]


# The smallest classifier there is: 5 MB of weights.
SMALL = "shufflenet_v2_x0_5"


def _network(model: str, **arguments: bool | int) -> nn.Module:
    torch.manual_seed(0)
    network: nn.Module = models.get_model_builder(model)(weights=None, **arguments)
    return network.eval()


@pytest.fixture(scope="session")
def small() -> nn.Module:
    return _network(SMALL)


def _load(path: Path, model: str = SMALL, *, card: str | None = None, labels: Path | None = None) -> LoadedWeights:
    return load_weights(InferenceSettings(model=model, weights=str(path), card=card, labels=labels))


def _state(network: nn.Module) -> State:
    return OrderedDict(network.state_dict())


def _saved(content: object, path: Path) -> Path:
    torch.save(content, path)
    return path


def _labels(path: Path, count: int) -> Path:
    path.write_text("".join(f"class {index}\n" for index in range(count)))
    return path


def _assert_same(loaded: LoadedWeights, reference: nn.Module) -> None:
    """Every tensor of the loaded network is float32 (or a counter) and equal to the one of the same name in the reference."""
    expected = reference.state_dict()
    for key, tensor in loaded.module.state_dict().items():
        torch.testing.assert_close(tensor, expected[key], rtol=0, atol=0)


def test_a_torchvision_card_is_downloaded_checked_and_described(small: nn.Module, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("no_proxy", "*")
    file = io.BytesIO()
    torch.save(small.state_dict(), file)
    settings = InferenceSettings(model=SMALL)
    reports: list[tuple[int, int | None]] = []
    with serve_weights(file.getvalue()) as server:
        monkeypatch.setattr(models.ShuffleNet_V2_X0_5_Weights.DEFAULT.value, "url", server.url)
        loaded = load_weights(settings, progress=lambda *report: reports.append(report))
        assert fetch_weights(settings) == tmp_path / "hub" / "checkpoints" / server.name
        assert len(server.ranges) == 1
    _assert_same(loaded, small)
    assert (loaded.info.name, loaded.info.version) == (SMALL, "IMAGENET1K_V1")
    assert loaded.info.digest == f"sha256:{hashlib.sha256(file.getvalue()).hexdigest()}"
    assert loaded.info.preprocessing == Preprocessing(resize_px=256, crop_px=224, interpolation="bilinear")
    assert (len(loaded.info.labels), loaded.info.labels[0]) == (1000, "tench")
    assert (loaded.mean, loaded.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert reports[-1][0] == len(file.getvalue())


def test_a_file_in_torchs_cache_is_used_without_a_network(small: nn.Module, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    unnamed = _saved(small.state_dict(), cache / "unnamed.pth")
    name = f"shufflenet-{hashlib.sha256(unnamed.read_bytes()).hexdigest()[:8]}.pth"
    unnamed.rename(cache / name)
    monkeypatch.setattr(models.ShuffleNet_V2_X0_5_Weights.DEFAULT.value, "url", f"https://weights.invalid/{name}")
    _assert_same(load_weights(InferenceSettings(model=SMALL)), small)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
def test_a_local_file_is_loaded_and_described(suffix: str, small: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / f"flowers-2026{suffix}"
    if suffix == ".safetensors":
        save_file(small.state_dict(), path)
    else:
        torch.save(small.state_dict(), path)
    loaded = _load(path)
    _assert_same(loaded, small)
    assert (loaded.info.name, loaded.info.version) == (SMALL, "flowers-2026")
    assert loaded.info.digest == f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
    assert (loaded.info.precision, loaded.info.device) == ("fp32", "cpu")
    assert not any(parameter.requires_grad for parameter in loaded.module.parameters())
    assert not loaded.module.training
    assert fetch_weights(InferenceSettings(model=SMALL, weights=str(path))) == path


def test_the_labels_file_gives_the_class_count(tmp_path: Path) -> None:
    network = _network(SMALL, num_classes=5)
    path = _saved(network.state_dict(), tmp_path / "five.pth")
    loaded = _load(path, labels=_labels(tmp_path / "labels.txt", 5))
    _assert_same(loaded, network)
    assert loaded.info.labels == ("class 0", "class 1", "class 2", "class 3", "class 4")


@pytest.mark.parametrize(("card", "resize_px"), [("IMAGENET1K_V1", 256), ("IMAGENET1K_V2", 232), (None, 232)])
def test_the_card_gives_the_preprocessing(card: str | None, resize_px: int, tmp_path: Path) -> None:
    path = _saved(_network("mobilenet_v2").state_dict(), tmp_path / "weights.pth")
    preprocessing = _load(path, "mobilenet_v2", card=card).info.preprocessing
    assert preprocessing == Preprocessing(resize_px=resize_px, crop_px=224, interpolation="bilinear")


_WRAPPINGS: dict[str, Callable[[State], object]] = {
    "a training checkpoint": lambda state: {"state_dict": state, "epoch": 90, "optimizer": {"lr": 0.1}},
    "torchvision's reference scripts": lambda state: {"model": state, "epoch": 90},
    "DataParallel": lambda state: OrderedDict((f"module.{key}", tensor) for key, tensor in state.items()),
    "torch.compile inside DataParallel": lambda state: OrderedDict((f"module._orig_mod.{key}", tensor) for key, tensor in state.items()),
    "Lightning": lambda state: {
        "state_dict": {f"model.{key}": tensor for key, tensor in state.items()},
        "epoch": 9,
    },
    "both": lambda state: {"state_dict": {f"module.{key}": tensor for key, tensor in state.items()}},
    "a plain dict": dict,
    "no training counters": lambda state: {key: tensor for key, tensor in state.items() if not key.endswith("num_batches_tracked")},
}


@pytest.mark.parametrize("wrapping", _WRAPPINGS)
def test_usual_wrappings_are_taken_off(wrapping: str, small: nn.Module, tmp_path: Path) -> None:
    _assert_same(_load(_saved(_WRAPPINGS[wrapping](_state(small)), tmp_path / "weights.pth")), small)


def test_a_file_of_the_format_before_torch_1_6_is_loaded(small: nn.Module, tmp_path: Path) -> None:
    torch.save(small.state_dict(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    _assert_same(_load(tmp_path / "old.pth"), small)


def test_half_precision_weights_are_loaded_as_float32(tmp_path: Path) -> None:
    network = _network(SMALL).half()
    loaded = _load(_saved(network.state_dict(), tmp_path / "half.pth"))
    assert {parameter.dtype for parameter in loaded.module.parameters()} == {torch.float32}
    _assert_same(loaded, network.float())


def test_the_file_may_change_after_loading(small: nn.Module, tmp_path: Path) -> None:
    path = _saved(small.state_dict(), tmp_path / "weights.pth")
    loaded = _load(path)
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    _assert_same(loaded, small)


@pytest.mark.parametrize("model", ["googlenet", "inception_v3"])
def test_auxiliary_training_heads_are_left_out_and_the_published_input_transform_is_kept(model: str, tmp_path: Path) -> None:
    network = _network(model, aux_logits=True, transform_input=True, init_weights=False)
    loaded = _load(_saved(network.state_dict(), tmp_path / "aux.pth"), model)
    assert not any("aux" in key.lower() for key in loaded.module.state_dict())
    _assert_same(loaded, network)
    side_px = loaded.info.preprocessing.crop_px
    batch = torch.randn(1, 3, side_px, side_px, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(loaded.module(batch), network(batch))
        network.transform_input = False  # type: ignore[assignment]  # a plain attribute of these two networks
        assert not torch.allclose(loaded.module(batch), network(batch))


def test_densenets_old_key_names_are_understood(tmp_path: Path) -> None:
    network = _network("densenet121")
    old = {
        "module." + key.replace("norm1", "norm.1").replace("norm2", "norm.2").replace("conv1", "conv.1").replace("conv2", "conv.2"): tensor
        for key, tensor in network.state_dict().items()
    }
    assert len(set(old) - {f"module.{key}" for key in network.state_dict()}) > 100
    _assert_same(_load(_saved(old, tmp_path / "densenet.pth"), "densenet121"), network)


def test_vits_old_key_names_are_understood_by_torchvisions_own_hook() -> None:
    def build() -> nn.Module:
        vit: nn.Module = models.VisionTransformer(32, 16, num_layers=2, num_heads=2, hidden_dim=8, mlp_dim=16, num_classes=2)
        return vit

    state = build().state_dict()
    old = OrderedDict((key.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2."), value) for key, value in state.items())
    assert old.keys() != state.keys()
    loaded = without_memory(build)
    fill(loaded, old, model="vit", classes=2, source="test")
    torch.testing.assert_close(loaded.state_dict(), state, rtol=0, atol=0)


def test_a_network_that_insists_on_its_version_loads_from_a_format_without_versions(tmp_path: Path) -> None:
    network = _network("mnasnet0_5")
    save_file(network.state_dict(), tmp_path / "mnasnet.safetensors")
    _assert_same(_load(tmp_path / "mnasnet.safetensors", "mnasnet0_5"), network)


def _without(key: str) -> Callable[[State], object]:
    return lambda state: {name: tensor for name, tensor in state.items() if name != key}


_MISFITS: dict[str, tuple[Callable[[State], object], str]] = {
    "missing": (
        _without("stage2.0.branch1.0.weight"),
        r"does not fit shufflenet_v2_x0_5 \(LENSGATE_INFERENCE__MODEL\): stage2\.0\.branch1\.0\.weight is missing\.$",
    ),
    "unknown": (lambda state: {**state, "extra": torch.zeros(1), "more": torch.zeros(1)}, r"extra is unknown, and 1 more\.$"),
    "another model": (lambda _: _network("mobilenet_v2").state_dict(), r"is missing, and \d+ more; .* is unknown, and \d+ more\.$"),
    "another shape": (
        lambda state: {**state, "conv1.0.weight": torch.zeros(24, 3, 7, 7)},
        r"conv1\.0\.weight has the shape \[24, 3, 7, 7\], not \[24, 3, 3, 3\]\.$",
    ),
    "another head": (
        lambda _: _network(SMALL, num_classes=7).state_dict(),
        r"has 7 classes, and there are 1000 labels: LENSGATE_INFERENCE__LABELS must name a file of 7, one a line\.$",
    ),
    "another kind": (
        lambda state: {**state, "fc.bias": torch.zeros(1000, dtype=torch.int8)},
        r"fc\.bias is torch\.int8, not torch\.float32",
    ),
    # torch 2.11 does not unpickle a sparse tensor at all.
    "sparse": (
        lambda state: {**state, "fc.weight": torch.zeros(1000, 1024).to_sparse()},
        r"fc\.weight is sparse, quantised or complex|holds more than tensors",
    ),
    "complex": (lambda state: {**state, "fc.bias": torch.zeros(1000, dtype=torch.complex64)}, "sparse, quantised or complex"),
    "a strange entry": (lambda state: {**state, "note": "hello"}, "its entry 'note' is no tensor"),
    "a tensor": (lambda _: torch.zeros(3), "holds no state dict"),
    "nothing": (lambda _: {}, "holds no state dict"),
    "numbered": (lambda _: {1: torch.zeros(1)}, "holds no state dict"),
}


@pytest.mark.parametrize("misfit", _MISFITS)
def test_a_state_dict_that_does_not_fit_is_refused_in_one_line(misfit: str, small: nn.Module, tmp_path: Path) -> None:
    change, reason = _MISFITS[misfit]
    path = _saved(change(_state(small)), tmp_path / "weights.pth")
    with pytest.raises(ModelLoadError, match=reason) as raised:
        _load(path)
    assert "\n" not in str(raised.value)
    assert str(path) in str(raised.value)


class _Trap:
    """Unpickled, it makes a folder: what a hostile weights file would do, made visible."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.mkdir, (self._folder,)


@pytest.mark.parametrize("save", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))], ids=["torch", "pickle"])
def test_code_in_a_weights_file_is_never_run(save: Callable[[object, Path], object], small: nn.Module, tmp_path: Path) -> None:
    save({"state_dict": small.state_dict(), "trap": _Trap(tmp_path / "sprung")}, tmp_path / "weights.pth")
    with pytest.raises(ModelLoadError, match="holds more than tensors") as raised:
        _load(tmp_path / "weights.pth")
    assert not (tmp_path / "sprung").exists()
    assert "weights_only" not in str(raised.value)


def test_a_pickled_network_is_refused_with_the_way_to_save_one(small: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"torch\.save\(model\.state_dict\(\), 'weights\.pth'\)"):
        _load(_saved(small, tmp_path / "weights.pth"))


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_torchscript_file_is_named_for_what_it_is_without_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.jit.script(nn.Linear(1, 1)).save(path)  # type: ignore[no-untyped-call]  # torch's own stubs lack it
    with pytest.raises(ModelLoadError, match=r"is a TorchScript file.*torch\.save\(model\.state_dict\(\), 'weights\.pth'\)"):
        _load(path)


_UNREADABLE = r"is broken|no readable safetensors"


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"PK\x03\x04" + bytes(100), bytes(1000)])
def test_a_file_of_something_else_is_refused(content: bytes, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(ModelLoadError, match=_UNREADABLE):
        _load(path)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_truncated_file_is_refused(suffix: str, small: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save(small.state_dict(), path)
    else:
        save_file(small.state_dict(), path)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)
    with pytest.raises(ModelLoadError, match=_UNREADABLE):
        _load(path)


@pytest.mark.parametrize("action", [load_weights, fetch_weights])
def test_a_missing_file_is_named(action: Callable[[InferenceSettings], object], tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"nowhere\.pth"):
        action(InferenceSettings(model=SMALL, weights=str(tmp_path / "nowhere.pth")))


def test_a_file_of_another_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"onnx")
    with pytest.raises(ModelLoadError, match=r"must end in \.pth or \.safetensors"):
        _load(tmp_path / "model.onnx")


def test_labels_that_do_not_match_the_head_are_refused(small: nn.Module, tmp_path: Path) -> None:
    path = _saved(small.state_dict(), tmp_path / "weights.pth")
    with pytest.raises(ModelLoadError, match="has 1000 classes, and there are 5 labels"):
        _load(path, labels=_labels(tmp_path / "labels.txt", 5))


def test_labels_that_do_not_match_a_card_are_refused_before_anything_is_downloaded(tmp_path: Path) -> None:
    settings = InferenceSettings(model=SMALL, labels=_labels(tmp_path / "labels.txt", 5))
    with pytest.raises(ModelLoadError, match="has 5 labels; the model has 1000 classes"):
        load_weights(settings)


def test_weights_without_a_classifier_are_refused() -> None:
    with pytest.raises(ModelLoadError, match="have no classifier"):
        load_weights(InferenceSettings(model="vgg16", weights="IMAGENET1K_FEATURES"))


def test_a_card_without_labels_wants_a_labels_file(tmp_path: Path) -> None:
    (tmp_path / "vgg.pth").write_bytes(b"")
    with pytest.raises(ModelLoadError, match="has no labels"):
        _load(tmp_path / "vgg.pth", "vgg16", card="IMAGENET1K_FEATURES")


def test_loading_uses_up_the_state_and_keeps_no_view_of_the_file(small: nn.Module, tmp_path: Path) -> None:
    state = read_state_dict(_saved(small.state_dict(), tmp_path / "weights.pth"))
    mapped = {tensor.data_ptr() for tensor in state.values()}
    module = build_empty(SMALL, find_card(SMALL, "DEFAULT"), 1000)
    fill(module, state, model="test", classes=1000, source="test")
    assert not state
    assert mapped.isdisjoint(tensor.data_ptr() for tensor in module.state_dict().values())
