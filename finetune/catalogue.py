"""The methods by name: what trains, who proposed it, and the settings it trains well with. Data only.

A method that PEFT knows is its `peft_type` and the fields of PEFT's own config class; `--peft_config` adds to these or
replaces them. Learning rates are those that the papers and PEFT's examples use for classification with small encoders,
checked on sentences in `docs/methods.md`; `--learning_rate` overrides them.

A method that is not here is named by where it is imported from, `package.module:NAME`. Its module is imported for
whoever names it, never because a file says so.
"""

import importlib
import re
import sys
from dataclasses import dataclass, field
from typing import Any

from finetune.errors import FinetuneError
from finetune.family import Family

__all__ = [
    "CATALOGUE",
    "FAMILIES",
    "FLOOR",
    "METHOD_DEFAULTS",
    "Method",
    "family_of",
    "file_name_of",
    "find_family",
    "find_method",
    "import_family",
    "import_method",
    "name_of",
]


@dataclass(frozen=True)
class Method:
    """A way to fit a classifier.

    Attributes:
        what: What moves, in one line.
        paper: Where it is from.
        defaults: Settings by flag name that it needs where they differ from the recipe's.
        peft_type: PEFT's name of it; None for what is done without PEFT.
        peft_config: Fields of PEFT's config class. Of its `modules_to_save` those count that a model has.
        merges: Whether the adapter can be merged into the weights; None without an adapter.
        trainable_share: Of the embedded encoder's parameters with a head for two classes; None where it has no meaning.
        family: What is fitted: a name of `FAMILIES`, or where it is imported from, `package.module:Name`.
    """

    what: str
    paper: str
    defaults: dict[str, Any] = field(default_factory=dict)
    peft_type: str | None = None
    peft_config: dict[str, Any] = field(default_factory=dict)
    merges: bool | None = None
    trainable_share: float | None = None
    family: str = "encoder"

    @property
    def takes_adapter(self) -> bool:
        """Whether it trains an adapter of PEFT."""
        return self.peft_type is not None or self is CATALOGUE["peft"]


# Where the families are. A model folder says by these names which of them reads it.
FAMILIES: dict[str, str] = {
    "encoder": "finetune.families.encoder:Encoder",
    "textcnn": "finetune.families.textcnn:TextCNN",
    "tfidf": "finetune.families.tfidf:Tfidf",
}
# The method whose figure every run shows beside its own, since it costs next to nothing. It needs `fit_rows`.
FLOOR = "tfidf"

LORA: dict[str, Any] = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"}
VIRTUAL_TOKENS = 20

