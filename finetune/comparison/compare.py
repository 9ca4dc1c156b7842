"""Methods × seeds through one recipe: each its own `accelerate launch`, so that time and memory are its own.

Seeds go round the methods, so that every method has been seen once before any is seen twice. What is finished is kept;
what was cut off resumes, since a recipe does so by itself; what failed is said, and doesn't stop the rest.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune.catalogue import CATALOGUE, FLOOR
from finetune.errors import FinetuneError, failures_explained
from finetune.escape import blank_tokens, say, to_terminal
from finetune.files import write_json
from finetune.lookup import family_of, file_name_of, import_method, suggest
from finetune.run.lock import find_holder
from finetune.run.record import CompleteRecord, has_record, read_status
from finetune.settings.declaration import Values
from finetune.settings.declared import default_values, is_used
from finetune.settings.duration import read_duration

__all__ = ["TRAIN", "Plan", "Planned", "estimate_time_left", "run_plan"]

PLAN_FILE = "comparison.json"
# Instead of a recipe: `finetune train`.
TRAIN = Path("finetune train")
# The plan sets these itself, for each run.
OWN_FLAGS = ("method", "seed", "output_dir", "restart")
POLL_SECONDS = 1
SAID_SECONDS = 60  # between two lines about a run at work
LAST_BYTES = 4096  # of a log, to find its last line in
GRACE_SECONDS = 120  # for a run to end its step and write a checkpoint after a signal


@dataclass(frozen=True)
class Planned:
    """One run of a comparison.

    Attributes:
        method: Its name.
        seed: Of the training.
        directory: Where it goes.
        is_tuned: Whether settings are tried before.
    """

    method: str
    seed: int
    directory: Path
    is_tuned: bool = False

    @property
    def kind(self) -> str:
        """The method, and whether it is tuned."""
        return f"{self.method} (tuned)" if self.is_tuned else self.method

    @property
    def name(self) -> str:
        return self.directory.name

    def is_finished(self) -> bool:
        return read_status(self.directory) == "complete"


@dataclass(frozen=True)
class Plan:
    """What a comparison consists of.

    Attributes:
        recipe: The script, or `TRAIN`.
        methods: Names of the catalogue, or where others are imported from.
        seeds: Training seeds. A method without chance in it runs with the first alone.
        output_directory: Gets a run directory for each run, `comparison.json`, and `logs/`.
        flags: Of the recipe, for every run.
        accelerate_config: A YAML file for `accelerate launch`.
        search: `trials` and `budget`: what each method is tuned with, beside its runs with the defaults; none if empty.
        total_budget: Time for all runs; a run that is likely not to end within it is left out.
        runs: What is run.
        entries: Every method with every seed, and the run that gives its result: another one where no seed matters.

    Raises:
        FinetuneError: If there is no such recipe, method or file, or a flag is one that the plan sets.
    """

    recipe: Path
    methods: Sequence[str]
    seeds: Sequence[int]
    output_directory: Path
    flags: Sequence[str] = ()
    accelerate_config: Path | None = None
    search: Mapping[str, Any] = field(default_factory=dict)
    total_budget: str | None = None
    runs: list[Planned] = field(init=False)
    entries: list[tuple[Planned, Planned]] = field(init=False)

    def __post_init__(self) -> None:
        if self.recipe != TRAIN and not self.recipe.is_file():
            raise FinetuneError(
                f"Expected a recipe, but {str(self.recipe)!r} does not exist. Pass a file of texts, or a recipe."
            )
        if self.accelerate_config is not None and not self.accelerate_config.is_file():
            raise FinetuneError(
                f"Expected --accelerate_config to be a file, but {str(self.accelerate_config)!r} does not exist."
            )
        for given in (self.methods, self.seeds):
            if not given or len(set(given)) < len(given):
                raise FinetuneError(f"Expected each method and seed once, but got {list(given)}.")
        unknown = [name for name in self.methods if name not in CATALOGUE and not {":", "."} & set(name)]
        if unknown:
            raise FinetuneError(
                f"Expected --methods from {', '.join(CATALOGUE)}, but got {', '.join(unknown)}.{suggest(unknown[0])}"
            )
        methods = [import_method(name) for name in self.methods]
        object.__setattr__(self, "methods", methods)
        for name in OWN_FLAGS:
            if any(flag.split("=")[0] == f"--{name}" for flag in self.flags):
                raise FinetuneError(f"Expected no --{name} after --: every run gets its own. Leave it out.")
        if self.total_budget is not None:
            read_duration(self.total_budget)
        entries = []
        for seed in self.seeds:
            for method in methods:
                for is_tuned in (False, True) if self.search and self._can_tune(method) else (False,):
                    # What is tried depends on the seed, so a tuned method is never without chance.
                    counts = self.seeds[0] if family_of(method).is_deterministic and not is_tuned else seed
                    entries.append((self._plan(method, seed, is_tuned), self._plan(method, counts, is_tuned)))
        object.__setattr__(self, "entries", entries)
        object.__setattr__(self, "runs", [run for run, counts in entries if run == counts])

    def _plan(self, method: str, seed: int, is_tuned: bool) -> Planned:
        name = f"{file_name_of(method)}{'-tuned' if is_tuned else ''}-seed{seed}"
        return Planned(method, seed, self.output_directory / name, is_tuned)

    def _can_tune(self, method: str) -> bool:
        """Return whether there is anything to try for a method."""
        return is_used("trials", Values({"method": method}, default_values()))

    def command(self, run: Planned) -> list[str]:
        """Return the command line of a run."""
        config = [] if self.accelerate_config is None else ["--config_file", str(self.accelerate_config)]
        program = ["-m", "finetune", "train"] if self.recipe == TRAIN else [str(self.recipe)]
        floor = ["--no_floor"] if FLOOR in self.methods and "--no_floor" not in self.flags else []
        return [
            *(sys.executable, "-m", "accelerate.commands.launch", *config, *program, *self.flags, *floor),
            *(f"--{name}={value}" for name, value in self.search.items() if run.is_tuned),
            *("--method", run.method, "--seed", str(run.seed), "--output_dir", str(run.directory)),
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return what must not change between the runs of one comparison."""
        search = {"search": {name: str(value) for name, value in self.search.items()}} if self.search else {}
        return {"recipe": self.recipe.name, "flags": blank_tokens(self.flags), **search}


