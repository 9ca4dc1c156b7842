"""The run directory, the contract that everything after training reads. `docs/run.md` describes it field by field.

run.json        settings, versions, hardware, data, costs, metrics; `status` says whether the run is complete
history.jsonl   what was logged, one JSON object a line
model/          what `finetune.load` and `from_pretrained` reload
predictions/    validation.parquet and test.parquet
checkpoints/    to resume from
"""

import contextlib
import importlib.metadata
import json
import platform
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import transformers
from datasets import DatasetDict
from peft import PeftModel
from torch import distributed
from transformers import EarlyStoppingCallback, PreTrainedModel, PreTrainedTokenizerBase

from finetune.arguments import Arguments
from finetune.data.split import describe_split
from finetune.errors import FinetuneError
from finetune.hardware import describe_hardware, peak_memory_bytes, set_num_threads
from finetune.methods import count_parameters
from finetune.models.tfidf import LABEL_NAMES_FILE, TfidfClassifier
from finetune.quiet import quiet_program
from finetune.training.progress import HistoryWriter, ProgressReport
from finetune.training.summary import summarize
from finetune.training.trainer import FineTuningTrainer

__all__ = ["SCHEMA_VERSION", "Run", "write_json", "write_model"]

SCHEMA_VERSION = 1
PACKAGES = ("finetune", "torch", "transformers", "peft", "accelerate", "datasets", "evaluate", "scikit-learn", "numpy")
# Settings that may differ between a run and its continuation without changing what comes out.
FREE_SETTINGS = {("run", "config"), ("run", "restart"), ("run", "num_threads")}
ENTRIES = ("run.json", "history.jsonl", "model", "predictions", "checkpoints", "run.json.partial", "model.partial")
# Without any one of these a checkpoint is not whole; transformers writes the last of them last.
CHECKPOINT_FILES = ("optimizer.pt", "scheduler.pt", "trainer_state.json")