CATALOGUE: dict[str, Method] = {
    "full": Method(
        "every parameter",
        "Devlin et al. 2019",
        # Its appendix A.3 searched 2e-5 to 5e-5; the upper end suits small encoders and short training.
        {"learning_rate": 5e-5},
        trainable_share=1.0,
    ),
    "head": Method(
        "the classification head alone, on the features of the frozen encoder",
        "Peters et al. 2019",
        # Only the head moves, so large steps are safe, and passes over cached features cost nothing: ten instead of
        # two raise validation accuracy from 49.6 to 57.1 % (TREC) and from 63.6 to 67.9 % (4,000 sentences of MR).
        {"learning_rate": 1e-2, "num_train_epochs": 10},
        trainable_share=3.4e-05,
    ),
    "last_layers": Method(
        "the head and the last --num_layers layers of the encoder",
        "Lee et al. 2019",
        {"learning_rate": 5e-5},
        trainable_share=0.1628,
    ),
    "bitfit": Method(
        "the biases and the head",
        "Ben Zaken et al. 2022",
        {"learning_rate": 1e-3},
        trainable_share=0.00118,
    ),
    "lora": Method(
        "low-rank updates of all linear layers",
        "Hu et al. 2022",
        {"learning_rate": 5e-4},  # about ten times that of full fine-tuning (Schulman et al. 2025)
        "LORA",
        LORA,
        merges=True,
        trainable_share=0.0289,
    ),
    "rslora": Method(
        "LoRA scaled by 1 / √r instead of 1 / r, for high ranks",
        "Kalajdzievski 2023",
        {"learning_rate": 2e-4},
        "LORA",
        {**LORA, "r": 64, "lora_alpha": 16, "use_rslora": True},
        merges=True,
        trainable_share=0.1064,
    ),
    "dora": Method(
        "LoRA of the direction of each weight column, and its length apart",
        "Liu et al. 2024",
        {"learning_rate": 5e-4},
        "LORA",
        {**LORA, "use_dora": True},
        merges=True,
        trainable_share=0.0298,
    ),
    "pissa": Method(
        "LoRA that starts from the principal singular vectors of the weights",
        "Meng et al. 2024",
        {"learning_rate": 2e-4},
        "LORA",
        {**LORA, "lora_alpha": 16, "init_lora_weights": "pissa"},
        merges=True,
        trainable_share=0.0289,
    ),
    "lora_plus": Method(
        "LoRA whose B matrices learn 16 times as fast as its A matrices",
        "Hayou et al. 2024",
        {"learning_rate": 1e-4, "lora_plus_ratio": 16.0},
        "LORA",
        LORA,
        merges=True,
        trainable_share=0.0289,
    ),
    "adalora": Method(
        "LoRA that moves its rank to the layers that need it",
        "Zhang et al. 2023",
        {"learning_rate": 2e-3},
        "ADALORA",
        {"init_r": 12, "target_r": 8, "lora_alpha": 32, "target_modules": "all-linear"},
        merges=True,
        trainable_share=0.0219,
    ),
    "ia3": Method(
        "a factor on each key, value and feed-forward feature",
        "Liu et al. 2022",
        # The factors start at 1 and have to move far: 76.0 % after an epoch of 1,500 sentences of MR.
        {"learning_rate": 1e-2},
        "IA3",
        {"target_modules": "all-linear", "feedforward_modules": []},
        merges=True,
        trainable_share=0.00096,
    ),
    "prefix": Method(
        "keys and values of virtual tokens before the text, in every layer",
        "Li and Liang 2021",
        {"learning_rate": 1e-2},
        "PREFIX_TUNING",
        {"num_virtual_tokens": VIRTUAL_TOKENS},
        merges=False,
        trainable_share=0.0041,
    ),
    "prompt": Method(
        "the embeddings of virtual tokens before the text",
        "Lester et al. 2021",
        # On 1,500 sentences of MR the prompt and the last layer alone stay near the majority class (52 to 60 % after an
        # epoch at six settings of their rates, 52.8 % at 3e-2 from random vectors). With the pooler trained as well, as
        # RoBERTa's head is, two epochs reach 64.8 % from random vectors and 69.5 % from words (Lester et al. 2021).
        {"learning_rate": 3e-3},
        "PROMPT_TUNING",
        {"num_virtual_tokens": 10, "prompt_tuning_init": "SAMPLE_VOCAB", "modules_to_save": ["pooler"]},
        merges=False,
        trainable_share=0.0067,
    ),
    "p_tuning": Method(
        "virtual tokens before the text, from a small network",
        "Liu et al. 2021",
        {"learning_rate": 3e-3},
        "P_TUNING",
        {"num_virtual_tokens": VIRTUAL_TOKENS, "encoder_hidden_size": 128},
        merges=False,
        trainable_share=0.0054,
    ),
    "vera": Method(
        "factors on shared random low-rank matrices",
        "Kopiczko et al. 2024",
        {"learning_rate": 1e-2},
        "VERA",
        {"r": 256, "target_modules": "all-linear"},
        merges=True,
        trainable_share=0.00138,
    ),
    "oft": Method(
        "rotations of blocks of each layer's inputs",
        "Qiu et al. 2023",
        {"learning_rate": 1e-3},
        "OFT",
        {"oft_block_size": 32, "target_modules": "all-linear"},
        merges=True,
        trainable_share=0.0142,
    ),
    "qlora": Method(
        "LoRA on weights held in four bits; needs a GPU and bitsandbytes",
        "Dettmers et al. 2023",
        {"learning_rate": 2e-4},
        "LORA",
        LORA,
        merges=True,
        trainable_share=0.0289,
    ),
    "peft": Method(
        "what --peft_config says, with any of PEFT's methods",
        "Mangrulkar et al. 2022",
        {"learning_rate": 1e-3},
    ),
    "textcnn": Method(
        "a convolutional network from scratch",
        "Kim 2014",
        # From scratch: more passes and the usual rate of Adam (Kingma and Ba 2015); no warm-up to protect pretraining.
        # `TextCNN.settle` adds epochs where five of them are fewer than 1,000 steps.
        {
            "learning_rate": 1e-3,
            "num_train_epochs": 5,
            "per_device_train_batch_size": 50,
            "warmup_steps": 0,
            "max_tokens_per_micro_batch": 32_768,
        },
        family="textcnn",
    ),
    "tfidf": Method(
        "TF-IDF of words and word pairs, and a linear model: the floor",
        "Wang and Manning 2012",
        family="tfidf",
    ),
}

