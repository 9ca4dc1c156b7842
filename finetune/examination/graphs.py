"""An ONNX graph: built-in operators, no loops, weights beside it, all of them numbers.

onnx itself is needed to export and not to run what was exported. So the few fields that are looked at are declared here
for protobuf, which comes with onnxruntime; it passes over all others. Their numbers are those of onnx.proto.
"""

import functools
from pathlib import Path
from typing import Any

import numpy as np

from finetune.examination.documents import PLAIN_NAME, check_file, is_beside, refusal, show

__all__ = ["check_graph"]

# The standard's own, and those of onnxruntime, which come with it.
DOMAINS = {"", "ai.onnx", "ai.onnx.ml", "com.microsoft"}
MOST_BYTES = 2**31  # of a protobuf
REPEATED, OPTIONAL = 3, 1
INT32, INT64, FLOAT, DOUBLE, STRING, BYTES, MESSAGE = 5, 3, 2, 1, 9, 12, 11
FIELDS: dict[str, list[tuple[str, int, int, int, str | None]]] = {
    "Entry": [("key", 1, OPTIONAL, STRING, None), ("value", 2, OPTIONAL, STRING, None)],
    "Tensor": [
        ("dims", 1, REPEATED, INT64, None), ("data_type", 2, OPTIONAL, INT32, None),
        ("float_data", 4, REPEATED, FLOAT, None), ("name", 8, OPTIONAL, STRING, None),
        ("raw_data", 9, OPTIONAL, BYTES, None), ("double_data", 10, REPEATED, DOUBLE, None),
        ("external_data", 13, REPEATED, MESSAGE, "Entry"),
    ],
    "Attribute": [
        ("name", 1, OPTIONAL, STRING, None), ("t", 5, OPTIONAL, MESSAGE, "Tensor"),
        ("g", 6, OPTIONAL, MESSAGE, "Graph"), ("tensors", 10, REPEATED, MESSAGE, "Tensor"),
        ("graphs", 11, REPEATED, MESSAGE, "Graph"), ("sparse_tensor", 22, OPTIONAL, BYTES, None),
        ("sparse_tensors", 23, REPEATED, BYTES, None),
    ],
    "Node": [
        ("name", 3, OPTIONAL, STRING, None), ("op_type", 4, OPTIONAL, STRING, None),
        ("attribute", 5, REPEATED, MESSAGE, "Attribute"), ("domain", 7, OPTIONAL, STRING, None),
    ],
    "Graph": [
        ("node", 1, REPEATED, MESSAGE, "Node"), ("initializer", 5, REPEATED, MESSAGE, "Tensor"),
        ("sparse_initializer", 15, REPEATED, BYTES, None),
    ],
    "Model": [("graph", 7, OPTIONAL, MESSAGE, "Graph"), ("functions", 25, REPEATED, BYTES, None)],
}  # fmt: skip
FORMATS = {1: "<f4", 10: "<f2", 11: "<f8"}  # of TensorProto.DataType, those whose numbers may be none
BFLOAT16 = 16


