"""What a pretrained model learns of texts alone: words, where it has the head for them, else what a vector has to hold.

No head for single words is drawn anew: a few thousand texts would train the head, and spoil what is below.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional as F
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    DataCollatorForLanguageModeling,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

from finetune.accelerated.precision import autocast
from finetune.data.batch import MicroBatchCollator
from finetune.errors import FinetuneError
from finetune.families.embeddings.vectors import load_pooled_encoder
from finetune.models.inputs import add_embeddings, fit_model, shortest_input
from finetune.models.load import load_weights, read_config, refuse_spoilt_weights, set_attention_dropout
from finetune.settings.parts import ModelArguments
from finetune.tasks import SINGLE_LABEL, Task

__all__ = ["MaskedWords", "NextWords", "Objective", "Sentences", "WordDecoder", "load_objective"]

MASKED_SHARE = 0.15  # of the tokens; of these 80 % become the mask, 10 % another word (Devlin et al. 2019, section 3.1)
MOST_LOGITS = 2**26  # of a micro-batch: every token has one for each word of the vocabulary
# Of the order, the masks and dropout, whatever --seed says: there is one pretrained encoder, as there is one checkpoint
# that it came from, so that the runs of a comparison share it, and what follows is repeated by seeds.
SEED = 0
DELETED_SHARE = 0.6  # of a sentence's words (Wang et al. 2021, section 4)
# XLNet is listed among causal models, but predicts in permuted orders (Yang et al. 2019): in the text's own order each
# of its tokens sees the next one.
PERMUTED = {"xlnet"}


class Objective(ABC):
    """A model, and the words that it learns to predict: a cross-entropy, its mean over all words of a step.

    Args:
        model: What is trained.
        encoder: What of it is kept.
        tokenizer: Its tokenizer.
        max_tokens: Most tokens computed at once, padding included.

    Attributes:
        what: What is learnt, as messages name it.
        paper: Where it is from.
    """

    what: ClassVar[str]
    paper: ClassVar[str]

    def __init__(self, model: PreTrainedModel, encoder: nn.Module, tokenizer: PreTrainedTokenizerBase, max_tokens: int):
        self.model, self.encoder = model, encoder
        words: Any = model.get_input_embeddings()
        most = max(1, min(max_tokens, MOST_LOGITS // int(words.weight.shape[0])))
        self.collator = MicroBatchCollator(tokenizer, most, min_length=shortest_input(model))

    @property
    def drawn(self) -> nn.Module | None:
        """What was drawn at random for it, and is thrown away afterwards; None if nothing was."""
        return None

    @abstractmethod
    def make_targets(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the words to predict, -100 where there is none, `(texts, tokens)`; inputs are changed in place."""

    def compute_logits(self, inputs: dict[str, torch.Tensor], has_target: torch.Tensor) -> torch.Tensor:
        """Compute the logits of the words to predict, `(targets, vocabulary)`.

        Args:
            inputs: Of a micro-batch, after `make_targets`.
            has_target: `(texts, tokens)`.
        """
        return self.model(**inputs).logits[has_target]

    def add_gradients(self, examples: Sequence[dict[str, Any]], device: torch.device, dtype: torch.dtype) -> float:
        """Add the gradients of a step's loss to those of the model.

        Args:
            examples: Each has `input_ids`.
            device: Where the model is.
            dtype: Number format of the matrix products.

        Returns:
            The loss.
        """
        batches = self.collator(list(examples))["micro_batches"]
        targets = [self.make_targets(batch) for batch in batches]
        count = sum(int((one != -100).sum()) for one in targets)
        total = 0.0
        for inputs, wanted in zip(batches, targets, strict=True):
            has_target = wanted != -100
            if not has_target.any():
                continue
            with autocast(device, dtype):
                logits = self.compute_logits(
                    {name: tensor.to(device) for name, tensor in inputs.items()}, has_target.to(device)
                )
            loss = F.cross_entropy(logits.float(), wanted[has_target].to(device), reduction="sum") / count
            loss.backward()
            total += loss.item()
        return total