def run_plan(plan: Plan) -> list[str]:
    """Run what is not finished yet, and say how it goes.

    Returns:
        A line for each run that failed.

    Raises:
        FinetuneError: If the folder holds a comparison with another recipe or other flags.
        KeyboardInterrupt: On Ctrl-C, after the run at work has written its checkpoint.
    """
    spent = _open(plan)
    failures: list[str] = []
    seconds: dict[str, list[float]] = {}
    say(_count(plan), file=sys.stdout)
    for number, (run, counts) in enumerate(plan.entries, start=1):
        where = f"[{number}/{len(plan.entries)}] {run.name}"
        if run != counts:
            say(f"{where}: not run, since no seed changes {run.method}: {counts.name} counts", file=sys.stdout)
            continue
        if run.is_finished():
            if run.name in spent:
                seconds.setdefault(run.kind, []).append(spent[run.name])
            say(f"{where}: finished before, {_result(run)}", file=sys.stdout)
            continue
        if left_out := _is_left_out(plan, run, spent, seconds):
            say(f"{where}: left out, {left_out}", file=sys.stdout)
            continue
        left = [one for one, counting in plan.entries[number - 1 :] if one == counting and not one.is_finished()]
        say(f"{where}: started, {estimate_time_left(left, seconds)}", file=sys.stdout)
        start = time.monotonic()
        log = plan.output_directory / "logs" / f"{run.name}.log"
        try:
            status = _launch_or_join(plan, run, log, where)
        finally:  # also when cut off: what a run has cost is the sum over its starts
            took = spent[run.name] = spent.get(run.name, 0.0) + time.monotonic() - start
            _write_plan(plan, spent)
        if status == 0 and run.is_finished():
            seconds.setdefault(run.kind, []).append(took)
            say(f"{where}: {_result(run)}, {_duration(took)}", file=sys.stdout)
        else:
            failures.append(f"{run.name} failed (status {status}): {_last_error(log)}. See {log}.")
            say(f"{where}: failed: {_last_error(log)}")
    return failures


