"""Runs a recipe in processes that die: forked from one that has imported everything, so that a start costs nothing.

As a program it is that process: it takes a job a line, forks, and answers with how the child ended.
"""

import gc
import importlib
import json
import math
import mmap
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
# What a run is at, innermost last, where the function that does it is at work.
PHASES = {
    "finetune.training.trainer:Trainer.train": "training",
    "finetune.training.trainer:FineTuningTrainer.evaluation_loop": "an evaluation",
    "finetune.training.trainer:FineTuningTrainer._save_checkpoint": "a checkpoint",
    "finetune.run.run:Run.save_model": "the final save",
    "imdb:evaluate_run": "the final evaluation",
    "textcnn:evaluate_run": "the final evaluation",
    "finetune.engine:evaluate_run": "the final evaluation",
}
TOKEN = "hf_plantedPlantedPlantedPlantedToken"


class Nursery:
    """Starts recipes one after the other; use it as a context."""

    def __enter__(self):
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE)]), "HF_TOKEN": TOKEN}
        self.process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        return self

    def __exit__(self, *error):
        self.process.stdin.close()
        self.process.wait()

    def run(self, argv, log, faults=(), kill_after=None):
        """Run the recipe of the method that `argv` names in a process of its own.

        Args:
            argv: Its flags.
            log: Gets what it prints.
            faults: Each is (what, function as "module:name", number of the call); see `_install`.
            kill_after: SIGKILL after so many seconds of its processor's time, and up to 20 ms of the clock's.

        Returns:
            The exit status, minus the signal's number where one killed it, or None if it has stopped. `phase` then
            says what it was at, and `seconds` how much processor time it took.
        """
        job = {"argv": list(argv), "log": str(log), "faults": list(faults), "kill_after": kill_after}
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        self.pid, self.phase, self.seconds = answer["pid"], answer["phase"], answer["seconds"]
        return answer["status"]


def _serve():
    import matplotlib  # noqa: F401
    import torch
    from conftest import recipe_of
    from transformers.models.bert import modeling_bert  # noqa: F401  imported late, so by each child

    import finetune.inference.evaluate  # noqa: F401

    sys.modules["imdb"], sys.modules["textcnn"] = recipe_of("full"), recipe_of("textcnn")
    recipe_of("any")
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()  # else each child's first collection copies all that it shares
    phase = mmap.mmap(-1, 1)  # shared with the children
    for line in sys.stdin:
        job = json.loads(line)
        phase[0] = 0
        pid = os.fork()
        if pid == 0:
            _note_phases(phase)
            argv = job["argv"]
            _run(recipe_of(argv[argv.index("--method") + 1] if "--method" in argv else "full"), job)
        if job["kill_after"] is not None:
            _kill_after(pid, job["kill_after"])
        _, status, usage = os.wait4(pid, os.WUNTRACED)
        ended = None if os.WIFSTOPPED(status) else os.waitstatus_to_exitcode(status)
        at = ["the start", *PHASES.values()][phase[0]]
        seconds = usage.ru_utime + usage.ru_stime
        print(json.dumps({"pid": pid, "status": ended, "phase": at, "seconds": seconds}), flush=True)


def _kill_after(pid, seconds):
    """SIGKILL a process when it has used so much of its processor, if it lives that long."""
    clock = (~pid << 3) | 2  # as clock_getcpuclockid(3) gives it
    while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if time.clock_gettime(clock) >= seconds:
            time.sleep(random.uniform(0, 0.02))  # the moments at which it waits for the disk
            os.kill(pid, signal.SIGKILL)  # a child that has ended meanwhile waits to be asked for its status
            return
        time.sleep(0.001)


def _note_phases(phase):
    """Write the number of what the process is at into memory that outlives it."""
    for number, function in enumerate(PHASES, start=1):
        owner, name = _find(function)
        original = getattr(owner, name)

        def wrapper(*args, original=original, number=number, **kwargs):
            before, phase[0] = phase[0], number
            try:
                return original(*args, **kwargs)
            finally:
                phase[0] = before

        setattr(owner, name, wrapper)


def _run(recipe, job):
    from finetune.errors import exit_on_error

    with Path(job["log"]).open("w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    status = 1
    try:
        for fault in job["faults"]:
            _install(*fault)
        with exit_on_error():
            recipe.main(job["argv"])
        status = 0
    except SystemExit as end:
        status = end.code
    except BaseException:
        import traceback

        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _find(function):
    """Find the owner of "module:name" or "module:class.name", and give the last name."""
    module, _, path = function.partition(":")
    owner = importlib.import_module(module)
    *parents, name = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    return owner, name


def _install(what, function, number):
    """Let something happen before a call of a function of the package.

    Args:
        what: The name of a signal to this process; "memory N": the address space may grow by N bytes from there on;
            "nan": the call's result becomes NaN.
        function: "module:name" or "module:class.name".
        number: Which call, from 1.
    """
    owner, name = _find(function)
    original, calls = getattr(owner, name), 0

    def wrapper(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == number and what.startswith("SIG"):
            os.kill(os.getpid(), signal.Signals[what])
        elif calls == number and what.startswith("memory"):
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            limit = pages * resource.getpagesize() + int(what.split()[1])
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        result = original(*args, **kwargs)
        return result * math.nan if what == "nan" and calls == number else result

    setattr(owner, name, wrapper)


if __name__ == "__main__":
    _serve()
