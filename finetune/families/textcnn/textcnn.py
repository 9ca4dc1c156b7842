"""TextCNN (Kim 2014, "Convolutional Neural Networks for Sentence Classification") as a `PreTrainedModel`.

It goes through the same `Trainer` as BERT, saves with `save_pretrained`, and reloads through the Auto classes. This
file is copied beside the weights and must stand alone: it imports nothing of finetune.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

__all__ = ["TextCNNConfig", "TextCNNForSequenceClassification", "convolve", "max_over_time"]

VARIANTS = ("rand", "static", "non-static", "multichannel")


class TextCNNConfig(PreTrainedConfig):
    """Settings of a TextCNN; the defaults are Kim's (section 3.1).

    Args:
        vocab_size: Number of tokens.
        embedding_dim: Size of a word vector.
        filter_widths: Words that a filter spans.
        num_filters: Feature maps of each width.
        classifier_dropout: Dropout before the linear head, in [0, 1).
        variant: "rand" and "non-static" train the word vectors, "static" keeps them, "multichannel" has both.
        pad_token_id: The token that is padding and changes no prediction.

    Raises:
        ValueError: If `variant` is unknown.
    """

    model_type = "textcnn"

    def __init__(
        self,
        vocab_size: int = 30_000,
        embedding_dim: int = 300,
        filter_widths: tuple[int, ...] | list[int] = (3, 4, 5),
        num_filters: int = 100,
        classifier_dropout: float = 0.5,
        variant: str = "rand",
        pad_token_id: int = 0,
        **kwargs: Any,
    ):
        if variant not in VARIANTS:
            raise ValueError(f"Expected a variant of {VARIANTS}, but got {variant!r}.")
        self.vocab_size = vocab_size
        self.embedding_dim = embedding_dim
        self.filter_widths = list(filter_widths)
        self.num_filters = num_filters
        self.classifier_dropout = classifier_dropout
        self.variant = variant
        self.pad_token_id = pad_token_id
        super().__init__(**kwargs)


def convolve(embedded: torch.Tensor, weights: list[torch.Tensor]) -> list[torch.Tensor]:
    """Slide filters over a sentence, also over its edges ("wide" convolution), by one matrix product.

    Every word is multiplied with every filter row at once, a `(batch * length, dim) x (dim, rows)` product, which a
    processor does faster than the convolution; a filter's output is then the sum of its rows' shifted products.

    Args:
        embedded: Word vectors, `(batch, length, embedding_dim)`, zero where there is padding.
        weights: For each width, `(num_filters, width, embedding_dim)`.

    Returns:
        For each width, `(batch, length + width - 1, num_filters)`; position t is the window that ends at word t, so
        that all windows that touch a word are there, and a sentence shorter than the filter has some too.
    """
    length = embedded.shape[1]
    edge = max(weight.shape[1] for weight in weights) - 1
    rows = torch.cat([weight.transpose(0, 1).reshape(-1, weight.shape[-1]) for weight in weights])
    products = F.linear(F.pad(embedded, (0, 0, edge, edge)), rows)
    # Split before slicing in time: the gradient of a slice is then as large as one row's products, not as all of them.
    per_row = iter(products.split([weight.shape[0] for weight in weights for _ in range(weight.shape[1])], dim=-1))
    features = []
    for weight in weights:
        width = weight.shape[1]
        first = edge - (width - 1)
        windows = length + width - 1
        features.append(sum(next(per_row)[:, first + row : first + row + windows] for row in range(width)))
    return features


def max_over_time(features: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Take each feature map's largest value over the positions that exist (Kim 2014, equation 4 and below).

    Args:
        features: `(batch, positions, num_filters)`.
        lengths: Number of positions of each sentence, `(batch,)`, at least 1.

    Returns:
        `(batch, num_filters)`.
    """
    outside = torch.arange(features.shape[1], device=features.device) >= lengths[:, None]
    return features.masked_fill(outside[..., None], float("-inf")).amax(dim=1)


