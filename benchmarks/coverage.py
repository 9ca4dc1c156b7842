"""How often the intervals of `finetune compare` hold the truth, and how often its verdict is wrong or finds nothing.

    python benchmarks/coverage.py --output_json benchmarks/results/coverage.json
    python benchmarks/coverage.py --tables plans --output_json benchmarks/results/coverage_plans.json

Simulates trained models whose true accuracies are known. Every example has a latent normal score under every run of
every method: a part that all methods share (how hard the example is), one that the runs of a method share, and one of
the run's own, with variances 0.7, 0.15 and 0.15. Where the score is above a threshold the run is right. The threshold
makes the run's true accuracy what was drawn for it: normal around the method's, with the seed's standard deviation
("spread"). With accuracies of 90 %, two methods differ on about 9 examples of 100 and two runs of one method on 6.

1. Accuracy: seeds, spread, examples and numbers of methods. The cheapest method is worse than all others by the margin,
   1 point, which is the hardest case. Held: 95 % intervals of the difference between the first two methods and of the
   first one's mean; with one seed the truth is that of the trained models, since no more is claimed. Wrong: the worse
   one is named, or another one is called worse by more than the margin; each may happen in 2.5 % of the simulations.
2. Classes: averages over 2, 8 and 52 of them with Zipf's frequencies, and F1 of several labels a text. Refused: the
   share of simulations in which there is no interval, since some class has too few examples.
3. Looks: the same methods looked at again and again, with more seeds or more examples each time, until a verdict names
   a method or the last look is over. Wrong: it was the worse one, or another one was called worse.
4. Power: what is found where there is something to find.
5. Plans: the truth is drawn, and where the first look leaves it open, as many examples or seeds are added as the report
   says, just less than the low end of its range and as many as its high end, if it has one. Kept: the second look, at
   its own level, decides at the high end and not below the low one, which is promised for four cases of five. Of plans
   without an end the chance that the most practical number decides stands beside how often it does.

A cell fails if its coverage is significantly below 92 %, wrong verdicts are significantly more than 2.5 % a side, fewer
plans are kept than 80 %, or more are decided below their low end than 10 %, by exact binomial tests at 5 % with
Bonferroni's correction over all cells.
"""

import itertools
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from scipy.special import ndtri
from scipy.stats import binomtest
from turns import build_parser, write_results

from finetune.comparison.plans import MOST_SEEDS, MOST_TIMES
from finetune.comparison.statistics import find_support, mean_interval, metric_influence, paired_difference
from finetune.comparison.verdict import Verdict, decide
from finetune.metrics import present_labels

MARGIN = 0.01
METHOD_PART, RUN_PART = 0.15, 0.15
LEAST_COVERAGE, MOST_WRONG = 0.92, 0.025
BEST = 0.91
KEPT, MOST_EARLY = 0.8, 0.1
WIDE = 0.04  # the truth of a plan's difference lies so far from the margin, at most


def draw(rng: np.random.Generator, variance: float, *shape: int) -> np.ndarray:
    """Draw normal numbers, in float32: it takes half the time."""
    return rng.standard_normal(shape, dtype=np.float32) * np.float32(variance**0.5)


class Drawn:
    """Methods whose runs are drawn one after the other, on examples that are drawn one after the other too."""

    def __init__(self, rng: np.random.Generator, accuracies: list[float], spread: float, seeds: int, examples: int):
        self.rng = rng
        self.runs = [rng.normal(accuracy, spread, (seeds, 1)) for accuracy in accuracies]
        shared = draw(rng, 1 - METHOD_PART - RUN_PART, examples)
        self.latent = [
            shared + draw(rng, METHOD_PART, examples) + draw(rng, RUN_PART, seeds, examples) for _ in accuracies
        ]

    def right(
        self, seeds: int | None = None, examples: int | None = None, shifts: np.ndarray | float = 0.0
    ) -> list[np.ndarray]:
        """Return for each method which examples its first runs get right: 0 and 1, `(seeds, examples)`.

        Args:
            seeds: How many runs; all if None.
            examples: How many examples; all if None.
            shifts: Added to the true accuracy on each example.
        """
        found = []
        for run, latent in zip(self.runs, self.latent, strict=True):
            thresholds = -ndtri(np.clip(run[:seeds] + shifts, 1e-4, 1 - 1e-4))
            found.append((latent[:seeds, :examples] > thresholds).astype(np.float64))
        return found


