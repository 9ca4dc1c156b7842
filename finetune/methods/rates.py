"""How fast each parameter learns: layer-wise decay, a rate of its own for the head, LoRA+; and its weight decay."""

from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from finetune.adapted import without_adapter
from finetune.methods.depth import parameter_depths

__all__ = ["Rates", "build_parameter_groups"]


@dataclass(frozen=True)
class Rates:
    """Learning rates relative to one another.

    Attributes:
        layer_decay: Factor on the learning rate for each layer further down (Sun et al. 2019, section 5.4.3: 0.95).
        head_learning_rate: The rate of what the checkpoint lacked; the others' if None.
        lora_plus_ratio: How many times as fast LoRA's B matrices learn as its A matrices (Hayou et al. 2024).
    """

    layer_decay: float = 1.0
    head_learning_rate: float | None = None
    lora_plus_ratio: float = 1.0


def build_parameter_groups(
    model: nn.Module,
    rates: Rates,
    new_modules: Collection[str],
    decay_parameters: Collection[str],
    learning_rate: float,
    weight_decay: float,
) -> list[dict[str, Any]]:
    """Group the parameters by learning rate and weight decay, for an optimizer.

    Args:
        model: The model, wrapped by PEFT or not.
        rates: Their relations.
        new_modules: Names of the modules that the checkpoint lacked: the head.
        decay_parameters: Names of the parameters that weight decay applies to.
        learning_rate: Of the top layer.
        weight_decay: Of `decay_parameters`; the others have none.

    Returns:
        Groups with `params`, `lr`, `weight_decay` and `names`. Every parameter that trains is in exactly one.
    """
    base = without_adapter(model)
    assert isinstance(base, PreTrainedModel)
    depths = parameter_depths(base) if rates.layer_decay != 1.0 else {}
    in_head = {
        id(parameter)
        for name, parameter in base.named_parameters()
        if any(name.startswith(f"{module}.") for module in new_modules)
    }
    depth_of = {id(parameter): depths.get(name, 0) for name, parameter in base.named_parameters()}
    groups: dict[tuple[float, float], dict[str, Any]] = defaultdict(lambda: {"params": [], "names": []})
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        rate = learning_rate * rates.layer_decay ** depth_of.get(id(parameter), 0)
        if id(parameter) in in_head and rates.head_learning_rate is not None:
            rate = rates.head_learning_rate
        if ".lora_B." in name:
            rate *= rates.lora_plus_ratio
        decay = weight_decay if name in decay_parameters else 0.0
        group = groups[rate, decay]
        group["params"].append(parameter)
        group["names"].append(name)
    return [{**group, "lr": rate, "weight_decay": decay} for (rate, decay), group in groups.items()]
