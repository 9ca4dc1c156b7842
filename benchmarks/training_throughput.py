"""Training throughput of the toolkit's `Trainer` against transformers' own, side by side in one process.

    python benchmarks/training_throughput.py --output_json benchmarks/results/training_throughput.json

Same embedded encoder, same reviews, same examples a step, same optimizer and threads. The plain `Trainer` is set up as
transformers' `run_classification.py`: (a) by default, every text padded to the maximum length; (b) with dynamic
padding. The settings take turns, and each one's figure is the median over its turns of reviews a second; the toolkit's
turn is a whole epoch, so that short and long texts have their share. Beside it: the share of the processor's best
matrix product that the work on real tokens, padding not counted, amounts to.
"""

import argparse
import json
import statistics
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from transformers import DataCollatorWithPadding, Trainer, TrainerCallback, TrainingArguments, default_data_collator
from transformers.trainer_callback import PrinterCallback

from finetune.arguments import DataArguments, ModelArguments
from finetune.data.load import load_splits
from finetune.data.tokenize import tokenize_dataset
from finetune.hardware import default_num_threads, describe_hardware, supports_bf16, use_processor
from finetune.metrics import compute_metrics
from finetune.models.load import load_encoder, load_model, load_tokenizer
from finetune.quiet import quiet_program
from finetune.training.trainer import FineTuningTrainer

LABELS = ["negative", "positive"]


class Stopwatch(TrainerCallback):
    """Seconds from the beginning of the first step to the end of the last."""

    start = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.start = self.start or time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seconds = time.perf_counter() - self.start


def best_matrix_product(dtype: torch.dtype) -> float:
    """Measure the best of five 4096³ products, in floating-point operations a second."""
    left, right = (torch.randn(4096, 4096, dtype=dtype) for _ in range(2))
    times = []
    for _ in range(6):
        start = time.perf_counter()
        left @ right
        times.append(time.perf_counter() - start)
    return 2 * 4096**3 / min(times[1:])


def training_operations(model: Any, lengths: list[int]) -> float:
    """Count the matrix-product operations of a training step on texts of these lengths: three times the forward pass.

    A linear layer costs 2 x its weights a token; attention's two products 4 x length x hidden size a token and layer.
    """
    weights = sum(
        m.weight.numel() for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and "layer." in n
    )
    config = model.config
    attention = 4 * config.hidden_size * config.num_hidden_layers
    return 3 * sum(length * (2 * weights + attention * length) for length in lengths)


def arguments_for(batch_size: int, steps: int, **settings: Any) -> TrainingArguments:
    """Set what all three settings share."""
    return TrainingArguments(
        output_dir="unused",
        max_steps=steps,
        per_device_train_batch_size=batch_size,
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
        **settings,
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max_length", type=int, default=512)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--max_tokens_per_micro_batch", type=int, default=3_072)
    parser.add_argument("--num_threads", type=int, default=default_num_threads())
    parser.add_argument("--output_json")
    options = parser.parse_args()
    use_processor(options.num_threads)
    quiet_program()

    # As many reviews as 7 steps take; the plain settings draw theirs from them at random.
    data = DataArguments(dataset_name="embedded", max_train_samples=7 * options.batch_size)
    train = load_splits(data)["train"]
    model_arguments = ModelArguments()
    tokenizer = load_tokenizer(model_arguments, "full", train, options.max_length)
    tokenized = tokenize_dataset(train, tokenizer, options.max_length)
    columns = [name for name in tokenized.column_names if name not in ("length", "is_truncated")]
    plain = tokenized.select_columns(columns)
    padded = plain.map(
        lambda batch: tokenizer.pad(batch, padding="max_length", max_length=options.max_length), batched=True
    )
    labels = {"id2label": dict(enumerate(LABELS)), "problem_type": "single_label_classification"}
    upstream = ModelArguments(attention_dropout=0.1)

    def plain_trainer(dataset: Any, collator: Any, steps: int) -> Trainer:
        return Trainer(
            model=load_encoder(upstream, labels),
            args=arguments_for(options.batch_size, steps, seed=0),
            train_dataset=dataset,
            data_collator=collator,
        )

    def our_trainer(steps: int) -> Trainer:
        return FineTuningTrainer(
            model=load_model(model_arguments, "full", tokenizer, LABELS, seed=0),
            args=arguments_for(options.batch_size, steps, seed=0, bf16=supports_bf16()),
            train_dataset=tokenized,
            eval_dataset=tokenized,
            processing_class=tokenizer,
            compute_metrics=lambda prediction: compute_metrics(*prediction),
            max_tokens_per_micro_batch=options.max_tokens_per_micro_batch,
        )

    settings = {
        "plain, padded to the maximum": lambda: plain_trainer(padded, default_data_collator, 2),
        "plain, dynamic padding": lambda: plain_trainer(plain, DataCollatorWithPadding(tokenizer), 3),
        "finetune": lambda: our_trainer(7),
    }
    texts_per_second: dict[str, list[float]] = {name: [] for name in settings}
    for turn in range(options.turns):
        for name, build in settings.items():
            trainer = build()
            stopwatch = Stopwatch()
            trainer.add_callback(stopwatch)
            trainer.remove_callback(PrinterCallback)
            trainer.train()
            texts = trainer.args.max_steps * options.batch_size
            texts_per_second[name].append(texts / stopwatch.seconds)
            print(f"turn {turn + 1}  {name:<30} {texts_per_second[name][-1]:6.2f} texts/s", flush=True)
    peak = best_matrix_product(torch.bfloat16 if supports_bf16() else torch.float32)
    operations = training_operations(load_encoder(model_arguments, labels), tokenized["length"]) / len(tokenized)

    medians = {name: statistics.median(values) for name, values in texts_per_second.items()}
    ours = medians["finetune"]
    print(f"\n{options.num_threads} threads, {options.max_length} tokens at most, {options.batch_size} reviews a step")
    for name, median in medians.items():
        share = median * operations / peak
        print(f"{name:<30} {median:6.2f} texts/s  finetune is {ours / median:5.2f}x  {share:6.1%} of the peak")
    if options.output_json:
        result = {
            "date": datetime.now(UTC).date().isoformat(),
            "hardware": describe_hardware(),
            "settings": vars(options),
            "texts_per_second": texts_per_second,
            "ratios": {name: ours / median for name, median in medians.items()},
            "best_matrix_product_per_second": peak,
            "operations_per_text": operations,
        }
        Path(options.output_json).parent.mkdir(parents=True, exist_ok=True)
        Path(options.output_json).write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
