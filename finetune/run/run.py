"""A run: from its settings to a complete record, over data, training and saving.

`docs/reference/run.md` describes its directory. What happens to the directory stands in
`finetune.run.directory`, what a resume may change in `.resume`, what several processes say to each other in
`.processes`, what `run.json` holds in `.record`.
"""

import contextlib
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from pickle import UnpicklingError
from types import TracebackType
from typing import Any

import torch
from datasets import Dataset, DatasetDict
from huggingface_hub import HfApi
from transformers import PreTrainedTokenizerBase, TrainerCallback

from finetune.data.cutting import TextConfig
from finetune.data.labels import Task, task_of
from finetune.data.load import GivenSplits, open_stream
from finetune.data.stream import TokenizingRows
from finetune.data.understood import describe_understanding
from finetune.data_doctor.examine import examine
from finetune.data_doctor.findings import describe_findings, to_json
from finetune.decisions.rules import check_wishes
from finetune.errors import FinetuneError
from finetune.escape import blank_tokens, say
from finetune.families.save import write_model
from finetune.files import write_json
from finetune.hardware import cpu_seconds, peak_memory_bytes, time_hashes, use_processor
from finetune.hub_client import check_login, find_commit
from finetune.lookup import family_of
from finetune.models.load import fingerprint_model, resolve_model
from finetune.models.support import refuse_unsupported
from finetune.models.word_vectors import WordCoverage, fingerprint_word_vectors
from finetune.quiet import quiet_program
from finetune.run.describe import describe_computation, describe_data, describe_model, now, start_record
from finetune.run.directory import FINDINGS_FILE, HISTORY_FILE, RunDirectory
from finetune.run.fields import (
    Answers,
    DataRecord,
    Floor,
    MeasuredSplits,
    Pretraining,
    Reload,
    Settings,
    Thresholds,
    TrainingCosts,
    WordVectorsRecord,
)
from finetune.run.processes import Processes
from finetune.run.record import CompleteRecord, RunRecord
from finetune.run.resume import flatten, go_on_from
from finetune.run.summary import summarize
from finetune.run.trackers import tracked
from finetune.run.training import RowNames, build_callbacks, build_loss, describe_costs, repeat_rare_classes
from finetune.settings.arguments import Arguments
from finetune.training.checkpoints import find_resumable
from finetune.training.interruption import Interruption
from finetune.training.loss import ExampleLoss
from finetune.training.sharding import gather_weights, load_whole
from finetune.training.trainer import FineTuningTrainer

__all__ = ["Run"]


