"""What words contribute: exactly where a model is linear, by leaving them out elsewhere."""

import numpy as np
import pytest
from conftest import make_reviews, write_csv

import finetune
from finetune.cli import main as command
from finetune.errors import FinetuneError
from finetune.models.answers import TextClassifier
from finetune.models.explanation import MOST_PARTS, compute_scores
from finetune.tasks import MULTI_LABEL, REGRESSION, SINGLE_LABEL, Task

HOSTILE = ["", "!!!", "good", "Good good GOOD bad", "un très bon film, déjà-vu", "déjà très", "İstanbul good",
           "好电影 good 👍🏽", "<b>good</b> & bad", "हिन्दी good"]  # fmt: skip


class Counter(TextClassifier):
    """Its logits are numbers of words: the first label's of "good", the second's of "bad"."""

    def __init__(self, problem_type=SINGLE_LABEL, names=("pos", "neg")):
        self.task = Task(problem_type, list(names))
        self.seen = 0

    def compute_logits(self, texts, pairs=None, on_batch=lambda count: None):
        self.seen += len(texts)
        words = [text.split() for text in texts]
        columns = [[one.count("good") for one in words], [one.count("bad") for one in words]]
        return np.array(columns[: len(self.task.label_names)], dtype=np.float32).T, np.array(
            [len(one) for one in words]
        )


def test_the_score_of_a_label():
    logits, labels = np.array([[3.0, 1.0, 2.0]]), np.array([0])
    assert compute_scores(logits, labels, SINGLE_LABEL) == [1.5]
    assert compute_scores(logits[:, :2], labels, SINGLE_LABEL) == [2.0]  # the log-odds
    assert compute_scores(logits, labels, MULTI_LABEL) == [3.0]
    assert compute_scores(logits[:, :1], labels, REGRESSION) == [3.0]


def test_left_out_words_say_what_the_score_loses():
    found = Counter().explain("a good film , not bad , good")[0]
    assert (found.label, found.score, found.base, found.is_exact) == ("pos", 1.0, 0.0, False)
    assert dict(found.top(3)) == {"good": 1.0, "bad": -1.0}
    assert [found.text[part.start : part.end] for part in found.parts] == ["a", "good", "film", "not", "bad", "good"]
    assert Counter().explain("a good film", label="neg")[0].top(1) == [("good", -1.0)]


def test_long_texts_are_left_out_in_groups():
    model = Counter()
    found = model.explain("good " * 250)[0]
    assert model.seen <= MOST_PARTS + 3
    assert len(found.parts) == 250
    assert sum(part.contribution for part in found.parts) == pytest.approx(250)


def test_an_unknown_label_is_refused():
    with pytest.raises(FinetuneError, match="'maybe'"):
        Counter().explain("good", label="maybe")


def test_html_shows_the_text_and_nothing_of_it_acts():
    shown = Counter().explain("<b>good</b> film & <script>bad")[0].to_html()
    assert "<b>" not in shown
    assert "<script" not in shown
    assert shown.count("<span") == 6


@pytest.fixture(scope="module", params=["one of two", "one of three", "several", "a number"])
def tfidf(request, tmp_path_factory):
    """A TF-IDF model of each kind of task."""
    folder = tmp_path_factory.mktemp("tfidf")
    rows = make_reviews(120)
    flags = {}
    match request.param:
        case "one of three":
            rows = [(text, label if number % 3 else "mixed") for number, (text, label) in enumerate(rows)]
        case "several":
            rows, flags = [(text, f"{label};any") for text, label in rows], {"label_delimiter": ";"}
        case "a number":
            rows = [(text, f"{number % 7 + 0.5}") for number, (text, label) in enumerate(rows)]
            flags = {"problem_type": "regression"}
    return finetune.train(
        write_csv(folder / "data.csv", rows), method="tfidf", output_dir=folder / "run", floor=False, **flags
    )


def test_contributions_to_a_linear_model_add_up_to_its_score(tfidf):
    texts = [*HOSTILE, *(text for text, _ in make_reviews(20))]
    found = tfidf.explain(texts)
    for one in found:
        assert one.is_exact
        assert sum(part.contribution for part in one.parts) == pytest.approx(one.score - one.base, abs=1e-5)
    for label in tfidf.classifier.label_names:
        assert {one.label for one in tfidf.explain(texts[:2], label=label)} == {label}


def test_the_words_named_first_move_the_score_most(tfidf):
    losses = []
    rng = np.random.default_rng(0)
    for text in [text for text, _ in make_reviews(30)]:
        one = tfidf.explain(text)[0]
        order = sorted(one.parts, key=lambda part: -part.contribution)
        chosen = [order[0], one.parts[rng.integers(len(one.parts))]]
        without = [text[: part.start] + text[part.end :] for part in chosen]
        scores = [tfidf.explain(other, label=one.label)[0].score for other in without]
        losses.append(scores[1] - scores[0])
    assert np.mean(losses) > 0 or tfidf.classifier.label_names == ["any", "neg", "pos"]  # every text has "any"


def test_the_command_prints_them(tfidf, capsys):
    capsys.readouterr()
    command(["predict", str(tfidf.directory), "good \x1b[31m film", "--explain"])
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 2
    assert out[1].startswith("  for ")
    assert "\x1b" not in out[1]
