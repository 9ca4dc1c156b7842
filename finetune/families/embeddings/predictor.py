"""A pooled encoder that takes texts, or pairs of them, each of which it reads by itself."""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from finetune.data.tokens import encode_texts
from finetune.families.embeddings.pooled_encoder import combine_pair
from finetune.families.embeddings.vectors import compute_vectors
from finetune.models.predictor import Predictor

__all__ = ["PooledEncoderPredictor"]


class PooledEncoderPredictor(Predictor):
    """Predicts single texts as every network does; of a pair it combines the two vectors."""

    def compute_logits(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        on_batch: Callable[[int], None] = lambda num_examples: None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Score texts; see `TextClassifier`."""
        self.is_paired = bool(self.model.config.is_paired)
        self.check_pairs(pairs)
        if pairs is None:
            return super().compute_logits(texts, None, on_batch)
        first, num_tokens = self._embed(texts, lambda num_examples: None)
        second, more_tokens = self._embed(pairs, on_batch)
        with torch.inference_mode():
            combined = combine_pair(first, second).to(self.model.device)
            logits = self.model.classifier(combined).float().cpu().numpy()
        return logits, num_tokens + more_tokens

    def _embed(self, texts: Sequence[str], on_batch: Callable[[int], None]) -> tuple[torch.Tensor, np.ndarray]:
        columns = encode_texts(texts, self.tokenizer, self.text_config)
        examples = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        self.model.eval()
        vectors = compute_vectors(self.model, self.tokenizer, examples, columns["length"], self.dtype, on_batch)
        return torch.from_numpy(vectors), np.asarray(columns["length"], dtype=np.int64)
