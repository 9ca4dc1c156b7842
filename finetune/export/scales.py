"""Scales of activations in 8 bits, found once on texts, so that an answer does not depend on the rest of a batch.

onnxruntime's own find a scale while the model runs: one for the whole batch, padding included, by which probabilities
moved by up to 0.12 (measured). A scale that stands still needs no search either.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

__all__ = ["fix_scales"]

SEARCHED = "DynamicQuantizeLinear"
CONTRIBUTED = "com.microsoft"  # onnxruntime's own operators, which all its builds have


def fix_scales(file: Path, feeds: Iterable[dict[str, np.ndarray]]) -> None:
    """Replace, in place, the scales that a model in 8 bits searches for by those that hold what it computes on texts.

    Args:
        file: A model of `onnxruntime.quantization.quantize_dynamic`, its weights beside it.
        feeds: Its inputs, of texts like those that it will see. What is beyond all that they give is cut off.
    """
    model = onnx.load(str(file), load_external_data=False)
    searched = [node for node in model.graph.node if node.op_type == SEARCHED]
    ranges = _observe(file, sorted({node.input[0] for node in searched}), feeds)
    for node in searched:
        low, high = ranges[node.input[0]]
        scale = np.float32(max(high - low, 1e-8) / 255)
        quantized, scale_name, zero_name = node.output
        zero = np.uint8(np.clip(np.round(-low / scale), 0, 255))
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(scale), scale_name))
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(zero), zero_name))
        node.CopyFrom(helper.make_node("QuantizeLinear", [node.input[0], scale_name, zero_name], [quantized]))
    _join_products(model)
    onnx.save(model, str(file))


def _observe(file: Path, names: list[str], feeds: Iterable[dict[str, np.ndarray]]) -> dict[str, tuple[float, float]]:
    """Return the smallest and the largest value of some tensors, zero among them."""
    model = onnx.load(str(file), load_external_data=False)
    for name in names:
        for operator in ("ReduceMin", "ReduceMax"):
            extreme = f"{operator} of {name}"
            model.graph.node.append(helper.make_node(operator, [name], [extreme], keepdims=0))
            model.graph.output.append(helper.make_tensor_value_info(extreme, TensorProto.FLOAT, []))
    observing = file.with_name("observing.onnx")  # beside the weights, which it names
    onnx.save(model, str(observing))
    try:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(observing, options, providers=["CPUExecutionProvider"])
        wanted = [f"{operator} of {name}" for name in names for operator in ("ReduceMin", "ReduceMax")]
        found = np.array([session.run(wanted, feed) for feed in feeds], dtype=np.float64)
    finally:
        observing.unlink()
    low, high = found.min(axis=0)[::2], found.max(axis=0)[1::2]
    return {name: (min(float(one), 0.0), max(float(two), 0.0)) for name, one, two in zip(names, low, high, strict=True)}


def _join_products(model: onnx.ModelProto) -> None:
    """Let a product and its scales be one step, as onnxruntime makes of scales that are searched for."""
    graph = model.graph
    makers = {output: node for node in graph.node for output in node.output}
    constants = {one.name for one in graph.initializer}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    gone: list[str] = []  # outputs of what is not needed any more
    for product in [node for node in graph.node if node.op_type == "MatMulInteger"]:
        cast = _only_reader(readers, product, "Cast")
        scaled = None if cast is None else _only_reader(readers, cast, "Mul")
        if cast is None or scaled is None:
            continue
        both = makers.get(next((name for name in scaled.input if name != cast.output[0]), ""))
        if both is None or both.op_type != "Mul" or not constants.issuperset(both.input):
            continue
        scale = makers[product.input[0]].input[1]  # of the QuantizeLinear before it
        other = [name for name in both.input if name != scale]
        if len(other) != 1:
            continue
        inputs = [*product.input[:2], scale, other[0], *product.input[2:]]
        joined = helper.make_node("MatMulIntegerToFloat", inputs, [scaled.output[0]], domain=CONTRIBUTED)
        gone += [cast.output[0], product.output[0]]
        if len(readers[both.output[0]]) == 1:
            gone.append(both.output[0])
        scaled.CopyFrom(joined)
    kept = [node for node in graph.node if not set(node.output) & set(gone)]
    del graph.node[:]
    graph.node.extend(kept)
    if gone and all(one.domain != CONTRIBUTED for one in model.opset_import):
        model.opset_import.append(helper.make_opsetid(CONTRIBUTED, 1))


def _only_reader(readers: dict[str, list[onnx.NodeProto]], node: onnx.NodeProto, kind: str) -> onnx.NodeProto | None:
    found = readers.get(node.output[0], [])
    return found[0] if len(found) == 1 and found[0].op_type == kind else None
