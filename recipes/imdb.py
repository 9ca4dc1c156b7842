"""Fine-tune BERT on film reviews (IMDb, Maas et al. 2011): all of its weights, or LoRA.

    accelerate launch recipes/imdb.py --method lora
    accelerate launch recipes/imdb.py --config recipes/configs/imdb_quick.yaml  # or imdb_canonical.yaml

By default all-MiniLM-L6-v2, a BERT of six layers, on 20,000 reviews, both embedded. README.md has expected figures.
"""

from finetune.errors import exit_on_error

with exit_on_error():  # what goes wrong is one line, also while torch is imported
    import evaluate
    from finetune.accelerated import enable
    from finetune.data.load import complete_splits, load_given_splits
    from finetune.data.tokenize import encode_rows, find_cache
    from finetune.evaluate_metrics import list_metrics
    from finetune.hub.push import push_run
    from finetune.inference.evaluate import evaluate_run
    from finetune.methods import fitting_adapter, lora_over, reinitialise_layers
    from finetune.models.load import check_loaded, fit_to_checkpoint, loading, locate_checkpoint, note_origin
    from finetune.pretraining.pretrain import pretrain_encoder
    from finetune.run.run import Run
    from finetune.settings.parsing import parse_flags
    from finetune.training.trainer import FineTuningTrainer
    from peft import LoraConfig, get_peft_model
    from transformers import AutoTokenizer, BertForSequenceClassification, TrainingArguments, set_seed


def main(argv=None):
    # 1. Settings: what a flag, or a line of the file after --config, names goes over what is written here
    flags = parse_flags(__doc__, argv, methods=["full", "lora"], dataset_name="embedded", max_length=512)
    training_args = TrainingArguments(
        **flags.over(
            output_dir="runs/imdb/{method}-seed{seed}",
            num_train_epochs=2,
            per_device_train_batch_size=16,
            learning_rate=5e-4 if flags.method.method == "lora" else 5e-5,  # Schulman et al. 2025: ten times as much
            warmup_steps=0.1,  # a share of all steps
            weight_decay=0.01,  # not on biases and LayerNorm, which the Trainer leaves out
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
        pretrain_encoder(run, splits["train"])  # with --pretrain_epochs: the encoder, on the texts alone

        # 3. Tokens, not padded yet: batches pad to their own longest text
        checkpoint, commit = locate_checkpoint(flags.model, BertForSequenceClassification)
        with loading(flags.model):
            tokenizer = AutoTokenizer.from_pretrained(checkpoint, revision=commit)
        fit_to_checkpoint(tokenizer, flags.model, flags.data.max_length, saves_embeddings=flags.method.method == "full")
        text_config = run.text_config  # max_length, and what is kept of a longer text

        def tokenize(batch):
            return encode_rows(batch, tokenizer, text_config, task)

        tokenized = {}
        with run.main_process_first():
            for name, split in splits.items():
                columns, cache = split.column_names, find_cache(split, tokenizer, text_config)
                tokenized[name] = split.map(tokenize, batched=True, remove_columns=columns, cache_file_name=cache)
        run.record_tokens(tokenized)

        # 4. BERT with a classification head, which is drawn at random; for LoRA with adapters on its linear layers
        set_seed(training_args.seed)
        with loading(flags.model):
            model, loading_info = BertForSequenceClassification.from_pretrained(
                checkpoint,
                revision=commit,
                **task.to_config(),  # id2label, label2id and problem_type
                attention_probs_dropout_prob=flags.model.attention_dropout,  # 0: attention is then one fast kernel
                dtype="float32",
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # a head for other classes is drawn anew
                output_loading_info=True,
            )
        note_origin(model, flags.model, commit, loading_info)
        head = check_loaded(model, tokenizer, flags.model)  # the modules that the checkpoint lacks
        reinitialise_layers(model, flags.method.reinit_layers)  # none, unless the flag says so
        if flags.method.method == "lora":
            with fitting_adapter(model):
                lora = lora_over(
                    flags.method, model, r=16, lora_alpha=32, target_modules="all-linear", modules_to_save=head
                )
                model = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", **lora), revision=commit)

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
