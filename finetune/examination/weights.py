"""What safetensors files say of themselves: which tensors, of what format and shape, and that all are numbers."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from finetune.errors import explain_shortage
from finetune.examination.documents import PLAIN_NAME, check_file, is_beside, read_object, refusal, show

__all__ = ["INDEX_FILE", "WEIGHTS_FILE", "Tensor", "list_weights", "read_tensors", "refuse_no_numbers"]

WEIGHTS_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
FORMATS = {"F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL"}
FLOATS: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
}
CHUNK = 4 * 2**20  # numbers that are looked at together
# The name by which transformers takes a folder for the checkpoint of a distributed training, and reads it otherwise.
DISTRIBUTED = re.compile(r"shard-[0-9]{5}-model-[0-9]{5}-of-[0-9]{5}\.safetensors")
# Minus infinity in half precision: what GPT-2 and its kin write over masked positions.
MAY_BE_INFINITE = "masked_bias"


@dataclass(frozen=True)
class Tensor:
    """A tensor as a file's header describes it: safetensors' name of its format, and its shape."""

    format: str
    shape: tuple[int, ...]


def list_weights(folder: Path) -> list[Path]:
    """List the files of a whole model's weights: one, or the shards that an index names.

    Returns:
        Files that are there; none if there is neither the one file nor an index.

    Raises:
        FinetuneError: If the index names anything but safetensors files in the folder, or lacks one.
    """
    check_file(folder / WEIGHTS_FILE)
    check_file(folder / INDEX_FILE)
    odd = next((file.name for file in sorted(folder.glob("shard-*")) if DISTRIBUTED.match(file.name)), None)
    if odd is not None:
        raise refusal(folder, f"weights in {WEIGHTS_FILE}", f"{odd}, a piece of a distributed training's checkpoint")
    files = [folder / WEIGHTS_FILE] if (folder / WEIGHTS_FILE).is_file() else []
    if (folder / INDEX_FILE).is_file():
        files += _read_index(folder / INDEX_FILE)
    return files


def _read_index(file: Path) -> list[Path]:
    shards = read_object(file).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise refusal(file, "a weight_map of tensors and their files", show(shards))
    for name in shards.values():
        if not isinstance(name, str) or not PLAIN_NAME.fullmatch(name) or not name.endswith(".safetensors"):
            raise refusal(file, "names of safetensors files that lie beside it", show(name))
    files = [file.with_name(name) for name in sorted(set(shards.values()))]
    for shard in files:
        check_file(shard)
        if not shard.is_file():
            raise refusal(file, "names of safetensors files that lie beside it", f"{shard.name!r}, which is missing")
        if not is_beside(shard):
            raise refusal(file, "names of safetensors files that lie beside it", f"{shard.name!r}, a link out of there")
    held = {name for shard in files for name in read_tensors(shard)}
    lacking = next((name for name in shards if name not in held), None)
    if lacking is not None:
        raise refusal(file, "tensors that its files have", f"{show(lacking)}, which they lack")
    return files


def read_tensors(file: Path) -> dict[str, Tensor]:
    """Read the header of a safetensors file, and none of its numbers.

    Raises:
        FinetuneError: If it is no such file, cut off, or has a format that no model of ours computes in.
    """
    check_file(file)
    try:
        with safe_open(file, "numpy") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118  it is no dict
            tensors = {name: Tensor(one.get_dtype(), tuple(one.get_shape())) for name, one in slices.items()}
    except (OSError, SafetensorError, ValueError) as error:
        shortage = explain_shortage(error)
        raise shortage or refusal(file, "weights in safetensors", f"that they can't be read ({error})") from error
    odd = next((tensor.format for tensor in tensors.values() if tensor.format not in FORMATS), None)
    if odd is not None:
        raise refusal(file, f"numbers in one of {', '.join(sorted(FORMATS))}", odd)
    return tensors


def refuse_no_numbers(file: Path) -> None:
    """Read all tensors of a file, and refuse NaN and infinity, as of a training that went astray or a damaged file.

    Args:
        file: After `read_tensors`.

    Raises:
        FinetuneError: Naming the first tensor that has one.
    """
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(length))
    for name, entry in header.items():
        if name == "__metadata__" or entry["dtype"] not in FLOATS:
            continue
        start, end = entry["data_offsets"]
        dtype = FLOATS[entry["dtype"]]
        count = (end - start) // dtype.itemsize
        for first in range(0, count, CHUNK):
            where = 8 + length + start + first * dtype.itemsize
            numbers = np.fromfile(file, dtype, min(CHUNK, count - first), offset=where)
            if not _are_numbers(numbers, name.endswith(MAY_BE_INFINITE)):
                raise refusal(file, "weights that are numbers", f"NaN or infinite ones in {name!r}")


def _are_numbers(numbers: np.ndarray, may_be_infinite: bool) -> bool:
    if numbers.dtype == FLOATS["BF16"]:  # numpy has no such format: of float32 it is the upper half
        if may_be_infinite:
            return not bool(((numbers & 0x7FFF) > 0x7F80).any())
        return not bool(((numbers & 0x7F80) == 0x7F80).any())
    return not bool(np.isnan(numbers).any()) if may_be_infinite else bool(np.isfinite(numbers).all())
