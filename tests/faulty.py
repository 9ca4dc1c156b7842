"""Runs a recipe in processes that die: forked from one that has imported everything, so that a start costs nothing.

As a program it is that process: it takes a job a line, forks, and answers with how the child ended.
"""

import contextlib
import gc
import importlib
import json
import math
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
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
        """Run recipes/imdb.py in a process of its own.

        Args:
            argv: Its flags.
            log: Gets what it prints.
            faults: Each is (what, function as "module:name", number of the call); see `_install`.
            kill_after: SIGKILL after so many seconds.

        Returns:
            The exit status, minus the signal's number where one killed it, or None if it has stopped.
        """
        job = {"argv": list(argv), "log": str(log), "faults": list(faults), "kill_after": kill_after}
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        self.pid = answer["pid"]
        return answer["status"]


def _serve():
    import matplotlib  # noqa: F401
    import torch
    from conftest import load_recipe
    from transformers.models.bert import modeling_bert  # noqa: F401  imported late, so by each child

    import finetune.delivery.evaluate  # noqa: F401

    recipe = load_recipe("imdb")
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()  # else each child's first collection copies all that it shares
    for line in sys.stdin:
        job = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _run(recipe, job)
        if job["kill_after"] is not None:
            time.sleep(job["kill_after"])
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, os.WUNTRACED)
        ended = None if os.WIFSTOPPED(status) else os.waitstatus_to_exitcode(status)
        print(json.dumps({"pid": pid, "status": ended}), flush=True)


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


def _install(what, function, number):
    """Let something happen before a call of a function of the package.

    Args:
        what: The name of a signal to this process; "memory N": the address space may grow by N bytes from there on;
            "nan": the call's result becomes NaN.
        function: "module:name" or "module:class.name".
        number: Which call, from 1.
    """
    module, _, path = function.partition(":")
    owner = importlib.import_module(module)
    *parents, name = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
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
