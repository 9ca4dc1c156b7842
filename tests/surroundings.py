"""Runs commands in bad surroundings: each in a process forked from one that has imported everything.

As a program it is that process: it takes a job a line, forks, and answers with how the child ended. What libraries read
when they are imported (`HF_HOME`) comes too late for such a child: that takes a process started anew.
"""

import contextlib
import faulthandler
import gc
import importlib
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path

HERE = Path(__file__).parent
UNKNOWN_USER = 12_345  # in no file of users
PATIENCE_SECONDS = 60.0
# What commands import, so that no child has to; the last three where exports are possible.
LIBRARIES = (
    "matplotlib.pyplot", "transformers.models.bert.modeling_bert", "finetune.cli", "finetune.comparison.command",
    "finetune.data_doctor.command", "finetune.export.merge", "finetune.hub.push", "finetune.inference.bulk",
    "finetune.inference.evaluate", "finetune.serve.service", "onnxruntime", "transformers.exporters",
    "finetune.export.onnx",
)  # fmt: skip


class Surroundings:
    """Starts commands; use it as a context.

    Args:
        exports: Whether to import what takes long and exports alone need.
    """

    def __init__(self, exports=True):
        self.libraries = LIBRARIES if exports else LIBRARIES[:-3]

    def __enter__(self):
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE)])}
        command = [sys.executable, __file__, *self.libraries]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        return self

    def __exit__(self, *error):
        self.process.stdin.close()
        self.process.wait()

    def run(self, argv, log, **place):
        """Run a command; see `run_at_once`."""
        return self.run_at_once([argv], [log], **place)[0]

    def run_at_once(self, commands, logs, patience=PATIENCE_SECONDS, **place):
        """Run commands side by side.

        Args:
            commands: The words of each: a command of `finetune`; a recipe; or -c and lines of Python.
            logs: Get what each prints; `log`.traceback gets an exception that nothing turned into a line.
            patience: Seconds of the clock after which one counts as hanging.
            **place: What they find; see `_enter`.

        Returns:
            The exit statuses, minus the signal's number where one killed it; None if it had to be killed for hanging.
        """
        jobs = [{"argv": list(argv), "log": str(log)} for argv, log in zip(commands, logs, strict=True)]
        for log in logs:
            Path(f"{log}.traceback").unlink(missing_ok=True)
        self.process.stdin.write(json.dumps({"jobs": jobs, "patience": patience, "place": place}) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        self.seconds = answer["seconds"]
        return answer["statuses"]


def _serve():
    import torch
    from conftest import recipe_of

    for name in sys.argv[1:]:
        importlib.import_module(name)
    recipes = {"imdb.py": recipe_of("full"), "textcnn.py": recipe_of("textcnn"), "classify.py": recipe_of("any")}
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()  # else each child's first collection copies all that it shares
    for line in sys.stdin:
        asked = json.loads(line)
        start = time.monotonic()
        children = []
        for job in asked["jobs"]:
            reading, writing = os.pipe()  # and no file, whose size may be limited
            pid = os.fork()
            if pid == 0:
                os.close(reading)
                _run(recipes, job, asked["place"], writing)
            os.close(writing)
            children.append((pid, reading, Path(job["log"])))
        statuses = [_wait(*child, start + asked["patience"]) for child in children]
        print(json.dumps({"statuses": statuses, "seconds": time.monotonic() - start}), flush=True)


def _wait(pid, reading, log, deadline):
    """Wait for a child's end, and write what it prints; one that hangs has to show where, and is killed."""
    status, is_open = None, True
    os.set_blocking(reading, False)
    with log.open("wb") as file:
        while True:
            with contextlib.suppress(BlockingIOError):
                while is_open and (content := os.read(reading, 65536)):
                    file.write(content)
                is_open = False
            if status is not None:
                break
            done, found = os.waitpid(pid, os.WNOHANG)
            if done:
                status = found
                continue  # once more for what came last
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGABRT)
                time.sleep(1)
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                break
            time.sleep(0.01)
    os.close(reading)
    return None if status is None else os.waitstatus_to_exitcode(status)


