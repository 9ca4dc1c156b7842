"""The data doctor: all checks over the splits that a user gives, kept in the cache for the next run on the same."""

import hashlib
from pathlib import Path

import datasets
import numpy as np
from datasets import DatasetDict
from transformers import PreTrainedTokenizerBase

from finetune.data.cutting import TextConfig
from finetune.data.labels import task_of
from finetune.data.load import GivenSplits
from finetune.data.tokens import encode_texts
from finetune.data_doctor.checks import CHECKS, check_lengths, check_readings
from finetune.data_doctor.doubtful_labels import find_doubtful_labels
from finetune.data_doctor.facts import Facts, collect_facts
from finetune.data_doctor.findings import Finding, from_json, to_json
from finetune.files import read_json, write_json

__all__ = ["examine"]

TOKENIZED_ROWS = 2_000  # drawn at random to estimate the share of texts that are cut


def examine(
    splits: DatasetDict,
    tokenizer: PreTrainedTokenizerBase | None = None,
    max_length: int = 512,
    check_labels: bool = False,
) -> list[Finding]:
    """Look for trouble in the splits that a user gives, before any are carved from them.

    Args:
        splits: `train`, and `validation` and `test` where they are given.
        tokenizer: To tell how many texts `max_length` cuts; without, `lengths` tells a lower bound by words.
        max_length: Tokens that texts would be cut to.
        check_labels: Also look for labels that are likely wrong.

    Returns:
        The findings, in the order of the checks.
    """
    settings = (max_length, check_labels, tokenizer.name_or_path if tokenizer is not None else None)
    digest = hashlib.sha256(repr(settings).encode())
    for source in sorted(Path(__file__).parent.glob("*.py")):  # other checks find other things
        digest.update(source.read_bytes())
    readings = splits.readings if isinstance(splits, GivenSplits) else {}
    digest.update(repr(readings).encode())
    for name, split in splits.items():
        digest.update(f"{name} {split.features}".encode())
        for batch in split.with_format("arrow").iter(batch_size=1_000):
            digest.update(repr(batch.to_pydict()).encode())
    file = Path(datasets.config.HF_DATASETS_CACHE) / "finetune" / f"findings-{digest.hexdigest()}.json"
    kept = read_json(file)
    if kept is not None:
        return from_json(kept)

    task = task_of(splits["train"].features)
    facts = [collect_facts(name, split, task) for name, split in splits.items()]
    findings = [finding for check in CHECKS for finding in check(facts, task)]
    findings += check_readings(readings, facts)
    findings += check_lengths(facts, max_length)
    if tokenizer is not None:
        findings += [_cut_share(one, tokenizer, max_length) for one in facts]
    if check_labels:
        findings += find_doubtful_labels(facts, task)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, to_json(findings))
    return findings


def _cut_share(facts: Facts, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Finding:
    """Estimate the share of texts that are longer than `max_length` tokens."""
    rows = np.sort(np.random.default_rng(0).permutation(len(facts.keys))[:TOKENIZED_ROWS])
    drawn = facts.dataset.select(rows)
    texts, pairs = (
        [text or "" for text in drawn[name]] if name in drawn.column_names else None for name in ("text", "text_pair")
    )
    assert texts is not None
    cut = float(np.mean(encode_texts(texts, tokenizer, TextConfig(max_length), pairs)["is_truncated"]))
    sample = f" (of {len(rows):,} drawn at random)" if len(rows) < len(facts.keys) else ""
    return Finding(
        "truncated_texts", "note", (facts.name,), round(cut * len(facts.keys)),
        f"{cut:.1%} of the texts of {facts.name}{sample} have more than {max_length} tokens",
        "--max_length raises the bound; --truncation head+tail or window keeps other parts." if cut > 0.1 else "",
    )  # fmt: skip