class Run:
    """A training run and its directory; use it as a context, which sets threads, quiet logs, and the directory up.

    In the directory only the main process writes. A run that was cut off continues from its newest whole checkpoint
    when it is started again with the same settings.

    Args:
        arguments: All settings. `arguments.training.output_dir` is the run directory; the `Trainer` gets its
            `checkpoints/`.

    Raises:
        FinetuneError: On entering, if the directory holds something else, a finished run, or other settings.
    """

    def __init__(self, arguments: Arguments):
        self.arguments = arguments
        self.directory = Path(str(arguments.training.output_dir))
        self.model_directory = self.directory / "model"
        self.record: dict[str, Any] = {}

    def __enter__(self) -> "Run":
        training = self.arguments.training
        set_num_threads(self.arguments.run.num_threads or 1)
        quiet_program()
        training.output_dir = str(self.directory / "checkpoints")
        self.is_main = training.process_index == 0
        self.record = {
            "schema_version": SCHEMA_VERSION,
            "status": "running",
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
            "method": self.arguments.method.method,
            "seed": training.seed,
            "arguments": self.arguments.to_dict(),
            "environment": self._describe_environment(),
        }
        if self.is_main:
            self._open_directory()
            self._say_what_is_ignored()
        self.wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self.is_main:
            return
        if kind is not None:
            self._leave_nothing_behind()
        else:
            print(f"\n{summarize(self.record, self.directory)}")

    def wait(self) -> None:
        """Wait until every process is here."""
        if distributed.is_available() and distributed.is_initialized():
            distributed.barrier()

    def record_data(self, splits: DatasetDict) -> None:
        """Note the origin, size and content hash of each split."""
        self.record["data"] = {
            "label_names": splits["train"].features["label"].names,
            "splits": {name: describe_split(split) for name, split in splits.items()},
        }
        self._write()

    def record_tokens(self, tokenized: DatasetDict) -> None:
        """Note the mean length in tokens and the share of texts that `max_length` cut, for each split."""
        for name, split in tokenized.items():
            described = self.record["data"]["splits"][name]
            described["mean_tokens"] = sum(split["length"]) / len(split)
            described["truncated_share"] = sum(split["is_truncated"]) / len(split)
        self._write()

    def callbacks(self) -> list[transformers.TrainerCallback]:
        """Give the progress report, the history, and early stopping if it is asked for."""
        callbacks: list[transformers.TrainerCallback] = [
            ProgressReport(),
            HistoryWriter(self.directory / "history.jsonl"),
        ]
        patience = self.arguments.run.early_stopping_patience
        if patience and self.arguments.training.load_best_model_at_end:
            callbacks.append(EarlyStoppingCallback(patience))
        return callbacks

    def train(self, trainer: FineTuningTrainer) -> None:
        """Train, from the newest whole checkpoint if there is one, and note the costs."""
        training = self.arguments.training
        checkpoint = self.find_checkpoint()
        if checkpoint is not None and self.is_main:
            print(f"resuming from {checkpoint}", file=sys.stderr)
        start = time.perf_counter()
        trainer.train(resume_from_checkpoint=checkpoint)
        seconds = time.perf_counter() - start - trainer.evaluation_seconds
        tokens = int(trainer.accelerator.reduce(torch.tensor(trainer.train_tokens, device=training.device), "sum"))
        self.record["costs"] = {
            "train_seconds": seconds,
            "train_evaluation_seconds": trainer.evaluation_seconds,
            "train_steps": trainer.state.global_step,
            "train_tokens": tokens,
            "tokens_per_second": tokens / seconds,
            "peak_memory_bytes": peak_memory_bytes(),
        }
        self.record["best_checkpoint_metric"] = trainer.state.best_metric
        self._write()

    @contextlib.contextmanager
    def measure_costs(self) -> Iterator[None]:
        """Note the seconds and the memory of a fit that is not the `Trainer`'s."""
        start = time.perf_counter()
        yield
        self.record["costs"] = {
            "train_seconds": time.perf_counter() - start,
            "peak_memory_bytes": peak_memory_bytes(),
        }

    def find_checkpoint(self) -> str | None:
        """Find the newest checkpoint that has all its files."""
        checkpoints = (self.directory / "checkpoints").glob("checkpoint-*")
        whole = [path for path in checkpoints if all((path / name).is_file() for name in CHECKPOINT_FILES)]
        return str(max(whole, key=lambda path: int(path.name.rpartition("-")[2]))) if whole else None

    def save_model(
        self, model: PreTrainedModel | PeftModel | TfidfClassifier, tokenizer: PreTrainedTokenizerBase | None
    ) -> None:
        """Write `model/` and note its size."""
        if isinstance(model, TfidfClassifier):
            trainable = total = model.num_parameters()
            architecture = "TfidfVectorizer + LogisticRegression"
        else:
            trainable, total = count_parameters(model)
            architecture = type(model.get_base_model() if isinstance(model, PeftModel) else model).__name__
        if self.is_main:
            write_model(self.model_directory, model, tokenizer)
            self.record["model"] = {
                "name": self.arguments.model.model_name_or_path,
                "architecture": architecture,
                "trainable_parameters": trainable,
                "total_parameters": total,
                "bytes": sum(path.stat().st_size for path in self.model_directory.rglob("*") if path.is_file()),
            }
        self._write()
        self.wait()

    def finish(self, results: dict[str, Any]) -> None:
        """Add the results of the evaluation and mark the run complete."""
        for name, value in results.items():
            self.record[name] = {**self.record.get(name, {}), **value} if isinstance(value, dict) else value
        self.record["status"] = "complete"
        self.record["finished"] = datetime.now(UTC).isoformat(timespec="seconds")
        self._write()

    def _leave_nothing_behind(self) -> None:
        """Remove what a run wrote that failed before it had a checkpoint to resume from."""
        if self.find_checkpoint() is None and not self.model_directory.exists():
            self._delete()

    def _delete(self) -> None:
        """Delete what runs write, and the directory if nothing else is in it."""
        for name in ENTRIES:
            path = self.directory / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        if self.directory.is_dir() and not any(self.directory.iterdir()):
            self.directory.rmdir()

    def _open_directory(self) -> None:
        """Make the directory, or accept the one that this run left behind."""
        found = sorted(path.name for path in self.directory.iterdir()) if self.directory.is_dir() else []
        if self.directory.exists() and not self.directory.is_dir():
            raise FinetuneError(f"Expected --output_dir to be a folder, but {str(self.directory)!r} is a file.")
        if found:
            before = self._read_earlier_record()
            if self.arguments.run.restart:
                self._delete()
            elif before["status"] == "complete":
                raise FinetuneError(
                    f"Expected an empty --output_dir, but {str(self.directory)!r} holds a finished run. "
                    "Pass another folder, or --restart to delete it and run again."
                )
            else:
                self._refuse_changes(before)
        self.directory.mkdir(parents=True, exist_ok=True)
        self._write()

    def _read_earlier_record(self) -> dict[str, Any]:
        try:
            record = json.loads((self.directory / "run.json").read_text())
            record["status"], record["arguments"]
        except (OSError, ValueError, KeyError, TypeError):
            raise FinetuneError(
                f"Expected an empty --output_dir or an earlier run, but {str(self.directory)!r} holds other files. "
                "Pass another folder."
            ) from None
        return record

    def _refuse_changes(self, before: dict[str, Any]) -> None:
        now = json.loads(json.dumps(self.record["arguments"], default=str))
        changed = [
            f"{name} ({before['arguments'].get(part, {}).get(name)!r} then, {value!r} now)"
            for part, settings in now.items()
            for name, value in settings.items()
            if (part, name) not in FREE_SETTINGS and before["arguments"].get(part, {}).get(name) != value
        ]
        if changed:
            raise FinetuneError(
                f"Expected the settings of the unfinished run in {str(self.directory)!r}, but these differ: "
                f"{', '.join(changed)}. Use the earlier settings to resume, or --restart to start over."
            )

    def _say_what_is_ignored(self) -> None:
        """Warn of settings that the user chose and the method has no use for."""
        method = self.arguments.method.method
        part_of = {
            name: part
            for part in ("model", "method", "run", "training")
            for name in vars(getattr(self.arguments, part))
        }
        used = {"method", "output_dir", "seed", "config", "restart", "num_threads", "no_store_text", "floor"}
        ignored = set()
        for name in self.arguments.given - used:
            unused_by_tfidf = method == "tfidf" and name in part_of
            other_lora = name.startswith("lora_") and method != "lora"
            other_textcnn = name.startswith("textcnn_") and method != "textcnn"
            if unused_by_tfidf or other_lora or other_textcnn:
                ignored.add(name)
        if ignored:
            warnings.warn(f"--method {method} ignores: {', '.join(sorted(ignored))}", stacklevel=2)

    def _describe_environment(self) -> dict[str, Any]:
        training = self.arguments.training
        return {
            "python": platform.python_version(),
            "packages": {name: _version(name) for name in PACKAGES},
            "git_commit": _git_commit(),
            **describe_hardware(),
            "num_threads": self.arguments.run.num_threads,
            "num_processes": training.world_size,
            "precision": _precision(self.arguments),
        }

    def _write(self) -> None:
        if self.is_main:
            write_json(self.directory / "run.json", self.record)


