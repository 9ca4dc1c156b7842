"""Fine-tune text classifiers, compare the ways of doing it, and ship a model that provably reloads.

`finetune.load(path)` is the one function needed after training. Importing this package is cheap: torch and
transformers are imported by the function that needs them.
"""

import logging
from typing import Any

__all__ = ["__version__", "load"]
__version__ = "0.1.0"

# Where bitsandbytes is installed, PEFT imports it too, and it reports on kernels that nobody asked for.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def load(path: str) -> tuple[Any, Any]:
    """Load the model and the tokenizer of a run directory or of a saved model folder.

    Args:
        path: A run directory (its `model/` is taken) or a folder that a recipe, `save_pretrained` or PEFT wrote.

    Returns:
        `(model, tokenizer)`: a `PreTrainedModel` or `PeftModel` in evaluation mode, in float32 on the CPU, with
        label names in `model.config.id2label`, and its tokenizer. For a TF-IDF model, the
        `finetune.models.tfidf.TfidfClassifier` and None.

    Raises:
        finetune.errors.FinetuneError: If `path` holds no model.
    """
    from finetune.delivery.load import load as load_model_and_tokenizer

    return load_model_and_tokenizer(path)
