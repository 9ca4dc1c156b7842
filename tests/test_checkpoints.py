"""A checkpoint is whole or doesn't count; one run at a time; what is halved adds up to what it was."""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

from finetune.data.batch import split_micro_batch
from finetune.errors import FinetuneError
from finetune.files import is_disk_full, replace_folder, write_aside, write_json
from finetune.models.logits import compute_rows
from finetune.run.lock import LOCK_FILE, DirectoryLock
from finetune.training.checkpoints import (
    commit_checkpoint,
    find_fault,
    find_resumable,
    list_checkpoints,
    rotate_checkpoints,
    tidy,
)
from finetune.training.loop import LoopState

FILES = {"model.safetensors": b"weights" * 100, "optimizer.pt": b"moments" * 100, "rng_state.pth": b"random"}
RUN = "5eed"


def write_checkpoint(folder, step, best=None):
    aside = folder / "writing" / f"checkpoint-{step}"
    aside.mkdir(parents=True)
    for name, content in FILES.items():
        (aside / name).write_bytes(content)
    state = {
        "best_global_step": best,
        "best_model_checkpoint": None if best is None else f"elsewhere/checkpoint-{best}",
    }
    (aside / "trainer_state.json").write_text(json.dumps(state))
    (aside / "training_args.bin").write_bytes(b"a pickle")
    commit_checkpoint(aside, folder / f"checkpoint-{step}", RUN)
    return folder / f"checkpoint-{step}"


def test_what_was_written_is_whole(tmp_path):
    checkpoint = write_checkpoint(tmp_path, 3)
    assert find_fault(checkpoint, RUN) is None
    names = {path.name for path in checkpoint.iterdir()}
    assert names == {*FILES, "trainer_state.json", "complete.json"}  # and nothing pickled but what is checked
    assert find_resumable(tmp_path, RUN) == (checkpoint, [])


@pytest.mark.parametrize("name", [*FILES, "trainer_state.json", "complete.json"])
def test_every_change_of_every_file_is_seen(tmp_path, name):
    first = write_checkpoint(tmp_path, 3)
    path = write_checkpoint(tmp_path, 5) / name
    content = path.read_bytes()
    for position in range(len(content)):
        path.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        assert find_fault(path.parent, RUN) is not None, position
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        assert find_fault(path.parent, RUN) is not None, length
    path.unlink()
    checkpoint, (line,) = find_resumable(tmp_path, RUN)
    assert checkpoint == first
    assert line.startswith(f"skipped {path.parent}: ")
    assert name in line
    assert "\n" not in line


def test_a_file_that_was_added_makes_it_foreign(tmp_path):
    checkpoint = write_checkpoint(tmp_path, 3)
    (checkpoint / "pytorch_model.bin").write_bytes(b"a pickle")
    assert find_fault(checkpoint, RUN) == "pytorch_model.bin was added to it"


def test_a_checkpoint_of_another_run_does_not_count(tmp_path):
    checkpoint = write_checkpoint(tmp_path, 3)
    assert find_resumable(tmp_path, "another") == (None, [f"skipped {checkpoint}: another run wrote it"])


def test_checkpoints_that_have_changed_names_do_not_count(tmp_path):
    first, second = write_checkpoint(tmp_path, 3), write_checkpoint(tmp_path, 5)
    first.rename(tmp_path / "aside")
    second.rename(first)
    (tmp_path / "aside").rename(second)
    assert find_resumable(tmp_path, RUN) == (
        None,
        [f"skipped {second}: it was written as checkpoint-3", f"skipped {first}: it was written as checkpoint-5"],
    )


def test_a_checkpoint_counts_only_with_the_best_one_that_it_names(tmp_path):
    first, second, third = (write_checkpoint(tmp_path, *steps) for steps in ((2, 2), (4, 2), (10, 4)))
    assert find_resumable(tmp_path, RUN)[0] == third  # 10 comes after 4
    (second / "optimizer.pt").write_bytes(b"")
    checkpoint, skipped = find_resumable(tmp_path, RUN)
    assert checkpoint == first
    assert "checkpoint-10: the best one before it, checkpoint-4, is not whole: optimizer.pt has 0 bytes" in skipped[0]
    assert len(skipped) == 2


def test_rotation_spares_the_newest_and_the_best(tmp_path):
    for step in (1, 2, 9, 10, 11):
        write_checkpoint(tmp_path, step)
    rotate_checkpoints(tmp_path, None, None)
    assert len(list_checkpoints(tmp_path)) == 5
    rotate_checkpoints(tmp_path, 3, "checkpoint-2")
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-2", "checkpoint-10", "checkpoint-11"]
    rotate_checkpoints(tmp_path, 1, "checkpoint-2")
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-2", "checkpoint-11"]
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-2", "checkpoint-11"}


