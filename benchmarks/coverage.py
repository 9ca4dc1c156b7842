"""How often the intervals of `finetune compare` hold the truth, and how often its verdict is wrong or finds nothing.

    python benchmarks/coverage.py --output_json benchmarks/results/coverage.json

Simulates trained models whose true accuracies are known. Every example has a latent normal score under every run of
every method: a part that all methods share (how hard the example is), one that the runs of a method share, and one of
the run's own, with variances 0.7, 0.15 and 0.15 unless said otherwise. Where the score is above a threshold the run is
right. The threshold makes the run's true accuracy what was drawn for it: normal around the method's, with the seed's
standard deviation. So the true difference between two methods is known. With accuracies of 90 %, two methods differ on
about 9 examples of 100 and two runs of one method on 6.

First table: the share of the 95 % intervals that hold the true difference of two methods, and the true mean of one,
over all seeds and examples; 1,000 simulations tell it to 1.4 points. Macro-F1 is of two classes, 80 % and 20 %.

Second table: the verdict at a margin of 1 point. What is chosen: of the methods that are within the margin of the best
the cheapest, or a dearer one; wrongly one that is worse by 1 point or more, which may happen in 2.5 % of the
simulations; or none. Twins are equally good, and differ in cost.
"""

import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.special import ndtri
from turns import build_parser, write_results

from finetune.comparison.statistics import mean_interval, metric_influence, paired_difference
from finetune.comparison.verdict import decide

MARGIN = 0.01
CLASS_SHARES = np.array([0.8, 0.2])
CLASS_SHIFTS = np.array([0.03, -0.12])  # so that the rare class is harder


@dataclass(frozen=True)
class Setting:
    """One setting of the simulation.

    Attributes:
        name: What is particular about it.
        num_examples: Test examples.
        num_seeds: Runs of each method.
        seed_deviations: Standard deviation of a run's true accuracy, of each method.
        accuracies: True accuracies of the methods.
        method_part: Share of the latent variance that the runs of a method have in common, and not with other methods.
        run_part: Share that each run has for itself.
        num_simulations: As a share of `--num_simulations`.
    """

    name: str
    num_examples: int = 2_000
    num_seeds: tuple[int, ...] = (3, 3)
    seed_deviations: tuple[float, ...] = (0.003, 0.003)
    accuracies: tuple[float, ...] = (0.90, 0.92)
    method_part: float = 0.15
    run_part: float = 0.15
    num_simulations: float = 1.0


