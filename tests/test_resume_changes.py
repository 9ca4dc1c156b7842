"""A training that goes on with other settings keeps its place in the data, and its best by the metric it has now."""

import contextlib
import json
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from test_trainer import make_model, make_trainer
from transformers import AutoTokenizer, EarlyStoppingCallback, TrainerCallback

from finetune.data.batch import Drawn, GlobalStepSampler, MicroBatchCollator
from finetune.data.cutting import TextConfig
from finetune.data.load import read_examples
from finetune.data.tokenize import tokenize_dataset
from finetune.training.checkpoints import commit_checkpoint

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

    def build(**settings):
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
        trainer.args.restore_callback_states_from_checkpoint = True  # as a run does
        trainer.data_collator = Recording(tokenizer, 1_000)
        trainer.data_collator.rows = []
        return trainer

    def start(checkpoint=None, is_cut=False, apply_settings=True, **settings):
        trainer = build(**settings)
        trainer.apply_settings = apply_settings and checkpoint is not None
        if is_cut:
            trainer.add_callback(Cut)
        with pytest.raises(KeyboardInterrupt) if is_cut else contextlib.nullcontext():
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        return trainer

    start.build = build
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


EVALUATED = {"eval_strategy": "steps", "eval_steps": 2, "metric_for_best_model": "accuracy", "greater_is_better": True}


def rewrite_log(checkpoint, name, values):
    """Write what the evaluations after steps 2, 4, … are to have given by a metric, and seal the checkpoint again."""
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    evaluations = [logged for logged in state["log_history"] if "eval_loss" in logged]
    for logged, value in zip(evaluations, values, strict=True):
        logged[f"eval_{name}"] = value
    (checkpoint / "trainer_state.json").write_text(json.dumps(state))
    (checkpoint / "complete.json").unlink()
    aside = checkpoint.rename(checkpoint.with_name("aside"))
    commit_checkpoint(aside, checkpoint, None)


