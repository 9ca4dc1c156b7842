"""The run directory, the contract that everything after training reads. `docs/run.md` describes it field by field.

run.json        settings, versions, hardware, data, costs, metrics; `status` says whether the run is complete
history.jsonl   what was logged, one JSON object a line
model/          what `finetune.load` and `from_pretrained` reload
predictions/    validation.parquet and test.parquet
checkpoints/    to resume from
"""

import contextlib
import json
import shutil
import sys
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from pickle import UnpicklingError
from types import TracebackType
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict
from huggingface_hub import HfApi
from peft import PeftModel
from torch import distributed
from transformers import (
    EarlyStoppingCallback,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from finetune.arguments import Arguments
from finetune.data.labels import Task, task_of
from finetune.data.load import GivenSplits, open_stream
from finetune.data.split import describe_split
from finetune.data.stream import TokenizingRows
from finetune.data.tokenize import TextConfig
from finetune.data.understood import describe_understanding
from finetune.environment import describe_environment
from finetune.errors import FinetuneError
from finetune.examination.doctor import examine
from finetune.examination.findings import describe_findings, to_json
from finetune.files import write_json
from finetune.hardware import fastest_precision, peak_memory_bytes, use_processor
from finetune.hub import check_login
from finetune.methods import count_parameters
from finetune.metrics import REGRESSION
from finetune.models.load import fingerprint_model, resolve_model
from finetune.models.output_layer import Standard
from finetune.models.save import write_model
from finetune.models.tfidf import TfidfClassifier
from finetune.quiet import quiet_program
from finetune.training.checkpoints import find_resumable, list_checkpoints, tidy
from finetune.training.interruption import Interruption
from finetune.training.lock import LOCK_FILE, DirectoryLock
from finetune.training.loss import ExampleLoss, balanced_class_weights, oversample
from finetune.training.progress import HistoryWriter, ProgressReport
from finetune.training.sharding import gather_weights, load_whole
from finetune.training.summary import summarize
from finetune.training.trainer import FineTuningTrainer
from finetune.training.waiting import WaitingRoom, is_lost_connection

__all__ = ["SCHEMA_VERSION", "Run"]

SCHEMA_VERSION = 1
FILES = ("run.json", "findings.json", "history.jsonl")
ENTRIES = (
    *FILES,
    *(f"{name}.partial" for name in FILES),
    "model",
    "model.partial",
    "model.replaced",
    "predictions",
    "checkpoints",
)
# Settings that may differ between a run and its continuation: they change what is shown or kept, not what comes out.
FREE_SETTINGS = {
    "config", "restart", "resume_with_changes", "output_dir", "num_threads", "floor",
    "no_store_text", "report_to", "logging_steps", "logging_strategy",
    "logging_first_step", "log_level", "disable_tqdm", "save_total_limit", "run_name", "project",
}  # fmt: skip
# Parts whose settings decide what the weights in a checkpoint are: they can't change on the way.
FIXED_PARTS = ("model", "method")


class Run:
    """A training run and its directory; use it as a context, which sets threads, quiet logs, and the directory up.

    In the directory only the main process writes, and only one run at a time. A run that was cut off continues from its
    newest whole checkpoint when it is started again with the same settings. `docs/faults.md` says what else can happen.

    Args:
        arguments: All settings. `arguments.training.output_dir` is the run directory; the `Trainer` gets its
            `checkpoints/`.

    Raises:
        FinetuneError: On entering, if the directory holds something else, a finished run, or other settings; if it
            can't be written to, or another run is at work in it.
        Interrupted: After SIGTERM or SIGINT.
    """

    def __init__(self, arguments: Arguments):
        self.arguments = arguments
        self.directory = Path(str(arguments.training.output_dir))
        self.model_directory = self.directory / "model"
        self.set_aside = self.directory / "before-restart"
        self.record: dict[str, Any] = {}
        self.earlier: dict[str, Any] = {}
        self.checkpoint: Path | None = None
        self.weights: dict[str, Any] | None = None
        self.is_changed = False
        self.has_begun = False
        self.started_here = True
        self.name_rows: Callable[[Sequence[Any]], list[str]] | None = None
        self.interruption = Interruption()
        self.lock: DirectoryLock | None = None

    def __enter__(self) -> "Run":
        training = self.arguments.training
        use_processor(self.arguments.run.num_threads or 1)
        quiet_program()
        load_whole()
        training.output_dir = str(self.directory / "checkpoints")
        training.restore_callback_states_from_checkpoint = True  # the patience of early stopping, and the costs
        self.is_main = training.process_index == 0
        self.waiting_room = None
        self.is_paired: bool | None = None
        self.encoding: str | None = None
        self.is_numbered: bool | None = None
        self.understood: list[str] = []
        if training.world_size > 1:
            self.waiting_room = WaitingRoom(timedelta(seconds=training.ddp_timeout))
        self.record = {
            "schema_version": SCHEMA_VERSION,
            "id": uuid.uuid4().hex,
            "status": "running",
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
            "method": self.arguments.method.method,
            "seed": training.seed,
            "arguments": self.arguments.to_dict(),
            "environment": {
                **describe_environment(),
                "num_threads": self.arguments.run.num_threads,
                "num_processes": training.world_size,
                "precision": _precision(self.arguments),
                "prediction_precision": _prediction_precision(self.arguments),
            },
        }
        self.interruption.__enter__()
        try:
            self._compare_processes("settings", _flat(self.record["arguments"]))
            if self.is_main and self.arguments.hub is not None:
                check_login(HfApi(), self.arguments.hub.model_id)  # now, not after hours of training
            if self.is_main:
                self._open_directory()
        except BaseException:
            self._let_go(after_error=True)
            raise
        if self.is_main:
            ignored = sorted(self.arguments.given & self.arguments.unused())
            if ignored:
                names = ", ".join(ignored)
                warnings.warn(f"--method {self.record['method']} has no use for: {names}", stacklevel=2)
        self.wait()
        self.record["id"] = self._gather(self.record["id"])[0]
        if not self.is_main:
            self.checkpoint, _ = find_resumable(self.directory / "checkpoints", self.record["id"])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if self.is_main and kind is not None:
                self._leave_nothing_behind()
            elif self.is_main:
                shutil.rmtree(self.set_aside, ignore_errors=True)
                print(f"\n{summarize(self.record, self.directory)}")
            if self.waiting_room is not None and isinstance(error, RuntimeError) and is_lost_connection(error):
                raise self._lost(error) from error
        finally:
            self._let_go(after_error=kind is not None)

    def _let_go(self, after_error: bool) -> None:
        """Give back the lock and the signals, and leave the other processes."""
        if self.waiting_room is not None:
            self.waiting_room.leave(at_once=after_error)
        if self.lock is not None:
            self.lock.release()
        if self.is_main and self.directory.is_dir() and not any(self.directory.iterdir()):
            with contextlib.suppress(OSError):  # a link, or where a disk is mounted
                self.directory.rmdir()
        self.interruption.__exit__()

    def wait(self) -> None:
        """Wait until every process is here.

        Raises:
            FinetuneError: If one of them has ended, or can't be reached any more.
        """
        if self.waiting_room is not None:
            try:
                self.waiting_room.wait()
            except RuntimeError as error:
                raise self._lost(error) from error

    def _lost(self, error: RuntimeError) -> FinetuneError:
        return FinetuneError(
            f"Expected {self.arguments.training.world_size} processes, but one ended or its host can't be reached "
            f"({_first_line(error)}). Look for its own message above, then give the same command again: the run goes "
            "on from its last checkpoint."
        )

    def _compare_processes(self, what: str, own: dict[str, Any]) -> None:
        """Refuse a process, maybe on another host, whose settings or data are not those of the others."""
        self.wait()
        found = self._gather(own)
        for number, other in enumerate(found):
            differing = [name for name in found[0] if other.get(name) != found[0][name]]
            if differing:
                raise FinetuneError(
                    f"Expected the same {what} in every process, but process {number} differs from process 0 in "
                    f"{', '.join(differing)}. Start all of them alike, with the same files."
                )

    def _gather(self, own: Any) -> list[Any]:
        """Give what each process has, in their order."""
        found = [own] * self.arguments.training.world_size
        if len(found) > 1:
            distributed.all_gather_object(found, own)
        return found

    @contextlib.contextmanager
    def main_process_first(self) -> Iterator[None]:
        """Let one process of each host do the work, and the others after it, which find it in the cache."""
        goes_first = self.arguments.training.local_process_index == 0
        if not goes_first:
            self.wait()
        yield
        if goes_first:
            self.wait()

    def examine(self, given: DatasetDict) -> None:
        """Let the data doctor look at the splits that were given; its findings are said, and kept in `findings.json`.

        Raises:
            FinetuneError: If there is an error among them.
        """
        if not self.is_main:
            return
        if isinstance(given, GivenSplits):
            self.encoding, self.is_numbered = given.encoding, given.task.is_numbered or None
            self.understood = describe_understanding(given)
            print("\n".join(self.understood), file=sys.stderr)
        findings = examine(given, max_length=self.arguments.data.max_length)
        errors = [finding for finding in findings if finding.severity == "error"]
        if errors:
            found = "; ".join(
                " ".join([finding.message, *(f"({example['id']})" for example in finding.examples[:1])])
                for finding in errors
            )
            raise FinetuneError(
                f"Expected data without errors, but found: {found}. {errors[0].advice} `finetune doctor` shows more."
            )
        write_json(self.directory / "findings.json", to_json(findings))
        print(describe_findings(findings, with_notes=False), file=sys.stderr)

    def record_data(self, splits: DatasetDict) -> Task:
        """Note the origin, size and content hash of each split, and settle what depends on the task.

        Returns:
            The task that the labels of train define.
        """
        task = task_of(splits["train"].features)
        self.is_paired = "text_pair" in splits["train"].column_names
        num_rows = None if self.arguments.data.streaming else len(splits["train"])
        self.arguments.settle(task.problem_type, self.is_paired, num_rows)
        self.record["arguments"] = self.arguments.to_dict()
        self.record["data"] = {
            "problem_type": task.problem_type,
            "label_names": task.label_names,
            "understood": self.understood,
            "splits": {name: describe_split(split) for name, split in splits.items()},
        }
        described = self.record["data"]["splits"]
        self._compare_processes("data", {name: split["sha256"] for name, split in described.items()})
        if self.is_main and "model_name_or_path" not in self.arguments.unused():
            model = self.arguments.model
            self.record["pretrained"] = fingerprint_model(model.model_name_or_path, model.model_revision)
        self._compare_with_checkpoint(splits)
        train = splits["train"]
        self.name_rows = lambda rows: [str(name) for name in train.select(rows)["id"]]
        self._write()
        return task

    def record_tokens(self, tokenized: DatasetDict) -> None:
        """Note the mean length in tokens and the share of texts that `max_length` cut, for each split."""
        for name, split in tokenized.items():
            described = self.record["data"]["splits"][name]
            described["mean_tokens"] = sum(split["length"]) / len(split)
            described["truncated_share"] = sum(split["is_truncated"]) / len(split)
        self._write()

    @property
    def text_config(self) -> TextConfig:
        """How texts become tokens."""
        data = self.arguments.data
        return TextConfig(data.max_length, data.truncation, data.window_stride or 0, data.window_pooling)

    def training_rows(
        self, tokenized: DatasetDict, tokenizer: PreTrainedTokenizerBase, task: Task
    ) -> Dataset | TokenizingRows:
        """Give the rows that an epoch draws: those of train, with `--oversample` the rarer classes' repeated.

        With `--streaming` all rows of the shards, of which `tokenized` holds a sample.
        """
        if self.arguments.data.streaming:
            stream = open_stream(self.arguments.data, task, tokenizer, self.text_config)
            self.name_rows = stream.name
            if self.is_main:
                stream.shards.warn_of_large_groups()
            return stream
        train = tokenized["train"]
        if not self.arguments.method.oversample:
            return train
        seed, name_rows = self.arguments.training.seed, self.name_rows
        if name_rows is not None:

            def name_drawn(rows: Sequence[int]) -> list[str]:
                numbered = Dataset.from_dict({"labels": train["labels"][:], "row": range(len(train))})
                return name_rows(oversample(numbered, seed).select(rows)["row"][:])

            self.name_rows = name_drawn
        return oversample(train, seed)

    def build_loss(self, train: Dataset) -> ExampleLoss:
        """Build the loss that the settings ask for, by the classes or numbers of the tokenized training split."""
        data, method = self.arguments.data, self.arguments.method
        problem_type, names = self.record["data"]["problem_type"], self.record["data"]["label_names"]
        weights = None
        if method.class_weights == "balanced":
            weights = balanced_class_weights(np.asarray(train["labels"][:]), len(names))
        return ExampleLoss(
            problem_type,
            self.arguments.training.label_smoothing_factor,
            weights,
            method.focal_gamma,
            data.window_pooling if data.truncation == "window" else None,
            Standard.of(train["labels"][:]) if problem_type == REGRESSION else Standard(),
        )

    def callbacks(self) -> list[TrainerCallback]:
        """Give what notes the beginning, the progress report, the history, and early stopping if it is asked for."""
        callbacks: list[TrainerCallback] = [
            _Beginning(self._begin),
            ProgressReport(),
            HistoryWriter(self.directory / "history.jsonl"),
        ]
        patience = self.arguments.run.early_stopping_patience
        if patience and self.arguments.training.load_best_model_at_end:
            callbacks.append(EarlyStoppingCallback(patience))
        return callbacks

    def train(self, trainer: FineTuningTrainer) -> None:
        """Train, from the newest whole checkpoint if there is one, and note the costs.

        Raises:
            Interrupted: After a signal, once a checkpoint is written.
            FinetuneError: If the checkpoint's optimizer or random streams are a pickle of anything but numbers.
        """
        if self.checkpoint is not None and self.is_main:
            print(f"resuming from {self.checkpoint}", file=sys.stderr)
        trainer.interruption = self.interruption
        trainer.run_id = self.record["id"]
        trainer.apply_settings = self.is_changed
        if self.name_rows is not None:
            trainer.name_rows = self.name_rows
        try:
            with self.interruption.deferred():
                trainer.train(resume_from_checkpoint=None if self.checkpoint is None else str(self.checkpoint))
        except UnpicklingError as error:  # its hashes fit, so somebody wrote it on purpose; nothing of it was run
            raise FinetuneError(
                f"Expected tensors and numbers alone in {str(self.checkpoint)!r}, but it has a pickle of something "
                "else. Don't trust this folder: pass another one, or --restart."
            ) from error
        self.interruption.raise_if_received()
        self.weights = gather_weights(trainer)
        costs = trainer.costs
        self.record["costs"] = {
            "train_seconds": costs.train_seconds,
            "train_evaluation_seconds": costs.evaluation_seconds,
            "train_steps": trainer.state.global_step,
            "train_tokens": costs.train_tokens,
            "tokens_per_second": costs.train_tokens / costs.train_seconds,
            "peak_memory_bytes": sum(self._gather(peak_memory_bytes())),
        }
        if self.arguments.training.torch_compile:
            self.record["costs"]["compile_seconds"] = costs.first_step_seconds
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

    def save_model(
        self, model: PreTrainedModel | PeftModel | TfidfClassifier, tokenizer: PreTrainedTokenizerBase | None
    ) -> None:
        """Write `model/` with how texts are cut, and note its size."""
        name: str | None = self.arguments.model.model_name_or_path
        if "model_name_or_path" in self.arguments.unused():
            name = None
        if isinstance(model, TfidfClassifier):
            trainable = total = model.num_parameters()
            linear = "Ridge" if model.problem_type == REGRESSION else "LogisticRegression"
            architecture = f"TfidfVectorizer + {linear}"
        else:
            trainable, total = count_parameters(model)
            base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
            architecture = type(base).__name__.removeprefix("FSDP")  # which fully_shard puts before a class's name
        if self.is_main:
            text_config = None if tokenizer is None else self.text_config
            write_model(
                self.model_directory, model, tokenizer, text_config, weights=self.weights, is_paired=self.is_paired,
                encoding=self.encoding, is_numbered=self.is_numbered,
            )  # fmt: skip
            self.record["model"] = {
                "name": name,
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
        self.interruption.__exit__()  # a signal from here on does not say "start me again"

    def _leave_nothing_behind(self) -> None:
        """Remove what a run wrote that failed before it had a checkpoint, and bring back what `--restart` set aside."""
        had_checkpoint = bool(list_checkpoints(self.directory / "checkpoints"))
        if self.started_here and not had_checkpoint and not self.model_directory.exists():
            for name in ENTRIES:
                _remove(self.directory / name)
            if self.set_aside.exists():
                self._bring_back()

    def _bring_back(self) -> None:
        """Put back what `--restart` set aside, run.json last."""
        for path in sorted(self.set_aside.iterdir(), key=lambda path: path.name == "run.json"):
            _remove(self.directory / path.name)
            path.rename(self.directory / path.name)
        self.set_aside.rmdir()

    def _start_over(self, is_complete: bool) -> None:
        """Set the earlier run's files aside; they are deleted when this one is complete.

        What an unfinished restart left is removed: the run that it set aside stays there. What a complete one had set
        aside, and was killed while it deleted it, goes.
        """
        is_second = not is_complete and self.set_aside.is_dir() and any(self.set_aside.iterdir())
        if not is_second:
            shutil.rmtree(self.set_aside, ignore_errors=True)
        self.set_aside.mkdir(exist_ok=True)
        for name in ENTRIES:
            if is_second:
                _remove(self.directory / name)
            elif (self.directory / name).exists():
                (self.directory / name).rename(self.set_aside / name)

    def _open_directory(self) -> None:
        """Make the directory, or accept the one that this run left behind; nobody else may be at work in it."""
        if self.directory.exists() and not self.directory.is_dir():
            raise FinetuneError(f"Expected --output_dir to be a folder, but {str(self.directory)!r} is a file.")
        if self._holds_something() and not self.set_aside.exists():
            self._read_earlier_record()  # a folder of other things is left as it is, without a lock in it
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FinetuneError(
                f"Expected to make --output_dir {str(self.directory)!r}, but got: {error.strerror}. Pass another one."
            ) from error
        lock = DirectoryLock(self.directory)
        lock.acquire()
        self.lock = lock
        if self.set_aside.is_dir() and not (self.directory / "run.json").exists():  # killed while it started over
            self._bring_back()
        if self._holds_something():
            before = self._read_earlier_record()
            if self.arguments.run.restart:
                self._start_over(before["status"] == "complete")
            elif before["status"] == "complete":
                raise FinetuneError(
                    f"Expected an empty --output_dir, but {str(self.directory)!r} holds a finished run. "
                    f"Pass another folder, or --restart to delete it and run again.{self._hint_to_push()}"
                )
            else:
                self._find_checkpoint(before)
        if not self.earlier:  # else its record stays until the data has been compared with it
            self._write()

    def _hint_to_push(self) -> str:
        """Say how to go on where the run was ended between its completion and the Hub's answer."""
        hub = self.arguments.hub
        return "" if hub is None else f" To push it: finetune push {self.directory} {hub.model_id}"

    def _holds_something(self) -> bool:
        """Tell whether there is anything but what a process leaves that was killed before its first line."""
        names = {path.name for path in self.directory.iterdir()} if self.directory.is_dir() else set()
        return bool(names - {LOCK_FILE, "run.json.partial"})

    def _find_checkpoint(self, before: dict[str, Any]) -> None:
        """Take the newest checkpoint that is whole, and say which were skipped and why."""
        folder = self.directory / "checkpoints"
        if folder.is_dir():
            tidy(folder)
        self.started_here = not list_checkpoints(folder)
        self.record["id"] = before.get("id", self.record["id"])
        self.checkpoint, skipped = find_resumable(folder, self.record["id"])
        for line in skipped:
            print(f"warning: {line}", file=sys.stderr)
        if self.checkpoint is not None:
            self.earlier = before
        elif skipped:
            print("warning: no checkpoint is whole: starting from the first step", file=sys.stderr)

    def _read_earlier_record(self) -> dict[str, Any]:
        record: Any = None
        found = "a run.json that no run wrote"
        try:
            record = json.loads((self.directory / "run.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            found = "other files"
        except OSError as error:
            found = f"a run.json that can't be read: {error.strerror}"
        except (ValueError, RecursionError):
            pass
        if not _has_form(record):
            raise FinetuneError(
                f"Expected an empty --output_dir or an earlier run, but {str(self.directory)!r} holds {found}. "
                "Pass another folder."
            )
        return record

    def _compare_with_checkpoint(self, splits: DatasetDict) -> None:
        """Refuse what has changed since the checkpoint, unless `--resume_with_changes` confirms it.

        Raises:
            FinetuneError: With a list of what differs.
        """
        before = self.earlier
        if not before:
            return
        now = json.loads(json.dumps(self.record, default=str))
        changed, fixed = _changed_settings(before, now)
        if before.get("pretrained", now.get("pretrained")) != now.get("pretrained"):
            name = self.arguments.model.model_name_or_path
            is_folder = Path(resolve_model(name)).is_dir()
            how = "its files have changed" if is_folder else f"pass --model_revision {before['pretrained']}"
            fixed.append(f"the model {name!r} ({how})")
        earlier_data = before.get("data", {})
        if earlier_data.get("label_names", now["data"]["label_names"]) != now["data"]["label_names"]:
            fixed.append("the names of the labels")
        for name, split in earlier_data.get("splits", {}).items():
            if split["sha256"] != now["data"]["splits"].get(name, {}).get("sha256"):
                own_words = name == "train" and "textcnn_vocabulary_size" not in self.arguments.unused()
                (fixed if own_words and self.record["method"] == "textcnn" else changed).append(
                    f"the data: split {name!r} has changed since"
                )
        where = f"the unfinished run in {str(self.directory)!r}"
        if fixed:
            raise FinetuneError(
                f"Expected what {where} was started with, but these differ: {', '.join(fixed + changed)}. Restore "
                "them to resume, or pass --restart to start over."
            )
        if changed and not self.arguments.run.resume_with_changes:
            raise FinetuneError(
                f"Expected what {where} was started with, but these differ: {', '.join(changed)}. Restore them to "
                "resume, pass --resume_with_changes to go on with them, or --restart to start over."
            )
        self.record["started"] = before.get("started", self.record["started"])
        self.record["changes"] = list(before.get("changes", []))
        step = int(str(self.checkpoint).rpartition("-")[2])
        if changed:
            self.record["changes"].append({"after_step": step, "changed": changed})
            print(f"warning: changed after step {step}: {', '.join(changed)}", file=sys.stderr)
        self.is_changed = any(change["after_step"] >= step for change in self.record["changes"])
        if not self.record["changes"]:
            del self.record["changes"]
        for name in _changed_machine(before.get("environment", {}), now["environment"]) if self.is_main else ():
            print(f"warning: {name} since the checkpoint: the last bits of the result may differ", file=sys.stderr)

    def _begin(self) -> None:
        self.has_begun = True
        self._write()

    def _write(self) -> None:
        """Write the record; one with confirmed changes replaces that of before only when they fit the checkpoint."""
        if self.is_main and (self.has_begun or not self.is_changed):
            write_json(self.directory / "run.json", self.record)


class _Beginning(TrainerCallback):
    """Tells when training begins: everything is loaded then."""

    def __init__(self, begin: Callable[[], None]):
        self.begin = begin

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.begin()


def _flat(settings: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Give the settings of all parts by name, as JSON holds them, but for those that may differ between hosts."""
    return {
        name: json.dumps(value, default=str)
        for part in settings.values()
        for name, value in part.items()
        if name not in FREE_SETTINGS and name != "local_rank"
    }


def _changed_settings(before: dict[str, Any], now: dict[str, Any]) -> tuple[list[str], list[str]]:
    """List the settings that differ: those that may change on the way, and those that may not."""
    changed: list[str] = []
    fixed: list[str] = []
    for part, settings in now["arguments"].items():
        earlier = before["arguments"].get(part, {})
        for name, value in settings.items():
            is_pinned = name == "model_revision" and value == before.get("pretrained")  # since it has moved on
            if name not in FREE_SETTINGS and name in earlier and earlier[name] != value and not is_pinned:
                line = f"{name} ({earlier[name]!r} then, {value!r} now)"
                (fixed if part in FIXED_PARTS else changed).append(line)
    processes = before.get("environment", {}).get("num_processes", 1)
    if processes != now["environment"]["num_processes"]:
        fixed.append(f"num_processes ({processes} then, {now['environment']['num_processes']} now)")
    return changed, fixed


def _changed_machine(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """List what the bits of a sum depend on."""
    changed = [
        f"{name} has changed from {before[name]} to {now.get(name)}"
        for name in ("processor", "gpus", "num_threads", "precision")
        if name in before and before[name] != now.get(name)
    ]
    packages, own = before.get("packages", {}), now.get("packages", {})
    return changed + [
        f"{name} has changed from {packages[name]} to {own.get(name)}"
        for name in ("torch", "transformers", "peft", "numpy")
        if name in packages and packages[name] != own.get(name)
    ]


def _has_form(record: Any) -> bool:
    """Tell whether a record has what a resume reads, in the form in which a run writes it."""
    try:
        environment, data = record.get("environment", {}), record.get("data", {})
        splits = data.get("splits", {})
        parts = record["arguments"], environment, environment.get("packages", {}), splits
        return (
            isinstance(record["status"], str)
            and all(isinstance(part, dict) for part in (*parts, *record["arguments"].values(), *splits.values()))
            and all("sha256" in split for split in splits.values())
            and all(isinstance(change["after_step"], int) for change in record.get("changes", []))
        )
    except (AttributeError, KeyError, TypeError):
        return False


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _first_line(error: RuntimeError) -> str:
    return str(error).partition("\n")[0][:200]


def _precision(arguments: Arguments) -> str:
    if arguments.method.method == "tfidf":
        return "fp64"
    training = arguments.training
    return "bf16" if training.bf16 else "fp16" if training.fp16 else "tf32" if training.tf32 else "fp32"


def _prediction_precision(arguments: Arguments) -> str:
    if arguments.method.method == "tfidf":
        return "fp64"
    return fastest_precision()
