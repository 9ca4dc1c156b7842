"""Which method to take: the cheapest that is shown to be no worse than any other by more than a margin.

Shown means shown. That two methods can't be told apart on a hundred examples is no reason to take the cheaper one, so
"no worse" is what has to be proved (non-inferiority), and a small test set proves nothing. A method is compared with
every other, and all of these tests must reject (an intersection-union test: Berger 1982; for comparisons with the best
Hsu 1984). So the best need not be known, and nothing is lost by taking it from the same data.

Of one trained model the tests say what it does on other texts, and nothing of what another seed would have made of it:
then no method is named. Who looks, trains on and looks again has another chance to be wrong each time, so each look has
its own share of the level: 6 / (pi k)**2 of it the k-th, which add up to one, however many looks there will be (the
union bound on a level that is spent over looks: Lan and DeMets 1983). The first has 61 %, the second 15 %.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from finetune.comparison.plans import MOST_SEEDS, MOST_TIMES, Plan, plan_examples, plan_seeds
from finetune.comparison.statistics import (
    FEWEST_OF_A_CLASS,
    Difference,
    Interval,
    Support,
    holm,
    mcnemar,
    paired_difference,
)
from finetune.errors import FinetuneError

__all__ = ["Comparison", "Verdict", "decide", "join_names"]

TIE = 1.1  # times the cost of another method: as much


@dataclass(frozen=True)
class Comparison:
    """One method beside the best.

    Attributes:
        difference: The method minus the best, in the metric's unit and direction, with its two-sided interval; of the
            best itself 0, 0 and 0. The interval is not adjusted for the number of methods.
        cost: As it was given.
        rival: The other method than which it is hardest to show this one no worse; most often the best.
        p_value: One-sided, of the hypothesis that the method is worse than `rival` by `margin` or more.
        adjusted_p_value: After Holm's correction over all methods.
        non_inferior: Shown to be no worse than any other method by more than the margin.
        worse: Shown to be worse than some other method by more than the margin.
        more_examples: Of a method that is neither: how many more test examples would decide, with the seeds there are.
            None if no practical number would.
        more_seeds: The same for more runs of every method that has several, on the same test examples.
    """

    difference: Interval
    cost: float
    rival: str
    p_value: float
    adjusted_p_value: float
    non_inferior: bool
    worse: bool
    more_examples: Plan | None
    more_seeds: Plan | None


@dataclass(frozen=True)
class Verdict:
    """What the scores show, and how sure that is.

    Attributes:
        decided: `chosen` is not None, and every cheaper method is shown to be worse by more than the margin.
        chosen: The cheapest method shown to be no worse than any other by more than the margin; of several such whose
            costs are within a tenth of its own that with the best mean; None if there is none. While a cheaper method
            is open, it is a safe choice and perhaps not the cheapest one.
        tied: Methods shown to be no worse either, which cost as much as `chosen`, within a tenth.
        best: The method with the best mean.
        margin: In the metric's unit.
        confidence: Of the two-sided intervals, which hold at one look; over all looks the tests have together the level
            `(1 - confidence) / 2` on their one side.
        comparisons: For every method, cheapest first.
        as_trained: Methods that another seed would change and that have one run: with any, `chosen` is None.
        look: The how manieth look at these runs this is, from 1.
        level: Of the tests on their one side, at this look.
        mcnemar_p_value: Of exactly two methods with one run each and scores of 0 and 1: of no difference between these
            two trained models; else None.
        sentences: The verdict in plain words, the choice first.
        assumptions: What it rests on.
    """

    decided: bool
    chosen: str | None
    tied: list[str]
    best: str
    margin: float
    confidence: float
    comparisons: dict[str, Comparison]
    as_trained: list[str]
    look: int
    level: float
    mcnemar_p_value: float | None
    sentences: list[str]
    assumptions: list[str]


def decide(
    scores: Mapping[str, np.ndarray],
    costs: Mapping[str, float],
    margin: float = 0.01,
    confidence: float = 0.95,
    greater_is_better: bool = True,
    metric: str = "accuracy",
    deterministic: Collection[str] = (),
    support: Support | None = None,
    look: int = 1,
) -> Verdict:
    """Find the cheapest method that is shown to be no worse than any other by more than a margin.

    Args:
        scores: For each method the scores by run and example, shape `(num_seeds, num_examples)`: 0 and 1, errors, or a
            metric plus the influences on it (`finetune.comparison.statistics.metric_influence`). All methods have the
            same examples in the same order.
        costs: For each method what it costs, in any unit.
        margin: The loss that doesn't matter, in the metric's unit, above 0.
        confidence: Of the two-sided intervals, in (0, 1).
        greater_is_better: False for errors.
        metric: Its name in the sentences, which give it in points (hundredths) if greater is better.
        deterministic: Methods whose runs would all be alike, so that one of them is all there is to know.
        support: Of scores that are a metric plus the influences on it.
        look: The how manieth look at this question it is, from 1: with other runs or other test examples each time.

    Raises:
        FinetuneError: If there are fewer than two methods, a cost is missing, the margin is not above 0, the scores
            can't be compared, or the support is not enough.
    """
    if len(scores) < 2:
        raise FinetuneError(f"Expected at least two methods to compare, but found {len(scores)}. Train another one.")
    if not 0 < margin < math.inf:
        raise FinetuneError(f"Expected a margin above 0, but got {margin}. Name the loss that doesn't matter: 0.01.")
    if support is not None and not support.is_enough:
        raise FinetuneError(
            f"Expected {FEWEST_OF_A_CLASS} test examples of each class for a verdict by {metric}, but found "
            f"{support.smallest} of one. Take accuracy, or a larger test split."
        )
    without = [method for method in scores if not math.isfinite(costs.get(method, math.nan))]
    if without:
        raise FinetuneError(
            f"Expected a cost of every method, but found none of {join_names(without)}. Train it again."
        )

    signed = {name: np.asarray(table, np.float64) * (1 if greater_is_better else -1) for name, table in scores.items()}
    means = {method: float(table.mean()) for method, table in signed.items()}
    methods = sorted(signed, key=lambda method: (costs[method], -means[method]))
    best = max(methods, key=means.__getitem__)
    pairs = {
        (method, other): paired_difference(signed[method], signed[other], confidence, support)
        for method in methods
        for other in methods
        if method != other
    }
    whole_level, num_pairs = (1 - confidence) / 2, len(pairs) // 2
    level = _share_of_look(look) * whole_level

    # For each method the other one than which it is hardest to show no worse, and the one it is most surely worse than.
    rivals, betters = {}, {}
    for method in methods:
        own = [pair for pair in pairs if pair[0] == method]
        rivals[method] = max(own, key=lambda pair: pairs[pair].p_not_worse(margin))[1]
        betters[method] = min(own, key=lambda pair: pairs[pair].p_worse(margin))[1]
    p_values = [pairs[method, rivals[method]].p_not_worse(margin) for method in methods]
    # The method that is truly best is not worse than any, so not all of these hypotheses can be true.
    adjusted = holm(p_values, most_true=len(methods) - 1)

    comparisons = {}
    for method, p_value, adjusted_p_value in zip(methods, p_values, adjusted, strict=True):
        non_inferior = adjusted_p_value <= level
        # The smallest of several p-values; of a pair only one method can be worse, so it is the pairs that count.
        worse = num_pairs * pairs[method, betters[method]].p_worse(margin) <= level
        more_examples, more_seeds = None, None
        if not non_inferior and not worse:
            seems_worse = means[best] - means[method] > margin
            planned = pairs[method, betters[method] if seems_worse else rivals[method]]
            tests = num_pairs if seems_worse else len(methods) - 1
            next_level = _share_of_look(look + 1) * whole_level / tests
            more_examples = plan_examples(planned, margin, next_level)
            more_seeds = plan_seeds(planned, margin, next_level)
        difference = pairs[method, best].interval if method != best else Interval(0.0, 0.0, 0.0)
        comparisons[method] = Comparison(
            difference=difference if greater_is_better else _negate(difference),
            cost=costs[method],
            rival=rivals[method],
            p_value=p_value,
            adjusted_p_value=adjusted_p_value,
            non_inferior=non_inferior,
            worse=worse,
            more_examples=more_examples,
            more_seeds=more_seeds,
        )

    good = [method for method in methods if comparisons[method].non_inferior]
    cheapest = [method for method in good if costs[method] <= TIE * costs[good[0]]]
    chosen = max(cheapest, key=means.__getitem__, default=None)
    tied = [method for method in cheapest if method != chosen]
    cheaper = [method for method in methods if chosen is None or TIE * costs[method] < costs[chosen]]
    decided = chosen is not None and all(comparisons[method].worse for method in cheaper)
    words = _Words(metric, margin, confidence, greater_is_better)
    single = [method for method in methods if len(signed[method]) == 1 and method not in deterministic]
    if single:
        sentences = words.place_as_trained(chosen, best, comparisons, single)
        chosen, decided, tied = None, False, []
    else:
        sentences = [words.choose(chosen, best, decided, len(cheaper) > 0, comparisons)]
        if tied:
            are, cost = ("is", "costs") if len(tied) == 1 else ("are", "cost")
            same = f"{are} no worse either and {cost} as much, within {TIE - 1:.0%}: the best is taken."
            sentences.append(f"{join_names(tied)} {same}")
        for method in cheaper:
            other = betters[method] if comparisons[method].worse else rivals[method]
            sentences.append(words.place(method, other, pairs[method, other], comparisons[method], len(methods)))
    p_mcnemar = None
    first, second = signed[methods[0]], signed[methods[1]]
    if len(methods) == 2 and len(first) == len(second) == 1 and np.isin([first, second], (0, 1)).all():
        p_mcnemar = mcnemar(first[0], second[0])
        sentences.append(
            f"McNemar's exact test that {methods[0]} and {methods[1]}, as trained, are right equally often: "
            f"p = {p_mcnemar:.2g}."
        )
    return Verdict(
        decided=decided,
        chosen=chosen,
        tied=tied,
        best=best,
        margin=margin,
        confidence=confidence,
        comparisons=comparisons,
        as_trained=single,
        look=look,
        level=level,
        mcnemar_p_value=p_mcnemar,
        sentences=sentences,
        assumptions=_list_assumptions(signed, whole_level, level, look, single, p_mcnemar is not None),
    )


def _share_of_look(look: int) -> float:
    """Return the share of the level that a look has: 0.61, 0.15, 0.07, ... All of them add up to 1."""
    return 6 / (math.pi * look) ** 2


@dataclass(frozen=True)
class _Words:
    """How a result is said: in points of a metric of which more is better, else in the metric's own unit."""

    metric: str
    margin: float
    confidence: float
    greater_is_better: bool

    def number(self, value: float) -> str:
        """Write a number with a true minus sign, and no negative nought."""
        text = f"{100 * value:.1f}" if self.greater_is_better else f"{value:.3g}"
        return text.removeprefix("-") if float(text) == 0 else text.replace("-", "\N{MINUS SIGN}")

    def amount(self, value: float) -> str:
        """Write a number with its unit."""
        number = self.number(value)
        if not self.greater_is_better:
            return number
        return f"{number} point" if number == "1.0" else f"{number} points"

    def interval(self, interval: Interval) -> str:
        """Write a difference with its interval."""
        low, high = self.number(interval.low), self.number(interval.high)
        return f"{self.amount(interval.estimate)}, {100 * self.confidence:g} % interval {low} to {high}"

    def choose(
        self, chosen: str | None, best: str, decided: bool, has_cheaper: bool, comparisons: dict[str, Comparison]
    ) -> str:
        """Name the method to take, if any."""
        by_more = f"by more than {self.amount(self.margin)} of {self.metric}"
        if chosen is None:
            return f"Not decided: no method is shown to be no worse than every other {by_more}."
        if chosen == best:
            reason = f"it has the best {self.metric}, and no other method is better {by_more}"
            last = "; every cheaper one is worse by more than that." if has_cheaper else ", at the lowest cost."
        else:
            difference = self.interval(comparisons[chosen].difference)
            reason = f"it is no worse than any other method {by_more} (difference from {best}, the best: {difference})"
            last = ", and the cheapest of which this is shown."
        if decided:
            return f"Take {chosen}: {reason}{last}"
        return f"{chosen} is a safe choice: {reason}. Whether a cheaper one would do is not decided."

    def place_as_trained(
        self, leading: str | None, best: str, comparisons: dict[str, Comparison], single: Sequence[str]
    ) -> list[str]:
        """Describe what holds for the trained models, and that it is not known of their methods."""
        by_more = f"by more than {self.amount(self.margin)} of {self.metric}"
        if leading is None:
            shown = f"and none is shown to be no worse than every other {by_more}"
        elif leading == best:
            shown = f"and no other is better {by_more}"
        else:
            difference = self.interval(comparisons[leading].difference)
            shown = f"and {leading} is no worse {by_more} (difference {difference})"
        sentences = [f"As trained, {best} was best, {shown}; what another seed would give is not known."]
        worse = [method for method, one in comparisons.items() if one.worse]
        if worse:
            verb = "is" if len(worse) == 1 else "are"
            sentences.append(f"As trained, {join_names(worse)} {verb} worse than another {by_more}.")
        each = " each" if len(single) > 1 else ""
        return [
            *sentences,
            f"There is one run{each} of {join_names(single)}: three seeds or more would tell which method to take.",
        ]

    def place(self, method: str, other: str, difference: Difference, comparison: Comparison, num_methods: int) -> str:
        """Describe where a cheaper method than the one to take stands and, if that isn't shown, what would tell."""
        measured = difference.interval if self.greater_is_better else _negate(difference.interval)
        worse = f"{method} is worse than {other} by more than {self.amount(self.margin)}"
        compared = f"(difference {self.interval(measured)})"
        if comparison.worse:
            return f"{worse} {compared}."
        sentence = f"Open: whether {worse} {compared}."
        if not difference.low <= -self.margin <= difference.high:
            sentence += f" By itself the interval would tell, but with {num_methods} methods compared more is asked."
        several = max(difference.num_seeds) > 1
        plans = {"test examples": comparison.more_examples}
        if several:
            plans["seeds of each method"] = comparison.more_seeds
        ranges = [f"{plan} more {what}" for what, plan in plans.items() if plan is not None and plan.high is not None]
        if ranges:
            planned = " or ".join(ranges)
            sentence += f" {planned[0].upper()}{planned[1:]} would tell, in 4 of 5 cases."
        most = {"test examples": f"{MOST_TIMES} times as many", "seeds of each method": f"{MOST_SEEDS}"}
        for what, plan in plans.items():
            if plan is None:
                much = f"{most[what]}{'' if what == 'test examples' else ' more'}"
                sentence += f" Even {much} {what} would hardly tell."
            elif plan.high is None:
                sentence += (
                    f" At least {plan} more {what} would be needed, and {most[what]} would tell in about "
                    f"{round(10 * plan.chance)} of 10 cases."
                )
        return sentence