def judge(scores: list[np.ndarray], look: int = 1, **settings: Any) -> Verdict:
    """Decide between methods named by their number, whose cost is their number."""
    return decide(
        {str(number): table for number, table in enumerate(scores)},
        {str(number): float(number) for number in range(len(scores))},
        MARGIN,
        look=look,
        **settings,
    )


def find_errors(verdict: Verdict) -> tuple[bool, bool]:
    """Return whether the first method, which is worse by the margin, is named, and whether another is called worse."""
    called_worse = any(one.worse for name, one in verdict.comparisons.items() if name != "0") and not verdict.as_trained
    return verdict.chosen == "0", called_worse


def measure_accuracy(seeds: int, spread: float, examples: int, methods: int, num_simulations: int) -> dict[str, Any]:
    """Measure a cell of the first table."""
    rng = np.random.default_rng(0)
    accuracies = [BEST - MARGIN, *[BEST] * (methods - 1)]
    held, held_mean, named, called = 0, 0, 0, 0
    for _ in range(num_simulations):
        drawn = Drawn(rng, accuracies, spread, seeds, examples)
        scores = drawn.right()
        truths = [float(run.mean()) for run in drawn.runs] if seeds == 1 else accuracies
        difference = paired_difference(scores[0], scores[1]).interval
        held += difference.low <= truths[0] - truths[1] <= difference.high
        mean = mean_interval(scores[0])
        held_mean += mean.low <= truths[0] <= mean.high
        wrong = find_errors(judge(scores))
        named, called = named + wrong[0], called + wrong[1]
    return _count(num_simulations, difference=held, mean=held_mean) | _count_wrong(num_simulations, named, called)


def measure_classes(metric: str, classes: int, examples: int, seeds: int, num_simulations: int) -> dict[str, Any]:
    """Measure a cell of the second table: one label a text, of classes with Zipf's frequencies."""
    rng = np.random.default_rng(0)
    shares = 1 / np.arange(1, classes + 1)
    shares /= shares.sum()
    shifts = np.linspace(0.04, -0.04, classes)  # so that rare classes are harder
    shifts -= shares @ shifts
    others = np.sqrt(shares)
    accuracies, spread = [BEST - 0.02, BEST], 0.003 if seeds > 1 else 0.0
    populations = [_confuse(np.clip(accuracy + shifts, 0, 1), shares, others) for accuracy in accuracies]
    held, held_mean, refused = 0, 0, 0
    for _ in range(num_simulations):
        labels = rng.choice(classes, examples, p=shares)
        support = find_support(metric, labels)
        if support is not None and not support.is_enough:
            refused += 1
            continue
        scores = []
        for right in Drawn(rng, accuracies, spread, seeds, examples).right(shifts=shifts[labels]):
            scores.append(
                np.stack([_score(metric, labels, _answer(rng, labels, run, others), classes) for run in right])
            )
        truths = [_true_metric(metric, confusion, present_labels(labels)) for confusion in populations]
        difference = paired_difference(scores[0], scores[1], support=support).interval
        held += difference.low <= truths[0] - truths[1] <= difference.high
        mean = mean_interval(scores[0], support=support)
        held_mean += mean.low <= truths[0] <= mean.high
    return _count(num_simulations - refused, difference=held, mean=held_mean) | {"refused": refused / num_simulations}


