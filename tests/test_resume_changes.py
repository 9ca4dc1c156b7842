"""A training that goes on with other settings keeps its place in the data, and its best by the metric it has now."""

import contextlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from test_trainer import make_model, make_trainer
from transformers import AutoTokenizer, TrainerCallback

from finetune.data.batch import Drawn, GlobalStepSampler, MicroBatchCollator
from finetune.data.load import read_examples
from finetune.data.tokenize import TextConfig, tokenize_dataset

NUM_ROWS = 60
EVERY_ROW = [list(range(NUM_ROWS))] * 3  # epochs


class Cut(TrainerCallback):
    """Ends a training when it has written a checkpoint."""

    def on_save(self, args, state, control, **kwargs):
        raise KeyboardInterrupt


class Recording(MicroBatchCollator):
    """Notes the rows that are trained on."""

    def __call__(self, examples):
        self.rows += [example["row"] for example in examples]
        return super().__call__(examples)


@pytest.fixture(scope="module")
def tokenizer(tiny_bert):
    return AutoTokenizer.from_pretrained(tiny_bert)


@pytest.fixture(scope="module")
def numbered(reviews, tokenizer):
    rows = tokenize_dataset(read_examples(reviews["--train_file"]), tokenizer, TextConfig(24))
    return rows.add_column("row", list(range(NUM_ROWS)))


def by_epoch(rows):
    return [sorted(rows[start : start + NUM_ROWS]) for start in range(0, len(rows), NUM_ROWS)]


@pytest.fixture
def start(tmp_path, tiny_bert, tokenizer, numbered):
    """Train from the beginning or a checkpoint, up to the next checkpoint or the end."""

    def start(checkpoint=None, is_cut=False, apply_settings=True, **settings):
        settings = {
            "num_train_epochs": 3,
            "max_steps": -1,
            "per_device_train_batch_size": 8,
            "learning_rate": 1e-2,
            "save_strategy": "steps",
            **settings,
        }
        model = make_model(tiny_bert, tokenizer, "full")
        trainer = make_trainer(tmp_path, model, tokenizer, numbered, **settings)
        trainer.data_collator = Recording(tokenizer, 1_000)
        trainer.data_collator.rows = []
        trainer.apply_settings = apply_settings and checkpoint is not None
        if is_cut:
            trainer.add_callback(Cut)
        with pytest.raises(KeyboardInterrupt) if is_cut else contextlib.nullcontext():
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        return trainer

    return start


@pytest.mark.parametrize(
    ("before", "steps", "after"),
    [
        ((8, 1), 11, (8, 2)),  # the case
        ((8, 2), 7, (8, 1)),
        ((8, 1), 3, (16, 1)),
        ((4, 3), 6, (8, 1)),
        ((8, 1), 8, (8, 4)),  # at an epoch's end
        ((8, 1), 15, (4, 4)),  # few are left of the epoch
        ((8, 2), 5, (16, 1)),  # the same steps
        ((60, 1), 1, (7, 1)),
        ((7, 1), 13, (60, 1)),
    ],
)
def test_every_example_is_seen_once_an_epoch_whatever_the_steps_become(start, tmp_path, before, steps, after):
    size, accumulation = before
    first = start(is_cut=True, per_device_train_batch_size=size, gradient_accumulation_steps=accumulation,
                  save_steps=steps)  # fmt: skip
    size, accumulation = after
    resumed = start(str(tmp_path / f"checkpoint-{steps}"), per_device_train_batch_size=size,
                    gradient_accumulation_steps=accumulation, save_steps=1_000)  # fmt: skip
    assert by_epoch(first.data_collator.rows + resumed.data_collator.rows) == EVERY_ROW
    assert resumed.state.epoch == 3
    epochs = [logged["epoch"] for logged in resumed.state.log_history if "loss" in logged]
    assert epochs == sorted(epochs)
    rates = [logged["learning_rate"] for logged in resumed.state.log_history if "learning_rate" in logged]
    done = len(first.data_collator.rows) / (3 * NUM_ROWS)
    step = min(NUM_ROWS, size * accumulation) / (3 * NUM_ROWS)
    assert rates[steps] == pytest.approx(1e-2 * (1 - done), abs=1e-2 * step)  # the schedule goes on where it was
    assert rates[-1] == pytest.approx(1e-2 * step, abs=1e-3)


