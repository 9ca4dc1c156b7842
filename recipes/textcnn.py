"""Train a TextCNN (Kim 2014) on film reviews (IMDb, Maas et al. 2011), through the same Trainer as BERT.

    accelerate launch recipes/textcnn.py
    accelerate launch recipes/textcnn.py --config recipes/configs/imdb_quick.yaml

Its tokens are the words of the training texts; nothing is pretrained, unless --textcnn_variant asks for word vectors.
"""

from finetune.errors import exit_on_error

with exit_on_error():  # what goes wrong is one line, also while torch is imported
    import evaluate
    from finetune.accelerated import enable
    from finetune.data.load import complete_splits, load_given_splits
    from finetune.data.tokenize import encode_rows, find_cache
    from finetune.evaluate_metrics import list_metrics
    from finetune.families.textcnn import load_textcnn_tokenizer, load_word_vectors
    from finetune.families.textcnn.textcnn import TextCNNConfig, TextCNNForSequenceClassification
    from finetune.hub.push import push_run
    from finetune.inference.evaluate import evaluate_run
    from finetune.models.inputs import count_rows
    from finetune.run.run import Run
    from finetune.settings.parsing import parse_flags
    from finetune.training.trainer import FineTuningTrainer
    from transformers import TrainingArguments, set_seed


def main(argv=None):
    # 1. Settings: what a flag, or a line of the file after --config, names goes over what is written here
    flags = parse_flags(__doc__, argv, methods=["textcnn"], dataset_name="embedded", max_length=512)
    training_args = TrainingArguments(
        **flags.over(
            output_dir="runs/imdb/{method}-seed{seed}",
            num_train_epochs=5,  # on small data more, up to 20, until there are 1,000 steps
            per_device_train_batch_size=50,
            learning_rate=1e-3,  # as usual for Adam; no warm-up, since nothing pretrained has to be protected
            warmup_steps=0,
            weight_decay=0.01,
            label_smoothing_factor=0.1,  # Szegedy et al. 2016
            eval_strategy="epoch",
            save_strategy="epoch",
            save_total_limit=2,  # the best and the last
            load_best_model_at_end=True,
            metric_for_best_model="accuracy",
            logging_steps=10,
        )
    )
    with Run(flags.complete(training_args)) as run:
        # 2. Data: train, validation and test with the columns id, text and label, examined before they are trusted
        with run.main_process_first():
            given = load_given_splits(flags.data)
            run.examine(given)
            splits = complete_splits(given, flags.data)
        task = run.record_data(splits)

        # 3. Tokens: the words of the training texts, or an encoder's where its word vectors are wanted
        tokenizer = load_textcnn_tokenizer(flags.model, flags.family, splits["train"], flags.data.max_length)
        text_config = run.text_config  # max_length, and what is kept of a longer text

        def tokenize(batch):
            return encode_rows(batch, tokenizer, text_config, task)

        tokenized = {}
        with run.main_process_first():
            for name, split in splits.items():
                columns, cache = split.column_names, find_cache(split, tokenizer, text_config)
                tokenized[name] = split.map(tokenize, batched=True, remove_columns=columns, cache_file_name=cache)
        run.record_tokens(tokenized)

        # 4. A TextCNN, drawn at random: filters over three, four and five words, and the largest value of each
        set_seed(training_args.seed)
        vectors = load_word_vectors(flags.model, flags.family, tokenizer, task)  # of an encoder, or None
        num_words, dim = (
            (count_rows(tokenizer), flags.family.textcnn_embedding_dim) if vectors is None else vectors.shape
        )
        textcnn_config = TextCNNConfig(
            vocab_size=num_words,
            embedding_dim=dim,
            filter_widths=[3, 4, 5],
            num_filters=100,
            classifier_dropout=flags.family.textcnn_dropout,
            variant=flags.family.textcnn_variant,
            pad_token_id=tokenizer.pad_token_id,
            **task.to_config(),  # id2label, label2id and problem_type
        )
        model = TextCNNForSequenceClassification(textcnn_config)
        if vectors is not None:
            model.set_word_vectors(vectors)

        # 5. Training, from the last checkpoint of a run that was cut off; the best one counts in the end
        metrics = evaluate.combine(list_metrics(task.problem_type))
        trainer = FineTuningTrainer(
            model=enable(model) if flags.run.accelerated else model,
            args=training_args,
            train_dataset=run.training_rows(tokenized, tokenizer, task),
            eval_dataset=tokenized["validation"],
            processing_class=tokenizer,
            compute_metrics=lambda found: metrics.compute(predictions=found.predictions, references=found.label_ids),
            max_tokens_per_micro_batch=flags.run.max_tokens_per_micro_batch,
            max_train_windows=flags.data.max_train_windows,
            example_loss=run.build_loss(tokenized["train"]),
            tuning=flags.tuning,
            callbacks=run.callbacks(),
        )
        with run.record_training(trainer):
            trainer.train(resume_from_checkpoint=run.resume_from)

        # 6. Save, reload, and measure what was saved on the untouched test split
        run.save_model(trainer.model, tokenizer)
        evaluate_run(run, trainer.model, tokenizer, splits)

    # 7. With --push_to_hub: to the Hub, and back, to see that it works there
    push_run(run)


if __name__ == "__main__":
    with exit_on_error():
        main()
