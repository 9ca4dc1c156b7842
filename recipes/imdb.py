"""Classify film reviews as negative or positive (IMDb, Maas et al. 2011).

    accelerate launch recipes/imdb.py --config recipes/configs/imdb_quick.yaml
    accelerate launch recipes/imdb.py --method lora
    accelerate launch recipes/imdb.py --config recipes/configs/imdb_canonical.yaml

By default it fine-tunes the embedded all-MiniLM-L6-v2 on the embedded reviews: 20,000 for training, 2,404 for
validation, 2,500 for test, all carved from IMDb's official training split. README.md has the expected figures.
"""

import sys

from transformers import set_seed

from finetune.accelerated import enable
from finetune.data.load import complete_splits, load_given_splits
from finetune.data.tokenize import tokenize_splits
from finetune.delivery.evaluate import evaluate_run
from finetune.delivery.push import push_run
from finetune.errors import exit_on_error
from finetune.families.tfidf.classifier import fit_floor
from finetune.lookup import family_of
from finetune.metrics import compute_metrics
from finetune.run.run import Run
from finetune.settings.parsing import parse_arguments
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
    method, seed = arguments.method.method, arguments.training.seed
    with Run(arguments) as run:
        # 1. Data: three splits with the columns id, text and label, examined before they are trusted
        with run.main_process_first():
            given = load_given_splits(arguments.data)
            run.examine(given)
            splits = complete_splits(given, arguments.data)
        task = run.record_data(splits)

        if method == "tfidf":
            # 2. The floor that a network has to beat: TF-IDF and a linear model
            tokenizer = None
            with run.measure_costs():
                model = fit_floor(splits["train"], seed)
        else:
            # 2. Tokens
            family = family_of(method)
            tokenizer = family.load_tokenizer(arguments, splits["train"])
            with run.main_process_first():
                tokenized = tokenize_splits(splits, tokenizer, run.text_config)
            run.record_tokens(tokenized)

            # 3. The model, BERT with a classification head or a TextCNN, and what of it moves
            set_seed(seed)
            model = family.build_model(arguments, tokenizer, task)
            model = enable(model) if arguments.run.accelerated else model

            # 4. Training; the best checkpoint by the validation split
            trainer = FineTuningTrainer(
                model=model,
                args=arguments.training,
                train_dataset=run.training_rows(tokenized, tokenizer, task),
                eval_dataset=tokenized["validation"],
                processing_class=tokenizer,
                compute_metrics=lambda prediction: compute_metrics(*prediction, task.problem_type),
                max_tokens_per_micro_batch=arguments.run.max_tokens_per_micro_batch,
                example_loss=run.build_loss(tokenized["train"]),
                max_train_windows=arguments.data.max_train_windows,
                tuning=arguments.tuning,
                callbacks=run.callbacks(),
            )
            run.train(trainer)
            model = trainer.model

        # 5. Save, reload, and measure what was saved on the untouched test split
        run.save_model(model, tokenizer)
        evaluate_run(run, model, tokenizer, splits)

    # 6. With --push_to_hub: to the Hub, and back, to see that it works there
    push_run(run)


if __name__ == "__main__":
    with exit_on_error():
        main(sys.argv[1:])