COVERAGE = [
    *(
        Setting(f"{seeds} seeds, SD {100 * deviation:.1f}", num_seeds=(seeds,) * 2, seed_deviations=(deviation,) * 2)
        for seeds in (3, 5)
        for deviation in (0.0, 0.003, 0.01)
    ),
    Setting("2 seeds, SD 0.3", num_seeds=(2, 2)),
    Setting("1 run without seed; 3 seeds, SD 1.0", num_seeds=(1, 3), seed_deviations=(0.0, 0.01)),
    Setting("3 seeds, SD 0.3 and 2.0", seed_deviations=(0.003, 0.02)),
    Setting("runs differ on 1 of 50", run_part=0.02),
    Setting("runs differ on 1 of 11", run_part=0.3),
    Setting("accuracy 98.5 and 99.0", accuracies=(0.985, 0.99), seed_deviations=(0.001, 0.001)),
    Setting("300 examples", num_examples=300),
    Setting("25,000 examples, SD 0.0", num_examples=25_000, seed_deviations=(0.0, 0.0), num_simulations=0.5),
    Setting("25,000 examples, SD 0.3", num_examples=25_000, num_simulations=0.5),
]
MACRO_F1 = [Setting("macro-F1, 3 seeds, SD 0.3"), Setting("macro-F1, 300 examples", num_examples=300)]
VERDICTS = [
    Setting("twins, 100 examples", 100, accuracies=(0.9, 0.9)),
    Setting("twins, 100 examples, 1 seed", 100, (1, 1), (0.0, 0.0), (0.9, 0.9)),
    Setting("twins, 1,000", 1_000, accuracies=(0.9, 0.9)),
    Setting("twins, 5,000", 5_000, accuracies=(0.9, 0.9)),
    Setting("twins, 25,000", 25_000, accuracies=(0.9, 0.9), num_simulations=0.5),
    Setting("twins, 5,000, 5 seeds", 5_000, (5, 5), accuracies=(0.9, 0.9), num_simulations=0.5),
    Setting("twins, 5,000, SD 1.0", 5_000, (3, 3), (0.01, 0.01), (0.9, 0.9)),
    Setting("twins, 25,000, SD 1.0", 25_000, (3, 3), (0.01, 0.01), (0.9, 0.9), num_simulations=0.5),
    Setting("1 point worse, 100", 100, accuracies=(0.9, 0.91)),
    Setting("1 point worse, 1,000", 1_000, accuracies=(0.9, 0.91)),
    Setting("1 point worse, 5,000", 5_000, accuracies=(0.9, 0.91)),
    Setting("1 point worse, 25,000", 25_000, accuracies=(0.9, 0.91), num_simulations=0.5),
    Setting("1 point worse, 5,000, SD 1.0", 5_000, (3, 3), (0.01, 0.01), (0.9, 0.91)),
    Setting("3 points worse, 100", 100, accuracies=(0.88, 0.91)),
    Setting("3 points worse, 1,000", 1_000, accuracies=(0.88, 0.91)),
    Setting("3 points worse, 5,000", 5_000, accuracies=(0.88, 0.91)),
    Setting("3 points worse, 25,000", 25_000, accuracies=(0.88, 0.91), num_simulations=0.5),
    Setting("three of four 1 point worse, 2,000", 2_000, (3,) * 4, (0.003,) * 4, (0.9, 0.9, 0.9, 0.91)),
    Setting("three of four as good, 5,000", 5_000, (3,) * 4, (0.003,) * 4, (0.8, 0.9, 0.9, 0.9), num_simulations=0.5),
]


def draw(rng: np.random.Generator, variance: float, *shape: int) -> np.ndarray:
    """Draw normal numbers, in float32: it takes half the time."""
    return rng.standard_normal(shape, dtype=np.float32) * np.float32(variance**0.5)


def draw_scores(setting: Setting, rng: np.random.Generator, shifts: np.ndarray | float = 0.0) -> list[np.ndarray]:
    """Draw for each method which examples its runs get right: 0 and 1, shape `(num_seeds, num_examples)`.

    Args:
        setting: What to simulate.
        rng: Of the draw.
        shifts: Added to the true accuracy on each example.
    """
    shared = draw(rng, 1 - setting.method_part - setting.run_part, setting.num_examples)
    scores = []
    for accuracy, num_seeds, deviation in zip(
        setting.accuracies, setting.num_seeds, setting.seed_deviations, strict=True
    ):
        method = shared + draw(rng, setting.method_part, setting.num_examples)
        latent = method + draw(rng, setting.run_part, num_seeds, setting.num_examples)
        run = rng.normal(accuracy, deviation, (num_seeds, 1))
        threshold = -ndtri(np.clip(run + shifts, 1e-4, 1 - 1e-4))
        scores.append((latent > threshold).astype(np.float64))
    return scores


def draw_macro_f1(setting: Setting, rng: np.random.Generator) -> list[np.ndarray]:
    """Draw macro-F1 with the influences on it of each run and example."""
    labels = (rng.random(setting.num_examples) < CLASS_SHARES[1]).astype(int)
    scores = []
    for right in draw_scores(setting, rng, CLASS_SHIFTS[labels]):
        runs = [metric_influence("macro_f1", labels, np.where(run, labels, 1 - labels), 2) for run in right > 0]
        scores.append(np.stack([estimate + influence for estimate, influence in runs]))
    return scores


def true_macro_f1(accuracy: float, deviation: float) -> float:
    """Compute the mean over seeds of macro-F1 on endless examples."""
    runs = np.random.default_rng(0).normal(accuracy, deviation, (100_000, 1))
    right = CLASS_SHARES * (runs + CLASS_SHIFTS)
    wrong = CLASS_SHARES - right
    return float((2 * right / (2 * right + wrong.sum(axis=1, keepdims=True))).mean())


