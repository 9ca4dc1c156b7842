"""What a report says of trust and reasons: answers when sure, words of mistakes and of classes, five lines in brief."""

import json
from collections import defaultdict
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import make_frame, recipe_of
from synthetic_runs import write_run

import finetune
from finetune.cli import main
from finetune.comparison.brief import describe_in_brief
from finetune.comparison.drawings import draw_report
from finetune.comparison.page import build_page
from finetune.comparison.report import build_report, to_json
from finetune.comparison.selective import compute_selective_accuracy
from finetune.comparison.text import to_markdown
from finetune.data.words import compose
from finetune.decisions.rules import DecisionRules
from finetune.inference import reasons as inference_reasons
from finetune.inference.reasons import explain_report
from finetune.metrics import MULTI_LABEL, REGRESSION
from finetune.models.explanation import find_words


@pytest.fixture(scope="module")
def folder(flags, tmp_path_factory):
    """Runs of TF-IDF and of an encoder with a frozen body, on the sixty reviews, whose answers are partly wrong."""
    folder = tmp_path_factory.mktemp("reasons")
    for method in ("tfidf", "head"):
        recipe_of(method).main([*flags, "--method", method, "--output_dir", str(folder / method), "--no_floor"])
    return folder


@pytest.fixture(scope="module")
def explained(folder):
    built = build_report([folder])
    return replace(built, reasons=explain_report(built))


def test_mistakes_are_explained_by_the_model_that_made_them(explained, folder):
    shown = 0
    for group in explained.groups:
        classifier = finetune.load_classifier(folder / group.method)
        found = explained.reasons.mistakes[group.name]
        for example in explained.differences.mistakes[group.name]:
            answer = example.answers[group.name]
            text = explained.texts.get(example.row)[0]
            (expected,) = classifier.explain(text, label=answer.label)
            assert answer.label != example.label
            assert found[example.row].label == answer.label
            assert [part.contribution for part in found[example.row].parts] == pytest.approx(
                [part.contribution for part in expected.parts], abs=1e-5
            )
            shown += 1
    assert shown >= 3


def test_the_words_of_a_linear_model_are_its_weights(explained, folder):
    model = finetune.load_classifier(folder / "tfidf").model
    weights = dict(zip(model.columns, model.coefficients[0].tolist(), strict=True))
    words = explained.reasons.words["tfidf"]["pos"]
    assert [word.weight for word in words] == pytest.approx(sorted(weights.values(), reverse=True)[:10])
    assert [word.weight for word in words] == pytest.approx([weights[word.word] for word in words])
    assert {"good", "great", "fine", "lovely", "superb"} <= {word.word for word in words}
    assert {word.num_texts for word in words} == {None}


def test_other_words_are_means_of_explanations(explained, folder):
    run = next(group for group in explained.groups if group.name == "head").runs[0]
    classifier = finetune.load_classifier(folder / "head")
    texts = inference_reasons._read_texts(run)
    sums, counts, answered = defaultdict(float), defaultdict(int), 0
    for one in classifier.explain([text for text, _ in texts]):
        if one.label == "pos":
            answered += 1
            words = [compose(one.text[part.start : part.end]) for part in one.parts]
            for word, part in zip(words, one.parts, strict=True):
                sums[word] += part.contribution
            for word in set(words):
                counts[word] += 1
    found = explained.reasons.words["head"]["pos"]
    known = {word: value / answered for word, value in sums.items() if counts[word] >= 2 and value > 0}
    assert len(found) == min(10, len(known))
    for word in found:
        assert word.weight == pytest.approx(known[word.word], abs=1e-5)
        assert word.num_texts == counts[word.word]
    assert "20 validation texts" in explained.reasons.notes["head"]


def test_what_is_explained_is_bounded(explained, monkeypatch):
    monkeypatch.setattr(inference_reasons, "BUDGET", 500)
    group = next(group for group in explained.groups if group.name == "head")
    run = group.runs[0]
    texts = inference_reasons._read_texts(run)
    chosen = list(inference_reasons._choose_rows(run, texts, finetune.load_classifier(run.directory)))
    counts = [len(find_words(texts[row][0])) for row, _ in chosen]
    assert 0 < sum((count + 2) * count for count in counts) <= 500
    assert len(chosen) < len(texts)


