"""Write an imbalanced set: all negative sentences of MR, and so many positive ones that they are a tenth of it.

    python benchmarks/thin_positives.py --train_file rt-polarity.all --output_dir thinned

writes `train.csv` and `test.csv`, 2,000 sentences, with the same share of positive ones. Duplicates are dropped first;
which sentences stay, and which are for testing, is drawn with a fixed seed.
"""

import argparse
from pathlib import Path

import numpy as np
from textcnn_sentences import read_sentences

from finetune.data.split import carve_splits, drop_duplicates

TEST_SIZE = 2_000


def main() -> None:
    """Write the files and print their counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train_file", required=True, help="lines of 'label text', as MR has them")
    parser.add_argument("--output_dir", required=True, type=Path)
    parser.add_argument("--share", type=float, default=0.1, help="of positive sentences, above 0 and below 1")
    options = parser.parse_args()
    sentences = drop_duplicates(read_sentences(Path(options.train_file)))
    labels = np.array(sentences["label"])
    negative, positive = np.flatnonzero(labels == 0), np.flatnonzero(labels == 1)
    wanted = round(len(negative) * options.share / (1 - options.share))
    chosen = np.random.default_rng(0).permutation(positive)[:wanted]
    thinned = sentences.select(np.sort(np.concatenate([negative, chosen])))
    options.output_dir.mkdir(parents=True, exist_ok=True)
    for name, split in carve_splits(thinned, {"test": TEST_SIZE}, seed=0).items():
        named = split.to_pandas()[["text", "label"]].replace({"label": {0: "negative", 1: "positive"}})
        named.to_csv(options.output_dir / f"{name}.csv", index=False)
        print(f"{name}: {len(named):,} sentences, {(named['label'] == 'positive').sum():,} of them positive")


if __name__ == "__main__":
    main()