def test_what_a_killed_process_left_is_tidied(tmp_path):
    whole = write_checkpoint(tmp_path, 3)
    (tmp_path / "writing" / "checkpoint-4").mkdir(parents=True)
    whole.rename(tmp_path / "checkpoint-3.replaced")  # killed between the two renames
    tidy(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-3"]
    assert find_fault(whole, RUN) is None


def test_a_checkpoint_takes_the_place_of_a_broken_one(tmp_path):
    (write_checkpoint(tmp_path, 3) / "optimizer.pt").unlink()
    assert find_fault(write_checkpoint(tmp_path, 3), RUN) is None
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-3"]


def test_the_loop_s_state_comes_back_bit_by_bit(tmp_path):
    state = LoopState(0.1 + 0.2, 1e-300, 7, float("nan"), None, True, False, True, None, 2)
    state.write(tmp_path)
    assert repr(LoopState.read(tmp_path)) == repr(state)


def test_a_file_is_the_old_or_the_new_one(tmp_path):
    path = tmp_path / "run.json"
    write_json(path, {"a": 1, "b": float("nan")})
    assert json.loads(path.read_text()) == {"a": 1, "b": None}
    with pytest.raises(TypeError), write_aside(path) as aside:
        aside.write_text(aside.write_text("half"))
    assert json.loads(path.read_text())["a"] == 1
    assert [one.name for one in tmp_path.iterdir()] == ["run.json"]


def test_a_folder_takes_another_s_place(tmp_path):
    for name in ("model", "model.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    replace_folder(tmp_path / "model", tmp_path / "model.partial")
    assert (tmp_path / "model/file").read_text() == "model.partial"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_disk_full_is_known_through_other_errors():
    error = RuntimeError("writing failed")
    error.__cause__ = OSError(28, "No space left on device")
    assert is_disk_full(error)
    assert is_disk_full(RuntimeError("basic_ios::clear: iostream error"))  # torch.save, as its archive ends
    assert not is_disk_full(OSError(2, "No such file or directory"))


HOLD = "import sys, pathlib; from finetune.run.lock import DirectoryLock; DirectoryLock(pathlib.Path(sys.argv[1])).acquire(); print('held', flush=True); input()"  # fmt: skip # noqa: E501


def test_a_second_process_is_refused_until_the_first_is_killed(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    first = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    assert first.stdout.readline() == "held\n"
    with pytest.raises(FinetuneError, match=f"process {first.pid} on .* is at work in it"):
        DirectoryLock(tmp_path).acquire()
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert (tmp_path / LOCK_FILE).exists()
    lock = DirectoryLock(tmp_path)
    lock.acquire()
    lock.release()
    assert not (tmp_path / LOCK_FILE).exists()


def test_a_directory_that_can_t_be_written_to_is_said(tmp_path):
    with pytest.raises(FinetuneError, match="Expected to write into --output_dir"):
        DirectoryLock(tmp_path / "missing").acquire()


def test_halves_have_the_same_examples_and_no_needless_padding():
    lengths = [6, 5, 2, 1]
    mask = torch.tensor([[1] * length + [0] * (6 - length) for length in lengths])
    whole = {"input_ids": mask * 9, "attention_mask": mask, "labels": torch.arange(4)}
    parts = split_micro_batch(whole, 12)
    assert [part["input_ids"].shape for part in parts] == [(2, 6), (2, 2)]
    assert [part["labels"].tolist() for part in parts] == [[0, 1], [2, 3]]
    assert [len(part["labels"]) for part in split_micro_batch(whole, 1)] == [1, 1, 1, 1]
    assert split_micro_batch(whole, 24) == [whole]


def test_halves_keep_a_text_s_windows_together():
    whole = {
        "input_ids": torch.arange(6).repeat(2, 1).T,
        "attention_mask": torch.ones(6, 2, dtype=torch.long),
        "num_windows": torch.tensor([3, 1, 2]),
        "labels": torch.tensor([0, 1, 0]),
    }
    parts = split_micro_batch(whole, 8)
    assert [part["num_windows"].tolist() for part in parts] == [[3], [1, 2]]
    assert [part["input_ids"][:, 0].tolist() for part in parts] == [[0, 1, 2], [3, 4, 5]]


def test_logits_are_the_same_when_memory_is_too_small_for_the_batches():
    lengths = [5, 9, 2, 7, 1, 8]
    sizes = []

    def forward(inputs):
        sizes.append(inputs["input_ids"].numel())
        if sizes[-1] > 10:
            raise MemoryError
        return inputs["input_ids"][:, :1].float() * 2

    def collate(examples):
        longest = max(examples)
        return {"input_ids": torch.tensor([[length] * longest for length in examples])}

    with pytest.warns(UserWarning, match="out of memory"):
        rows = compute_rows(forward, 1, lengths, lengths, collate, 40, torch.device("cpu"))
    assert rows[:, 0].tolist() == [2.0 * length for length in lengths]
    with pytest.raises(FinetuneError, match="a text of 12 tokens"), pytest.warns(UserWarning, match="at most"):
        compute_rows(forward, 1, [12, 3], [12, 3], collate, 40, torch.device("cpu"))
