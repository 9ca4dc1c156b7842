"""LoRA (Hu et al. 2022, "LoRA: Low-Rank Adaptation of Large Language Models") on all linear layers of the encoder."""

from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from transformers import PreTrainedModel

from finetune.arguments import MethodArguments
from finetune.models.precision import keep_activations_in_bf16

__all__ = ["add_lora"]

# Heads that a fine-tuned checkpoint brings along; PEFT trains and saves `classifier` and `score` in full by itself.
HEADS = ["classifier", "score"]


def add_lora(model: PreTrainedModel, arguments: MethodArguments, new_modules: list[str]) -> PeftModel:
    """Wrap a model so that low-rank updates of its linear layers train, and every newly initialised module.

    All linear layers, since attention alone trains worse at the same size (Schulman et al. 2025, "LoRA Without
    Regret"). A module that the checkpoint lacked is trained in full and saved with the adapter: left frozen, it would
    be drawn anew at every load.

    Args:
        model: Its logits are unchanged until the first step, because LoRA's B starts at zero.
        arguments: Rank, alpha and dropout.
        new_modules: Names of the modules that the checkpoint lacked.
    """
    config = LoraConfig(
        task_type=TaskType.SEQ_CLS,
        r=arguments.lora_r,
        lora_alpha=arguments.lora_alpha,
        lora_dropout=arguments.lora_dropout,
        target_modules="all-linear",
        exclude_modules=[*HEADS, *new_modules],
        modules_to_save=new_modules or None,
    )
    wrapped = get_peft_model(model, config)
    keep_activations_in_bf16(wrapped)
    return wrapped