METHOD_DEFAULTS: dict[str, dict[str, Any]] = {name: method.defaults for name, method in CATALOGUE.items()}


PATH = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)[:.]([A-Za-z_]\w*)")


def find_method(name: str) -> Method:
    """Return the method of that name, without importing anything.

    Of a name that is unknown, as in a record, no more than that it trains a network.
    """
    if name in CATALOGUE:
        return CATALOGUE[name]
    found = _find_imported(name)
    return found if isinstance(found, Method) else Method(name, "")


def import_method(name: str) -> str:
    """Make sure that a method that the user names is there, and import its module and its family's if it has one.

    Args:
        name: A name of the catalogue, or `package.module:NAME` (also with a dot) of a `Method`.

    Returns:
        The name by which it is recorded: that of the catalogue, or `package.module:NAME`.

    Raises:
        FinetuneError: If there is no such method.
    """
    if name in CATALOGUE:
        return name
    if PATH.fullmatch(name) is None:
        raise FinetuneError(
            f"Expected a method of {', '.join(CATALOGUE)}, or package.module:NAME of one of your own, but got {name!r}."
        )
    name = _with_colon(name)
    found = _import_named(name, "a method")
    if not isinstance(found, Method):
        raise FinetuneError(
            f"Expected {name} to be a finetune.catalogue.Method, but it is {_article(type(found).__name__)}. "
            "docs/methods.md shows one."
        )
    import_family(found.family)
    return name


def import_family(name: str) -> Family:
    """Return the family of that name; one that is not listed is imported.

    Args:
        name: A name of `FAMILIES`, or `package.module:Name` of one that the user named, or whose method the user named.

    Raises:
        FinetuneError: If there is no such family.
    """
    path = FAMILIES.get(name, name)
    if PATH.fullmatch(path) is None:
        raise FinetuneError(f"Expected a family of {', '.join(FAMILIES)}, or package.module:Name, but got {name!r}.")
    found = _import_named(path, "a family")
    if not (isinstance(found, type) and issubclass(found, Family)):
        raise FinetuneError(
            f"Expected {name} to be a class derived from finetune.family.Family, but it is "
            f"{_article(type(found).__name__)}. docs/methods.md shows one."
        )
    return found()


def find_family(name: str) -> Family | None:
    """Return the family of that name, as a model folder says it; None if it is neither listed nor imported already.

    So a folder, which may come from anywhere, can't make this process import a module.
    """
    if name in FAMILIES:
        return import_family(name)
    found = _find_imported(name)
    return found() if isinstance(found, type) and issubclass(found, Family) else None


def file_name_of(method: str) -> str:
    """Return a method's name as a part of a file's name, in which colons don't go everywhere."""
    return method.replace(":", ".")


def family_of(method: str) -> Family:
    """Return the family of a method; of one that is unknown, as in a record, that of most methods."""
    return find_family(find_method(method).family) or import_family(Method.family)


def name_of(family: Family) -> str:
    """Return the name by which a saved model says its family: that of `FAMILIES`, or where it is imported from."""
    path = f"{type(family).__module__}:{type(family).__qualname__}"
    return next((name for name, listed in FAMILIES.items() if listed == path), path)


def _import_named(path: str, what: str) -> Any:
    """Import what a path names."""
    module, name = _with_colon(path).split(":")
    try:
        imported = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # of a package that the module itself lacks
        raise FinetuneError(
            f"Expected to import {what} from {module!r}, but there is no module {error.name!r}. Install it, or put its "
            "folder on PYTHONPATH."
        ) from None
    if name not in vars(imported):
        raise FinetuneError(f"Expected {what} named {name!r} in {module!r}, but it has none. Check its name.")
    return vars(imported)[name]


def _find_imported(path: str) -> Any:
    """Return what a path names if its module has been imported; no code runs, as that of a module's `__getattr__`."""
    if PATH.fullmatch(path) is None:
        return None
    module, name = _with_colon(path).split(":")
    return vars(sys.modules[module]).get(name) if module in sys.modules else None


def _with_colon(path: str) -> str:
    match = PATH.fullmatch(path)
    assert match is not None
    return f"{match[1]}:{match[2]}"


def _article(word: str) -> str:
    return f"{'an' if word[0].lower() in 'aeiou' else 'a'} {word}"
