"""Parts of the encoder: the biases alone, the last layers, and layers drawn anew."""

from transformers import PreTrainedModel

from finetune.errors import FinetuneError
from finetune.methods.depth import count_layers, parameter_depths

__all__ = ["freeze_all_but_biases", "freeze_all_but_last_layers", "reinitialise_layers"]


def freeze_all_but_biases(model: PreTrainedModel, new_modules: list[str]) -> PreTrainedModel:
    """Freeze every parameter but biases and the new modules (BitFit: Ben Zaken et al. 2022)."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.endswith("bias") or _is_in(name, new_modules))
    if not any(p.requires_grad for n, p in model.named_parameters() if not _is_in(n, new_modules)):
        raise FinetuneError(f"Expected a model with biases for --method bitfit, but {type(model).__name__} has none.")
    return model


def freeze_all_but_last_layers(model: PreTrainedModel, new_modules: list[str], num_layers: int) -> PreTrainedModel:
    """Freeze the embeddings and all but the last layers; what stands above these moves.

    Raises:
        FinetuneError: If the model has fewer layers.
    """
    _check_number(model, num_layers, "--num_layers")
    depths = parameter_depths(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(depths[name] < num_layers or _is_in(name, new_modules))
    return model


def reinitialise_layers(model: PreTrainedModel, num_layers: int) -> None:
    """Draw the top layers, and what stands between them and the head, anew (Zhang et al. 2021, section 4).

    Args:
        model: Changed in place.
        num_layers: How many; 0 leaves it as it is.

    Raises:
        FinetuneError: If the model has fewer layers.
    """
    if num_layers == 0:
        return
    _check_number(model, num_layers, "--reinit_layers")
    depths = parameter_depths(model)
    chosen = {name.rpartition(".")[0] for name, depth in depths.items() if depth < num_layers}
    for name, module in model.named_modules():
        if name in chosen:
            model._init_weights(module)


def _check_number(model: PreTrainedModel, num_layers: int, flag: str) -> None:
    most = count_layers(model)
    if not 1 <= num_layers <= most:
        raise FinetuneError(f"Expected {flag} from 1 to the {most} layers of the model, but got {num_layers}.")


def _is_in(name: str, modules: list[str]) -> bool:
    return any(name.startswith(f"{module}.") for module in modules)