def _confuse(recalls: np.ndarray, shares: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Compute the shares of label and answer on endless examples, where a wrong answer is drawn by `others`."""
    weights = np.tile(others, (len(shares), 1)) * (1 - np.eye(len(shares)))
    wrong = weights / weights.sum(axis=1, keepdims=True) * (shares * (1 - recalls))[:, None]
    return wrong + np.diag(shares * recalls)


def _answer(rng: np.random.Generator, labels: np.ndarray, right: np.ndarray, others: np.ndarray) -> np.ndarray:
    wrong = rng.choice(len(others), len(labels), p=others / others.sum())
    while (same := wrong == labels).any():
        wrong[same] = rng.choice(len(others), same.sum(), p=others / others.sum())
    return np.where(right > 0, labels, wrong)


def _score(metric: str, labels: np.ndarray, answers: np.ndarray, num_labels: int) -> np.ndarray:
    estimate, influence = metric_influence(metric, labels, answers, num_labels)
    return np.asarray(estimate + influence)


def _true_metric(metric: str, confusion: np.ndarray, present: np.ndarray) -> float:
    hit, true, answered = confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0)
    if metric == "macro_f1":
        return float((2 * hit / (true + answered))[present].mean())
    if metric == "balanced_accuracy":
        return float((hit / true)[present].mean())
    both = true @ answered
    return float((hit.sum() - both) / ((1 - true @ true) * (1 - answered @ answered)) ** 0.5)


def measure_labels(metric: str, rarest: float, examples: int, seeds: int, num_simulations: int) -> dict[str, Any]:
    """Measure a cell of the second table: four labels a text, from 40 % of the texts down to the rarest."""
    rng = np.random.default_rng(0)
    shares = np.geomspace(0.4, rarest, 4)
    accuracies = [BEST - 0.02, BEST]
    # A yes is found with the accuracy, and a no is taken for a yes by (1 - accuracy) times the label's share.
    truths = []
    for accuracy in accuracies:
        hit = shares * accuracy
        answered = hit + (1 - shares) * (1 - accuracy) * shares
        f1 = 2 * hit / (shares + answered)
        truths.append(float(f1.mean()) if metric == "macro_f1" else float(2 * hit.sum() / (shares + answered).sum()))
    held, held_mean, refused = 0, 0, 0
    for _ in range(num_simulations):
        labels = (rng.random((examples, 4)) < shares).astype(np.int64)
        support = find_support(metric, labels)
        if support is not None and not support.is_enough:
            refused += 1
            continue
        right = [Drawn(rng, accuracies, 0.0, seeds, examples).right() for _ in range(4)]
        chance = rng.random((examples, 4)) < shares
        scores = []
        for method in range(2):
            runs = []
            for seed in range(seeds):
                good = np.stack([right[label][method][seed] for label in range(4)], axis=1) > 0
                answers = np.where(labels == 1, good, ~good & chance).astype(np.int64)
                runs.append(_score(metric, labels, answers, 4))
            scores.append(np.stack(runs))
        difference = paired_difference(scores[0], scores[1], support=support).interval
        held += difference.low <= truths[0] - truths[1] <= difference.high
        mean = mean_interval(scores[0], support=support)
        held_mean += mean.low <= truths[0] <= mean.high
    return _count(num_simulations - refused, difference=held, mean=held_mean) | {"refused": refused / num_simulations}


def measure_looks(what: str, spread: float, num_simulations: int) -> dict[str, Any]:
    """Measure a cell of the third table: seeds from 3 to 10, or examples from 500 to 6,000 by 500."""
    rng = np.random.default_rng(0)
    steps = range(3, 11) if what == "seeds" else range(500, 6_001, 500)
    named, called, looks = 0, 0, 0
    for _ in range(num_simulations):
        seeds, examples = (10, 2_000) if what == "seeds" else (3, 6_000)
        drawn = Drawn(rng, [BEST - MARGIN, BEST], spread, seeds, examples)
        for look, size in enumerate(steps, start=1):
            verdict = judge(drawn.right(**{what: size}), look)
            wrong = find_errors(verdict)
            if verdict.decided or any(wrong) or size == steps[-1]:
                named, called, looks = named + wrong[0], called + wrong[1], looks + look
                break
    return _count_wrong(num_simulations, named, called) | {"looks": looks / num_simulations}


def measure_power(accuracies: list[float], seeds: int, examples: int, num_simulations: int) -> dict[str, float]:
    """Measure a cell of the fourth table: what is named, of methods that are all within the margin or well beyond."""
    rng = np.random.default_rng(0)
    good = [accuracy > max(accuracies) - MARGIN + 1e-9 for accuracy in accuracies]
    counts = {"cheapest_good": 0, "dearer_good": 0, "wrong": 0, "none": 0, "decided": 0}
    for _ in range(num_simulations):
        verdict = judge(Drawn(rng, accuracies, 0.003, seeds, examples).right())
        counts["decided"] += verdict.decided
        if verdict.chosen is None:
            counts["none"] += 1
        elif not good[int(verdict.chosen)]:
            counts["wrong"] += 1
        else:
            counts["cheapest_good" if int(verdict.chosen) == good.index(True) else "dearer_good"] += 1
    return {name: count / num_simulations for name, count in counts.items()}


def measure_plans(what: str, seeds: int, spread: float, examples: int, num_simulations: int) -> dict[str, Any]:
    """Measure a cell of the fifth table: plans of more examples, or of more seeds.

    Args:
        what: What is added, "examples" or "seeds".
        seeds: Of each method at the first look.
        spread: Of its seeds.
        examples: At the first look.
        num_simulations: Plans that are made; truths that the first look decides don't count.
    """
    rng = np.random.default_rng(0)
    plans, early, ended, late, kept, open_ended, chances, told = 0, 0, 0, 0, 0, 0, 0.0, 0
    deterministic = {"0", "1"} if seeds == 1 else set()  # else one seed has no verdict
    most = (seeds, (1 + MOST_TIMES) * examples) if what == "examples" else (seeds + MOST_SEEDS, examples)
    while plans < num_simulations:
        drawn = Drawn(rng, [BEST - MARGIN + rng.uniform(-WIDE, WIDE), BEST], spread, *most)
        first = judge(drawn.right(seeds, examples), deterministic=deterministic).comparisons["0"]
        plan = first.more_examples if what == "examples" else first.more_seeds
        if plan is None:
            continue
        decides = []
        for more in (plan.low - 1, plan.most if plan.high is None else plan.high):
            size = {"seeds": seeds, "examples": examples}
            size[what] += more
            again = judge(drawn.right(**size), look=2, deterministic=deterministic).comparisons["0"]
            decides.append(again.non_inferior or again.worse)
        plans, early = plans + 1, early + decides[0]
        if plan.high is None:
            open_ended, chances, told = open_ended + 1, chances + plan.chance, told + decides[1]
        else:
            ended, late, kept = ended + 1, late + decides[1], kept + (decides[1] and not decides[0])
    return {
        "decided_below_low": early / plans,
        "below_low_p": float(binomtest(early, plans, MOST_EARLY, "greater").pvalue),
        "chance_at_most": chances / open_ended if open_ended else None,
        "decided_at_most": told / open_ended if open_ended else None,
        "with_end": ended / plans,
        "decided_at_high": late / ended if ended else None,
        "kept": kept / ended if ended else None,
        "kept_p": float(binomtest(kept, ended, KEPT, "less").pvalue) if ended else 1.0,
    }


def _count(num_simulations: int, **held: int) -> dict[str, Any]:
    """Return shares, and p-values of a coverage that is not below what is promised."""
    cell: dict[str, Any] = {}
    for name, count in held.items():
        cell[f"{name}_held"] = count / num_simulations if num_simulations else None
        cell[f"{name}_p"] = (
            float(binomtest(count, num_simulations, LEAST_COVERAGE, "less").pvalue) if num_simulations else 1.0
        )
    return cell


def _count_wrong(num_simulations: int, named: int, called: int) -> dict[str, Any]:
    cell: dict[str, Any] = {}
    for name, count in (("named", named), ("called_worse", called)):
        cell[f"{name}_wrongly"] = count / num_simulations
        cell[f"{name}_p"] = float(binomtest(count, num_simulations, MOST_WRONG, "greater").pvalue)
    return cell


ACCURACY = [
    *itertools.product((1, 2, 3, 5), (0.0, 0.003, 0.01), (100, 500, 2_500), (2, 5, 8)),
    *itertools.product((1, 3), (0.0, 0.003, 0.01), (25_000,), (2,)),
]
CLASSES = [
    (metric, classes, examples, seeds)
    for metric in ("macro_f1", "balanced_accuracy", "mcc")
    for classes in (2, 8, 52)
    for examples in (100, 500, 2_500)
    for seeds in (1, 3)
] + [("macro_f1", 52, 10_000, 1), ("macro_f1", 52, 10_000, 3)]
LABELS = list(itertools.product(("micro_f1", "macro_f1"), (0.2, 0.02), (100, 500, 2_500), (1, 3)))
LOOKS = list(itertools.product(("seeds", "examples"), (0.0, 0.003, 0.01)))
POWER = [
    (name, accuracies, seeds, examples)
    for name, accuracies in (
        ("twins", [0.9, 0.9]),
        ("3 points worse", [0.88, 0.91]),
        ("three of four as good", [0.8, 0.9, 0.9, 0.9]),
    )
    for seeds, examples in ((3, 100), (3, 1_000), (3, 5_000), (3, 25_000), (5, 5_000))
]

PLANS = [
    ("examples", 1, 0.0, 300),
    ("examples", 1, 0.0, 1_000),
    ("examples", 3, 0.0, 300),
    ("examples", 3, 0.003, 300),
    ("examples", 5, 0.003, 300),
    ("seeds", 3, 0.003, 5_000),
    ("seeds", 3, 0.01, 5_000),
    ("seeds", 5, 0.01, 2_500),
]
TABLES = ("accuracy", "classes", "looks", "power", "plans")


def measure_all(num_simulations: int, tables: Sequence[str]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Measure every cell of some tables: the table, the cell's name and what was found."""
    few = num_simulations // 4  # of what takes long
    for seeds, spread, examples, methods in ACCURACY if "accuracy" in tables else ():
        cell = measure_accuracy(seeds, spread, examples, methods, num_simulations if examples < 25_000 else few)
        yield "accuracy", f"{seeds} seeds, spread {100 * spread:.1f}, {examples:,}, {methods} methods", cell
    for metric, classes, examples, seeds in CLASSES if "classes" in tables else ():
        cell = measure_classes(metric, classes, examples, seeds, num_simulations // 2)
        yield "classes", f"{metric}, {classes} classes, {examples:,}, {seeds} seeds", cell
    for metric, rarest, examples, seeds in LABELS if "classes" in tables else ():
        cell = measure_labels(metric, rarest, examples, seeds, num_simulations // 2)
        yield "classes", f"{metric} of labels, rarest {rarest:.0%}, {examples:,}, {seeds} seeds", cell
    for what, spread in LOOKS if "looks" in tables else ():
        yield "looks", f"more {what}, spread {100 * spread:.1f}", measure_looks(what, spread, num_simulations)
    for name, accuracies, seeds, examples in POWER if "power" in tables else ():
        cell = measure_power(accuracies, seeds, examples, num_simulations if examples < 25_000 else few)
        yield "power", f"{name}, {seeds} seeds, {examples:,}", cell
    for what, seeds, spread, examples in PLANS if "plans" in tables else ():
        cell = measure_plans(what, seeds, spread, examples, num_simulations)
        yield "plans", f"more {what}, {seeds} seeds, spread {100 * spread:.1f}, {examples:,}", cell


def main() -> None:
    """Simulate and print."""
    parser = build_parser(__doc__)
    parser.set_defaults(turns=1)
    parser.add_argument("--num_simulations", type=int, default=500)
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=TABLES)
    options = parser.parse_args()
    start = time.perf_counter()
    results: dict[str, list[dict[str, Any]]] = {}
    for table, name, cell in measure_all(options.num_simulations, options.tables):
        if table not in results:
            results[table] = []
            print(f"\n{table}", flush=True)
        results[table].append({"name": name, **cell})
        shown = "  ".join(f"{key} {value:.3f}" for key, value in cell.items() if value is not None and key[-2:] != "_p")
        print(f"{name:<46} {shown}", flush=True)
    tests = [
        (value, f"{one['name']}: {key.removesuffix('_p')}")
        for cells in results.values()
        for one in cells
        for key, value in one.items()
        if key.endswith("_p")
    ]
    failed = [name for value, name in tests if value * len(tests) < 0.05]
    print(f"\n{len(tests)} tests, failed: {', '.join(failed) or 'none'}; {time.perf_counter() - start:.0f} s")
    write_results(options.output_json, options, {**results, "num_tests": len(tests), "failed": failed})


if __name__ == "__main__":
    main()