@functools.cache
def _message_class() -> Any:
    """Build the class that reads a model's file, of the fields that are declared above."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    package = "finetune_onnx"
    file = descriptor_pb2.FileDescriptorProto(name="finetune_onnx.proto", package=package, syntax="proto2")
    for name, fields in FIELDS.items():
        message = file.message_type.add(name=name)
        for field, number, label, kind, of in fields:
            added = message.field.add(name=field, number=number, label=label, type=kind)
            if of is not None:
                added.type_name = f".{package}.{of}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.Model"))


def check_graph(file: Path) -> None:
    """Refuse a graph that wants code or files from elsewhere, has a loop, or weights that are no numbers.

    Args:
        file: `model.onnx`.

    Raises:
        FinetuneError: Naming the first of them.
    """
    check_file(file)
    fix = "Export the model again."
    if not file.is_file():
        raise refusal(file.parent, f"an ONNX graph named {file.name}", "none", fix)
    if file.stat().st_size > MOST_BYTES:
        raise refusal(file, f"an ONNX graph of at most {MOST_BYTES:,} bytes", f"{file.stat().st_size:,}", fix)
    from google.protobuf.message import DecodeError

    try:
        model = _message_class().FromString(file.read_bytes())
    except (DecodeError, ValueError, RecursionError) as error:
        raise refusal(file, "an ONNX graph", f"that it can't be read ({error})", fix) from error
    nodes = model.graph.node
    if not nodes:
        raise refusal(file, "an ONNX graph with operators", "none", fix)
    if model.functions:  # forty of them, each of which calls the next one twice, are a million million operators
        raise refusal(file, "a graph without functions of its own", f"{len(model.functions)}", fix)
    if model.graph.sparse_initializer:
        raise refusal(file, "weights that are not sparse", f"{len(model.graph.sparse_initializer)} that are", fix)
    tensors = list(model.graph.initializer)
    for node in nodes:
        if node.domain not in DOMAINS:
            raise refusal(file, "operators that are built into onnxruntime", f"{node.domain}.{node.op_type}", fix)
        for one in node.attribute:
            if one.HasField("g") or one.graphs:
                raise refusal(file, "a graph without loops and branches", f"{node.op_type} {show(node.name)}", fix)
            if one.HasField("sparse_tensor") or one.sparse_tensors:
                raise refusal(file, "weights that are not sparse", f"one in {node.op_type} {show(node.name)}", fix)
            tensors += [*([one.t] if one.HasField("t") else []), *one.tensors]
    for tensor in tensors:
        _check_tensor(tensor, file, fix)


def _check_tensor(tensor: Any, file: Path, fix: str) -> None:
    dtype = "<u2" if tensor.data_type == BFLOAT16 else FORMATS.get(tensor.data_type)
    if not tensor.external_data:
        _refuse_no_numbers(tensor, [*tensor.float_data, *tensor.double_data], file, fix)
        if dtype and len(tensor.raw_data) % np.dtype(dtype).itemsize == 0:
            _refuse_no_numbers(tensor, np.frombuffer(tensor.raw_data, dtype), file, fix)
        return
    where = {one.key: one.value for one in tensor.external_data}
    name, what = where.get("location", ""), "weights in files that lie beside it"
    data = file.with_name(name) if PLAIN_NAME.fullmatch(name) else None
    if data is None:
        raise refusal(file, what, show(name), fix)
    check_file(data)
    if not data.is_file() or not is_beside(data):
        raise refusal(file, what, f"{name!r}, which is missing or a link out of there", fix)
    try:
        start, length = int(where.get("offset", 0)), int(where.get("length", -1))
    except ValueError:
        raise refusal(file, what, f"{show(where)} of it", fix) from None
    size = data.stat().st_size
    if start < 0 or start > size or length > size - start:
        raise refusal(data, f"the {start + length:,} bytes that {file.name} reads of it", f"{size:,}", fix)
    if dtype is not None:
        length = size - start if length < 0 else length
        _refuse_no_numbers(
            tensor, np.fromfile(data, dtype, length // np.dtype(dtype).itemsize, offset=start), file, fix
        )


def _refuse_no_numbers(tensor: Any, numbers: Any, file: Path, fix: str) -> None:
    """Refuse NaN; infinity too, but in a constant of few numbers, as that which masks a position."""
    found = np.asarray(numbers)
    if found.dtype == np.dtype("<u2"):
        is_bad = (found & 0x7FFF) > 0x7F80 if found.size <= 1 else (found & 0x7F80) == 0x7F80
    elif found.dtype.kind != "f":
        return
    else:
        is_bad = np.isnan(found) if found.size <= 1 else ~np.isfinite(found)
    if is_bad.any():
        raise refusal(file, "weights that are numbers", f"NaN or infinite ones in {show(tensor.name)}", fix)
