"""TextCNN against the straightforward version of it, side by side in one run; then its cheapest rivals.

    python benchmarks/textcnn_throughput.py --output_json benchmarks/results/textcnn_throughput.json

The straightforward version is that of most tutorials: `Conv2d` over an unsqueezed embedding, every text padded to the
maximum length, float32, transformers' own `Trainer`. Same tokens, sizes, dropout, batch, optimizer and threads. The
settings take turns in processes of their own. `--epoch` then trains one epoch on 20,000 reviews and fits TF-IDF with
logistic regression on them, and fastText if it is installed.
"""

import importlib.util
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from training_throughput import Stopwatch
from transformers import Trainer, TrainingArguments, default_data_collator
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.trainer_callback import PrinterCallback
from turns import build_parser, take_turns, write_results

from finetune.accelerated import enable
from finetune.catalogue import METHOD_DEFAULTS
from finetune.data.cutting import TextConfig
from finetune.data.labels import task_of
from finetune.data.load import load_splits
from finetune.data.tokenize import tokenize_dataset
from finetune.families.textcnn import TextCNNSettings, build_textcnn, load_textcnn_tokenizer
from finetune.families.tfidf.fit import fit_floor
from finetune.hardware import fastest_precision, use_processor
from finetune.metrics import compute_metrics
from finetune.quiet import quiet_program
from finetune.settings.parts import DataArguments, ModelArguments
from finetune.training.trainer import FineTuningTrainer

OURS, PLAIN = "finetune", "Conv2d, padded, float32"
TEXTCNN, TFIDF, FASTTEXT = "TextCNN, one epoch", "TF-IDF", "fastText"
STEPS = {PLAIN: 6, OURS: 60}
SETTINGS = METHOD_DEFAULTS["textcnn"]


class PlainTextCNN(nn.Module):
    """Kim 2014 as a tutorial writes it."""

    def __init__(self, vocab_size: int, embedding_dim: int, num_filters: int, num_labels: int, dropout: float):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, embedding_dim)
        self.convolutions = nn.ModuleList(nn.Conv2d(1, num_filters, (width, embedding_dim)) for width in (3, 4, 5))
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(3 * num_filters, num_labels)

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> SequenceClassifierOutput:
        embedded = self.embedding(input_ids).unsqueeze(1)  # (batch, 1, length, embedding_dim)
        maps = [F.relu(convolution(embedded)).squeeze(3) for convolution in self.convolutions]
        pooled = torch.cat([F.max_pool1d(one, one.shape[2]).squeeze(2) for one in maps], dim=1)
        logits = self.classifier(self.dropout(pooled))
        return SequenceClassifierOutput(loss=F.cross_entropy(logits, labels), logits=logits)


