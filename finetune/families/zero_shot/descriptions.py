"""What labels mean, in words, and as the rows of a linear layer: its logits are then cosines."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from finetune.data.cutting import TextConfig
from finetune.data.tokens import encode_texts
from finetune.errors import FinetuneError
from finetune.families.embeddings.pooled_encoder import PooledEncoderForSequenceClassification
from finetune.families.embeddings.vectors import compute_vectors

__all__ = ["SCALE", "describe_by_vectors", "read_descriptions"]

# Cosines lie close together: sentence-transformers trains its encoders with them multiplied by this, so that their
# softmax is a probability (Henderson et al. 2017; `MultipleNegativesRankingLoss`).
SCALE = 20.0


def read_descriptions(given: str | None, label_names: Sequence[str]) -> dict[str, str]:
    """Read what each label means.

    Args:
        given: A YAML or JSON file of names and descriptions, the same in JSON, or "name=description; name=description".
        label_names: Of the data, in the order of their numbers.

    Returns:
        The descriptions that are given, by the label's name.

    Raises:
        FinetuneError: If it can't be read, or describes a label that the data doesn't have.
    """
    found = {} if given is None else _parse(given)
    unknown = [name for name in found if name not in label_names]
    if unknown:
        raise FinetuneError(
            f"Expected --label_descriptions of labels that the data has ({', '.join(label_names[:20])}), but got one "
            f"of {unknown[0]!r}. Mend its name."
        )
    empty = [name for name, description in found.items() if not description.strip()]
    if empty:
        raise FinetuneError(
            f"Expected a description after each label of --label_descriptions, but that of {empty[0]!r} is empty. "
            "Write one, or leave the label out."
        )
    return found


def describe_by_vectors(
    model: PooledEncoderForSequenceClassification, tokenizer: Any, descriptions: Sequence[str], text_config: TextConfig
) -> None:
    """Let a model's linear layer give the cosines of a text and the descriptions, multiplied by `SCALE`, in place."""
    columns = encode_texts(descriptions, tokenizer, text_config)
    examples = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    vectors = compute_vectors(model, tokenizer, examples, columns["length"], torch.float32)
    with torch.no_grad():
        model.classifier.weight.copy_(SCALE * torch.from_numpy(vectors))
        model.classifier.bias.zero_()


def _parse(given: str) -> dict[str, str]:
    file = Path(given)
    text = given
    if file.suffix in (".yaml", ".yml", ".json"):
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise FinetuneError(
                f"Expected --label_descriptions to be a file that can be read, but {given!r} can't: {error}"
            ) from error
    elif not given.lstrip().startswith("{"):
        pairs = [part.partition("=") for part in given.split(";") if part.strip()]
        if not pairs or not all(equals for _, equals, _ in pairs):
            raise FinetuneError(
                "Expected --label_descriptions as a .yaml file, or as 'label=description; label=description', but got "
                f"{given!r}."
            )
        return {name.strip(): description.strip() for name, _, description in pairs}
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise FinetuneError(f"Expected --label_descriptions in YAML, but reading it gave: {error}") from error
    if not isinstance(content, dict) or not all(isinstance(one, str | int | float) for one in content.values()):
        raise FinetuneError(
            f"Expected 'label: description' lines in --label_descriptions, but found {type(content).__name__} "
            f"{str(content)[:80]!r}."
        )
    return {str(name): str(description) for name, description in content.items()}
