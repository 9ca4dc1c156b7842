"""The methods by name: what trains, who proposed it, and the settings it trains well with. Data only.

A method that PEFT knows is its `peft_type` and the fields of PEFT's own config class; `--peft_config` adds to these or
replaces them. Learning rates are those that the papers and PEFT's examples use for classification with small encoders,
checked on sentences in `docs/reference/methods.md`; `--learning_rate` overrides them.
"""

from dataclasses import dataclass, field
from typing import Any

__all__ = ["CATALOGUE", "FAMILIES", "FLOOR", "METHOD_DEFAULTS", "Around", "Method"]


@dataclass(frozen=True)
class Around:
    """Values of a setting to try: from its default divided by `factor` to its default times `factor`, evenly by ratio.

    Attributes:
        factor: Above 1.
        whole: Whether they are whole numbers.
    """

    factor: float
    whole: bool = False


@dataclass(frozen=True)
class Method:
    """A way to fit a classifier.

    Attributes:
        what: What moves, in one line.
        paper: Where it is from.
        defaults: Settings by flag name that it needs where they differ from the recipe's.
        peft_type: PEFT's name of it; None for what is done without PEFT.
        peft_config: Fields of PEFT's config class. Of its `modules_to_save` those count that a model has.
        merges: Whether the adapter that is saved can be merged into the weights; None where none is.
        trainable_share: Of the embedded encoder's parameters with a head for two classes; None where it has no meaning.
        family: What is fitted: a name of `FAMILIES`, or where it is imported from, `package.module:Name`.
        trains_through_layers: Whether gradients pass through the layers of what it trains.
        search: What `--trials` tries, by setting: values around its default, or some values. Settings that its family
            has no use for don't count.
    """

    what: str
    paper: str
    defaults: dict[str, Any] = field(default_factory=dict)
    peft_type: str | None = None
    peft_config: dict[str, Any] = field(default_factory=dict)
    merges: bool | None = None
    trainable_share: float | None = None
    family: str = "encoder"
    trains_through_layers: bool = True
    search: dict[str, Around | tuple[Any, ...]] = field(default_factory=lambda: OF_NETWORKS)

    @property
    def takes_adapter(self) -> bool:
        """Whether it trains an adapter of PEFT."""
        return self.peft_type is not None or self is CATALOGUE["peft"]

    @property
    def saves_adapter(self) -> bool:
        """Whether what is saved is the adapter, without the weights of its base."""
        return self.takes_adapter and self.family == Method.family


# Where the families are. A model folder says by these names which of them reads it.
FAMILIES: dict[str, str] = {
    "encoder": "finetune.families.encoder:Encoder",
    "embeddings": "finetune.families.embeddings:Embeddings",
    "contrastive": "finetune.families.contrastive:Contrastive",
    "zero-shot": "finetune.families.zero_shot:ZeroShot",
    "textcnn": "finetune.families.textcnn:TextCNN",
    "tfidf": "finetune.families.tfidf:Tfidf",
}
# The method whose figure every run shows beside its own, since it costs next to nothing. It needs `fit_rows`.
FLOOR = "tfidf"

# The rate and the number of passes matter most (Dodge et al. 2020, Mosbach et al. 2021), then smoothing on few labels.
OF_NETWORKS: dict[str, Around | tuple[Any, ...]] = {
    "learning_rate": Around(4),
    "num_train_epochs": Around(2, whole=True),
    "label_smoothing_factor": (0.0, 0.1),
}

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
        trains_through_layers=False,
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
    "embeddings": Method(
        "a linear model on the vectors of the frozen encoder, its penalty chosen by cross-validation",
        "Reimers and Gurevych 2019",
        family="embeddings",
    ),
    "contrastive": Method(
        "the encoder, by which texts are alike, then a linear model on its vectors; for few labels",
        "Tunstall et al. 2022",
        # The rate of full fine-tuning, and each row in as many steps as SetFit's 20 pairs of each kind give it.
        {"learning_rate": 5e-5, "num_train_epochs": 20, "per_device_train_batch_size": 16},
        family="contrastive",
    ),
    "contrastive_lora": Method(
        "contrastive, by low-rank updates of the encoder that are then merged into it",
        "Tunstall et al. 2022, Hu et al. 2022",
        {"learning_rate": 5e-4, "num_train_epochs": 20, "per_device_train_batch_size": 16},
        "LORA",
        LORA,
        family="contrastive",
    ),
    "zero-shot": Method(
        "nothing: the label whose --label_descriptions is most similar; no training row is used",
        "Yin et al. 2019",
        family="zero-shot",
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
        search={**OF_NETWORKS, "textcnn_dropout": (0.3, 0.5, 0.7)},
    ),
    "tfidf": Method(
        "TF-IDF of words and word pairs, and a linear model: the floor",
        "Wang and Manning 2012",
        family="tfidf",
        search={"tfidf_c": Around(30), "tfidf_max_ngram": (1, 2, 3)},
    ),
}

METHOD_DEFAULTS: dict[str, dict[str, Any]] = {name: method.defaults for name, method in CATALOGUE.items()}