def write_model(
    folder: Path, model: PreTrainedModel | PeftModel | TfidfClassifier, tokenizer: PreTrainedTokenizerBase | None
) -> None:
    """Write a model, its tokenizer and its label names aside and rename the folder, so that it is always whole."""
    aside = folder.with_name(folder.name + ".partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    model.save_pretrained(str(aside))
    if tokenizer is not None:
        tokenizer.save_pretrained(str(aside))
    if isinstance(model, PeftModel):  # an adapter folder has no config.json, so it would lose the label names
        (aside / "README.md").unlink(missing_ok=True)  # PEFT's empty card
        labels: Any = model.get_base_model().config.id2label  # type: ignore[union-attr]
        write_json(aside / LABEL_NAMES_FILE, [labels[number] for number in range(len(labels))])
    shutil.rmtree(folder, ignore_errors=True)
    aside.rename(folder)


def write_json(path: Path, content: Any) -> None:
    """Write JSON aside and rename it, so that a reader never sees half of it."""
    aside = path.with_name(path.name + ".partial")
    aside.write_text(json.dumps(content, indent=2, ensure_ascii=False, default=str) + "\n", encoding="utf-8")
    aside.replace(path)


def _precision(arguments: Arguments) -> str:
    if arguments.method.method == "tfidf":
        return "fp64"
    return "bf16" if arguments.training.bf16 else "fp16" if arguments.training.fp16 else "fp32"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """Name the commit of the checkout that this package runs from, with "+changes" where files differ from it."""
    folder = Path(__file__).parent
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, timeout=5)
        status = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=5,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if commit.returncode:
        return None
    return commit.stdout.strip() + ("+changes" if status.stdout.strip() else "")
