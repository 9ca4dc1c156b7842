"""Whether a model has an adapter of PEFT, told without importing PEFT: where nobody has imported it, none has one."""

import sys
from typing import TYPE_CHECKING, Any, TypeGuard

if TYPE_CHECKING:
    from peft import PeftModel

__all__ = ["ENCODER_FOLDER", "has_adapter", "without_adapter"]

# Of a run directory: the encoder that was pretrained on its texts, on which its adapter may stand.
ENCODER_FOLDER = "encoder"


def has_adapter(model: Any) -> "TypeGuard[PeftModel]":
    """Return whether a model is a `PeftModel`."""
    peft = sys.modules.get("peft")
    return peft is not None and isinstance(model, peft.PeftModel)


def without_adapter(model: Any) -> Any:
    """Return the `PreTrainedModel` under an adapter, or the model itself."""
    return model.get_base_model() if has_adapter(model) else model
