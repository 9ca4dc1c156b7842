"""An encoder whose token vectors are pooled to one vector a text, and a linear layer over it, as a `PreTrainedModel`.

The encoder can be one of transformers, or a table of static vectors.

This file is copied beside the weights and must stand alone: it imports nothing of finetune.
"""

import inspect
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional as F
from transformers import (
    MODEL_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import BaseModelOutput, SequenceClassifierOutput

__all__ = [
    "PooledEncoderConfig",
    "PooledEncoderForSequenceClassification",
    "StaticEncoder",
    "StaticEncoderConfig",
    "combine_pair",
    "leave_out_pooler",
    "pool",
]

POOLINGS = ("mean", "cls", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
PARTS_OF_A_PAIR = 4


class StaticEncoderConfig(PreTrainedConfig):
    """Settings of a table of vectors.

    Args:
        vocab_size: Number of tokens.
        hidden_size: Size of a vector.
        unknown_token_id: The token of what has no vector, which has no part in a text's; None if there is none.
        pad_token_id: The token that is padding.
    """

    model_type = "static_encoder"

    def __init__(
        self,
        vocab_size: int = 30_000,
        hidden_size: int = 256,
        unknown_token_id: int | None = None,
        pad_token_id: int = 0,
        **kwargs: Any,
    ):
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.unknown_token_id = unknown_token_id
        self.pad_token_id = pad_token_id
        super().__init__(**kwargs)


class StaticEncoder(PreTrainedModel):
    """A table with a vector for each token, whatever stands beside it: word2vec, GloVe, model2vec."""

    config_class = StaticEncoderConfig
    base_model_prefix = "static_encoder"
    main_input_name = "input_ids"

    def __init__(self, config: StaticEncoderConfig):
        super().__init__(config)
        self.embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Return the table."""
        return self.embeddings

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> BaseModelOutput:
        """Look tokens up, `(batch, length)`; the mask is for whoever pools them."""
        return BaseModelOutput(last_hidden_state=self.embeddings(input_ids))


class PooledEncoderConfig(PreTrainedConfig):
    """Settings of a pooled encoder.

    Args:
        text_config: The encoder's own config, or its fields.
        pooling: How token vectors become one, by sentence-transformers' names: "mean", "cls" (the first token), "max",
            "mean_sqrt_len_tokens" (their sum by the square root of their number), "weightedmean" (by position) or
            "lasttoken".
        is_paired: Whether the linear layer reads two texts, as `combine_pair` combines them.
        normalize: Whether a text's vector is scaled to length one.

    Raises:
        ValueError: If `pooling` is unknown.
    """

    model_type = "pooled_encoder"
    sub_configs: ClassVar[dict[str, Any]] = {"text_config": AutoConfig}

    def __init__(
        self,
        text_config: Any = None,
        pooling: str = "mean",
        is_paired: bool = False,
        normalize: bool = True,
        **kwargs: Any,
    ):
        if pooling not in POOLINGS:
            raise ValueError(f"Expected a pooling of {POOLINGS}, but got {pooling!r}.")
        if text_config is None:
            text_config = {"model_type": "bert"}
        self.text_config = AutoConfig.for_model(**text_config) if isinstance(text_config, dict) else text_config
        self.pooling = pooling
        self.is_paired = is_paired
        self.normalize = normalize
        kwargs.setdefault("pad_token_id", self.text_config.pad_token_id)
        super().__init__(**kwargs)


def leave_out_pooler(config: Any) -> dict[str, bool]:
    """Return what an encoder's class takes so that it has no pooler of its own, which nothing here reads."""
    model_class: Any = MODEL_MAPPING[type(config)]
    taken = inspect.signature(model_class).parameters
    return {"add_pooling_layer": False} if "add_pooling_layer" in taken else {}


def pool(hidden: torch.Tensor, mask: torch.Tensor | None, how: str) -> torch.Tensor:
    """Pool the vectors of each text's tokens to one.

    Args:
        hidden: `(batch, length, width)`.
        mask: `(batch, length)`, 1 for tokens and 0 for padding, on either side; None if there is none.
        how: One of the poolings of `PooledEncoderConfig`.

    Returns:
        `(batch, width)`.
    """
    if how == "cls" and mask is None:
        return hidden[:, 0]
    seen = torch.ones_like(hidden[..., 0]) if mask is None else mask.to(hidden.dtype)
    order = seen.cumsum(dim=1)  # the number of each token among those of its text, from 1 on
    weights = {
        "mean": seen,
        "mean_sqrt_len_tokens": seen,
        "weightedmean": seen * order,
        "cls": seen * (order == 1),
        "lasttoken": seen * (order == order[:, -1:]),
    }
    if how == "max":
        return hidden.masked_fill(seen[..., None] == 0, torch.finfo(hidden.dtype).min).amax(dim=1)
    total = weights[how].sum(dim=1, keepdim=True).clamp(min=1)
    pooled = (hidden * weights[how][..., None]).sum(dim=1)
    return pooled / (total.sqrt() if how == "mean_sqrt_len_tokens" else total)


def combine_pair(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Combine the vectors of two texts to [u, v, |u − v|, u · v] (Conneau et al. 2017, InferSent, section 3.1).

    Args:
        first: `(batch, width)`.
        second: `(batch, width)`.

    Returns:
        `(batch, 4 · width)`.
    """
    return torch.cat([first, second, (first - second).abs(), first * second], dim=1)


class _Float32Linear(nn.Linear):
    """A linear layer that autocast leaves in float32: with bfloat16's eight bits close answers would change."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not torch.is_autocast_enabled(input.device.type):
            return super().forward(input)
        with torch.autocast(input.device.type, enabled=False):
            return F.linear(input.float(), self.weight, self.bias)


class PooledEncoderForSequenceClassification(PreTrainedModel):
    """An encoder, pooling to one vector, of length one unless the config says otherwise, and a linear layer."""

    config_class = PooledEncoderConfig
    base_model_prefix = "encoder"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: PooledEncoderConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.encoder = AutoModel.from_config(config.text_config, **leave_out_pooler(config.text_config))
        width = config.text_config.hidden_size * (PARTS_OF_A_PAIR if config.is_paired else 1)
        self.classifier = _Float32Linear(width, int(config.num_labels or 2))
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Let the linear layer start from zero; the encoder has rules of its own."""
        if module is self.classifier:
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)

    def get_input_embeddings(self) -> nn.Module:
        """Return the encoder's vectors of its tokens."""
        return self.encoder.get_input_embeddings()

    def embed(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Compute the vectors of texts, `(batch, width)` in float32."""
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask, **types).last_hidden_state
        unknown = getattr(self.config.text_config, "unknown_token_id", None)
        if unknown is not None:
            known = (input_ids != unknown).long()
            attention_mask = known if attention_mask is None else known * attention_mask
        pooled = pool(hidden.float(), attention_mask, self.config.pooling)
        return F.normalize(pooled, dim=1) if self.config.normalize else pooled

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        return_dict: bool | None = None,
        pair_input_ids: torch.Tensor | None = None,
        pair_attention_mask: torch.Tensor | None = None,
        pair_token_type_ids: torch.Tensor | None = None,
    ) -> SequenceClassifierOutput:
        """Classify texts, or pairs of them, each of which is read by itself.

        Args:
            input_ids: `(batch, length)`.
            attention_mask: `(batch, length)`, 1 for tokens and 0 for padding; without it there is no padding.
            token_type_ids: `(batch, length)`, for encoders that take them.
            labels: Class numbers, `(batch,)`.
            return_dict: Taken for the sake of pipelines; the output is always a dictionary.
            pair_input_ids: The second text of each pair, `(batch, length of these)`, and so on.
            pair_attention_mask: Likewise.
            pair_token_type_ids: Likewise.

        Returns:
            `logits` of shape `(batch, num_labels)`, and with `labels` the mean cross-entropy `loss`.

        Raises:
            ValueError: If a model of pairs gets single texts, or the reverse.
        """
        if self.config.is_paired != (pair_input_ids is not None):
            wanted = "pairs: pass" if self.config.is_paired else "single texts: leave out"
            raise ValueError(f"Expected {wanted} pair_input_ids.")
        vectors = self.embed(input_ids, attention_mask, token_type_ids)
        if pair_input_ids is not None:
            vectors = combine_pair(vectors, self.embed(pair_input_ids, pair_attention_mask, pair_token_type_ids))
        logits = self.classifier(vectors)
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)


AutoConfig.register("static_encoder", StaticEncoderConfig, exist_ok=True)
AutoModel.register(StaticEncoderConfig, StaticEncoder, exist_ok=True)
AutoConfig.register("pooled_encoder", PooledEncoderConfig, exist_ok=True)
AutoModelForSequenceClassification.register(PooledEncoderConfig, PooledEncoderForSequenceClassification, exist_ok=True)
PooledEncoderConfig.register_for_auto_class()
PooledEncoderForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")