def _run(recipes, job, place, log):
    spare = os.open(f"{job['log']}.traceback", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    faulthandler.enable(file=spare)
    empty = os.open(os.devnull, os.O_RDONLY)
    for descriptor, number in ((empty, 0), (log, 1), (log, 2)):
        os.dup2(descriptor, number)
    os.close(log)
    os.close(empty)
    program, *words = job["argv"]
    status = 1
    try:
        _enter(**place)
        if program == "-c":
            exec(words[0], {"words": words[1:]})
        elif program in recipes:
            from finetune.errors import exit_on_error

            with exit_on_error():
                recipes[program].main(words)
        else:
            from finetune.cli import main

            main([program, *words])
        status = 0
    except SystemExit as end:
        status = end.code or 0
    except BaseException:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        os.write(spare, traceback.format_exc().encode("utf-8", "replace"))
    for stream in (sys.stdout, sys.stderr):  # as the interpreter does in the end
        try:
            stream and stream.flush()
        except OSError as error:
            os.write(spare, f"Exception ignored while flushing: {error}\n".encode())
            status = 120
    os._exit(status)


def _enter(
    environ=None, cache=None, closed=(), stdin=None, stdout=None, stderr=None, encoding=None, limits=None, umask=None,
    cwd=None, uid=None, moment=None, ends_after=None,
):  # fmt: skip
    """Change the surroundings of this process.

    Args:
        environ: Variables, None to unset one.
        cache: The folder of `datasets`.
        closed: Which of the standard streams are closed.
        stdin: "broken" (a pipe that nobody writes), or a file to read.
        stdout: "full" or "broken" (a pipe that nobody reads).
        stderr: Likewise.
        encoding: Of the standard streams.
        limits: By the names of `resource`; a word such as "+1000" is on top of what is used.
        umask: Of new files.
        cwd: A folder to go to, or "deleted".
        uid: Whom to become.
        moment: [function, number, what, folder]: what happens to a folder before a call of a function.
        ends_after: Seconds until SIGTERM comes, for a service.
    """
    if ends_after is not None:
        threading.Timer(ends_after, os.kill, (os.getpid(), signal.SIGTERM)).start()
    for name, value in (environ or {}).items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    if {"TMPDIR", "HOME"} & set(environ or {}):
        import tempfile

        tempfile.tempdir = None
    if cache is not None:
        import datasets

        datasets.config.HF_DATASETS_CACHE = Path(cache)
    _redirect(closed, stdin, {1: stdout, 2: stderr}, encoding)
    if umask is not None:
        os.umask(umask)
    if cwd == "deleted":
        folder = Path.cwd() / f"deleted-{os.getpid()}"
        folder.mkdir()
        os.chdir(folder)
        folder.rmdir()
    elif cwd is not None:
        os.chdir(cwd)
    if moment is not None:
        _install(*moment)
    if uid is not None:
        os.setgroups([])
        os.setgid(uid)
        os.setuid(uid)
    for name, limit in (limits or {}).items():
        number = getattr(resource, f"RLIMIT_{name}")
        if isinstance(limit, str):
            limit = int(limit) + _used(name)
        hard = resource.getrlimit(number)[1] if name == "CPU" else limit
        resource.setrlimit(number, (limit, hard))


def _used(name):
    if name == "AS":
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    if name == "CPU":
        return int(time.process_time())
    assert name == "NOFILE"
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


def _redirect(closed, stdin, written, encoding):
    if stdin == "broken":
        reading, writing = os.pipe()
        os.close(writing)
        os.dup2(reading, 0)
    elif stdin is not None:
        os.dup2(os.open(stdin, os.O_RDONLY), 0)
    for number, what in written.items():
        if what == "full":
            os.dup2(os.open("/dev/full", os.O_WRONLY), number)
        elif what == "broken":
            reading, writing = os.pipe()
            os.dup2(writing, number)
            os.close(reading)
            os.close(writing)
    names = ("stdin", "stdout", "stderr")
    for number in closed:
        os.close(number)
    for number, name in enumerate(names):
        stream = None
        if number not in closed:
            raw = open(number, "rb" if number == 0 else "wb", closefd=False)  # noqa: SIM115
            errors = "backslashreplace" if number == 2 else "strict"
            stream = io.TextIOWrapper(raw, encoding or "utf-8", errors, line_buffering=number == 2)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def _install(function, number, what, folder):
    """Let something happen to a folder before a call of "module:name" or "module:class.name"."""
    module, _, path = function.partition(":")
    owner = importlib.import_module(module)
    *parents, name = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    original, calls = getattr(owner, name), 0

    def wrapper(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == number:
            if what == "vanishes":
                shutil.rmtree(folder)
            elif what == "becomes a file":
                shutil.rmtree(folder)
                Path(folder).write_text("")
            elif what == "read-only":
                subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
            elif what == "full":
                with contextlib.suppress(OSError), (Path(folder) / "filler").open("wb") as filler:
                    while True:
                        filler.write(bytes(4096))
                        filler.flush()
            else:
                os.kill(os.getpid(), signal.Signals[what])
        return original(*args, **kwargs)

    setattr(owner, name, wrapper)


if __name__ == "__main__":
    _serve()
