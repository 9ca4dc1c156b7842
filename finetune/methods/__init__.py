"""Which parameters of a model move, and how fast."""

from typing import Any

from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from finetune.adapted import has_adapter, without_adapter
from finetune.methods.adapters import add_adapter, fitting_adapter, lora_over
from finetune.methods.head import freeze_all_but
from finetune.methods.partial import freeze_all_but_biases, freeze_all_but_last_layers, reinitialise_layers
from finetune.settings.parts import MethodArguments
from finetune.settings.peft_config import read_peft_config

__all__ = [
    "adapt_encoder",
    "apply_method",
    "count_bytes",
    "count_parameters",
    "fitting_adapter",
    "lora_over",
    "new_modules_of",
    "reinitialise_layers",
]


def apply_method(model: PreTrainedModel, arguments: MethodArguments) -> PreTrainedModel | PeftModel:
    """Prepare a model for the chosen method.

    Args:
        model: As `finetune.models.load.load_model` gives it.
        arguments: The method and its settings.

    Returns:
        The same model: as it is for "full"; with frozen parts for "head", "last_layers" and "bitfit"; else wrapped in a
        `PeftModel`.

    Raises:
        FinetuneError: If the method does not fit the model.
    """
    new_modules = new_modules_of(model)
    reinitialise_layers(model, arguments.reinit_layers)
    match arguments.method:
        case "full":
            return model
        case "head":
            return freeze_all_but(model, new_modules)
        case "last_layers":
            return freeze_all_but_last_layers(model, new_modules, arguments.num_layers)
        case "bitfit":
            return freeze_all_but_biases(model, new_modules)
    return add_adapter(model, arguments.method, _read_settings(arguments), new_modules)


def adapt_encoder(encoder: PreTrainedModel, arguments: MethodArguments) -> PeftModel:
    """Wrap an encoder without a head so that the method's adapter trains, and nothing else.

    Args:
        encoder: Its vectors are unchanged until the first step.
        arguments: The method and its settings.

    Raises:
        FinetuneError: If the adapter does not fit the encoder.
    """
    return add_adapter(encoder, arguments.method, _read_settings(arguments), [], task_type=None)


def _read_settings(arguments: MethodArguments) -> dict[str, Any]:
    """Read the fields of PEFT's config class that flags and `--peft_config` set; the file wins."""
    settings = {} if arguments.peft_config is None else read_peft_config(arguments.peft_config)
    given = {"r": arguments.lora_r, "lora_alpha": arguments.lora_alpha, "lora_dropout": arguments.lora_dropout}
    return {**{name: value for name, value in given.items() if value is not None}, **settings}


def new_modules_of(model: nn.Module) -> list[str]:
    """Name the modules that the checkpoint lacked, which `finetune.models.load.check_loaded` has noted on a model."""
    base = without_adapter(model)
    return list(getattr(base, "new_modules", ()))


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Count the parameters that train, and all of them.

    PEFT's own count takes the saved modules twice; here the frozen originals that they replace don't count.
    """
    parameters = {name: parameter for name, parameter in model.named_parameters() if ".original_module." not in name}
    trainable = sum(parameter.numel() for parameter in parameters.values() if parameter.requires_grad)
    return trainable, sum(parameter.numel() for parameter in parameters.values())


def count_bytes(model: nn.Module) -> int:
    """Count the bytes of the weights that are saved: of an adapter those that are trained, else all."""
    saved = [weight for weight in model.parameters() if weight.requires_grad or not has_adapter(model)]
    return sum(weight.numel() * weight.element_size() for weight in saved)
