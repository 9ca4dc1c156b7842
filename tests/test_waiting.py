"""Waiting for a process that works for long, and not for one that is gone."""

import subprocess
import sys

import pytest

PROGRAM = """
import os, signal, sys, time
from datetime import timedelta
from torch import distributed
from finetune.run.waiting import WaitingRoom

rank, path, what = int(sys.argv[1]), sys.argv[2], sys.argv[3]
distributed.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=2)
room = WaitingRoom(timedelta(seconds=3))
room.wait()
if rank == 0 and what == "works":
    time.sleep(6)
if rank == 0 and what == "dies":
    os._exit(9)
if rank == 0 and what == "is silent":
    print("stopped", flush=True)
    os.kill(os.getpid(), signal.SIGSTOP)
start = time.monotonic()
try:
    room.wait()
except RuntimeError as error:
    print(f"gone after {time.monotonic() - start:.1f} s: {error}")
    room.leave(at_once=True)
    os._exit(1)
print(f"met after {time.monotonic() - start:.1f} s")
room.leave()
"""


@pytest.mark.parametrize(("what", "status", "seconds"), [("works", 0, (4, 60)), ("dies", 1, (0, 30)),
                                                         ("is silent", 1, (1, 30))])  # fmt: skip
def test_a_process_is_waited_for_while_it_is_heard(tmp_path, what, status, seconds):
    command = [sys.executable, "-c", PROGRAM]
    processes = [
        subprocess.Popen([*command, str(rank), str(tmp_path / "store"), what], stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    try:
        said = processes[1].communicate(timeout=200)[0]
    finally:
        for process in processes:
            if what == "is silent" or process.poll() is None:
                process.kill()
            process.wait()
    assert processes[1].returncode == status, said
    assert said.startswith("met" if status == 0 else "gone"), said
    assert seconds[0] <= float(said.split()[2]) <= seconds[1]
