"""Lets a convolution add what its block skipped, and cut off what is negative, before it writes its result: one pass over memory.

cuDNN can do that on a GPU. Which convolutions it takes depends on its version, the GPU, the number format and the shapes. So each is tried,
and only those that give the numbers of the network as it was are fused.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import structlog
import torch
from torch import fx, nn
from torch.nn import functional as F  # noqa: N812  its usual name

from inference.worker.out_of_memory import ran_out_of_memory

_TOLERANCE: Final = 0.02
"""By how much of its norm a fused result may differ: bf16 has 8 bits of mantissa, and the fused form rounds once instead of three times."""

_RELU_FUNCTIONS: Final = frozenset({torch.relu, torch.relu_, F.relu, F.relu_})
_RELU_METHODS: Final = frozenset({"relu", "relu_"})
_ADDITIONS: Final = frozenset({operator.add, torch.add, "add"})
_ADDITIONS_IN_PLACE: Final = frozenset({operator.iadd, "add_"})

_log: Final = structlog.get_logger()


@dataclass(frozen=True)
class FusedOperations:
    """What does the work of several layers."""

    relu: Callable[..., torch.Tensor]
    """`(input, weight, bias, stride, padding, dilation, groups)`"""
    add_relu: Callable[..., torch.Tensor]
    """`(input, weight, added, 1.0, bias, stride, padding, dilation, groups)`"""


CUDNN: Final = FusedOperations(torch.cudnn_convolution_relu, torch.cudnn_convolution_add_relu)


@dataclass(frozen=True)
class _Fusion:
    """A convolution, what is added to its result, and the ReLU that follows."""

    convolution: fx.Node
    layer: nn.Conv2d
    addition: fx.Node | None
    relu: fx.Node

    def operands(self) -> tuple[fx.Node, fx.Node | None]:
        """The convolution's input and what is added, as they stand in the graph now."""
        source = self.convolution.all_input_nodes[0]
        if self.addition is None:
            return source, None
        return source, next(node for node in self.addition.all_input_nodes if node is not self.convolution)


def fuse_convolutions(graph: nn.Module, examples: Sequence[torch.Tensor], operations: FusedOperations = CUDNN) -> nn.Module | None:
    """Fuse the convolutions of `graph` with what follows them, as far as that gives the same numbers for each of `examples`.

    Returns:
        A module that shares the weights of `graph`; None where nothing can be fused, and the log says why.
    """
    try:
        traced = fx.symbolic_trace(graph)
    except Exception as error:  # noqa: BLE001  tracing runs the network's own code, which may branch on its input: there is no list of what it raises
        _log.info("convolutions_not_fused", reason=f"the network cannot be traced: {error}")
        return None
    found = list(filter(None, (_fusion_at(traced, node) for node in traced.graph.nodes)))
    trial = _Trial(traced, found, operations)
    with torch.inference_mode():
        for example in examples:
            trial.run(example)
    if not trial.sound:
        _log.info("convolutions_not_fused", reason=trial.first_refusal or "the network has none that are followed by a ReLU")
        return None
    for fusion in trial.sound.values():
        _rewrite(traced, fusion, operations)
    traced.recompile()
    _log.info("convolutions_fused", layers_fused=len(trial.sound), layers_left=len(found) - len(trial.sound), reason=trial.first_refusal)
    return traced


