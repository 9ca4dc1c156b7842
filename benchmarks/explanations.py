"""Whether the words that an explanation names first are those that an answer rests on, and what it takes.

    python benchmarks/explanations.py --mr_file rt-polarity.all --num_threads 1 \
        --output_json benchmarks/results/explanations.json

Each method is trained once on 2,000 sentences of MR, `contrastive` on 100. Of 200 others the words are deleted that
speak most for the answer, one after the other, and as many at random; by how much its probability falls is compared
text by text, with Student's 95 % intervals. Ten of the embedded reviews, of hundreds of words, show what a long text
takes.
"""

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from few_labels import read
from scipy.stats import t as student_t
from sklearn.model_selection import train_test_split
from turns import build_parser, write_results

import finetune
from finetune.data.embedded import load_embedded_reviews
from finetune.models.answers import TextClassifier
from finetune.models.explanation import Explanation, Part

METHODS = ["tfidf", "embeddings", "zero-shot", "textcnn", "full", "lora", "contrastive"]
DESCRIPTIONS = "class 0=a bad film; class 1=a good film"  # for zero-shot
NUM_TRAIN, NUM_TEXTS, NUM_LONG = 2_000, 200, 10
MOST_ROWS = {"contrastive": 100}  # which is for few
DELETED = (1, 3)  # words


def delete(text: str, parts: list[Part]) -> str:
    """Return a text without some of its words."""
    for part in sorted(parts, key=lambda one: -one.start):
        text = text[: part.start] + text[part.end :]
    return text


def measure(classifier: TextClassifier, texts: list[str], long_texts: list[str]) -> dict[str, Any]:
    """Delete words, and compare what the answer's probability loses."""
    start = time.perf_counter()
    explained: list[Explanation] = classifier.explain(texts)
    seconds = (time.perf_counter() - start) / len(texts)
    rng = np.random.default_rng(0)
    found: dict[str, Any] = {"seconds": seconds}
    for count in DELETED:
        named, drawn = [], []
        for one in explained:
            ranked = sorted(one.parts, key=lambda part: -part.contribution)
            named.append(delete(one.text, ranked[:count]))
            chosen = rng.permutation(len(one.parts))[:count]
            drawn.append(delete(one.text, [one.parts[at] for at in chosen]))
        before, without, at_random = (classifier.compute_probabilities(some) for some in (texts, named, drawn))
        answers = before.argmax(axis=1)
        rows = np.arange(len(texts))
        falls = before[rows, answers] - without[rows, answers], before[rows, answers] - at_random[rows, answers]
        difference = falls[0] - falls[1]
        half = student_t.ppf(0.975, len(texts) - 1) * difference.std(ddof=1) / len(texts) ** 0.5
        found[f"deleted_{count}"] = {
            "named": float(falls[0].mean()),
            "random": float(falls[1].mean()),
            "difference": [float(difference.mean() + sign * half) for sign in (0, -1, 1)],
        }
    times = []
    for text in long_texts:
        start = time.perf_counter()
        one = classifier.explain(text)[0]
        times.append(time.perf_counter() - start)
    found["long_seconds"] = statistics.median(times)
    if one.is_exact:
        found["largest_gap"] = max(
            abs(sum(part.contribution for part in each.parts) - (each.score - each.base)) for each in explained
        )
    return found


def main() -> None:
    """Measure and print."""
    parser = build_parser(__doc__)
    parser.add_argument("--mr_file", required=True)
    parser.add_argument("--methods", nargs="+", default=METHODS)
    options = parser.parse_args()
    train, others = train_test_split(read(options.mr_file), train_size=NUM_TRAIN, random_state=0)
    texts = others["text"].tolist()[:NUM_TEXTS]
    long_texts = load_embedded_reviews()["text"][:NUM_LONG]
    results: dict[str, Any] = {}
    for method in options.methods:
        with tempfile.TemporaryDirectory() as folder:
            described = {"label_descriptions": DESCRIPTIONS} if method == "zero-shot" else {}
            run = finetune.train(
                train[: MOST_ROWS.get(method)], method=method, output_dir=Path(folder) / "run", max_length=256,
                floor=False, num_threads=options.num_threads, **described,
            )  # fmt: skip
            results[method] = found = measure(run.classifier, texts, long_texts)
        for count in DELETED:
            one = found[f"deleted_{count}"]
            mean, low, high = (100 * value for value in one["difference"])
            print(
                f"{method:<11} {count} deleted: probability falls by {100 * one['named']:.1f} points, at random by "
                f"{100 * one['random']:.1f}; {mean:+.1f} ({low:+.1f} to {high:+.1f})",
                flush=True,
            )
        print(f"{method:<11} {1000 * found['seconds']:.1f} ms a sentence, {found['long_seconds']:.2f} s a long review")
        write_results(options.output_json, options, {"methods": results})


if __name__ == "__main__":
    main()
