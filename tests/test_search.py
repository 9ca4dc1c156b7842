"""Settings that are tried before a run: by validation rows alone, the same after a kill, and said in run and report."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import load_recipe, make_frame, train_on_frames
from safetensors.numpy import load_file

import finetune
from finetune.catalogue import CATALOGUE
from finetune.cli import main as finetune_command
from finetune.comparison import compare as compare_module
from finetune.comparison.compare import TRAIN, Plan, run_plan
from finetune.comparison.report import build_report
from finetune.errors import FinetuneError, Interrupted
from finetune.run.record import CompleteRecord
from finetune.search import choose
from finetune.settings.duration import read_duration

QUICK = {"method": "full", "max_length": 24, "num_train_epochs": 2, "bf16": False, "num_threads": 1, "floor": False,
         "per_device_train_batch_size": 20}  # fmt: skip


def train(folder, model, **settings):
    return train_on_frames(QUICK, folder, model, **settings)


def judged(**settings):
    """Settings with enough validation rows to judge by."""
    return {"validation": make_frame(100, 400), **settings}


def read_trials(folder):
    lines = (folder / "trials.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines[1:]]


def weights_of(folder):
    return load_file(folder / "model/model.safetensors")


@pytest.fixture(scope="module")
def tuned(tiny_bert, tmp_path_factory):
    folder = tmp_path_factory.mktemp("search") / "run"
    settings = {"num_train_epochs": None, "max_steps": 12, "trials": 4}
    return train(folder, tiny_bert, **judged(**settings))


def test_the_first_trial_has_the_defaults_and_the_best_is_trained(tuned, tiny_bert, tmp_path):
    trials, search = read_trials(tuned.directory), tuned.record.search
    default = CATALOGUE["full"].defaults["learning_rate"]
    assert [trial["number"] for trial in trials] == [0, 1, 2, 3]
    assert trials[0]["settings"] == {"learning_rate": default, "label_smoothing_factor": 0.1}  # steps were chosen
    assert all(default / 4 <= trial["settings"]["learning_rate"] <= default * 4 for trial in trials)
    complete = [trial for trial in trials if trial["state"] == "complete"]
    best = max(complete, key=lambda trial: (trial["value"], -trial["number"]))
    assert (search.trials, search.metric, search.folds) == (4, "accuracy", None)
    assert (search.default, search.best, search.chosen) == (trials[0]["value"], best["value"], best["settings"])
    assert search.seconds == pytest.approx(sum(trial["seconds"] for trial in trials))
    assert tuned.record.arguments.training["learning_rate"] == best["settings"]["learning_rate"]
    assert not (tuned.directory / "trial").exists()

    by_hand = train(tmp_path / "run", tiny_bert, **judged(num_train_epochs=None, max_steps=12, **search.chosen))
    assert by_hand.metrics["test"]["accuracy"] == tuned.metrics["test"]["accuracy"]
    for name, tensor in weights_of(by_hand.directory).items():
        np.testing.assert_array_equal(weights_of(tuned.directory)[name], tensor)


def test_the_value_of_a_trial_is_that_of_the_run_with_its_settings(tuned):
    record = CompleteRecord.read(tuned.directory)
    assert record.metrics.validation.accuracy == pytest.approx(record.search.best)


@pytest.mark.parametrize("where", ["in a trial", "between a line's bytes", "in the training"])
def test_a_killed_search_goes_on_with_the_same_bytes(tuned, tiny_bert, tmp_path, monkeypatch, where):
    settings = judged(num_train_epochs=None, max_steps=12, trials=4)
    fit, fits = choose.fit_and_measure, []

    def fit_and_end(run, changes, *rest):
        fits.append(changes)
        if len(fits) == 3:
            raise Interrupted("killed")
        return fit(run, changes, *rest)

    with monkeypatch.context() as patch:
        if where == "in the training":
            patch.setattr("finetune.families.encoder.Encoder.fit", end_the_fifth())
        else:
            patch.setattr(choose, "fit_and_measure", fit_and_end)
        with pytest.raises(Interrupted):
            train(tmp_path / "run", tiny_bert, **settings)
    kept = 4 if where == "in the training" else 2
    assert len(read_trials(tmp_path / "run")) == kept
    if where == "between a line's bytes":
        with (tmp_path / "run/trials.jsonl").open("a") as file:
            file.write('{"number": 2, "set')
    again = train(tmp_path / "run", tiny_bert, **settings)
    without_time = [
        [{name: value for name, value in trial.items() if "seconds" not in name} for trial in read_trials(directory)]
        for directory in (again.directory, tuned.directory)
    ]
    assert without_time[0] == without_time[1]
    for name, tensor in weights_of(tuned.directory).items():
        np.testing.assert_array_equal(weights_of(again.directory)[name], tensor)


def end_the_fifth():
    """Return a way to fit that is killed in the run itself, after four trials."""
    from finetune.families.encoder import Encoder

    fit, fits = Encoder.fit, []

    def fit_or_end(self, run, splits, task):
        fits.append(run)
        if len(fits) == 5:
            raise Interrupted("killed")
        return fit(self, run, splits, task)

    return fit_or_end


def test_what_the_trials_depend_on_can_t_change(tiny_bert, tmp_path, monkeypatch):
    settings = judged(method="tfidf", trials=3)
    fit, fits = choose.fit_and_measure, []

    def fit_and_end(*parts):
        fits.append(parts)
        if len(fits) == 2:
            raise Interrupted("killed")
        return fit(*parts)

    with monkeypatch.context() as patch:
        patch.setattr(choose, "fit_and_measure", fit_and_end)
        with pytest.raises(Interrupted):
            train(tmp_path / "run", tiny_bert, **settings)
    with pytest.raises(FinetuneError, match=r"these differ: seed\. Restore them to go on, or pass --restart"):
        train(tmp_path / "run", tiny_bert, **settings, seed=7)
    assert len(read_trials(tmp_path / "run")) == 1
    more = train(tmp_path / "run", tiny_bert, **{**settings, "trials": 5})
    assert more.record.search.trials == 5


def test_no_trial_sees_the_test_split(tiny_bert, tmp_path, monkeypatch):
    fit, seen = choose.fit_and_measure, []

    def look(run, changes, splits, *rest):
        seen.append(set(splits))
        return fit(run, changes, splits, *rest)

    monkeypatch.setattr(choose, "fit_and_measure", look)
    train(tmp_path / "run", tiny_bert, **judged(method="tfidf", trials=3))
    assert seen == [{"train", "validation"}] * 3


@pytest.mark.parametrize(
    "change",
    [lambda frame: frame, lambda frame: frame.assign(label=frame["text"].str.len() / 7 + 0.25)],
    ids=["classes", "numbers"],
)
def test_few_validation_rows_give_way_to_folds(tiny_bert, tmp_path, capsys, change):
    run = train_on_frames(QUICK, tmp_path / "run", tiny_bert, change, method="tfidf", trials=4)
    assert run.record.search.folds == 5
    assert "on 5 folds of the training split" in capsys.readouterr().err
    for trial in read_trials(run.directory):
        assert len(trial["values"]) == (5 if trial["state"] == "complete" else len(trial["values"]))


def test_a_tuned_tfidf_reloads_with_its_terms(tiny_bert, tmp_path):
    run = train(tmp_path / "run", tiny_bert, method="tfidf", tfidf_c=2.5, tfidf_max_ngram=3)
    terms = json.loads((run.directory / "model/tfidf_terms.json").read_text())
    assert max(term.count(" ") for term in terms) == 2
    assert run.record.reload.max_difference == 0
    assert run.record.arguments.family == {"tfidf_c": 2.5, "tfidf_max_ngram": 3}
    classifier = finetune.load_classifier(run.directory)
    texts = make_frame(30, 200)["text"].tolist()
    assert classifier.predict(texts) == run.predict(texts)


def test_a_trial_that_fails_is_kept_and_the_first_must_not(tiny_bert, tmp_path, monkeypatch, capsys):
    fit, fits = choose.fit_and_measure, []

    def fail(number):
        def fit_or_fail(*parts):
            fits.append(parts)
            if len(fits) == number:
                raise FinetuneError("the loss is not a number.")
            return fit(*parts)

        return fit_or_fail

    monkeypatch.setattr(choose, "fit_and_measure", fail(2))
    run = train(tmp_path / "run", tiny_bert, **judged(method="tfidf", trials=3))
    assert (run.record.search.trials, run.record.search.failed) == (3, 1)
    assert read_trials(run.directory)[1]["message"] == "the loss is not a number."
    assert "the loss is not a number. (" in capsys.readouterr().err
    fits.clear()
    monkeypatch.setattr(choose, "fit_and_measure", fail(1))
    with pytest.raises(FinetuneError, match="the loss is not a number"):
        train(tmp_path / "other", tiny_bert, **judged(method="tfidf", trials=3))


def test_a_first_trial_that_fails_leaves_nothing(tiny_bert, tmp_path, monkeypatch):
    def fail(*parts):
        raise FinetuneError("the loss is not a number.")

    with monkeypatch.context() as patch:
        patch.setattr(choose, "fit_and_measure", fail)
        with pytest.raises(FinetuneError, match="the loss is not a number"):
            train(tmp_path / "run", tiny_bert, **judged(method="tfidf", trials=2))
        patch.setattr(choose, "fit_and_measure", lambda *parts: float("nan"))
        with pytest.raises(FinetuneError, match="Expected a number for accuracy on the rows that judge"):
            train(tmp_path / "run", tiny_bert, **judged(method="tfidf", trials=2))
    assert not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()
    run = train(tmp_path / "run", tiny_bert, **judged(method="tfidf", trials=2, seed=3))
    assert run.record.search.trials == 2


def test_tune_tries_as_many_as_a_file_says(tmp_path, monkeypatch):
    tried = []
    monkeypatch.setattr("finetune.engine.run_training", lambda arguments: tried.append(arguments.run.trials))
    make_frame().to_csv(tmp_path / "data.csv", index=False)
    (tmp_path / "few.yaml").write_text("tfidf:\n  trials: 3\n")
    words = ["tune", str(tmp_path / "data.csv"), "--method", "tfidf"]
    finetune_command(words)
    finetune_command([*words, "--config", str(tmp_path / "few.yaml")])
    finetune_command([*words, "--trials", "5"])
    assert tried == [20, 3, 5]


def test_a_trial_worse_than_the_median_is_given_up(tiny_bert, tmp_path, monkeypatch):
    def pretend(run, changes, splits, task, metric, watch):
        pretend.calls += 1
        values = [0.9, 0.95] if pretend.calls <= 5 else [0.1, 0.2]
        for value in values:
            if not watch(value):
                raise choose.PrunedError
        return values[-1]

    pretend.calls = 0
    monkeypatch.setattr(choose, "fit_and_measure", pretend)
    run = train(tmp_path / "run", tiny_bert, **judged(method="tfidf", trials=6))
    assert run.record.search.pruned == 1
    last = read_trials(run.directory)[-1]
    assert (last["state"], last["values"]) == ("pruned", [0.1])


@pytest.mark.slow
def test_a_training_is_ended_on_the_way(tiny_bert, tmp_path, monkeypatch):
    monkeypatch.setattr("optuna.trial.Trial.should_prune", lambda trial: True)
    run = train(tmp_path / "run", tiny_bert, **judged(trials=3, num_train_epochs=None, max_steps=12))
    first, *others = read_trials(run.directory)
    assert first["state"] == "complete"
    assert [(trial["state"], len(trial["values"])) for trial in others] == [("pruned", 1)] * 2
    assert len(first["values"]) > 1


def test_time_is_a_budget_too(tiny_bert, tmp_path, monkeypatch):
    clock = iter(range(0, 10_000, 30))
    monkeypatch.setattr(choose, "time", SimpleNamespace(perf_counter=lambda: float(next(clock))))
    run = train(tmp_path / "run", tiny_bert, **judged(method="tfidf", budget="2m"))
    assert run.record.search.trials == 4  # of 30 s each


def test_durations():
    assert [read_duration(text) for text in ("90", "90s", "1.5m", "2 h")] == [90, 90, 90, 7200]


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"budget": "soon"}, "Expected a time such as 90s, 10m or 2h, but got 'soon'"),
        ({"budget": "0m"}, "Expected a time such as"),
        ({"trials": 0}, "Expected --trials to be at least 1, but got 0"),
        ({"trials": 2, "method": "tfidf", "tfidf_c": 1, "tfidf_max_ngram": 1}, "all that a search tries was chosen"),
    ],
)
def test_a_search_that_can_t_be_is_refused(settings, match, tiny_bert, tmp_path):
    with pytest.raises(FinetuneError, match=match) as caught:
        train(tmp_path / "run", tiny_bert, **{**settings})
    assert "\n" not in str(caught.value)


def test_a_recipe_refuses_it_and_a_method_without_choices_says_so(flags, tiny_bert, tmp_path, capsys):
    with pytest.raises(FinetuneError, match="Expected no --trials, since this recipe trains once"):
        load_recipe("imdb").main([*flags, "--trials", "3", "--output_dir", str(tmp_path / "run")])
    (tmp_path / "few.yaml").write_text("lora:\n  trials: 3\n")
    with pytest.raises(FinetuneError, match="Expected no --trials"):
        load_recipe("imdb").main(
            [*flags, "--method", "lora", "--config", str(tmp_path / "few.yaml"), "--output_dir", str(tmp_path / "run")]
        )
    run = train(tmp_path / "embeddings", tiny_bert, method="embeddings", trials=3)
    assert run.record.search is None
    assert "has no use for: num_train_epochs, per_device_train_batch_size, trials" in capsys.readouterr().err


def test_a_plan_has_both():
    plan = Plan(TRAIN, ["tfidf", "embeddings"], [0, 1], Path("runs"), search={"trials": 3})
    names = [run.name for run in plan.runs]
    assert names == ["tfidf-seed0", "tfidf-tuned-seed0", "embeddings-seed0", "tfidf-tuned-seed1"]
    assert "--trials=3" in plan.command(plan.runs[1])
    assert "--trials=3" not in plan.command(plan.runs[0])
    assert compare_module._count(plan).startswith(
        "2 methods × 2 seeds = 4 runs with the defaults, and 2 runs tuned (trials 3); nothing to try for embeddings; "
    )


def test_a_report_has_both_and_says_what_tuning_gained(tiny_bert, tmp_path):
    for seed in (0, 1):
        train(tmp_path / f"default-{seed}", tiny_bert, **judged(seed=seed))
        train(tmp_path / f"tuned-{seed}", tiny_bert, **judged(seed=seed, trials=3))
    report = build_report([tmp_path])
    assert sorted(group.name for group in report.groups) == ["full", "full (tuned)"]
    conditions = " ".join(report.conditions)
    assert "full (tuned) with the best of 3 trials by accuracy on the validation split" in conditions
    assert re.search(
        r"Tuning: full \(tuned\) is [+-]?[\d.]+ points from full in accuracy on test \(95 % interval", conditions
    )
    default, tuned = sorted(report.groups, key=lambda group: group.is_tuned)
    assert tuned.seeds == [0, 1]
    assert tuned.runs[0].cost("train_seconds") > tuned.runs[0].record.search.seconds > 0
    assert not tuned.is_deterministic
    assert "trials" not in default.settings


def test_what_does_not_fit_into_the_total_budget_is_left_out(tmp_path, monkeypatch, capsys):
    clock = iter(range(0, 10_000, 60))
    monkeypatch.setattr(compare_module, "time", SimpleNamespace(monotonic=lambda: float(next(clock))))
    monkeypatch.setattr(compare_module, "_launch_or_join", lambda plan, run, log, where: finish(run))
    monkeypatch.setattr(compare_module, "_result", lambda run: "")
    done = set()
    monkeypatch.setattr(compare_module.Planned, "is_finished", lambda run: run.name in done)

    def finish(run):
        done.add(run.name)
        return 0

    plan = Plan(TRAIN, ["textcnn", "full"], [0, 1], tmp_path / "runs", total_budget="150s")
    assert run_plan(plan) == []
    out = capsys.readouterr().out
    assert done == {"textcnn-seed0", "full-seed0"}
    assert "[3/4] textcnn-seed1: left out, since it takes 1 min 0 s, and 30 s of --total_budget 150s are left" in out
