"""A network's `config.json`: what it lets a library import or fetch, how large the network is, what goes together.

Architectures have names of their own for their sizes. So whatever is a whole number is bounded, however it is called,
and what is known by name is compared with the shapes of the weights.
"""

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from finetune.examination.documents import PLAIN_NAME, is_whole, refusal, show
from finetune.examination.weights import Tensor

__all__ = ["check_config", "check_sizes", "read_vocabulary_size"]

# What is built into transformers; any other name is that of a kernel, which would be fetched and run.
ATTENTIONS = {
    "eager", "sdpa", "flex_attention", "flash_attention_2", "flash_attention_3", "flash_attention_4", "paged|eager",
    "paged|sdpa", "paged|flash_attention_2",
}  # fmt: skip
EXPERTS = {"eager", "batched_mm", "grouped_mm"}
IMPLEMENTATIONS = {"attn_implementation": ATTENTIONS, "experts_implementation": EXPERTS}
DTYPES = {"float32", "float16", "bfloat16", "float64", "auto"}
# Holding weights in four or eight bits with bitsandbytes, and what it is told.
QUANTIZATION = {
    "quant_method", "load_in_4bit", "load_in_8bit", "_load_in_4bit", "_load_in_8bit", "bnb_4bit_quant_type",
    "bnb_4bit_use_double_quant", "bnb_4bit_compute_dtype", "bnb_4bit_quant_storage", "llm_int8_skip_modules",
    "llm_int8_threshold", "llm_int8_enable_fp32_cpu_offload", "llm_int8_has_fp16_weight",
}  # fmt: skip
# Settings that name code or files beyond those that are examined.
REFUSED = {"gguf_file", "kernel_config", "use_kernels", "distributed_config", "peft_config", "adapter_kwargs"}
LAYERS = re.compile(r"n_layers?|(\w+_)?(layers|depth|layer_num|hidden_groups|block_sizes|block_repeats|repeats)|depths")
# Whatever else is made one by one, as experts are.
COUNTS = re.compile(r"(num|n)_(?!\w*(vocab|position|token|label|bucket|param))\w+|\w+_(num|count)")
HEADS = re.compile(r"n_heads?|num_heads|(num|encoder|decoder)_attention_heads|num_key_value_heads")
# A row or a column of a weight is as long, so that none can be longer than the longest.
WIDTHS = {"hidden_size", "d_model", "dim", "n_embd", "embedding_size", "embedding_dim", "intermediate_size", "d_ff",
          "hidden_dim", "d_inner", "encoder_ffn_dim", "decoder_ffn_dim", "vocab_size", "n_inner",
          "num_labels"}  # fmt: skip
OF_LAYERS = {"num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers"}
MOST_LAYERS = 1_000  # the deepest encoders have less than 100
MOST_COUNTED = 20_000
MOST = 2**24  # of any other number that may be a size; the largest vocabularies have 300,000 tokens
UNBOUNDED = re.compile(
    r"max_position_embeddings|n_positions|max_seq_len|\w*(theta|seed|version|context|length|param|bytes|base)\w*"
)


def check_config(content: dict[str, Any], file: Path) -> None:
    """Refuse settings that would run code, reach for other files, or build a network that never ends.

    Args:
        content: What the file holds, its nested configs included.
        file: Which.

    Raises:
        FinetuneError: Naming the first of them.
    """
    if not isinstance(content.get("model_type"), str):
        raise refusal(file, "a model_type", show(content.get("model_type")))
    for name, one in _nested(content):
        for key, value in one.items():
            _check_entry(f"{name}{key}", key, value, file)
        _check_heads(name, one, file)
        _check_padding(name, one, file)