def measure(name: str, options: Any) -> dict[str, float]:
    """Train under one setting."""
    quiet_program()
    if name == PLAIN:
        torch.set_num_threads(options.num_threads)
    else:
        use_processor(options.num_threads)
    rows = 20_000 if name in (TEXTCNN, TFIDF, FASTTEXT) else STEPS[OURS] * SETTINGS["per_device_train_batch_size"]
    splits = load_splits(DataArguments(dataset_name="embedded", max_train_samples=rows))
    train, test = splits["train"], splits["test"]
    names = train.features["label"].names
    if name == TFIDF:
        start = time.perf_counter()
        floor = fit_floor(train, seed=0)
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "test_accuracy": _accuracy(floor.compute_logits(test["text"]), test["label"])}
    if name == FASTTEXT:
        return _measure_fasttext(train, test, options.num_threads)

    model_arguments, settings = ModelArguments(), TextCNNSettings()
    tokenizer = load_textcnn_tokenizer(model_arguments, settings, train, options.max_length)
    tokenized = tokenize_dataset(train, tokenizer, TextConfig(options.max_length))
    steps = STEPS.get(name, -1)
    args = TrainingArguments(
        output_dir="unused",
        max_steps=steps,
        num_train_epochs=1,
        learning_rate=SETTINGS["learning_rate"],
        per_device_train_batch_size=SETTINGS["per_device_train_batch_size"],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
        seed=0,
        bf16=name != PLAIN and fastest_precision() == "bf16",
    )
    model: Any = enable(build_textcnn(model_arguments, settings, tokenizer, task_of(train.features), seed=0))
    if name == PLAIN:
        sizes = (len(tokenizer), model.config.embedding_dim, model.config.num_filters)
        columns = tokenized.select_columns(["input_ids", "labels"])
        pad = {"padding": "max_length", "max_length": options.max_length, "return_attention_mask": False}
        trainer = Trainer(
            model=PlainTextCNN(*sizes, len(names), settings.textcnn_dropout),
            args=args,
            train_dataset=columns.map(lambda batch: tokenizer.pad(batch, **pad), batched=True),
            data_collator=default_data_collator,
        )
    else:
        trainer = FineTuningTrainer(
            model=model,
            args=args,
            train_dataset=tokenized,
            eval_dataset=tokenize_dataset(test, tokenizer, TextConfig(options.max_length)),
            processing_class=tokenizer,
            compute_metrics=lambda prediction: compute_metrics(*prediction),
            max_tokens_per_micro_batch=SETTINGS["max_tokens_per_micro_batch"],
        )
    stopwatch = Stopwatch()
    trainer.add_callback(stopwatch)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    texts = trainer.state.max_steps * args.per_device_train_batch_size
    measured = {"texts_per_second": texts / stopwatch.seconds}
    if name == TEXTCNN:
        measured = {"seconds": stopwatch.seconds, "test_accuracy": trainer.evaluate()["eval_accuracy"]}
    return measured


def _measure_fasttext(train: Any, test: Any, num_threads: int) -> dict[str, float]:
    """Train fastText's supervised classifier (Joulin et al. 2017) with word pairs, five epochs."""
    import fasttext

    def line(text: str, label: int) -> str:
        return f"__label__{label} {' '.join(text.lower().split())}\n"

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.txt"
        path.write_text("".join(map(line, train["text"], train["label"])), encoding="utf-8")
        start = time.perf_counter()
        model = fasttext.train_supervised(str(path), wordNgrams=2, epoch=5, lr=0.5, thread=num_threads, verbose=0)
        seconds = time.perf_counter() - start
    # predict() of the binding breaks with NumPy 2; the object under it does not.
    found = [model.f.predict(line(text, 0).split(" ", 1)[1], 1, 0.0, "strict")[0][1] for text in test["text"]]
    right = sum(label == f"__label__{expected}" for label, expected in zip(found, test["label"], strict=True))
    return {"seconds": seconds, "test_accuracy": right / len(found)}


def _accuracy(logits: Any, labels: Any) -> float:
    return compute_metrics(logits, torch.tensor(labels[:]).numpy())["accuracy"]


def main() -> None:
    """Measure and print."""
    parser = build_parser(__doc__)
    parser.add_argument("--max_length", type=int, default=512)
    parser.add_argument("--epoch", action="store_true", help="also one epoch on 20,000 reviews, TF-IDF and fastText")
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure[0], options)))
        return

    results = take_turns(__file__, list(STEPS), options.turns)
    medians = {name: statistics.median(turn["texts_per_second"] for turn in turns) for name, turns in results.items()}
    ratio = medians[OURS] / medians[PLAIN]
    print(f"\n{options.num_threads} threads, {options.max_length} tokens at most")
    for name, median in medians.items():
        print(f"{name:<28} {median:7.1f} reviews/s  finetune is {medians[OURS] / median:5.2f}x")
    if options.epoch:
        has_fasttext = importlib.util.find_spec("fasttext") is not None
        rivals = [TEXTCNN, TFIDF, *([FASTTEXT] if has_fasttext else [])]
        print("\n20,000 reviews:" + ("" if has_fasttext else " (fastText is not installed)"))
        results |= take_turns(__file__, rivals, 1)
    write_results(options.output_json, options, {"ratio": ratio, "turns_measured": results})


if __name__ == "__main__":
    main()