def _count(plan: Plan) -> str:
    """Describe how many runs there are."""
    methods, seeds = len(plan.methods), len(plan.seeds)
    line = f"{methods} {_plural('method', methods)} × {seeds} {_plural('seed', seeds)} = {_runs(methods * seeds)}"
    if plan.search:
        tuned = len(plan.entries) - methods * seeds
        limit = ", ".join(f"{name} {value}" for name, value in plan.search.items())
        alone = [
            method
            for method in plan.methods
            if not any(run.is_tuned and run.method == method for run, _ in plan.entries)
        ]
        line += f" with the defaults, and {_runs(tuned)} tuned ({limit})"
        line += f"; nothing to try for {', '.join(alone)}" if alone else ""
    once = list(dict.fromkeys(run.method for run, counts in plan.entries if run != counts))
    if once:
        line += f"; {', '.join(once)} {'is' if len(once) == 1 else 'are'} run once, since no seed changes "
        line += f"{'it' if len(once) == 1 else 'them'}: {_runs(len(plan.runs))} to do"
    return line


def _is_left_out(plan: Plan, run: Planned, spent: Mapping[str, float], seconds: Mapping[str, list[float]]) -> str:
    """Explain why the time that is left does not suffice for a run; empty if it may."""
    if plan.total_budget is None:
        return ""
    left = read_duration(plan.total_budget) - sum(spent.values())
    if left <= 0:
        return f"since --total_budget {plan.total_budget} is used up"
    usual = statistics.median(seconds[run.kind]) if run.kind in seconds else 0.0
    if usual <= left:
        return ""
    return f"since it takes {_duration(usual)}, and {_duration(left)} of --total_budget {plan.total_budget} are left"


def _runs(number: int) -> str:
    return f"{number} {_plural('run', number)}"


def _plural(word: str, number: int) -> str:
    return word if number == 1 else f"{word}s"


def _open(plan: Plan) -> dict[str, float]:
    """Make the folder, or check that it holds the same comparison; give the seconds that its runs have taken so far."""
    path = plan.output_directory / PLAN_FILE
    now = plan.to_dict()
    spent: dict[str, float] = {}
    if path.is_file():
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
            spent = before.pop("seconds", {})
        except (ValueError, AttributeError):
            before = None
        if before != now and any(has_record(run) for run in plan.output_directory.iterdir()):
            raise FinetuneError(
                f"Expected the comparison that {str(plan.output_directory)!r} holds ({before}), but got {now}. "
                "Use the same recipe and flags, or another --output_dir."
            )
    elif plan.output_directory.exists() and (
        not plan.output_directory.is_dir() or any(plan.output_directory.iterdir())
    ):
        raise FinetuneError(
            f"Expected --output_dir to be new or an earlier comparison, but {str(plan.output_directory)!r} holds other "
            "files. Pass another folder."
        )
    try:
        (plan.output_directory / "logs").mkdir(parents=True, exist_ok=True)
        _write_plan(plan, spent)
    except OSError as error:
        raise FinetuneError(f"Expected --output_dir to be writable, but got: {error}. Pass another folder.") from error
    return spent


def _write_plan(plan: Plan, spent: dict[str, float]) -> None:
    write_json(plan.output_directory / PLAN_FILE, {**plan.to_dict(), "seconds": spent})


def _launch_or_join(plan: Plan, run: Planned, log: Path, where: str) -> int:
    """Start a run; one that an earlier comparison started, before it was killed, is waited for instead."""
    while True:
        holder = find_holder(run.directory)
        if holder is not None:
            say(f"{where}: {holder} is at work on it, waiting for its end", file=sys.stdout)
            while find_holder(run.directory) is not None:
                time.sleep(POLL_SECONDS)
        if run.is_finished():
            return 0
        status = _launch(plan.command(run), log, where)
        if status == 0 or find_holder(run.directory) is None:
            return status


