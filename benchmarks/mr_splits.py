"""Write the sentences of MR as `train.csv` and `test.csv`, balanced as they are or with few positive ones.

    python benchmarks/mr_splits.py --train_file rt-polarity.all --output_dir mr --test_size 5000
    python benchmarks/mr_splits.py --train_file rt-polarity.all --output_dir mr-thinned --positive_share 0.1

Duplicates are dropped first; which sentences stay, and which are for testing, is drawn with a fixed seed. Both files
have the same share of positive ones.
"""

import argparse
from pathlib import Path

import numpy as np
from textcnn_sentences import read_sentences

from finetune.data.split import carve_splits, drop_duplicates


def main() -> None:
    """Write the files and print their counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train_file", required=True, help="lines of 'label text', as MR has them")
    parser.add_argument("--output_dir", required=True, type=Path)
    parser.add_argument("--test_size", type=int, default=2_000)
    parser.add_argument("--positive_share", type=float, help="above 0 and below 0.5; all of them if not given")
    options = parser.parse_args()
    sentences = drop_duplicates(read_sentences(Path(options.train_file)))
    if options.positive_share is not None:
        labels = np.array(sentences["label"])
        negative, positive = np.flatnonzero(labels == 0), np.flatnonzero(labels == 1)
        wanted = round(len(negative) * options.positive_share / (1 - options.positive_share))
        chosen = np.random.default_rng(0).permutation(positive)[:wanted]
        sentences = sentences.select(np.sort(np.concatenate([negative, chosen])))
    options.output_dir.mkdir(parents=True, exist_ok=True)
    for name, split in carve_splits(sentences, {"test": options.test_size}, seed=0).items():
        named = split.to_pandas()[["text", "label"]].replace({"label": {0: "negative", 1: "positive"}})
        named.to_csv(options.output_dir / f"{name}.csv", index=False)
        print(f"{name}: {len(named):,} sentences, {(named['label'] == 'positive').sum():,} of them positive")


if __name__ == "__main__":
    main()