class TextCNNForSequenceClassification(PreTrainedModel):
    """Embedding, filters of several widths, ReLU, max over time, dropout, linear head.

    In the multichannel variant each filter is applied to a fixed and a trained copy of the word vectors and the
    results are added (Kim 2014, section 2.1), which equals applying it to the sum of the copies.
    """

    config_class = TextCNNConfig
    base_model_prefix = "textcnn"
    main_input_name = "input_ids"

    def __init__(self, config: TextCNNConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.embedding = nn.Embedding(config.vocab_size, config.embedding_dim, padding_idx=config.pad_token_id)
        self.embedding.weight.requires_grad_(config.variant != "static")
        if config.variant == "multichannel":
            self.static_embedding = nn.Embedding.from_pretrained(
                torch.zeros(config.vocab_size, config.embedding_dim), freeze=True, padding_idx=config.pad_token_id
            )
        self.filters = nn.ParameterList(
            nn.Parameter(torch.empty(config.num_filters, width, config.embedding_dim)) for width in config.filter_widths
        )
        self.filter_biases = nn.Parameter(torch.zeros(len(config.filter_widths), config.num_filters))
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.classifier = nn.Linear(len(config.filter_widths) * config.num_filters, int(config.num_labels or 2))
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Draw word vectors from U(-0.25, 0.25) as Kim does; filters and head as torch draws a convolution's."""
        if isinstance(module, nn.Embedding):
            nn.init.uniform_(module.weight, -0.25, 0.25)
            if module.padding_idx is not None:
                nn.init.zeros_(module.weight[module.padding_idx])
        elif isinstance(module, nn.Linear):
            nn.init.kaiming_uniform_(module.weight, a=5**0.5)
            nn.init.zeros_(module.bias)
        elif module is self:
            for weight in self.filters:
                bound = (weight.shape[1] * weight.shape[2]) ** -0.5
                nn.init.uniform_(weight, -bound, bound)
            nn.init.zeros_(self.filter_biases)

    def get_input_embeddings(self) -> nn.Embedding:
        """Return the word vectors that train, or the only ones."""
        return self.embedding

    @torch.no_grad()
    def set_word_vectors(self, vectors: torch.Tensor) -> None:
        """Start from pretrained word vectors of shape `(vocab_size, embedding_dim)`; the padding's stays zero."""
        self.embedding.weight.copy_(vectors)
        self.embedding.weight[self.config.pad_token_id] = 0
        if self.config.variant == "multichannel":
            self.static_embedding.weight.copy_(self.embedding.weight)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        return_dict: bool | None = None,
    ) -> SequenceClassifierOutput:
        """Classify sentences.

        Args:
            input_ids: `(batch, length)`, padded on the right.
            attention_mask: `(batch, length)`, 1 for words and 0 for padding; by default what is not `pad_token_id`.
            token_type_ids: Taken because BERT's tokenizer gives them, and not used.
            labels: Class numbers, `(batch,)`.
            return_dict: Taken for the sake of pipelines; the output is always a dictionary.

        Returns:
            `logits` of shape `(batch, num_labels)`, and with `labels` the mean cross-entropy `loss`.
        """
        mask = input_ids != self.config.pad_token_id if attention_mask is None else attention_mask.bool()
        embedded = self.embedding(input_ids)
        if self.config.variant == "multichannel":
            embedded = embedded + self.static_embedding(input_ids)
        embedded = embedded * mask[..., None]
        num_words = mask.sum(dim=1).clamp(min=1)
        pooled = [
            max_over_time(features, num_words + width - 1) + bias
            for width, bias, features in zip(
                self.config.filter_widths, self.filter_biases, convolve(embedded, list(self.filters)), strict=True
            )
        ]
        # ReLU after the maximum gives what ReLU before it gives, on a fraction of the numbers; so does the bias.
        logits = self.classifier(self.dropout(torch.cat(pooled, dim=1).relu()))
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)


AutoConfig.register("textcnn", TextCNNConfig, exist_ok=True)
AutoModelForSequenceClassification.register(TextCNNConfig, TextCNNForSequenceClassification, exist_ok=True)
TextCNNConfig.register_for_auto_class()
TextCNNForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")