def _launch(command: Sequence[str], log: Path, where: str) -> int:
    """Run a command with its output in a log, and hand on what interrupts this process.

    It gets a process group of its own: a signal to this program reaches each of its processes exactly once.
    """
    caught: list[int] = []
    with log.open("a", encoding="utf-8") as file:
        with failures_explained(log):
            file.write(f"$ {to_terminal(' '.join(command))}\n")
            file.flush()
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True, env=environment
        )

        def hand_on(number: int, frame: object) -> None:
            caught.append(number)
            os.killpg(process.pid, signal.SIGKILL if len(caught) > 1 else number)

        before = {number: signal.signal(number, hand_on) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            status = _wait(process, caught, _Ticker(log, where))
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
    if caught:
        _wait_for_group(process.pid)
        raise KeyboardInterrupt
    return status


def _wait_for_group(group: int) -> None:
    """Wait for what the launcher started: it ends at a signal, and the run goes on until its checkpoint is written."""
    deadline = time.monotonic() + GRACE_SECONDS
    with contextlib.suppress(ProcessLookupError):
        while time.monotonic() < deadline:
            os.killpg(group, 0)
            time.sleep(0.1)
        os.killpg(group, signal.SIGKILL)


def _wait(process: subprocess.Popen[bytes], caught: Sequence[int], ticker: "_Ticker") -> int:
    """Wait for the end, saying what goes on meanwhile; after a signal not for ever."""
    deadline = None
    with ticker:
        while True:
            try:
                return process.wait(timeout=POLL_SECONDS)
            except subprocess.TimeoutExpired:
                ticker.tick()
                if caught and deadline is None:
                    deadline = time.monotonic() + GRACE_SECONDS
                if deadline is not None and time.monotonic() > deadline:
                    os.killpg(process.pid, signal.SIGKILL)


class _Ticker:
    """Says what a run is doing, by the last line of its log: in place on a terminal, else a line every minute."""

    def __init__(self, log: Path, where: str):
        self.log, self.where = log, where
        self.begin = self.log.stat().st_size
        self.started = self.said = time.monotonic()
        self.is_live = sys.stdout.isatty()

    def __enter__(self) -> "_Ticker":
        return self

    def __exit__(self, *error: object) -> None:
        if self.is_live:
            print("\r\x1b[K", end="", flush=True)

    def tick(self) -> None:
        """Say it, if it is time to."""
        now = time.monotonic()
        if not self.is_live and now - self.said < SAID_SECONDS:
            return
        self.said = now
        line = f"{self.where}: {_duration(now - self.started)}, {self._find_last_line()}"
        if self.is_live:
            width = shutil.get_terminal_size().columns - 1
            print(f"\r\x1b[K{to_terminal(line)[:width]}", end="", flush=True)
        else:
            say(line, file=sys.stdout)

    def _find_last_line(self) -> str:
        """Read the end of what this start of the run has logged."""
        with self.log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(self.begin, size - LAST_BYTES))
            text = file.read().decode("utf-8", "replace")
        lines = [line.strip() for line in re.split(r"[\r\n]+", text) if line.strip()]
        return "".join(sign if sign.isprintable() else " " for sign in lines[-1]) if lines else "loading"


def estimate_time_left(runs: Sequence[Planned], seconds: dict[str, list[float]]) -> str:
    """Estimate from the same method's finished runs; a method that has none is left out of it and named."""
    known = sum(statistics.median(seconds[run.kind]) for run in runs if run.kind in seconds)
    unknown = list(dict.fromkeys(run.kind for run in runs if run.kind not in seconds))
    if not unknown:
        return f"about {_duration(known)} left"
    more = f"that of {', '.join(unknown)} not known yet"
    return f"at least {_duration(known)} left, {more}" if known else f"time left: {more}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _result(run: Planned) -> str:
    with contextlib.suppress(FinetuneError):
        metrics = CompleteRecord.read(run.directory).metrics.test
        for name in ("accuracy", "micro_f1", "mae"):
            value = metrics.get(name)
            if value is not None:
                return f"test {name} {value:.4f}"
    return "no figure on test"


def _last_error(log: Path) -> str:
    """Find the line that says what went wrong: the recipe's own, else the last one."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    own = [line for line in lines if line.startswith("error: ")]
    return (own or lines or ["no output"])[-1].rstrip(".")
