"""Classify film reviews as negative or positive (IMDb, Maas et al. 2011).

    accelerate launch recipes/imdb.py --config recipes/configs/imdb_quick.yaml
    accelerate launch recipes/imdb.py --method lora
    accelerate launch recipes/imdb.py --config recipes/configs/imdb_canonical.yaml

By default it fine-tunes the embedded all-MiniLM-L6-v2 on the embedded reviews: 20,000 for training, 2,404 for
validation, 2,500 for test, all carved from IMDb's official training split. README.md has the expected figures.
"""

import sys

from finetune.arguments import parse_arguments
from finetune.data.load import load_splits
from finetune.data.tokenize import tokenize_splits
from finetune.delivery.evaluate import evaluate_run
from finetune.errors import exit_on_error
from finetune.methods import apply_method
from finetune.metrics import compute_metrics
from finetune.models.load import load_model, load_tokenizer
from finetune.models.tfidf import fit_tfidf
from finetune.training.run import Run
from finetune.training.trainer import FineTuningTrainer

DEFAULTS = {
    "dataset_name": "embedded",
    "model_name_or_path": "embedded",
    "output_dir": "runs/imdb/{method}-seed{seed}",
    "max_length": 512,  # the most that BERT reads; it cuts 15 % of the reviews
    "num_train_epochs": 2,
    "per_device_train_batch_size": 16,
    "warmup_steps": 0.1,  # a share of all steps
    "weight_decay": 0.01,  # not on biases and LayerNorm, which the Trainer leaves out
    "label_smoothing_factor": 0.1,  # Szegedy et al. 2016
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "save_total_limit": 2,  # the best and the last
    "load_best_model_at_end": True,
    "metric_for_best_model": "accuracy",
    "logging_steps": 10,
}


def main(argv=None):
    arguments = parse_arguments(__doc__, DEFAULTS, argv)
    with Run(arguments) as run:
        # 1. Data: three splits with the columns id, text and label
        with arguments.training.main_process_first():
            splits = load_splits(arguments.data)
        run.record_data(splits)

        # 2. The model, its method, and training
        if arguments.method.method == "tfidf":
            model, tokenizer = fit_floor(arguments, splits, run), None
        else:
            model, tokenizer = fine_tune(arguments, splits, run)

        # 3. Save, reload, and measure what was saved on the untouched test split
        run.save_model(model, tokenizer)
        evaluate_run(run, model, tokenizer, splits)


def fine_tune(arguments, splits, run):
    """Train a network: an encoder in full, with LoRA, or only its head; or a TextCNN."""
    method = arguments.method.method
    tokenizer = load_tokenizer(arguments.model, method, splits["train"], arguments.data.max_length)
    with arguments.training.main_process_first():
        tokenized = tokenize_splits(splits, tokenizer, arguments.data.max_length)
    run.record_tokens(tokenized)

    label_names = splits["train"].features["label"].names
    model = load_model(arguments.model, method, tokenizer, label_names, arguments.training.seed)
    model = apply_method(model, arguments.method)

    trainer = FineTuningTrainer(
        model=model,
        args=arguments.training,
        train_dataset=tokenized["train"],
        eval_dataset=tokenized["validation"],
        processing_class=tokenizer,
        compute_metrics=lambda prediction: compute_metrics(*prediction),
        max_tokens_per_micro_batch=arguments.run.max_tokens_per_micro_batch,
        callbacks=run.callbacks(),
    )
    run.train(trainer)
    return trainer.model, tokenizer


def fit_floor(arguments, splits, run):
    """Fit TF-IDF and logistic regression, the floor that a network has to beat."""
    train = splits["train"]
    with run.measure_costs():
        return fit_tfidf(train["text"], train["label"], train.features["label"].names, arguments.training.seed)


if __name__ == "__main__":
    with exit_on_error():
        main(sys.argv[1:])