def _list_assumptions(
    tables: Mapping[str, np.ndarray],
    whole_level: float,
    level: float,
    look: int,
    single: Sequence[str],
    with_mcnemar: bool,
) -> list[str]:
    """Describe what the tests take for granted, and how often they are wrong."""
    assumptions = [
        "The test examples are drawn independently from the texts that the method will meet.",
        "All methods were trained on the same training and validation split: another split is not in the intervals.",
    ]
    if single:
        assumptions.append(
            f"No method is chosen: of {join_names(single)} one model was trained, and a test holds for that model: one "
            f"that is worse by the margin or more is called no worse with a probability of at most "
            f"{100 * whole_level:.2g} %."
        )
    else:
        assumptions.append(
            f"A method that is worse by the margin or more is chosen with a probability of at most "
            f"{100 * whole_level:.2g} %, over all looks: it would have to pass against every other one, so the best "
            "need not be known, and Holm's correction keeps that level over the methods; where one is called worse, "
            "Bonferroni's does."
        )
    assumptions.append(
        f"This is look {look} at these runs, with {100 * level:.2g} % for its own; each has its part, so that looking "
        "again after more seeds or examples is allowed, and costs some of the next one's."
    )
    assumptions.append(
        "Mean differences vary about normally. Two test examples on which the methods differ, one each way, are added "
        "to the variance, so that agreement on few examples shows little."
    )
    if any(len(table) > 1 for table in tables.values()):
        assumptions.append(
            "Each method's seeds are drawn independently, and the means of its runs vary normally around its own. One "
            "run that failed makes its method's intervals very wide."
        )
    if with_mcnemar:
        assumptions.append("McNemar's test is of the two trained models, and not of their methods.")
    return assumptions


def _negate(interval: Interval) -> Interval:
    return Interval(-interval.estimate, -interval.high, -interval.low)


def join_names(names: Sequence[str]) -> str:
    """Join names with commas and an "and"."""
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
