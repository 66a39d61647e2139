"""The network with its normalisation in front, prepared for inference: what every way of running a model starts from."""

from __future__ import annotations

from collections import Counter

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from inference.worker.weights import LoadedWeights


class PixelGraph(nn.Module):
    """`[N,H,W,3]` uint8 pictures to `[N,classes]` float32 logits."""

    scale: torch.Tensor
    bias: torch.Tensor

    def __init__(self, loaded: LoadedWeights, dtype: torch.dtype) -> None:
        """Take `loaded.module` over: its batch norms folded into their convolutions, then `dtype` and channels-last memory."""
        super().__init__()
        mean = torch.tensor(loaded.mean, dtype=torch.float64).view(1, 3, 1, 1)
        std = torch.tensor(loaded.std, dtype=torch.float64).view(1, 3, 1, 1)
        # (pixel / 255 - mean) / std as one multiply-add.
        self.register_buffer("scale", (1 / (255 * std)).float())
        self.register_buffer("bias", (-mean / std).float())
        self._dtype = dtype
        network = _fold_batch_norms(loaded.module)
        self._network = network.to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]  # untyped in torch
        for layer in self._network.modules():
            # The running variance spans many powers of two, and 8 bits of mantissa lose accuracy for no speed (measured: none gained).
            if isinstance(layer, nn.BatchNorm2d):
                layer.float()

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Normalise in float32, where the subtraction of the mean costs no accuracy, then run the network in its own precision."""
        # The permuted view of pictures in rows is channels-last memory already: nothing is copied.
        planes = pixels.permute(0, 3, 1, 2).to(torch.float32)
        logits: torch.Tensor = self._network(torch.addcmul(self.bias, planes, self.scale).to(self._dtype))
        return logits.float()


def _fold_batch_norms(module: nn.Module) -> nn.Module:
    """Fold every batch norm that alone follows a convolution into it, in float32; a network that cannot be traced stays as it is.

    One pass over memory less for each, and no rounding between the two in a lower precision.
    """
    try:
        traced = fx.symbolic_trace(module)
    except Exception:  # noqa: BLE001  tracing runs the network's own code, which may branch on its input: there is no list of what it raises
        return module
    calls = Counter(node.target for node in traced.graph.nodes if node.op == "call_module")

    def layer_called_once(node: fx.Node) -> nn.Module | None:
        return traced.get_submodule(str(node.target)) if node.op == "call_module" and calls[node.target] == 1 else None

    for node in list(traced.graph.nodes):
        norm = layer_called_once(node)
        if not isinstance(norm, nn.BatchNorm2d):
            continue
        before = node.args[0]
        convolution = layer_called_once(before)
        if not isinstance(convolution, nn.Conv2d) or len(before.users) > 1:
            continue
        traced.set_submodule(before.target, fuse_conv_bn_eval(convolution, norm))
        node.replace_all_uses_with(before)
        traced.graph.erase_node(node)
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced
