"""The verdict on scores made by hand, what it says, and how often it is wrong in a small simulation."""

import numpy as np
import pytest
from scipy.stats import norm

from finetune.comparison.plans import Plan
from finetune.comparison.statistics import paired_difference
from finetune.comparison.verdict import decide
from finetune.errors import FinetuneError

COSTS = {"cheap": 1.0, "middle": 5.0, "dear": 20.0}
CERTAIN = {"cheap", "dear"}  # of methods that no seed changes, one run is all there is to know


def make_scores(num_examples, *wrong, repeat=1):
    """One run that is wrong on the examples of the ranges, for every `num_examples / 100`; or several alike."""
    scores = np.ones(num_examples)
    for start, end in wrong:
        scores[start * num_examples // 100 : end * num_examples // 100] = 0
    return np.repeat(scores[None], repeat, axis=0)


# As good as each other: both right on 90 of 100, differing on 4.
EQUAL = {"cheap": [(0, 10)], "dear": [(2, 12)]}


def test_the_cheaper_of_two_equals_is_taken_when_the_test_set_shows_it():
    verdict = decide({name: make_scores(20_000, *wrong) for name, wrong in EQUAL.items()}, COSTS, deterministic=CERTAIN)
    assert (verdict.decided, verdict.chosen) == (True, "cheap")
    cheap, dear = verdict.comparisons["cheap"], verdict.comparisons["dear"]
    assert cheap.non_inferior
    assert dear.non_inferior
    assert cheap.adjusted_p_value == cheap.p_value  # of two methods only one can be worse: nothing to correct
    assert cheap.more_examples is None


@pytest.mark.parametrize("scores", [
    {name: make_scores(100, *wrong, repeat=3) for name, wrong in EQUAL.items()},
    {"cheap": make_scores(100, (0, 10)), "dear": make_scores(100, (0, 10))},  # they agree on every example
    {"cheap": make_scores(100), "dear": make_scores(100)},  # and are always right
    {"cheap": make_scores(100, (0, 9)), "dear": make_scores(100, (0, 10))},  # the cheap one seems better
])  # fmt: skip
def test_a_hundred_examples_crown_nobody(scores):
    verdict = decide(scores, COSTS, deterministic=CERTAIN)
    assert (verdict.decided, verdict.chosen) == (False, None)
    assert verdict.sentences[0].startswith("Not decided")
    assert "more test examples" in verdict.sentences[1]


def test_a_worse_method_is_not_taken():
    scores = {"cheap": make_scores(5_000, (0, 14)), "dear": make_scores(5_000, (2, 13))}
    verdict = decide(scores, COSTS, deterministic=CERTAIN)
    assert (verdict.decided, verdict.chosen, verdict.best) == (True, "dear", "dear")
    assert verdict.comparisons["cheap"].worse
    assert verdict.comparisons["cheap"].difference.estimate == pytest.approx(-0.03)
    assert verdict.comparisons["dear"].difference == (0, 0, 0)
    assert verdict.sentences == [
        "Take dear: it has the best accuracy, and no other method is better by more than 1.0 point of accuracy; every "
        "cheaper one is worse by more than that.",
        # 1.96 * sqrt(0.03 * 0.97 / 5000) = 0.0047
        "cheap is worse than dear by more than 1.0 point (difference −3.0 points, 95 % interval −3.5 to −2.5).",
        # 150 examples of 150 that differ, all one way
        "McNemar's exact test that cheap and dear, as trained, are right equally often: p = 1.4e-45.",
    ]
    assert verdict.mcnemar_p_value == pytest.approx(2 * 0.5**150)


def test_a_method_in_the_middle():
    scores = {
        "dear": make_scores(40_000, (0, 10), repeat=3),
        "cheap": make_scores(40_000, (0, 15), repeat=3),
        "middle": make_scores(40_000, (0, 9), (11, 13), repeat=3),
    }
    verdict = decide(scores, COSTS, margin=0.02)
    assert (verdict.decided, verdict.chosen, verdict.best) == (True, "middle", "dear")
    assert list(verdict.comparisons) == ["cheap", "middle", "dear"]
    assert verdict.sentences[0].startswith("Take middle: it is no worse than any other method by more than 2.0 points")
    assert "difference from dear, the best: −1.0 points" in verdict.sentences[0]
    # Closer to the margin, the cheapest is open: the middle one is safe, and nothing is decided.
    scores["cheap"] = make_scores(40_000, (0, 12), repeat=3)
    verdict = decide(scores, COSTS, margin=0.02)
    assert (verdict.decided, verdict.chosen) == (False, "middle")
    assert verdict.sentences[0].startswith("middle is a safe choice")
    assert verdict.sentences[1].startswith("Open: whether cheap is worse than dear by more than 2.0 points")
    assert verdict.sentences[1].endswith("Even 30 more seeds of each method would hardly tell.")


def test_with_more_methods_each_has_to_show_more():
    """Of three methods two may be worse, so Holm doubles the smallest p-value."""
    two = {"cheap": make_scores(2_400, (0, 10), repeat=3), "dear": make_scores(2_400, (2, 12), repeat=3)}
    verdict = decide(two, COSTS)
    p_value = verdict.comparisons["cheap"].p_value
    assert verdict.level / 2 < p_value < verdict.level
    assert verdict.chosen == "cheap"
    three = decide({**two, "middle": make_scores(2_400, (1, 11), repeat=3)}, COSTS)
    assert three.comparisons["cheap"].p_value == p_value
    assert three.comparisons["cheap"].adjusted_p_value == pytest.approx(2 * p_value)
    assert not three.comparisons["cheap"].non_inferior


def test_with_more_methods_it_takes_more_to_be_called_worse():
    """Of three pairs the least p-value counts three times."""
    two = {"cheap": make_scores(500, (0, 14)), "dear": make_scores(500, (2, 13))}
    verdict = decide(two, COSTS, deterministic=set(COSTS))
    p_value = paired_difference(two["cheap"], two["dear"]).p_worse(0.01)
    assert verdict.level / 3 < p_value < verdict.level
    assert verdict.comparisons["cheap"].worse
    three = decide({**two, "middle": make_scores(500, (1, 14))}, COSTS, deterministic=set(COSTS))
    assert not three.comparisons["cheap"].worse


def test_a_run_that_failed_decides_nothing():
    rng = np.random.default_rng(0)
    scores = {
        "cheap": (rng.random((3, 5_000)) < 0.92).astype(float),
        "dear": (rng.random((3, 5_000)) < [[0.92], [0.93], [0.5]]).astype(float),
    }
    verdict = decide(scores, COSTS)
    assert (verdict.decided, verdict.chosen, verdict.best) == (False, None, "cheap")


def test_the_planned_number_of_examples_decides():
    scores = {name: make_scores(1_000, *wrong) for name, wrong in EQUAL.items()}
    verdict = decide(scores, COSTS, deterministic=CERTAIN)
    cheap = verdict.comparisons["cheap"]
    assert not cheap.non_inferior
    assert cheap.more_seeds is None
    low, high = cheap.more_examples[:2]
    said = str(cheap.more_examples).replace("between", "Between")
    assert verdict.sentences[1].endswith(f" {said} more test examples would tell, in 4 of 5 cases.")
    # The estimate is 0, so 0.01 from the margin, and its standard error 0.0065. By the next look it moves by what that
    # loses, and at the level of that look, 0.38 %, it has to lie 2.67 of its own standard errors on either side.
    variance = (0.04 + 2 / 1_000) / 1_000
    for more, share in ((low, 0.08), (high, 0.92)):
        rest = variance * 1_000 / (1_000 + more)
        needed, movement = 2.67 * rest**0.5, (variance - rest) ** 0.5
        decided = norm.cdf((0.01 - needed) / movement) + norm.cdf((-0.01 - needed) / movement)
        assert decided == pytest.approx(share, abs=0.005)
    # As many more just like them decide, since the range holds what the estimate itself needs.
    more = 1 + -(-high // 1_000)
    again = {name: np.tile(runs, more) for name, runs in scores.items()}
    assert decide(again, COSTS, deterministic=CERTAIN, look=2).chosen == "cheap"


def test_seeds_are_planned_where_they_are_what_varies():
    rng = np.random.default_rng(0)
    shares = {"cheap": [0.89, 0.90, 0.91, 0.92, 0.93], "dear": [0.88, 0.89, 0.90, 0.91, 0.92]}
    scores = {name: (rng.random(20_000) < np.c_[runs]).astype(float) for name, runs in shares.items()}
    verdict = decide(scores, COSTS)
    cheap = verdict.comparisons["cheap"]
    assert verdict.chosen is None
    assert cheap.more_examples is None
    assert 1 < cheap.more_seeds.low < 10
    assert decide(scores, COSTS).comparisons["cheap"].more_seeds == cheap.more_seeds  # nothing of it is left to chance
    assert verdict.sentences[1].endswith(
        "Even 100 times as many test examples would hardly tell. "
        f"At least {cheap.more_seeds} more seeds of each method would be needed, and 30 would tell in "
        f"about {round(10 * cheap.more_seeds.chance)} of 10 cases."
    )
    # The same runs again and again, which leave no doubt of their spread, tell when there are enough of them.
    needed = next(
        times for times in range(1, 20)
        if decide({name: np.tile(runs, (times, 1)) for name, runs in scores.items()}, COSTS, look=2).chosen == "cheap"
    )  # fmt: skip
    assert 5 * needed >= 5 + cheap.more_seeds.low


def test_a_difference_at_the_margin_has_a_plan_without_an_end():
    scores = {"cheap": make_scores(300, (0, 11), repeat=3), "dear": make_scores(300, (10, 20), repeat=3)}
    verdict = decide(scores, COSTS)
    plan = verdict.comparisons["cheap"].more_examples
    assert plan.low > 0
    assert plan.high is None
    assert 0.08 < plan.chance < 0.92
    said = (
        f"more test examples would be needed, and 100 times as many would tell in about {round(10 * plan.chance)} of 10"
    )
    assert said in verdict.sentences[1]


@pytest.mark.parametrize(("low", "high", "words"), [
    (1, 9, "between 1 and 9"), (1_234, 15_001, "between 1,200 and 16,000"), (40, 40, "about 40"),
    (5_678, None, "5,600"),
])  # fmt: skip
def test_a_range_is_written_in_two_digits_and_never_narrower(low, high, words):
    assert str(Plan(low, high, 100_000, 0.5)) == words


def test_errors_are_better_when_smaller():
    rng = np.random.default_rng(0)
    difficulty = rng.gamma(2, 0.25, 4_000)
    errors = {"cheap": difficulty + rng.normal(0, 0.1, (3, 4_000))}
    errors["dear"] = difficulty + rng.normal(-0.01, 0.1, (3, 4_000))
    verdict = decide(errors, COSTS, margin=0.05, greater_is_better=False, metric="absolute error")
    mirrored = decide({name: 1 - error for name, error in errors.items()}, COSTS, margin=0.05)
    assert verdict.chosen == mirrored.chosen == "cheap"
    assert verdict.best == mirrored.best == "dear"
    cheap, other = verdict.comparisons["cheap"], mirrored.comparisons["cheap"]
    assert cheap.p_value == pytest.approx(other.p_value)
    assert cheap.difference.estimate == pytest.approx(errors["cheap"].mean() - errors["dear"].mean())
    assert cheap.difference.low == pytest.approx(-other.difference.high)
    assert "by more than 0.05 of absolute error" in verdict.sentences[0]


def test_the_best_and_cheapest_needs_proof_too():
    scores = {"cheap": make_scores(5_000, (0, 5)), "dear": make_scores(5_000, (0, 10))}
    verdict = decide(scores, COSTS, deterministic=CERTAIN)
    assert (verdict.decided, verdict.chosen, verdict.best) == (True, "cheap", "cheap")
    assert verdict.sentences[0].endswith("at the lowest cost.")


def test_costs_within_a_tenth_are_as_much_so_that_the_better_method_is_taken():
    scores = {"cheap": make_scores(20_000, (0, 10)), "dear": make_scores(20_000, (0, 9)),
              "middle": make_scores(20_000, (0, 10))}  # fmt: skip
    everyone = set(scores)
    verdict = decide(scores, {"cheap": 10.0, "dear": 11.0, "middle": 12.0}, 0.02, deterministic=everyone)
    assert (verdict.decided, verdict.chosen, verdict.tied) == (True, "dear", ["cheap"])
    assert verdict.sentences[0].endswith("at the lowest cost.")
    assert verdict.sentences[1] == "cheap is no worse either and costs as much, within 10%: the best is taken."
    verdict = decide(scores, {"cheap": 10.0, "dear": 11.1, "middle": 12.0}, 0.02, deterministic=everyone)
    assert (verdict.decided, verdict.chosen, verdict.tied) == (True, "cheap", [])
    # A method that is not shown to be no worse is taken at no cost.
    scores["dear"] = make_scores(20_000, (0, 1))
    verdict = decide(scores, {"cheap": 10.0, "dear": 11.0, "middle": 10.5}, 0.02, deterministic=everyone)
    assert (verdict.decided, verdict.chosen, verdict.tied) == (True, "dear", [])


def test_one_trained_model_crowns_no_method_unless_a_seed_changes_nothing():
    scores = {"cheap": make_scores(20_000, (0, 10)), "dear": make_scores(20_000, (1, 11), repeat=3)}
    verdict = decide(scores, COSTS)
    assert (verdict.decided, verdict.chosen, verdict.best, verdict.as_trained) == (False, None, "cheap", ["cheap"])
    assert verdict.sentences == [
        "As trained, cheap was best, and no other is better by more than 1.0 point of accuracy; what another seed "
        "would give is not known.",
        "There is one run of cheap: three seeds or more would tell which method to take.",
    ]
    assert any(line.startswith("No method is chosen: of cheap one model was trained") for line in verdict.assumptions)
    assert not any("is chosen with a probability" in line for line in verdict.assumptions)
    verdict = decide(scores, COSTS, deterministic={"cheap"})
    assert (verdict.decided, verdict.chosen, verdict.as_trained) == (True, "cheap", [])
    assert "one run" not in " ".join(verdict.sentences)
    assert verdict.mcnemar_p_value is None
    # The cheap one as good as the best, and a third that is worse: all as trained.
    scores = {"cheap": make_scores(20_000, (2, 12)), "dear": make_scores(20_000, (0, 9)),
              "middle": make_scores(20_000, (0, 20))}  # fmt: skip
    verdict = decide(scores, COSTS, margin=0.02)
    assert verdict.chosen is None
    assert verdict.sentences[0].startswith("As trained, dear was best, and cheap is no worse by more than 2.0 points")
    assert verdict.sentences[1] == "As trained, middle is worse than another by more than 2.0 points of accuracy."
    assert verdict.sentences[2].startswith("There is one run each of cheap, middle and dear")


def test_each_look_has_its_own_part_of_the_level():
    scores = {"cheap": make_scores(4_000, (0, 10), repeat=3), "dear": make_scores(4_000, (2, 12), repeat=3)}
    levels = [decide(scores, COSTS, look=look).level for look in range(1, 400)]
    assert levels[0] == pytest.approx(0.025 * 0.6079, rel=1e-3)
    assert 0.0249 < sum(levels) < 0.025
    # Enough for the first look, and not for one that comes after many.
    assert decide(scores, COSTS, look=1).chosen == "cheap"
    assert decide(scores, COSTS, look=10).chosen is None
    assert any(line.startswith("This is look 10") for line in decide(scores, COSTS, look=10).assumptions)


@pytest.mark.parametrize(("scores", "costs", "margin"), [
    ({"cheap": make_scores(100)}, COSTS, 0.01),
    ({"cheap": make_scores(100), "free": make_scores(100)}, COSTS, 0.01),
    ({"cheap": make_scores(100), "dear": make_scores(100)}, COSTS, 0.0),
    ({"cheap": make_scores(100), "dear": make_scores(200)}, COSTS, 0.01),
])  # fmt: skip
def test_what_cannot_be_compared(scores, costs, margin):
    with pytest.raises(FinetuneError, match=r"^Expected .*\. .*\.$"):
        decide(scores, costs, margin)


def simulate(rng, accuracies, num_examples):
    """Draw three runs a method with a seed's deviation of 0.3 points, as benchmarks/coverage.py does."""
    shared = rng.standard_normal(num_examples) * 0.7**0.5
    scores = {}
    for name, accuracy in zip(("cheap", "dear"), accuracies, strict=True):
        own = rng.standard_normal((1, num_examples)) * 0.15**0.5 + rng.standard_normal((3, num_examples)) * 0.15**0.5
        latent = shared + own
        threshold = norm.isf(rng.normal(accuracy, 0.003, (3, 1)))
        scores[name] = (latent > threshold).astype(float)
    return scores


@pytest.mark.parametrize(
    ("accuracies", "num_examples", "least", "most"),
    [
        ((0.9, 0.9), 20_000, 0.5, 1.0),  # equals, and examples enough
        ((0.9, 0.9), 100, 0.0, 0.1),
        ((0.9, 0.91), 5_000, 0.0, 0.1),  # at the margin: the error that is allowed, 2.5 %
        ((0.88, 0.91), 1_000, 0.0, 0.0),
    ],
)
def test_how_often_the_cheap_one_is_taken(accuracies, num_examples, least, most):
    rng = np.random.default_rng(0)
    taken = [decide(simulate(rng, accuracies, num_examples), COSTS).chosen == "cheap" for _ in range(60)]
    assert least <= np.mean(taken) <= most
