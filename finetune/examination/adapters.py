"""`adapter_config.json` of PEFT: what it may name, how large the adapter may be, and patterns that end.

Numbers and switches name nothing and are let through if they are no larger than the adapter's weights; words only in
the fields where they are known to be harmless. So a field that PEFT comes to have is not let through unseen.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune.examination.documents import is_whole, refusal, show
from finetune.examination.weights import Tensor

__all__ = ["ADAPTER_FILE", "ADAPTER_WEIGHTS_FILE", "check_adapter_config"]

ADAPTER_FILE, ADAPTER_WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
# Names of modules, or patterns of them; what a field does; where the adapter is from. None of it is read from a file.
WORDS = {
    "base_model_name_or_path", "revision", "peft_type", "peft_version", "task_type", "target_modules",
    "exclude_modules", "feedforward_modules", "layers_pattern", "modules_to_save", "target_parameters", "bias",
    "init_lora_weights", "init_weights", "encoder_reparameterization_type", "prompt_tuning_init", "ab_svd_init",
    "act_fn", "config_A_B", "config_C", "config_D_E", "decomposition_method", "mask_type", "opt_weighted_loss_type",
    "poly_type", "psoft_svd", "variant", "wavelet_family",
}  # fmt: skip
# Of prompt tuning that began with a text: for beginning a training, which loading is not.
FOR_TRAINING = {"prompt_tuning_init_text", "tokenizer_name_or_path"}
# Of the settings within settings, those that are words.
INNER_WORDS = {"corda_method", "direction", "scale", "rho_estimator", "parent_library", "base_model_class"}
TRAINABLE = "trainable_token_indices"
COUNTS = {"seed", "total_step", "tinit", "tfinal", "deltaT", "prng_key"}
MOST = 2**16  # of a number that may be a size, where the weights have no larger one
MOST_LAYERS, MOST_NAMES = 1_000, 10_000
STEPS = re.compile(r".*iter_(\d{1,9})\d*")  # of weights that are begun anew before the adapter's are put in their place
MOST_STEPS = 100  # PEFT's own examples take up to 16
NEEDED = ("peft_type", "base_model_name_or_path")


def check_adapter_config(content: dict[str, Any], tensors: Mapping[str, Tensor], file: Path) -> None:
    """Refuse fields that name files or code, and sizes that the adapter's weights don't have.

    Args:
        content: What the file holds.
        tensors: Of the header of the adapter's weights.
        file: Which.

    Raises:
        FinetuneError: Naming the first of them.
    """
    for name in NEEDED:
        if not isinstance(content.get(name), str) or not content[name]:
            raise refusal(file, f"{name} to be a name", show(content.get(name)))
    if not isinstance(content.get("revision"), str | None):
        raise refusal(file, "revision to be a name", show(content["revision"]))
    longest = max((size for tensor in tensors.values() for size in tensor.shape), default=0)
    for name, value in content.items():
        _check_field(name, value, max(longest, MOST), content, file)
    replicated = content.get("layer_replication") or []
    if len(replicated) > MOST_LAYERS or sum(_span(one) for one in replicated) > MOST_LAYERS:
        raise refusal(file, f"layer_replication to at most {MOST_LAYERS:,} layers", show(replicated))
    virtual = [content.get(name) for name in ("num_virtual_tokens", "num_layers", "token_dim")]
    if all(is_whole(one) for one in virtual) and math.prod(virtual) > 16 * sum(  # type: ignore[arg-type]
        math.prod(tensor.shape) for tensor in tensors.values()
    ):
        raise refusal(file, "virtual tokens of the size of its weights", f"{virtual[0]:,} for {virtual[1]:,} layers")


def _span(pair: Any) -> int:
    if not (isinstance(pair, list) and len(pair) == 2 and all(is_whole(one) for one in pair)):
        return MOST_LAYERS + 1
    return abs(pair[1] - pair[0])


def _check_field(name: str, value: Any, most: int, content: dict[str, Any], file: Path) -> None:
    if name == "megatron_core" and content.get("megatron_config") is None and value == "megatron.core":
        return  # written by PEFT for every LoRA; imported only with a megatron_config
    if name == "megatron_config" and value is not None:
        raise refusal(file, "no megatron_config, with which a module is imported", show(value), "Take the entry out.")
    if name == "auto_mapping" and isinstance(value, dict):
        library = str(value.get("parent_library", "transformers"))
        if not library.startswith(("transformers.", "peft.")) and library not in ("transformers", "peft"):
            raise refusal(file, "a parent_library of transformers or PEFT in auto_mapping", show(library))
    if name in FOR_TRAINING and content.get("inference_mode") is True:
        return
    may_be_word = name in WORDS
    unlimited = any(part in name for part in COUNTS)
    for path, one in _leaves(value):
        if one is None or isinstance(one, bool):
            continue
        steps = STEPS.fullmatch(f"{path or name}_{one}")
        if steps is not None and int(steps[1]) > MOST_STEPS:
            raise refusal(file, f"at most {MOST_STEPS} steps as {name}, which each loading takes", show(one))
        if isinstance(one, str):
            if not (may_be_word or path in INNER_WORDS):
                fix = "Take the entry out, or save the adapter anew."
                raise refusal(file, f"no words as {name}, which may name a file or code", show(one), fix)
        elif isinstance(one, float) and not math.isfinite(one):
            raise refusal(file, f"a number as {name}", show(one))
        elif is_whole(one) and name != TRAINABLE and not unlimited and abs(one) > most:
            raise refusal(file, f"{name} of at most {most:,}", show(one))
    if isinstance(value, list | dict) and len(value) > MOST_NAMES and name != TRAINABLE:
        raise refusal(file, f"at most {MOST_NAMES:,} entries as {name}", f"{len(value):,}")


def _leaves(value: Any, key: str = "") -> list[tuple[str, Any]]:
    """List what is neither a list nor an object, each with the key that it stands under."""
    if isinstance(value, dict):
        return [leaf for inner, one in value.items() for leaf in _leaves(one, str(inner))]
    if isinstance(value, list):
        return [leaf for one in value for leaf in _leaves(one, key)]
    return [(key, value)]
