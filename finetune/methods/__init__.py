"""Which parameters of a model move."""

from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from finetune.arguments import MethodArguments
from finetune.methods.head import freeze_all_but
from finetune.methods.lora import add_lora
from finetune.models.load import newly_initialised_modules

__all__ = ["apply_method", "count_parameters"]


def apply_method(model: PreTrainedModel, arguments: MethodArguments) -> PreTrainedModel | PeftModel:
    """Prepare a model for the chosen method.

    Args:
        model: As `finetune.models.load.load_model` gives it.
        arguments: The method and its settings.

    Returns:
        The same model: as it is for "full" and "textcnn", frozen but for what was newly initialised for "head",
        wrapped in a `PeftModel` for "lora".
    """
    match arguments.method:
        case "head":
            return freeze_all_but(model, newly_initialised_modules(model))
        case "lora":
            return add_lora(model, arguments, newly_initialised_modules(model))
    return model


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Count the parameters that train, and all of them.

    PEFT's own count takes the saved modules twice; here the frozen originals that they replace don't count.
    """
    parameters = {name: parameter for name, parameter in model.named_parameters() if ".original_module." not in name}
    trainable = sum(parameter.numel() for parameter in parameters.values() if parameter.requires_grad)
    return trainable, sum(parameter.numel() for parameter in parameters.values())