def _nested(content: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield a config and those in it, each with the path that leads there; label names are none."""
    yield path, content
    for key, value in content.items():
        if isinstance(value, dict) and key not in ("id2label", "label2id", "quantization_config"):
            yield from _nested(value, f"{path}{key}.")


def _check_entry(name: str, key: str, value: Any, file: Path) -> None:
    bare = key.strip("_").removesuffix("_internal")
    if bare in IMPLEMENTATIONS:
        chosen = list(value.values()) if isinstance(value, dict) else [value]
        if not all(one is None or (isinstance(one, str) and one in IMPLEMENTATIONS[bare]) for one in chosen):
            known = ", ".join(sorted(IMPLEMENTATIONS[bare]))
            raise refusal(file, f"{name} to be built in ({known})", show(value), "Take the entry out.")
    elif bare in ("dtype", "torch_dtype"):
        chosen = list(value.values()) if isinstance(value, dict) else [value]
        if not all(one is None or one in DTYPES for one in map(_hashable, chosen)):
            raise refusal(file, f"{name} of {', '.join(sorted(DTYPES))}", show(value))
    elif bare == "quantization_config" and value is not None:
        _check_quantization(value, file)
    elif bare in REFUSED and value not in (None, False):
        raise refusal(file, f"no {name}, which names code or files", show(value), "Take the entry out.")
    elif bare == "transformers_weights" and value is not None:
        if not isinstance(value, str) or not PLAIN_NAME.fullmatch(value) or not value.endswith("safetensors"):
            raise refusal(file, f"{name} to be a safetensors file beside it", show(value), "Take the entry out.")
    elif isinstance(value, float) and math.isnan(value):
        raise refusal(file, f"a number as {name}", "NaN")
    elif LAYERS.fullmatch(bare):
        numbers = value if isinstance(value, list) else [value]
        counts = [one for one in numbers if is_whole(one)]
        if len(numbers) > MOST_LAYERS or sum(map(abs, counts)) > MOST_LAYERS:
            raise refusal(file, f"at most {MOST_LAYERS:,} layers", f"{show(value)} as {name}")
    elif is_whole(value) and abs(value) > MOST_COUNTED and COUNTS.fullmatch(bare):
        raise refusal(file, f"{name} of at most {MOST_COUNTED:,}", show(value))
    elif is_whole(value) and abs(value) > MOST and not UNBOUNDED.fullmatch(bare):
        raise refusal(file, f"{name} of at most {MOST:,}", show(value))


def _hashable(value: Any) -> Any:
    return value if isinstance(value, str | int | float | None) else repr(value)


def _check_quantization(value: Any, file: Path) -> None:
    fix = "Take the model that was not quantized."
    if not isinstance(value, dict):
        raise refusal(file, "settings of bitsandbytes as quantization_config", show(value), fix)
    by_bitsandbytes = value.get("quant_method") in ("bitsandbytes", "bitsandbytes_4bit", "bitsandbytes_8bit")
    odd = next((key for key in value if key not in QUANTIZATION), None)
    if not by_bitsandbytes or odd is not None:
        found = show(value.get("quant_method")) if odd is None or not by_bitsandbytes else f"{odd!r} among them"
        raise refusal(file, "settings of bitsandbytes as quantization_config", found, fix)
    for key in ("bnb_4bit_compute_dtype", "bnb_4bit_quant_storage"):
        if value.get(key) not in (None, "uint8", *DTYPES):
            raise refusal(file, f"{key} to be a number format", show(value[key]), fix)


def _check_heads(name: str, content: dict[str, Any], file: Path) -> None:
    """Refuse numbers of heads that are none, or that don't divide what they divide among them."""
    for key, count in content.items():
        if not HEADS.fullmatch(key) or count is None:
            continue
        if isinstance(count, list) and all(is_whole(one) and one > 0 for one in count):
            continue
        if not is_whole(count) or count < 1:
            raise refusal(file, f"{name}{key} of 1 or more", show(count))
        width = next((content[one] for one in ("hidden_size", "d_model", "dim", "n_embd") if one in content), None)
        has_own = any(content.get(one) is not None for one in ("head_dim", "d_head", "d_kv"))
        if key != "num_key_value_heads" and is_whole(width) and not has_own and width % count:
            raise refusal(file, f"{name}{key} to divide the width {width}", show(count))


def _check_padding(name: str, content: dict[str, Any], file: Path) -> None:
    padding, count = content.get("pad_token_id"), content.get("vocab_size")
    if padding is None:
        return
    if not is_whole(padding) or padding < -1 or (is_whole(count) and padding >= count):
        within = f" below {name}vocab_size {count}" if is_whole(count) else ""
        raise refusal(file, f"{name}pad_token_id to be the number of a token{within}", show(padding))


def check_sizes(content: dict[str, Any], tensors: Mapping[str, Tensor], file: Path, slack: int = 1) -> None:
    """Refuse a network that is wider or deeper or has more words than its weights.

    Args:
        content: A network's config.
        tensors: Of the headers of its weights.
        file: The config's.
        slack: How many times as large as its weights it may be.

    Raises:
        FinetuneError: Naming the size that no weight has.
    """
    longest = max((size for tensor in tensors.values() for size in tensor.shape), default=0)
    numbers = [int(number) for name in tensors for number in re.findall(r"\.(\d{1,9})\.", name)]
    shares_layers = "num_hidden_groups" in content  # ALBERT
    for name, one in _nested(content):
        if name.startswith(("vision", "audio")):
            continue
        for key in sorted(OF_LAYERS & one.keys()):
            count = one[key]
            if count is None or (shares_layers and is_whole(count)):
                continue
            if not is_whole(count) or count < 0:
                raise refusal(file, f"{name}{key} to be a number of layers", show(count))
            if numbers and count > slack * (max(numbers) + 1):
                raise refusal(file, f"{name}{key} of at most {max(numbers) + 1}, for which it has weights", show(count))
        for key in sorted(WIDTHS & one.keys()):
            size = one[key]
            if size is None:
                continue
            if not is_whole(size) or size < 1:
                raise refusal(file, f"{name}{key} of 1 or more", show(size))
            if size > slack * longest and "quantization_config" not in content:
                raise refusal(
                    file, f"{name}{key} to be the size of a weight, of which none exceeds {longest:,}", show(size)
                )


def read_vocabulary_size(content: dict[str, Any]) -> int | None:
    """Return the number of tokens that a config says its network knows; None if it doesn't say."""
    text = content.get("text_config")
    sizes = [one.get("vocab_size") for one in (content, text) if isinstance(one, dict)]
    return next((size for size in sizes if is_whole(size)), None)