def test_every_outlet_of_the_report_shows_them(explained):
    drawings = draw_report(explained)
    page, markdown, content = build_page(explained, drawings), to_markdown(explained, drawings), to_json(explained)
    assert json.dumps(content["reasons"])
    for name, found in explained.reasons.mistakes.items():
        for row, one in found.items():
            pieces = content["reasons"]["mistakes"][name][str(row)]["pieces"]
            assert "".join(piece["text"] for piece in pieces) == one.text
            strongest = max(one.parts, key=lambda part: abs(part.contribution))
            kind = "for" if strongest.contribution > 0 else "against"
            word = one.text[strongest.start : strongest.end]
            assert (
                f'<span class="{kind}" style="--share: 1.00" title="{strongest.contribution:+.3f}">{word}</span>'
                in page
            )
            assert f"Why {one.label}: " in markdown
    assert '<section id="words">' in page
    assert "## Words that decide" in markdown


def test_a_report_without_models_or_texts_says_what_it_lacks(folder, tmp_path, capsys):
    write_run(tmp_path / "runs/full", "full", 0, 2.0)
    main(["report", str(tmp_path / "runs"), "--output_dir", str(tmp_path / "out"), "--explain", "--num_threads", "1"])
    error = capsys.readouterr().err
    assert "not explained: full: " in error
    assert "model/" in error
    page = (tmp_path / "out/report.html").read_text()
    assert "Not explained: full" in page
    main(["report", str(folder / "tfidf"), "--output_dir", str(tmp_path / "plain")])
    assert "finetune report --explain" in (tmp_path / "plain/report.html").read_text()


def test_the_surest_answers_are_right_as_often_as_counted():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(0, 2, (200, 3)), rng.integers(3, size=200)
    logits[np.arange(200), labels] += 2
    rules = DecisionRules(temperature=1.7)
    record = SimpleNamespace(answers=None)
    runs = [SimpleNamespace(rules=rules, test=SimpleNamespace(logits=logits, labels=labels), record=record)]
    found = compute_selective_accuracy(SimpleNamespace(runs=runs))
    probabilities = rules.to_probabilities(logits)
    for threshold, answered, right, low, high in zip(
        found.threshold, found.answered, found.right, found.low, found.high, strict=True
    ):
        given = probabilities.max(axis=1) >= threshold
        assert given.mean() == pytest.approx(answered)
        assert (probabilities.argmax(axis=1) == labels)[given].mean() == pytest.approx(right)
        assert low <= right <= high
    assert found.answered[-1] == 1
    assert found.chosen is None


@pytest.mark.parametrize("problem_type", [None, MULTI_LABEL, REGRESSION])
def test_the_brief_has_a_line_for_each_question(problem_type, tmp_path):
    settings = {} if problem_type is None else {"problem_type": problem_type}
    names = {MULTI_LABEL: ("a", "b", "c"), REGRESSION: ("stars",)}.get(problem_type, ("negative", "positive"))
    for method, skill in (("tfidf", 1.0), ("full", 3.4)):
        write_run(tmp_path / method, method, 0, skill, label_names=names, **settings)
    built = build_report([tmp_path])
    lines = dict(describe_in_brief(built))
    assert list(lines)[:4] == ["Choice", "Quality", "Baseline", "Cost"]
    assert ("Watch" in lines) == (problem_type != REGRESSION)
    assert "full" in lines["Quality"]
    page = build_page(built, draw_report(built))
    assert lines["Cost"] in page
    assert ("Answering only when sure" in page) == (problem_type != REGRESSION)


def test_many_classes_stay_readable(tmp_path):
    names = [f"class {number:02d}" for number in range(52)]
    write_run(tmp_path / "full", "full", 0, 3.0, label_names=names, num_test=1000)
    built = build_report([tmp_path])
    (matrix,) = [drawing for drawing in draw_report(built) if drawing.section == "confusion"]
    shown = [name for name in names if f">{name}<" in matrix.svg]
    assert len(shown) == 20
    wrong = built.confusion["full"] * (1 - np.eye(52))
    worst = np.argsort(-(wrong.sum(axis=0) + wrong.sum(axis=1)), kind="stable")[:20]
    assert shown == [names[number] for number in sorted(worst)]


def test_frames_of_numbers_name_words_on_both_sides(tmp_path):
    frame = make_frame(120)
    frame["label"] = [(5.5 if label == "pos" else 1.5) + number % 3 for number, label in enumerate(frame["label"])]
    run = finetune.train(frame, method="tfidf", output_dir=tmp_path / "run", problem_type="regression")
    built = build_report([run.directory])
    (words,) = explain_report(built).words["tfidf"].values()
    assert words[0].weight > 0 > words[-1].weight
    assert words[0].word in ("good", "great", "fine", "lovely", "superb")