class _Trial(fx.Interpreter):
    """Runs the network as it was, and each fusion beside the layers that it would replace."""

    def __init__(self, traced: fx.GraphModule, fusions: Sequence[_Fusion], operations: FusedOperations) -> None:
        # Values are kept: a convolution's input would be gone when its ReLU's turn has come.
        super().__init__(traced, garbage_collect_values=False)
        self._operations = operations
        self.sound = {fusion.relu: fusion for fusion in fusions}
        self.first_refusal = ""

    def run_node(self, n: fx.Node) -> Any:  # noqa: ANN401  as fx's
        result = super().run_node(n)
        fusion = self.sound.get(n)
        if fusion is not None and (refusal := self._refusal(fusion, result)):
            del self.sound[n]
            self.first_refusal = self.first_refusal or f"{fusion.convolution.target}: {refusal}"
        return result

    def _refusal(self, fusion: _Fusion, expected: torch.Tensor) -> str:
        source, added = (None if node is None else self.env[node] for node in fusion.operands())
        # cuDNN would read past the end of one that is smaller.
        if added is not None and (added.shape != expected.shape or added.dtype != expected.dtype):
            return "what is added has another shape or type than the result"
        try:
            first = _call(self._operations, fusion.layer, source, added)
            # cuDNN takes the memory of the result for something to add, zero times. The second result lands where the first one lay:
            # were it really read, this would show.
            first.fill_(math.nan)
            del first
            result = _call(self._operations, fusion.layer, source, added)
        except RuntimeError as error:
            if ran_out_of_memory(error):
                raise
            return str(error).partition("\n")[0]
        return "" if nearly_equal(result, expected, _TOLERANCE) else "its numbers differ"


def nearly_equal(result: torch.Tensor, expected: torch.Tensor, tolerance: float) -> bool:
    """Whether the difference's norm is at most `tolerance` of the expected one's; False where a number is not finite."""
    expected = expected.float()
    return result.shape == expected.shape and bool((result.float() - expected).norm() <= tolerance * expected.norm())


def _call(operations: FusedOperations, layer: nn.Conv2d, source: Any, added: Any) -> torch.Tensor:  # noqa: ANN401  tensors, or nodes in their place
    geometry = (layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups)
    if added is None:
        return operations.relu(source, layer.weight, *geometry)
    return operations.add_relu(source, layer.weight, added, 1.0, *geometry)


def _rewrite(traced: fx.GraphModule, fusion: _Fusion, operations: FusedOperations) -> None:
    source, added = fusion.operands()
    layer = fusion.layer
    with traced.graph.inserting_before(fusion.relu):
        weight, bias = (traced.graph.get_attr(f"{fusion.convolution.target}.{name}") for name in ("weight", "bias"))
        geometry = (bias, layer.stride, layer.padding, layer.dilation, layer.groups)
        if added is None:
            fused = traced.graph.call_function(operations.relu, (source, weight, *geometry))
        else:
            fused = traced.graph.call_function(operations.add_relu, (source, weight, added, 1.0, *geometry))
    fusion.relu.replace_all_uses_with(fused)
    for node in (fusion.relu, fusion.addition, fusion.convolution):
        if node is not None:
            traced.graph.erase_node(node)


def _fusion_at(traced: fx.GraphModule, node: fx.Node) -> _Fusion | None:
    if not _is_relu(traced, node):
        return None
    before = node.all_input_nodes[0]
    if len(before.users) > 1:
        return None
    layer = _convolution_at(traced, before)
    if layer is not None:
        return _Fusion(before, layer, None, node)
    for operand in _operands_of_addition(before):
        layer = _convolution_at(traced, operand)
        if layer is not None and len(operand.users) == 1:
            return _Fusion(operand, layer, before, node)
    return None


def _is_relu(traced: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return type(traced.get_submodule(str(node.target))) is nn.ReLU
    known = {"call_function": _RELU_FUNCTIONS, "call_method": _RELU_METHODS}.get(node.op, frozenset())
    return node.target in known


def _operands_of_addition(node: fx.Node) -> Sequence[fx.Node]:
    """Those that may be a convolution's result: none of them is needed afterwards, nor written over."""
    operands = node.all_input_nodes
    # Two tensors, and no factor.
    if node.op not in {"call_function", "call_method"} or not len(operands) == len(node.args) == 2 or node.kwargs:
        return ()
    if node.target in _ADDITIONS_IN_PLACE:
        return operands[:1]
    return operands if node.target in _ADDITIONS else ()


def _convolution_at(traced: fx.GraphModule, node: fx.Node) -> nn.Conv2d | None:
    """The layer, if it is one that cuDNN may fuse: those with groups run by other kernels."""
    layer = traced.get_submodule(str(node.target)) if node.op == "call_module" else None
    if type(layer) is not nn.Conv2d or layer.bias is None or layer.groups > 1 or layer.padding_mode != "zeros":
        return None
    return None if isinstance(layer.padding, str) else layer
