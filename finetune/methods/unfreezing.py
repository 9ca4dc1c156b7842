"""Gradual unfreezing from the top (Howard and Ruder 2018, "ULMFiT", section 3.3).

First the head trains alone; after each period one layer more, from the top down, the embeddings last. The optimizer
holds all parameters from the start, and what is frozen has no gradient: an optimizer skips it, and autograd does not
go below the lowest layer that trains. So nothing has to be rebuilt on the way, and a resumed run is exact.
"""

from torch import nn
from transformers import PreTrainedModel

from finetune.errors import FinetuneError
from finetune.methods.depth import count_layers, parameter_depths

__all__ = ["GradualUnfreezing"]


class GradualUnfreezing:
    """Which parameters train in which step.

    Args:
        model: Every parameter of it trains in the end.
        new_modules: Names of the modules that the checkpoint lacked: they train from the start.
        period: Steps after which one layer more trains.
        num_steps: Steps of the training.

    Raises:
        FinetuneError: If training ends before the embeddings train.
    """

    def __init__(self, model: PreTrainedModel, new_modules: list[str], period: int, num_steps: int):
        self.period = period
        num_stages = count_layers(model) + 1
        if period * num_stages >= num_steps:
            raise FinetuneError(
                f"Expected an unfreezing schedule shorter than training, but {num_stages} stages of {period} steps "
                f"don't end within its {num_steps} steps. Pass --unfreeze_every below the epochs / {num_stages + 1}."
            )
        depths = parameter_depths(model)
        # A layer of depth d trains from stage d + 1 on, what stands above the top layer with it.
        self.stages = {
            name: 0 if any(name.startswith(f"{module}.") for module in new_modules) else depth + 1
            for name, depth in depths.items()
        }

    def stage(self, step: int) -> int:
        """Return how many layers train in a step, counted from 0."""
        return step // self.period

    def apply(self, model: nn.Module, step: int) -> None:
        """Freeze and unfreeze the parameters for a step."""
        stage = self.stage(step)
        for name, parameter in model.named_parameters():
            trains = self.stages[name] <= stage
            if parameter.requires_grad != trains:
                parameter.requires_grad_(trains)
                parameter.grad = None