def test_a_change_and_a_change_back_keep_the_place(start, tmp_path):
    first = start(is_cut=True, save_steps=2)
    second = start(tmp_path / "checkpoint-2", is_cut=True, save_steps=3, gradient_accumulation_steps=3)
    third = start(tmp_path / "checkpoint-3", is_cut=True, save_steps=4)
    last = start(tmp_path / "checkpoint-4", save_steps=1_000)
    assert by_epoch([row for part in (first, second, third, last) for row in part.data_collator.rows]) == EVERY_ROW
    again = start(tmp_path / "checkpoint-4", apply_settings=False, save_steps=1_000)  # nothing has changed since
    assert again.data_collator.rows == last.data_collator.rows
    assert all(torch.equal(again.model.get_parameter(name), own) for name, own in last.model.named_parameters())


def test_a_training_counted_in_steps_takes_as_many_however_large_they_become(start, tmp_path):
    start(is_cut=True, save_steps=10, max_steps=20)  # 8 an epoch
    resumed = start(tmp_path / "checkpoint-10", save_steps=1_000, max_steps=20, gradient_accumulation_steps=4)
    assert resumed.state.global_step == resumed.state.max_steps == 20
    assert resumed.state.epoch == pytest.approx(1 + 0.25 + 9 / 2, abs=0.5)  # 2 an epoch


@given(
    num_rows=st.integers(2, 80),
    parts=st.lists(st.tuples(st.integers(1, 20), st.integers(1, 4), st.integers(1, 3)), min_size=2, max_size=4),
    world_size=st.integers(1, 2),
)
@hypothesis_settings(deadline=None, max_examples=150)
def test_what_is_left_of_an_epoch_is_drawn_once_by_all_processes_together(num_rows, parts, world_size):
    lengths = np.arange(num_rows) % 7 + 1

    def build(size, accumulation, rank=0):
        step = size * accumulation * world_size
        return GlobalStepSampler(lengths, step, 0, accumulation, rank, world_size)

    drawn = [Drawn(size * accumulation * world_size, accumulation, count) for size, accumulation, count in parts[:-1]]
    samplers = [build(*parts[-1][:2], rank) for rank in range(world_size)]
    skipped = [sampler.go_on(0, drawn, num_rows) for sampler in samplers]
    assert len(set(skipped)) == 1
    if skipped[0] == samplers[0].num_steps:
        return
    taken = []
    for sampler in samplers:
        batches = list(sampler)
        assert len(batches) == len(sampler)  # what the `Trainer` counts on
        kept = batches[skipped[0] * sampler.accumulation_steps :]
        assert all(kept)
        taken += [row for batch in kept for row in batch]
    rows, before = np.arange(num_rows), samplers[0]
    for part in drawn:
        rows, layout = before._lay_out(rows, part.step_size, part.accumulation_steps, 0)
        steps = [step for step, _ in layout._draw_steps()][: part.num_steps]
        rows = np.delete(rows, [position for step in steps for position in step])
    assert set(taken) == set(rows.tolist())
    least = parts[-1][1] * world_size
    assert len(taken) == len(rows) or len(taken) <= least  # so few that some come twice
    samplers[0].set_epoch(1)
    whole = build(*parts[-1][:2])
    whole.set_epoch(1)
    assert list(samplers[0]) == list(whole)  # the next epoch is as ever


def test_other_data_keeps_the_share_of_the_epoch():
    sampler = GlobalStepSampler(np.ones(100), 10, 0)
    assert sampler.go_on(1, [Drawn(10, 1, 3)], 50) == 6  # 30 of 50
    assert len(list(sampler)) == 10
