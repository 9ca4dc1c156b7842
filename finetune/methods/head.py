"""Train the classification head alone, on the features of a frozen encoder."""

from transformers import PreTrainedModel

from finetune.errors import FinetuneError

__all__ = ["freeze_all_but"]


def freeze_all_but(model: PreTrainedModel, modules: list[str]) -> PreTrainedModel:
    """Freeze every parameter outside the named modules.

    Args:
        model: Changed in place.
        modules: What must train: the modules that the checkpoint lacked.

    Raises:
        FinetuneError: If there is none, since then nothing would train.
    """
    if not modules:
        raise FinetuneError(
            "Expected a model without a classification head for --method head, but its checkpoint has one already. "
            "Pass --method full or lora, or the model that it was fine-tuned from."
        )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(name.startswith(f"{module}.") for module in modules))
    return model