class Run:
    """A training run and its directory; use it as a context, which sets threads, quiet logs, and the directory up.

    In the directory only the main process writes, and only one run at a time. A run that was cut off continues from its
    newest whole checkpoint when it is started again with the same settings. `docs/explanations/faults.md` says what
    else can happen.

    Args:
        arguments: All settings. `arguments.training.output_dir` is the run directory; the `Trainer` gets its
            `checkpoints/`.

    Raises:
        FinetuneError: On entering, if the directory holds something else, a finished run, or other settings; if it
            can't be written to, or another run is at work in it.
        Interrupted: After SIGTERM or SIGINT.
    """

    record: RunRecord
    processes: Processes

    def __init__(self, arguments: Arguments):
        self.arguments = arguments
        self.directory = Path(str(arguments.training.output_dir))
        self.run_directory = RunDirectory(self.directory)
        self.model_directory = self.run_directory.model
        self.earlier: RunRecord | None = None
        self.checkpoint: Path | None = None
        self.weights: dict[str, Any] | None = None
        self.is_paired: bool | None = None
        self.encoding: str | None = None
        self.is_numbered: bool | None = None
        self.understood: list[str] = []
        self.is_changed = False
        self.start_memory_bytes = 0
        self.has_begun = False
        self.name_rows: RowNames | None = None
        self.interruption = Interruption()

    def __enter__(self) -> "Run":
        training = self.arguments.training
        use_processor(self.arguments.run.num_threads or 1)
        quiet_program()
        load_whole()
        training.output_dir = str(self.run_directory.checkpoints)
        training.restore_callback_states_from_checkpoint = True  # the patience of early stopping, and the costs
        self.processes = Processes(training)
        self.record = start_record(self.arguments)
        self.interruption.__enter__()
        try:
            self.processes.compare("settings", flatten(self.record.arguments))
            self.start_memory_bytes = sum(self.processes.gather(peak_memory_bytes()))
            if self.is_main and self.arguments.hub is not None:
                check_login(HfApi(), self.arguments.hub.model_id)  # now, not after hours of training
            commits = self._find_commits() if self.is_main else {}
            if "model_name_or_path" not in self.arguments.unused():
                refuse_unsupported(self.arguments.model, training)
            if self.is_main:
                self._open_directory()
        except BaseException:
            self._let_go(after_error=True)
            raise
        if self.is_main:
            ignored = sorted(self.arguments.given & self.arguments.unused())
            if ignored:
                names = ", ".join(ignored)
                warnings.warn(f"--method {self.record.method} has no use for: {names}", stacklevel=2)
        self.processes.wait()
        self.record.id = self.processes.gather(self.record.id)[0]
        self.arguments.pin(self.processes.gather(commits)[0])
        if not self.is_main:
            self.checkpoint, _ = find_resumable(self.run_directory.checkpoints, self.record.id)
        return self

    def _find_commits(self) -> dict[str, str]:
        """Find at which commits the data set and the model are that come from the Hub, before anything is loaded."""
        data, model = self.arguments.data, self.arguments.model
        commits = {}
        if data.is_on_hub:
            commits["dataset"] = find_commit(str(data.dataset_name), data.dataset_revision, "dataset")
        if "model_name_or_path" not in self.arguments.unused() and model.model_name_or_path != "embedded":
            commit = resolve_model(model.model_name_or_path, model.model_revision)[1]
            if commit is not None:
                commits["model"] = commit
        return commits

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if self.is_main and kind is not None:
                self.run_directory.leave_nothing_behind()
            elif isinstance(self.record, CompleteRecord):
                self.run_directory.forget_set_aside()
                print(f"\n{summarize(self.record, self.directory)}")
            self.processes.raise_if_lost(error)
        finally:
            self._let_go(after_error=kind is not None)

    def _let_go(self, after_error: bool) -> None:
        """Release the directory and the signals, and leave the other processes."""
        self.processes.leave(at_once=after_error)
        if self.is_main:
            self.run_directory.close()
        self.interruption.__exit__()

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes."""
        return self.processes.is_main

    def main_process_first(self) -> contextlib.AbstractContextManager[None]:
        """Let one process of each host do the work, and the others after it, which find it in the cache."""
        return self.processes.main_process_first()

    def wait(self) -> None:
        """Wait until every process is here; see `Processes.wait`."""
        self.processes.wait()

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
            say(*self.understood)
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
        write_json(self.directory / FINDINGS_FILE, blank_tokens(to_json(findings)))
        say(*describe_findings(findings, with_notes=False).split("\n"))

    def record_data(self, splits: DatasetDict, unlabeled: Dataset | None = None) -> Task:
        """Note the origin, size and content hash of each split, and settle what depends on the task.

        Args:
            splits: `train`, `validation` and `test`.
            unlabeled: Texts without labels that will be learnt from.

        Returns:
            The task that the labels of train define.
        """
        task = task_of(splits["train"].features)
        check_wishes(self.arguments.decisions.to_wishes(), task)
        self.is_paired = "text_pair" in splits["train"].column_names
        is_taught = self.arguments.method.teacher is not None and "teacher" not in self.arguments.unused()
        num_rows = len(splits["train"]) + (len(unlabeled) if unlabeled is not None and is_taught else 0)
        notes = self.arguments.settle(
            task.problem_type,
            self.is_paired,
            None if self.arguments.data.streaming else num_rows,
            len(splits["validation"]),
        )
        if notes and self.is_main:
            say(*notes)
        self.record.arguments = Settings(**self.arguments.to_dict())
        commit = self.arguments.data.dataset_revision if self.arguments.data.is_on_hub else None
        self.record.data = data = describe_data(task, splits, commit, self.understood, unlabeled)
        self.processes.compare("data", {name: split.sha256 for name, split in data.splits})
        if self.is_main and "model_name_or_path" not in self.arguments.unused():
            model = self.arguments.model
            self.record.pretrained = fingerprint_model(model.model_name_or_path, model.model_revision)
        vectors = self.arguments.model.word_vectors
        if self.is_main and vectors is not None and "word_vectors" not in self.arguments.unused():
            self.record.word_vectors = WordVectorsRecord(sha256=fingerprint_word_vectors(vectors))
        if self.earlier is not None and self.checkpoint is not None:
            self.is_changed = go_on_from(self.earlier, self.record, self.checkpoint, self.arguments, self.directory)
        self.processes.wait()
        self.is_changed = self.processes.gather(self.is_changed)[0]  # all follow the settings, or the checkpoint
        train = splits["train"]
        self.name_rows = lambda rows: [str(name) for name in train.select(rows)["id"]]
        self._write()
        return task

    def record_pretraining(self, made: Pretraining | None) -> None:
        """Note what the main process has pretrained on texts; from now on the model is loaded from there."""
        self.wait()
        self.record.pretraining = self.processes.gather(made)[0]
        self.arguments.start_from(self.run_directory.encoder)
        self._write()

    def record_tokens(self, tokenized: DatasetDict) -> None:
        """Note the mean length in tokens and the share of texts that `max_length` cut, for each split."""
        for name, described in self._data.splits:
            lengths, cut = (tokenized[name][column][: described.rows] for column in ("length", "is_truncated"))
            described.mean_tokens = sum(lengths) / len(lengths)
            described.truncated_share = sum(cut) / len(cut)
        self._write()

    def record_words(self, tokenizer: Any) -> None:
        """Note and say how many words of the training texts have a vector of `--word_vectors`, where it is of words."""
        coverage: WordCoverage | None = getattr(tokenizer, "word_coverage", None)
        if coverage is None or not self.is_main:
            return
        assert self.record.word_vectors is not None, "record_data comes first"
        self.record.word_vectors = WordVectorsRecord(sha256=self.record.word_vectors.sha256, **coverage._asdict())
        more = f"; with others the model knows {coverage.kept:,}" if coverage.kept > coverage.found else ""
        say(
            f"{coverage.found:,} of {coverage.words:,} words of the training texts have a vector in "
            f"{Path(str(self.arguments.model.word_vectors)).name}{more}"
        )
        self._write()

    @property
    def text_config(self) -> TextConfig:
        """How texts become tokens."""
        data = self.arguments.data
        return TextConfig(data.max_length, data.truncation, data.window_stride or 0, data.window_pooling)

    def training_rows(
        self, tokenized: DatasetDict, tokenizer: PreTrainedTokenizerBase, task: Task
    ) -> Dataset | TokenizingRows:
        """Return the rows that an epoch draws: those of train, with `--oversample` the rarer classes' repeated.

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
        assert self.name_rows is not None, "record_data comes first"
        train, self.name_rows = repeat_rare_classes(train, self.arguments.training.seed, self.name_rows)
        return train

    def build_loss(self, train: Dataset) -> ExampleLoss:
        """Build the loss that the settings ask for, by the classes or numbers of the tokenized training split."""
        return build_loss(self.arguments, self._data, train)

    def callbacks(self) -> list[TrainerCallback]:
        """Build what notes the beginning, the progress report, the history, and early stopping if it is asked for."""
        return build_callbacks(self.arguments, self.directory / HISTORY_FILE, self._begin)

    @property
    def starts_from(self) -> str | None:
        """What stands for the weights that training starts from: the pretrained ones, or what texts alone made of them.

        Or word vectors in their place. Known in the main process; None if the method starts from none.
        """
        record = self.record
        if record.word_vectors is not None:
            return record.word_vectors.sha256
        return record.pretrained if record.pretraining is None else record.pretraining.encoder

    @property
    def resume_from(self) -> str | None:
        """The newest whole checkpoint of an earlier start, for `trainer.train`; None if there is none."""
        return None if self.checkpoint is None else str(self.checkpoint)

    @contextlib.contextmanager
    def record_training(self, trainer: FineTuningTrainer) -> Iterator[None]:
        """Note what a training costs; a signal while it is at work becomes a checkpoint and then the run's end.

            with run.record_training(trainer):
                trainer.train(resume_from_checkpoint=run.resume_from)

        Raises:
            Interrupted: After a signal, once a checkpoint is written.
            FinetuneError: If the checkpoint's optimizer or random streams are a pickle of anything but numbers.
        """
        if self.checkpoint is not None and self.is_main:
            say(f"resuming from {self.checkpoint}")
        self.record_words(trainer.processing_class)
        environment = self.record.environment
        environment.precision, compilation = describe_computation(trainer.accelerator)
        if compilation is not None:
            environment.compilation = compilation
        trainer.interruption = self.interruption
        trainer.run_id = self.record.id
        trainer.apply_settings = self.is_changed
        if self.name_rows is not None:
            trainer.name_rows = self.name_rows
        try:
            tracking = tracked(trainer, self.arguments, self.record, self.directory, self.checkpoint)
            with self.interruption.deferred(), tracking:
                trainer.hash_seconds += time_hashes(torch.get_num_threads())
                yield
                trainer.hash_seconds += time_hashes(torch.get_num_threads())
        except UnpicklingError as error:  # its hashes fit, so somebody wrote it on purpose; nothing of it was run
            raise FinetuneError(
                f"Expected tensors and numbers alone in {str(self.checkpoint)!r}, but it has a pickle of something "
                "else. Don't trust this folder: pass another one, or --restart."
            ) from error
        self.interruption.raise_if_received()
        if self.is_main and trainer.args.load_best_model_at_end and trainer.state.best_model_checkpoint is None:
            warnings.warn(
                "no evaluation came before the end that could choose a checkpoint, so the last weights are kept. Lower "
                "--eval_steps or --eval_delay",
                stacklevel=2,
            )
        self.weights = gather_weights(trainer)
        of_all = self.processes.gather((peak_memory_bytes(), trainer.costs.train_cpu_seconds))
        self.record.costs = describe_costs(trainer, *map(sum, zip(*of_all, strict=True)))
        self._complete_costs(trainer.hash_seconds)
        self.record.best_checkpoint_metric = trainer.state.best_metric
        self._write()

    @contextlib.contextmanager
    def measure_costs(self) -> Iterator[None]:
        """Note the seconds and the memory of a fit that is not the `Trainer`'s."""
        num_threads = self.record.environment.num_threads
        hash_seconds = time_hashes(num_threads)
        wall, cpu = time.perf_counter(), cpu_seconds()
        yield
        self.record.costs = TrainingCosts(
            train_seconds=time.perf_counter() - wall,
            train_cpu_seconds=cpu_seconds() - cpu,
            peak_memory_bytes=peak_memory_bytes(),
        )
        self._complete_costs(hash_seconds + time_hashes(num_threads))

    def _complete_costs(self, hash_seconds: Sequence[float]) -> None:
        """Add what memory was held from the beginning, how busy the machine was, and what came before the method."""
        costs, pretraining = self.record.costs, self.record.pretraining
        assert costs is not None
        costs.start_memory_bytes = self.start_memory_bytes
        costs.slowdown = sum(hash_seconds) / len(hash_seconds) / min(hash_seconds)
        if pretraining is not None:  # whoever made the encoder
            assert costs.train_cpu_seconds is not None
            costs.train_seconds += pretraining.seconds
            costs.train_cpu_seconds += pretraining.cpu_seconds
            costs.peak_memory_bytes = max(costs.peak_memory_bytes, pretraining.peak_memory_bytes)

    def save_model(self, model: Any, tokenizer: PreTrainedTokenizerBase | None) -> None:
        """Write `model/` with how texts are cut, and note its size."""
        if self.is_main:
            family = family_of(self.record.method)
            text_config = None if tokenizer is None else self.text_config
            write_model(
                self.model_directory,
                family,
                model,
                tokenizer,
                text_config,
                weights=self.weights,
                is_paired=self.is_paired,
                encoding=self.encoding,
                is_numbered=self.is_numbered,
                replaces=True,
            )
            starts_from = "model_name_or_path" not in self.arguments.unused()
            name = self.record.arguments.model["model_name_or_path"] if starts_from else None
            self.record.model = describe_model(model, family, name, self.model_directory)
        self._write()
        self.processes.wait()

    def finish(
        self,
        metrics: MeasuredSplits,
        reload: Reload,
        latency_seconds: float,
        texts_per_second: float,
        tokenize_seconds: tuple[float, float] | None = None,
        thresholds: Thresholds | None = None,
        answers: Answers | None = None,
        floor: Floor | None = None,
    ) -> None:
        """Add the results of the evaluation and mark the run complete."""
        if self.is_main:
            self.record = self.record.complete(
                finished=now(),
                metrics=metrics,
                reload=reload,
                latency_seconds=latency_seconds,
                texts_per_second=texts_per_second,
                tokenize_seconds=tokenize_seconds,
                thresholds=thresholds,
                answers=answers,
                floor=floor,
            )
            self._write()
        self.interruption.__exit__()  # a signal from here on does not say "start me again"

    @property
    def _data(self) -> DataRecord:
        assert self.record.data is not None, "record_data comes first"
        return self.record.data

    def _open_directory(self) -> None:
        """Open the directory, and find the checkpoint to resume from if an earlier start left one."""
        hub = self.arguments.hub  # where a run was ended between its completion and the Hub's answer
        hint = "" if hub is None else f" To push it: finetune push {self.directory} {hub.model_id}"
        before = self.run_directory.open(self.arguments.run.restart, hint)
        if before is not None:
            self.record.id = before.id or self.record.id
            self.checkpoint = self.run_directory.find_checkpoint(self.record.id)
            if self.checkpoint is not None:
                self.earlier = before
        if self.earlier is None:  # else its record stays until the data has been compared with it
            self._write()

    def _begin(self) -> None:
        self.has_begun = True
        self._write()

    def _write(self) -> None:
        """Write the record; one with confirmed changes replaces that of before only when they fit the checkpoint."""
        if self.is_main and (self.has_begun or not self.is_changed):
            self.record.write(self.directory)