@pytest.mark.parametrize(
    ("metric", "greater", "values", "best", "patience"),
    [
        ("loss", False, [0.9, 0.3, 0.5], 4, 1),  # the case: 0.9 is an accuracy, but a high loss
        ("loss", False, [0.9, 0.8, 0.5], 6, 0),
        ("macro_f1", True, [0.9, 0.3, 0.5], 2, 2),
    ],
)
def test_the_best_is_chosen_anew_by_another_metric(start, tmp_path, metric, greater, values, best, patience):
    for step in (2, 4, 6):  # each writes the next checkpoint
        checkpoint = None if step == 2 else tmp_path / f"checkpoint-{step - 2}"
        start(checkpoint, is_cut=True, save_steps=2, apply_settings=False, **EVALUATED)
    rewrite_log(tmp_path / "checkpoint-6", metric, values)
    stopping = EarlyStoppingCallback(early_stopping_patience=4)
    found = {}

    class Look(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            found.update(metric=state.best_metric, step=state.best_global_step, name=state.best_model_checkpoint)
            found["stopping"] = next(
                callback for callback in trainer.callback_handler.callbacks if isinstance(callback, type(stopping))
            )
            raise KeyboardInterrupt

    trainer = start.build(**{**EVALUATED, "metric_for_best_model": metric, "greater_is_better": greater,
                             "load_best_model_at_end": True, "save_steps": 2})  # fmt: skip
    trainer.add_callback(stopping)
    trainer.add_callback(Look)
    name = f"the best checkpoint was chosen by accuracy, and is by {metric} now: checkpoint-{best} is the best"
    with pytest.warns(UserWarning, match=name), pytest.raises(KeyboardInterrupt):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert (found["metric"], found["step"]) == (values[best // 2 - 1], best)
    assert found["name"] == str(tmp_path / f"checkpoint-{best}")
    assert found["stopping"].early_stopping_patience_counter == patience


def test_where_no_evaluated_checkpoint_is_left_the_best_begins_anew(start, tmp_path):
    start(is_cut=True, save_steps=3, apply_settings=False, **EVALUATED)  # evaluated after 2, saved after 3
    with pytest.warns(UserWarning, match="none is left that was evaluated by it"):
        resumed = start(tmp_path / "checkpoint-3", is_cut=True, save_steps=6,
                        **{**EVALUATED, "metric_for_best_model": "loss", "greater_is_better": False})  # fmt: skip
    losses = [logged["eval_loss"] for logged in resumed.state.log_history if "eval_loss" in logged]
    assert resumed.state.best_metric == min(losses[1:])


def test_the_same_metric_goes_on_without_a_word(start, tmp_path):
    start(is_cut=True, save_steps=2, **EVALUATED)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="the best checkpoint")
        start(tmp_path / "checkpoint-2", is_cut=True, save_steps=4, **EVALUATED)


def test_a_changed_patience_holds(start, tmp_path):
    settings = {**EVALUATED, "load_best_model_at_end": True, "learning_rate": 0.0, "save_steps": 2}
    first = start.build(**settings)
    first.add_callback(EarlyStoppingCallback(early_stopping_patience=9))
    first.add_callback(Cut)
    with pytest.raises(KeyboardInterrupt):
        first.train()
    resumed = start.build(**settings)
    resumed.add_callback(EarlyStoppingCallback(early_stopping_patience=2))
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert resumed.state.global_step == 6


PLATEAU = {"lr_scheduler_type": "reduce_lr_on_plateau", "lr_scheduler_kwargs": {"patience": 0, "factor": 0.5}}


@pytest.mark.parametrize(
    ("metric", "greater", "values", "rate"),
    [
        ("accuracy", True, [0.5, 0.6, 0.7, 0.8], 1.0),  # the case: it rises
        ("accuracy", True, [0.8, 0.7, 0.7, 0.6], 0.125),
        ("loss", False, [0.8, 0.7, 0.6, 0.5], 1.0),
        ("loss", False, [0.5, 0.6, 0.7, 0.8], 0.125),
    ],
)
@pytest.mark.parametrize("type_", ["reduce_lr_on_plateau", "greedy"])
def test_a_plateau_is_where_the_metric_gets_no_better(start, type_, metric, greater, values, rate):
    extra = {"min_lr": 0.0, "max_lr": 0.01} if type_ == "greedy" else {}
    trainer = start.build(**EVALUATED | {"metric_for_best_model": metric, "greater_is_better": greater}, save_steps=50,
                          lr_scheduler_type=type_,
                          lr_scheduler_kwargs={"patience": 0, "factor": 0.5, **extra})  # fmt: skip
    trainer.create_optimizer()
    schedule = trainer.create_scheduler(10)
    for value in values:
        schedule.step(value)
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(1e-2 * rate)


def test_a_resumed_plateau_keeps_its_rate_and_scales_it_by_a_changed_one(start, tmp_path):
    settings = {**EVALUATED, **PLATEAU, "metric_for_best_model": "loss", "greater_is_better": False}
    start(is_cut=True, save_steps=6, learning_rate=1e-2, **{**settings, "greater_is_better": True})  # it only falls
    straight = start(tmp_path / "checkpoint-6", is_cut=True, save_steps=7, apply_settings=False,
                     **{**settings, "greater_is_better": True})  # fmt: skip
    reached = straight.state.log_history[-1]["learning_rate"]
    assert reached < 1e-2
    for rate, metric in ((1e-2, "loss"), (2e-2, "loss"), (1e-2, "accuracy")):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            resumed = start(tmp_path / "checkpoint-6", is_cut=True, save_steps=7, learning_rate=rate,
                            **{**settings, "metric_for_best_model": metric, "greater_is_better": True})  # fmt: skip
        assert resumed.state.log_history[-1]["learning_rate"] == pytest.approx(reached * rate / 1e-2)
        assert resumed.lr_scheduler.mode == "max"
        assert (resumed.lr_scheduler.best == float("-inf")) == (metric == "accuracy")  # never across metrics
