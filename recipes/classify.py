"""Classify your own texts, or predict a number from them.

    accelerate launch recipes/classify.py --train_file reviews.csv
    accelerate launch recipes/classify.py --train_file reviews.csv --test_file test.csv --method lora
    accelerate launch recipes/classify.py --train_file topics.jsonl --label_delimiter ";" --method textcnn

One file is enough: what is missing of validation and test is carved from it. The columns, the encoding and the kind of
task are told from the file, and said; flags name them otherwise. README.md lists the formats. A thousand reviews take
a few minutes on a laptop.
"""

import sys

from finetune.errors import exit_on_error

with exit_on_error():  # what goes wrong is one line, also while torch is imported
    from finetune.engine import DEFAULTS, run_training
    from finetune.settings.parsing import parse_arguments


def main(argv=None):
    # `finetune train` does the same; finetune/engine.py has the steps, and recipes/imdb.py shows them in the open.
    defaults = {**DEFAULTS, "output_dir": "runs/classify/{method}-seed{seed}"}
    run_training(parse_arguments(__doc__, defaults, argv))


if __name__ == "__main__":
    with exit_on_error():
        main(sys.argv[1:])
