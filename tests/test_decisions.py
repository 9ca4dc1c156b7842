"""From scores to answers: silence, sets, costs, by hand and on draws whose truth is known; saved, reloaded, revised."""

import json

import numpy as np
import pytest
from conftest import make_reviews, write_csv
from scipy.special import softmax

import finetune
from finetune.cli import main as command
from finetune.decisions.abstention import choose_confidence, reachable_precision
from finetune.decisions.cost_matrix import build_cost_matrix, read_cost_matrix
from finetune.decisions.prediction_sets import fit_prediction_sets
from finetune.decisions.rules import DecisionRules, HeldOut, Wishes, fit_rules
from finetune.decisions.saved import DECISIONS_FILE, HELD_OUT_FILE, read_held_out, read_rules, write_rules
from finetune.errors import FinetuneError
from finetune.inference.predict import load_predictor
from finetune.tasks import MULTI_LABEL, REGRESSION, SINGLE_LABEL, Task

TASK = Task(SINGLE_LABEL, ["ham", "spam"])


def draw(seed, rows, num_labels=3, noise=2.0):
    """Logits that are the true log-probabilities, and labels drawn by them."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, noise, (rows, num_labels))
    labels = (softmax(logits, axis=1).cumsum(axis=1) > rng.random((rows, 1))).argmax(axis=1)
    return logits, labels


def test_silence_keeps_its_promise_on_new_texts():
    """At most one draw in twenty may choose a confidence above which answers are less often right than asked."""
    broken = answered = 0
    truth, labels = draw(0, 200_000)
    probabilities = softmax(truth, axis=1)
    confidence, is_right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    for seed in range(1, 101):
        logits, own = draw(seed, 1_000)
        found = softmax(logits, axis=1)
        chosen = choose_confidence(found.max(axis=1), found.argmax(axis=1) == own, 0.9)
        given = confidence >= chosen.confidence
        broken += bool(given.any() and is_right[given].mean() < 0.9)
        answered += given.mean() / 100
    assert broken <= 5
    assert answered > 0.25  # a threshold that knew the truth would answer 47 %


def test_no_share_of_too_few_rows_proves_anything():
    confidence = np.linspace(0.5, 0.99, 50)
    chosen = choose_confidence(confidence, np.ones(50, dtype=bool), 0.99)
    assert (chosen.answered, chosen.confidence) == (0.0, 2.0)
    most = reachable_precision(confidence, np.ones(50, dtype=bool))
    assert choose_confidence(confidence, np.ones(50, dtype=bool), most).answered == 1.0
    assert choose_confidence(confidence, np.ones(50, dtype=bool), most + 0.01).answered == 0.0


def test_equal_confidences_are_answered_together_or_not_at_all():
    chosen = choose_confidence(np.full(200, 0.7), np.arange(200) % 2 == 0, 0.9)
    assert chosen.answered == 0.0
    assert choose_confidence(np.full(200, 0.7), np.ones(200, dtype=bool), 0.9).answered == 1.0


@pytest.mark.parametrize("class_conditional", [False, True])
def test_sets_hold_the_right_label_as_often_as_asked(class_conditional):
    logits, labels = draw(0, 50_000)
    labels[labels == 2] = np.where(np.random.default_rng(1).random((labels == 2).sum()) < 0.8, 0, 2)  # it is misjudged
    coverages = []
    for seed in range(40):
        rows = np.random.default_rng(seed).permutation(len(labels))
        chosen, new = rows[:500], rows[500:]
        probabilities = softmax(logits, axis=1)
        sets = fit_prediction_sets(probabilities[chosen], labels[chosen], SINGLE_LABEL, 0.9, class_conditional)
        holds = sets.contain(probabilities[new])[np.arange(len(new)), labels[new]]
        coverages.append([holds[labels[new] == number].mean() for number in range(3)] + [holds.mean()])
    *of_classes, whole = np.mean(coverages, axis=0)
    if class_conditional:
        assert min(of_classes) > 0.89
    else:
        assert whole == pytest.approx(0.9, abs=0.01)
        assert of_classes[0] < 0.87  # which is why there is the other kind


def test_sets_of_several_labels_hold_all_of_them():
    rng = np.random.default_rng(0)
    probabilities = rng.random((4_000, 4))
    labels = (rng.random((4_000, 4)) < probabilities).astype(int)
    sets = fit_prediction_sets(probabilities[:1_000], labels[:1_000], MULTI_LABEL, 0.9)
    holds = (sets.contain(probabilities[1_000:]) | (labels[1_000:] == 0)).all(axis=1)
    assert holds.mean() == pytest.approx(0.9, abs=0.03)


def test_intervals_hold_the_number():
    rng = np.random.default_rng(0)
    predicted = rng.normal(0, 1, (3_000, 1))
    labels = predicted[:, 0] + rng.standard_t(3, 3_000)
    sets = fit_prediction_sets(predicted[:1_000], labels[:1_000], REGRESSION, 0.8)
    ends = sets.around(predicted[1_000:, 0])
    assert ((ends[:, 0] <= labels[1_000:]) & (labels[1_000:] <= ends[:, 1])).mean() == pytest.approx(0.8, abs=0.03)


def test_too_few_rows_put_every_label_in_every_set():
    sets = fit_prediction_sets(np.array([[0.9, 0.1]] * 5), np.zeros(5, int), SINGLE_LABEL, 0.9)
    assert sets.contain(np.array([[1.0, 0.0]])).all()


def test_the_answer_costs_least(tmp_path):
    (tmp_path / "costs.yaml").write_text("spam: {ham: 10}\n")
    costs = read_cost_matrix(str(tmp_path / "costs.yaml"))
    assert build_cost_matrix(costs, TASK.label_names).tolist() == [[0, 1], [10, 0]]
    rules = fit_rules(Wishes(costs=costs), None, TASK)
    decided = rules.decide(np.array([[0.85, 0.15], [0.95, 0.05]]))
    assert decided.tolist() == [[False, True], [True, False]]  # 1.5 against 0.85, and 0.5 against 0.95


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("spam: 10", "labels and costs"),
        ("[1, 2]", "labels and costs"),
        ("spam: {ham: -1}", "at least 0"),
        ("spam: {ham: .inf}", "at least 0"),
        ("spam: {ham: yes}", "at least 0"),
        ("spam: {ham: [", "can't be read"),
        ("spam: {egg: 2}", "'egg'"),
        ("yes: {ham: 2}", "quoted"),
        ("spam: {ham: 0}\nham: {spam: 0}", "above 0"),
    ],
)
def test_costs_that_mean_nothing_are_refused(tmp_path, content, said):
    (tmp_path / "costs.yaml").write_text(content)
    with pytest.raises(FinetuneError, match=said) as error:
        build_cost_matrix(read_cost_matrix(str(tmp_path / "costs.yaml")), TASK.label_names)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("task", "wishes", "said"),
    [
        (Task(REGRESSION, ["price"]), Wishes(abstain=0.9), "intervals"),
        (Task(REGRESSION, ["price"]), Wishes(costs={}), "a number"),
        (Task(MULTI_LABEL, ["a", "b"]), Wishes(costs={}), "several labels"),
        (TASK, Wishes(class_conditional=True), "--coverage"),
    ],
)
def test_what_a_task_does_not_have_is_refused(task, wishes, said):
    with pytest.raises(FinetuneError, match=said):
        fit_rules(wishes, HeldOut(np.zeros((4, len(task.label_names))), np.zeros(4, int)), task)


def test_rules_are_read_as_they_were_written(tmp_path):
    logits, labels = draw(0, 400, num_labels=2)
    held_out = HeldOut(logits.astype(np.float32), labels)
    wishes = Wishes(abstain=0.9, coverage=0.9, class_conditional=True, costs={"spam": {"ham": 2.5}})
    rules = fit_rules(wishes, held_out, TASK, temperature=1.5)
    write_rules(tmp_path, rules, held_out)
    found = read_rules(tmp_path, TASK)
    assert (found.temperature, found.abstention, found.prediction_sets) == (
        1.5,
        rules.abstention,
        rules.prediction_sets,
    )
    assert np.array_equal(found.costs, rules.costs)


@pytest.mark.parametrize(
    "content",
    ["[]", "{", "{}", '{"temperature": 0}', '{"temperature": "x"}', '{"temperature": 1, "costs": [[1]]}',
     '{"temperature": 1e-300}', '{"temperature": 1e300}', '{"temperature": "1"}', '{"temperature": true}',
     '{"temperature": 1, "costs": [[0, NaN], [1, 0]]}', '{"temperature": 1, "rules": []}',
     '{"temperature": 1, "abstention": {}}', '{"temperature": 1, "abstention": 3}',
     '{"temperature": 1, "abstention": {"precision": 0.9, "confidence": NaN, "answered": 1}}',
     '{"temperature": 1, "abstention": {"precision": 0.9, "confidence": 1e9, "answered": 1}}',
     '{"temperature": 1, "prediction_sets": {"coverage": 9, "class_conditional": false, "quantiles": [1, 1]}}',
     '{"temperature": 1, "prediction_sets": {"coverage": 0.9, "class_conditional": false, "quantiles": [-1, 1]}}',
     '{"temperature": 1, "prediction_sets": {"coverage": 0.9, "class_conditional": false, "quantiles": [1]}}'],
)  # fmt: skip
def test_spoilt_rules_are_refused_in_one_line(tmp_path, content):
    (tmp_path / DECISIONS_FILE).write_text(content)
    with pytest.raises(FinetuneError, match=DECISIONS_FILE):
        read_rules(tmp_path, TASK)


@pytest.mark.parametrize(
    ("problem_type", "labels"),
    [
        (SINGLE_LABEL, [0, 2]), (SINGLE_LABEL, [0.0, 1.0]), (SINGLE_LABEL, []), (REGRESSION, [np.nan, 1.0]),
        (MULTI_LABEL, [[0, 1], [2, 0]]),
    ],
)  # fmt: skip
def test_spoilt_held_out_rows_are_refused_in_one_line(tmp_path, problem_type, labels):
    task = Task(problem_type, ["a"] if problem_type == REGRESSION else ["a", "b"])
    logits = np.zeros((len(labels), len(task.label_names)), dtype=np.float32)
    write_rules(tmp_path, DecisionRules(problem_type), HeldOut(logits, np.array(labels)))
    with pytest.raises(FinetuneError, match=HELD_OUT_FILE):
        read_held_out(tmp_path, task)


def test_logits_that_a_temperature_makes_infinite_are_no_answer():
    with pytest.raises(FinetuneError, match="gives NaN or infinity for text 1 of 2"):
        DecisionRules(temperature=0.01).to_probabilities(np.array([[1, 2], [1e38, 2e38]], dtype=np.float32))


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """A run that was asked for all of it."""
    folder = tmp_path_factory.mktemp("asked")
    path = write_csv(folder / "data.csv", make_reviews(400))
    (folder / "costs.yaml").write_text("pos: {neg: 3}\n")
    return finetune.train(
        path,
        method="tfidf",
        output_dir=folder / "run",
        abstain=0.7,
        coverage=0.8,
        cost_matrix=str(folder / "costs.yaml"),
    )


def test_a_run_records_and_saves_what_was_asked(asked):
    answers = json.loads((asked.directory / "run.json").read_text())["answers"]
    assert answers["costs"] == [[0, 1], [3, 0]]
    assert answers["abstention"]["precision"] == 0.7
    assert answers["prediction_sets"]["coverage"] == 0.8
    assert answers["calibration"]["temperature"] > 0
    saved = json.loads((asked.directory / "model" / DECISIONS_FILE).read_text())
    assert saved["temperature"] == answers["calibration"]["temperature"]
    assert saved["abstention"]["confidence"] == answers["abstention"]["confidence"]


def test_every_way_to_ask_gives_the_same_answers(asked, tmp_path, capsys):
    texts = [text for text, _ in make_reviews(40)]
    from_python = asked.predict(texts)
    assert any(one.is_given for one in from_python)
    for one in from_python:
        assert (one.label is None) == (not one.is_given)
        assert one.label_set is not None
    path = write_csv(tmp_path / "in.csv", [(text, "") for text in texts])
    command(["predict", str(asked.directory), "--input_file", path, "--output_file", str(tmp_path / "o.csv"),
                       "--text_column", "text"])  # fmt: skip
    header = (tmp_path / "o.csv").read_text().splitlines()[0].split(",")
    assert {"is_answered", "prediction_set", "predicted_label"} <= set(header)
    capsys.readouterr()
    command(["predict", str(asked.directory), *texts])
    lines = capsys.readouterr().out.splitlines()
    for line, one in zip(lines, from_python, strict=True):
        assert line.split("\t")[0] == (one.label if one.is_given else "(not sure)")
        assert line.split("\t")[2] == f"{{{', '.join(one.label_set)}}}"


def test_evaluate_measures_what_was_asked(asked, tmp_path, capsys):
    path = write_csv(tmp_path / "test.csv", make_reviews(60))
    capsys.readouterr()
    command(["evaluate", str(asked.directory), "--test_file", path, "--output_json", str(tmp_path / "m.json")])
    found = json.loads((tmp_path / "m.json").read_text())
    answers = asked.predict([text for text, _ in make_reviews(60)])
    right = [one.label == label for one, (_, label) in zip(answers, make_reviews(60), strict=True) if one.is_given]
    held = [label in one.label_set for one, (_, label) in zip(answers, make_reviews(60), strict=True)]
    assert found["answered"] == pytest.approx(len(right) / 60)
    assert found["answered_right"] == pytest.approx(np.mean(right))
    assert found["set_coverage"] == pytest.approx(np.mean(held))
    assert "answered_right" in capsys.readouterr().out


def test_others_can_be_asked_for_later(asked):
    texts = [text for text, _ in make_reviews(40)]
    plain = load_predictor(asked.directory, wishes=Wishes(calibrate=False))
    assert plain.rules.temperature == 1.0
    assert plain.rules.abstention.precision == 0.7  # what is not asked anew stays
    wide = load_predictor(asked.directory, wishes=Wishes(coverage=0.99))
    narrow = load_predictor(asked.directory)
    sizes = [sum(len(one.label_set) for one in predictor.predict(texts)) for predictor in (wide, narrow)]
    assert sizes[0] >= sizes[1]
    silent = pytest.warns(UserWarning, match="no text is answered")
    with silent:
        never = load_predictor(asked.directory, wishes=Wishes(abstain=0.9999))
    assert not any(one.is_given for one in never.predict(texts))


def test_a_model_without_held_out_rows_says_so(asked, tmp_path):
    import shutil

    shutil.copytree(asked.directory / "model", tmp_path / "model")
    for name in (HELD_OUT_FILE, DECISIONS_FILE):
        (tmp_path / "model" / name).unlink()
    assert load_predictor(tmp_path / "model").predict("good")[0].is_given
    with pytest.raises(FinetuneError, match=HELD_OUT_FILE):
        load_predictor(tmp_path / "model", wishes=Wishes(abstain=0.9))


def test_thresholds_of_several_labels_decide_alike_without_calibration(tmp_path):
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (300, 2)).astype(np.float32)
    labels = (rng.random((300, 2)) < 1 / (1 + np.exp(-logits / 3))).astype(int)
    task = Task(MULTI_LABEL, ["a", "b"])
    rules = DecisionRules(MULTI_LABEL, temperature=3.0, thresholds=np.array([0.3, 0.6]))
    write_rules(tmp_path, rules, HeldOut(logits, labels))
    from finetune.decisions.saved import revise_rules

    plain = revise_rules(tmp_path, rules, Wishes(calibrate=False), task)
    assert np.array_equal(plain.predict(logits), rules.predict(logits))