class MaskedWords(Objective):
    """Words that were masked are predicted from all others; which ones is drawn anew each time (Liu et al. 2019)."""

    what: ClassVar[str] = "masked words"
    paper: ClassVar[str] = "Devlin et al. 2019"

    def __init__(self, model: PreTrainedModel, encoder: nn.Module, tokenizer: PreTrainedTokenizerBase, max_tokens: int):
        super().__init__(model, encoder, tokenizer, max_tokens)
        self.mask = DataCollatorForLanguageModeling(tokenizer, mlm_probability=MASKED_SHARE).torch_mask_tokens
        self.special = torch.tensor(sorted(tokenizer.all_special_ids))

    def make_targets(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """See `Objective.make_targets`."""
        inputs["input_ids"], targets = self.mask(
            inputs["input_ids"], torch.isin(inputs["input_ids"], self.special).long()
        )
        return targets


class NextWords(Objective):
    """Each word is predicted from those before it, as decoders were pretrained."""

    what: ClassVar[str] = "the next word"
    paper: ClassVar[str] = "Radford et al. 2018"

    def make_targets(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """See `Objective.make_targets`."""
        return _shift(inputs)


class Sentences(Objective):
    """TSDAE: of a text with most of its words left out a vector is computed, from which all of them are predicted.

    The decoder sees the vector and the words before, and is one layer, drawn at random, where Wang et al. 2021 take a
    copy of the encoder, which most architectures can't be turned into, and which learns too late on a few thousand
    texts. A shallow one makes the vector do the work (Xiao et al. 2022, RetroMAE). It reads the encoder's word vectors
    and leaves them as they are.

    Unsupervised SimCSE (Gao et al. 2021) would need no decoder. But a sentence encoder finds a text's second reading
    without fail from the start: the embedded one has a loss of 0.0005 on sentences of MR, so that nothing is learnt.
    """

    what: ClassVar[str] = "sentences"
    paper: ClassVar[str] = "TSDAE, Wang et al. 2021"

    def __init__(self, model: PreTrainedModel, encoder: nn.Module, tokenizer: PreTrainedTokenizerBase, max_tokens: int):
        super().__init__(model, encoder, tokenizer, max_tokens)
        self.special = torch.tensor(sorted(tokenizer.all_special_ids))
        self.padding = int(tokenizer.pad_token_id)  # type: ignore[arg-type]
        words: Any = model.get_input_embeddings()
        self.decoder = WordDecoder(model.config.text_config.hidden_size, words, tokenizer.model_max_length)

    @property
    def drawn(self) -> nn.Module | None:
        """The decoder."""
        return self.decoder

    def make_targets(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """See `Objective.make_targets`; adds what the encoder reads, under names that begin with "kept_"."""
        words, mask = inputs["input_ids"], inputs["attention_mask"]
        is_word = (mask == 1) & ~torch.isin(words, self.special)
        scores = torch.rand(words.shape).masked_fill(~is_word, -1.0)
        stays = (scores >= DELETED_SHARE) | (is_word & (scores == scores.amax(dim=1, keepdim=True)))  # one at least
        kept = (mask == 1) & (stays | ~is_word)
        order = (
            (~kept).long().argsort(dim=1, stable=True)[:, : max(int(kept.sum(dim=1).max()), self.collator.min_length)]
        )
        present = kept.gather(1, order)
        inputs["kept_input_ids"] = words.gather(1, order).masked_fill(~present, self.padding)
        inputs["kept_attention_mask"] = present.to(mask.dtype)
        if "token_type_ids" in inputs:
            inputs["kept_token_type_ids"] = inputs["token_type_ids"].gather(1, order).masked_fill(~present, 0)
        return _shift(inputs)

    def compute_logits(self, inputs: dict[str, torch.Tensor], has_target: torch.Tensor) -> torch.Tensor:
        """See `Objective.compute_logits`."""
        model: Any = self.model
        prefix = "kept_"
        vectors = model.embed(
            **{name.removeprefix(prefix): one for name, one in inputs.items() if name.startswith(prefix)}
        )
        return self.decoder(vectors, inputs["input_ids"], has_target)


class WordDecoder(nn.Module):
    """A layer of a Transformer that predicts each word of a text from the text's vector and the words before.

    Args:
        width: Of the vectors, which have length one.
        words: The vectors of the words, which stay as they are.
        max_length: Most tokens of a text.
    """

    def __init__(self, width: int, words: nn.Embedding, max_length: int):
        super().__init__()
        self.words = [words]  # in a list, so that it is no part of this module
        size = int(words.weight.shape[1])
        heads = max(number for number in range(1, 13) if size % number == 0)
        self.scale = width**0.5  # their numbers are then about 1, as the layers' are
        self.vector = nn.Linear(width, size)
        self.positions = nn.Embedding(max_length, size)
        nn.init.normal_(self.positions.weight, std=0.02)
        self.norm = nn.LayerNorm(size)
        self.layer = nn.TransformerDecoderLayer(size, heads, 4 * size, activation="gelu", batch_first=True)
        self.head = nn.Sequential(nn.Linear(size, size), nn.GELU(), nn.LayerNorm(size))
        self.bias = nn.Parameter(torch.zeros(words.weight.shape[0]))

    def forward(self, vectors: torch.Tensor, words: torch.Tensor, has_target: torch.Tensor) -> torch.Tensor:
        """Compute the logits of the words after those that have a target.

        Args:
            vectors: `(texts, width)`.
            words: `(texts, tokens)`.
            has_target: `(texts, tokens)`.

        Returns:
            `(targets, vocabulary)`.
        """
        table = self.words[0].weight.detach()
        length = words.shape[1]
        inputs = self.norm(F.embedding(words, table) + self.positions.weight[:length])
        memory = self.vector(vectors * self.scale)[:, None]
        ahead = torch.ones(length, length, dtype=torch.bool, device=words.device).triu(1)
        hidden = self.layer(inputs, memory, tgt_mask=ahead)
        return F.linear(self.head(hidden[has_target]), table, self.bias)


def _shift(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return for each token the next one, -100 where there is none, `(texts, tokens)`."""
    mask = inputs["attention_mask"] == 1
    has_next = torch.cat([mask[:, 1:], torch.zeros_like(mask[:, :1])], dim=1)
    return inputs["input_ids"].roll(-1, dims=1).masked_fill(~(mask & has_next), -100)


def load_objective(arguments: ModelArguments, tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> Objective:
    """Load a model with what it was pretrained by: its head for words, or for sentences its pooling.

    Args:
        arguments: Which model.
        tokenizer: Its tokenizer, after `finetune.models.load.load_tokenizer`.
        max_tokens: Most tokens computed at once, padding included.

    Raises:
        FinetuneError: If it has an encoder and a decoder.
    """
    name = arguments.model_name_or_path
    config = read_config(arguments)
    if config.is_encoder_decoder:
        raise FinetuneError(
            f"Expected an encoder or a decoder to pretrain on texts, but {name} is of both ({config.model_type}). "
            "Leave --pretrain_epochs out."
        )
    has_masks = type(config) in MODEL_FOR_MASKED_LM_MAPPING
    if has_masks and tokenizer.mask_token_id is not None:
        model = _load_with_head(AutoModelForMaskedLM, arguments, config, tokenizer)
        if model is not None:
            return MaskedWords(model, model.base_model, tokenizer, max_tokens)
    elif not has_masks and type(config) in MODEL_FOR_CAUSAL_LM_MAPPING and config.model_type not in PERMUTED:
        model = _load_with_head(AutoModelForCausalLM, arguments, config, tokenizer)
        if model is not None:
            return NextWords(model, model.base_model, tokenizer, max_tokens)
    pooled = load_pooled_encoder(arguments, tokenizer, Task(SINGLE_LABEL, ["0", "1"]), False)
    set_seed(SEED)  # so that the decoder depends on nothing else
    return Sentences(pooled, pooled.encoder, tokenizer, max_tokens)


def _load_with_head(auto_class: Any, arguments: ModelArguments, config: Any, tokenizer: Any) -> PreTrainedModel | None:
    """Load a model with its head for words; None if the checkpoint lacks any of their weights."""
    set_attention_dropout(config, arguments)
    model, info = load_weights(auto_class, arguments, config, ignore_mismatched_sizes=True)
    if info["missing_keys"] or info["mismatched_keys"]:
        return None
    refuse_spoilt_weights(model, arguments.model_name_or_path)
    add_embeddings(model, tokenizer, arguments.model_name_or_path)
    fit_model(model, tokenizer, arguments.model_name_or_path)
    return model
