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


def load(path: str, trust_remote_code: bool = False) -> tuple[Any, Any]:
    """Load the model and the tokenizer of a run directory, of a saved model folder, or from the Hub.

    Args:
        path: A run directory (its `model/` is taken), a folder that a recipe, `save_pretrained` or PEFT wrote, or
            `user/name`, `user/name@revision` of the Hub, of which only safetensors are read.
        trust_remote_code: Whether a model may run Python code that lies beside its weights; finetune's own don't.

    Returns:
        `(model, tokenizer)`: a `PreTrainedModel` or `PeftModel` in evaluation mode, in float32 on the CPU, with
        label names in `model.config.id2label`, and its tokenizer. For a TF-IDF model, the
        `finetune.models.tfidf.TfidfClassifier` and None.

    Raises:
        finetune.errors.FinetuneError: If `path` holds no model, or it can't be had.
    """
    from finetune.delivery.load import load as load_model_and_tokenizer

    return load_model_and_tokenizer(path, trust_remote_code)