def measure_coverage(setting: Setting, num_simulations: int, macro_f1: bool = False) -> dict[str, Any]:
    """Count how often intervals hold the truth."""
    rng = np.random.default_rng(0)
    truths = list(setting.accuracies)
    if macro_f1:
        truths = [true_macro_f1(*pair) for pair in zip(setting.accuracies, setting.seed_deviations, strict=True)]
    held, held_mean, widths = 0, 0, []
    for _ in range(num_simulations):
        scores = (draw_macro_f1 if macro_f1 else draw_scores)(setting, rng)
        difference = paired_difference(scores[1], scores[0]).interval
        held += difference.low <= truths[1] - truths[0] <= difference.high
        mean = mean_interval(scores[1])
        held_mean += mean.low <= truths[1] <= mean.high
        widths.append(difference.high - difference.low)
    return {
        "difference_held": held / num_simulations,
        "mean_held": held_mean / num_simulations,
        "mean_half_width": float(np.mean(widths)) / 2,
    }


def measure_verdicts(setting: Setting, num_simulations: int) -> dict[str, Any]:
    """Count what is chosen."""
    rng = np.random.default_rng(0)
    names = [str(number) for number in range(len(setting.accuracies))]
    good_enough = [accuracy > max(setting.accuracies) - MARGIN + 1e-9 for accuracy in setting.accuracies]
    counts = {"cheapest_good": 0, "dearer_good": 0, "wrong": 0, "none": 0, "decided": 0}
    for _ in range(num_simulations):
        scores = dict(zip(names, draw_scores(setting, rng), strict=True))
        verdict = decide(scores, {name: float(name) for name in names}, MARGIN)
        counts["decided"] += verdict.decided
        if verdict.chosen is None:
            counts["none"] += 1
        elif not good_enough[int(verdict.chosen)]:
            counts["wrong"] += 1
        elif int(verdict.chosen) == good_enough.index(True):
            counts["cheapest_good"] += 1
        else:
            counts["dearer_good"] += 1
    return {name: count / num_simulations for name, count in counts.items()}


def main() -> None:
    """Simulate and print."""
    parser = build_parser(__doc__)
    parser.set_defaults(turns=1)
    parser.add_argument("--num_simulations", type=int, default=1_000)
    options = parser.parse_args()
    start = time.perf_counter()
    results: dict[str, Any] = {"coverage": [], "verdicts": []}
    print(f"{'95 % intervals, %':<38}{'difference':>12}{'mean':>8}{'half width':>12}")
    for setting in COVERAGE + MACRO_F1:
        num_simulations = round(setting.num_simulations * options.num_simulations)
        measured = measure_coverage(setting, num_simulations, setting in MACRO_F1)
        results["coverage"].append(asdict(setting) | {"num_simulations": num_simulations} | measured)
        held, held_mean, half = (100 * value for value in measured.values())
        print(f"{setting.name:<38}{held:>12.1f}{held_mean:>8.1f}{half:>12.2f}", flush=True)
    print(f"\n{'verdicts, %':<38}{'cheapest good':>14}{'dearer good':>13}{'wrong':>7}{'none':>7}{'decided':>9}")
    for setting in VERDICTS:
        num_simulations = round(setting.num_simulations * options.num_simulations)
        measured = measure_verdicts(setting, num_simulations)
        results["verdicts"].append(asdict(setting) | {"num_simulations": num_simulations} | measured)
        good, dearer, wrong, none, decided = (100 * value for value in measured.values())
        print(f"{setting.name:<38}{good:>14.1f}{dearer:>13.1f}{wrong:>7.1f}{none:>7.1f}{decided:>9.1f}", flush=True)
    results["wall_seconds"] = time.perf_counter() - start
    print(f"\n{results['wall_seconds']:.0f} s")
    write_results(options.output_json, options, results)


if __name__ == "__main__":
    main()
