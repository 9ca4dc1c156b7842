"""Fine-tune text classifiers, compare the ways of doing it, and ship a model that provably reloads.

    run = finetune.train(frame, method="lora", output_dir="runs/lora")
    run.metrics["test"]["accuracy"]
    run.predict(["A wonderful film."])

`docs/reference/api.md` describes what is public. Importing this package is cheap: torch and transformers are imported
by the function that needs them.
"""

import importlib
import logging
from typing import TYPE_CHECKING, Any

from finetune.api import compare, doctor, load, load_classifier, train

if TYPE_CHECKING:
    from finetune.accelerated import enable as enable
    from finetune.training.trainer import Trainer as Trainer

__all__ = ["Trainer", "__version__", "compare", "doctor", "enable", "load", "load_classifier", "train"]
__version__ = "0.2.0"

# Of modules that import torch; they are imported when they are asked for.
_LAZY = {"Trainer": "finetune.training.trainer", "enable": "finetune.accelerated"}

# Where bitsandbytes is installed, PEFT imports it too, and it reports on kernels that nobody asked for.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'finetune' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
