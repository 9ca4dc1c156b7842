"""A tracker hears the run's name and its settings, and that a run goes on."""

import importlib.util
import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import make_reviews, write_csv
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_callback import CallbackHandler

import finetune.run.run as run_module
from finetune.errors import Interrupted
from finetune.run.trackers import tracked
from finetune.settings.parsing import parse_arguments

needs_tensorboard = pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="no tensorboard")
needs_trackio = pytest.mark.skipif(importlib.util.find_spec("trackio") is None, reason="no trackio")


@pytest.fixture
def arguments(tmp_path):
    train = write_csv(tmp_path / "train.csv", make_reviews(20))
    return lambda *flags: parse_arguments(
        None, {"train_file": train, "output_dir": str(tmp_path / "run"), "model_name_or_path": "m"}, flags
    )


def introduce(arguments, trackers, record_id="abcdef0123", checkpoint=None, directory=Path("run")):
    """Report a run to trackers, and return what they see while it trains."""
    arguments.training.report_to = trackers
    callbacks = CallbackHandler([], None, None, None, None)
    trainer = SimpleNamespace(args=arguments.training, callback_handler=callbacks)
    record = SimpleNamespace(id=record_id, method=arguments.method.method, seed=arguments.training.seed)
    with tracked(trainer, arguments, record, directory, checkpoint):
        seen = arguments.training.to_dict()
        return seen, {name: value for name, value in os.environ.items() if name.startswith("WANDB_")}


def test_a_tracker_sees_the_name_and_all_settings(arguments, tmp_path):
    given = arguments("--method", "lora", "--seed", "3", "--lora_r", "2")
    seen, _ = introduce(given, ["mlflow"])
    assert (seen["run_name"], seen["project"]) == ("lora-seed3-abcdef", "finetune")
    assert (seen["method"], seen["lora_r"], seen["model_name_or_path"]) == ("lora", 2, "m")
    assert seen["train_file"] == str(tmp_path / "train.csv")
    assert seen["learning_rate"] == 5e-4
    assert "validation_file" not in seen  # it has no value
    assert "method" not in given.to_dict()["training"]  # run.json has each setting once


def test_a_name_and_a_project_of_one_s_own_stay(arguments):
    seen, _ = introduce(arguments("--run_name", "mine", "--project", "reviews"), ["trackio"])
    assert (seen["run_name"], seen["project"]) == ("mine", "reviews")


def test_two_runs_of_one_seed_have_names_of_their_own_and_a_resumed_one_keeps_its_own(arguments):
    names = [introduce(arguments(), ["trackio"], record_id)[0]["run_name"] for record_id in ("1" * 32, "2" * 32)]
    assert len(set(names)) == 2
    again, _ = introduce(arguments(), ["trackio"], "1" * 32, Path("checkpoint-5"))
    assert again["run_name"] == names[0]


def test_weights_and_biases_is_told_which_run_it_is_for_as_long_as_it_trains(arguments, monkeypatch):
    for name in ("WANDB_RUN_ID", "WANDB_RESUME"):
        monkeypatch.delenv(name, raising=False)
    assert introduce(arguments(), ["wandb"])[1] == {"WANDB_RUN_ID": "abcdef0123", "WANDB_RESUME": "allow"}
    assert "WANDB_RUN_ID" not in os.environ
    monkeypatch.setenv("WANDB_RUN_ID", "mine")
    assert introduce(arguments(), ["wandb"])[1]["WANDB_RUN_ID"] == "mine"


def test_a_tracker_that_can_t_go_on_is_named(arguments):
    with pytest.warns(UserWarning, match="another run in comet_ml, mlflow, which begins anew"):
        introduce(arguments(), ["mlflow", "trackio", "comet_ml"], checkpoint=Path("checkpoint-5"))


def test_without_a_tracker_nothing_is_named(arguments):
    seen, _ = introduce(arguments(), [])
    assert seen["run_name"] is None
    assert "method" not in seen
    assert seen.keys() == TrainingArguments(use_cpu=True).to_dict().keys()


class Signal(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 6:
            raise Interrupted


@pytest.fixture
def cut_and_resumed(classify, flags, tmp_path, monkeypatch):
    """Train with a tracker, cut the run after a checkpoint, and let it go on."""

    def train(tracker):
        argv = [*flags, "--num_train_epochs", "4", "--per_device_train_batch_size", "16", "--no_floor",
                "--early_stopping_patience", "0", "--report_to", tracker, "--logging_steps", "1",
                "--output_dir", str(tmp_path / "run")]  # fmt: skip
        build = run_module.build_callbacks
        with monkeypatch.context() as patch:
            patch.setattr(run_module, "build_callbacks", lambda *parts: [*build(*parts), Signal()])
            with pytest.raises(Interrupted):
                classify.main(argv)
        classify.main(argv)
        return tmp_path / "run"

    return train


@needs_tensorboard
@pytest.mark.parametrize("is_elsewhere", [False, True])
def test_tensorboard_sees_one_run_without_steps_twice(cut_and_resumed, tmp_path, monkeypatch, is_elsewhere):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    if is_elsewhere:
        monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "boards"))
    run = cut_and_resumed("tensorboard")
    folder = run / "tensorboard"
    if is_elsewhere:
        (folder,) = (tmp_path / "boards").iterdir()
        assert folder.name.startswith("full-seed42-")
    events = EventAccumulator(str(folder))
    events.Reload()
    steps = [event.step for event in events.Scalars("train/loss")]
    assert steps == list(range(1, 17))
    assert str(run.parent / "nothing") not in str(events.Tensors("args/text_summary")[0])
    assert "model_name_or_path" in str(events.Tensors("args/text_summary")[0])


@needs_trackio
def test_trackio_sees_one_run_with_its_settings(cut_and_resumed, tmp_path, monkeypatch):
    import sqlite3

    import trackio.sqlite_storage

    monkeypatch.setattr(trackio.sqlite_storage, "TRACKIO_DIR", tmp_path / "trackio")
    run = cut_and_resumed("trackio")
    (file,) = (tmp_path / "trackio").glob("*.db")
    assert file.stem == "finetune"
    with sqlite3.connect(file) as connection:
        names = {name for (name,) in connection.execute("select run_name from metrics")}
        (config,) = connection.execute("select config from configs").fetchone()
    record = json.loads((run / "run.json").read_text())
    assert names == {f"full-seed42-{record['id'][:6]}"}
    assert json.loads(config)["method"] == "full"
    assert json.loads(config)["train_file"].endswith("train.csv")
