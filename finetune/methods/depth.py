"""How deep a parameter lies under the head: the top layer has depth 0, each layer below one more."""

from torch import nn
from transformers import PreTrainedModel

from finetune.errors import FinetuneError

__all__ = ["count_layers", "parameter_depths"]


def _find_layers(model: PreTrainedModel) -> tuple[str, int]:
    """Find the list of the encoder's layers: its name, and how many there are.

    ALBERT's layers share their weights: there is one, and it is used several times.
    """
    wanted = getattr(model.config, "num_hidden_groups", None) or getattr(model.config, "num_hidden_layers", 0)
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == wanted and ".attention" not in name:
            return name, wanted
    raise FinetuneError(
        f"Expected a model with a list of layers, but found none in {type(model).__name__}. Leave out --layer_decay, "
        "--reinit_layers and --unfreeze_every, and don't take --method last_layers."
    )


def count_layers(model: PreTrainedModel) -> int:
    """Count the layers that have weights of their own."""
    return _find_layers(model)[1]


def parameter_depths(model: PreTrainedModel) -> dict[str, int]:
    """Return the depth of every parameter.

    The head, and what stands between it and the top layer (a pooler, a last normalisation), has the depth 0 of the top
    layer itself (Sun et al. 2019, section 5.4.3); layer k of n has n - k; what comes before the first layer has n.

    Args:
        model: The model itself, not wrapped by PEFT.

    Returns:
        Depths from 0 to the number of layers, by parameter name.
    """
    path, num_layers = _find_layers(model)
    depths, reached = {}, False
    for name, _ in model.named_parameters():
        if name.startswith(f"{path}."):
            depths[name] = num_layers - 1 - int(name.removeprefix(f"{path}.").split(".")[0])
            reached = True
        else:
            # Tables that every layer looks up, such as DeBERTa's relative positions, are registered after the layers.
            depths[name] = 0 if reached and "embeddings" not in name else num_layers
    return depths
