"""Examine a model folder, whatever has been saved in it, before any library reads it."""

import functools
from pathlib import Path

from finetune.examination.adapters import ADAPTER_FILE, ADAPTER_WEIGHTS_FILE, check_adapter_config
from finetune.examination.checksums import READ, warn_of_changes
from finetune.examination.configs import check_config, check_sizes, read_vocabulary_size
from finetune.examination.documents import check_file, read_object, read_value, refusal
from finetune.examination.graphs import check_graph
from finetune.examination.labels import check_label_names, check_problem_type, read_id2label
from finetune.examination.tokenizers import check_tokenizer
from finetune.examination.weights import Tensor, list_weights, read_tensors, refuse_no_numbers

__all__ = ["examine_export", "examine_pretrained", "examine_saved"]

# A pretrained model may lack weights, which are drawn at random, with a warning; but not most of them.
SLACK = 2
CONFIG_FILE, LABEL_NAMES_FILE, SAYS_FILE = "config.json", "label_names.json", "finetune_config.json"


def examine_saved(folder: Path) -> None:
    """Examine what is about to answer: a whole model, an adapter, or arrays.

    A folder whose files have not changed since is not examined again.

    Args:
        folder: It has been saved by finetune, transformers or PEFT.

    Raises:
        FinetuneError: In one line, with what is wrong, where, and how to mend it.
    """
    _examine(folder, _fingerprint(folder), True)


def examine_pretrained(folder: Path) -> None:
    """Examine what a training starts from, or what an adapter is for; the names of its labels don't count.

    Args:
        folder: It has a `config.json`.

    Raises:
        FinetuneError: As for `examine_saved`.
    """
    _examine(folder, _fingerprint(folder), False)


def examine_export(folder: Path, graph: str) -> None:
    """Examine what `finetune export` wrote.

    Args:
        folder: Its folder.
        graph: The name of the ONNX file in it.

    Raises:
        FinetuneError: As for `examine_saved`.
    """
    _check_files(folder)
    warn_of_changes(folder)
    file = folder / CONFIG_FILE
    config = read_object(file)
    names = read_id2label(config, file)
    if names is None:
        raise refusal(file, "id2label to name the outputs", "none", "Export the model again.")
    check_problem_type(_read_problem_type(folder), len(names), folder / SAYS_FILE, file)
    check_tokenizer(folder, read_vocabulary_size(config))
    check_graph(folder / graph)


def _check_files(folder: Path) -> None:
    for file in sorted(folder.iterdir()):
        if file.suffix in READ:
            check_file(file)


def _fingerprint(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """Return what changes when a file of a folder does."""
    stats = [(file.name, file.stat(follow_symlinks=True)) for file in sorted(folder.iterdir()) if file.exists()]
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)


@functools.lru_cache(maxsize=64)
def _examine(folder: Path, fingerprint: tuple[tuple[str, int, int], ...], has_labels: bool) -> None:
    _check_files(folder)
    warn_of_changes(folder)
    is_adapter = (folder / ADAPTER_FILE).is_file()
    if is_adapter and (folder / CONFIG_FILE).is_file():
        raise refusal(
            folder, "a whole model or an adapter", f"{CONFIG_FILE} and {ADAPTER_FILE}", "Take one of them out of there."
        )
    names, names_file = None, folder / CONFIG_FILE
    if (folder / LABEL_NAMES_FILE).is_file():
        names_file = folder / LABEL_NAMES_FILE
        names = check_label_names(read_value(names_file), names_file)
    if is_adapter:
        _examine_adapter(folder)
    elif (folder / CONFIG_FILE).is_file():
        names = _examine_network(folder, has_labels)
    else:
        for file in sorted(folder.glob("*.safetensors")):  # arrays of a family that is no network
            read_tensors(file)
            refuse_no_numbers(file)
    if has_labels and names is not None:
        check_problem_type(_read_problem_type(folder), len(names), folder / SAYS_FILE, names_file)
    check_tokenizer(folder)  # whose numbers are compared with the embeddings when these are there


def _examine_network(folder: Path, has_labels: bool) -> list[str] | None:
    """Examine config and weights, and return the names of the labels."""
    file = folder / CONFIG_FILE
    config = read_object(file)
    check_config(config, file)
    tensors: dict[str, Tensor] = {}
    for one in list_weights(folder):
        tensors |= read_tensors(one)
        refuse_no_numbers(one)
    if tensors:
        check_sizes(config, tensors, file, 1 if has_labels else SLACK)
    names = read_id2label(config, file) if has_labels else None
    asks_labels = "hypotheses" in config  # a model of inference, whose outputs are not the labels
    if names is not None and not asks_labels:
        check_problem_type(config.get("problem_type"), len(names), file, file)
        own, told = config.get("problem_type"), _read_problem_type(folder)
        check_problem_type(told, len(names), folder / SAYS_FILE, file)
        if None not in (own, told) and own != told:
            raise refusal(folder / SAYS_FILE, f"the problem_type of {CONFIG_FILE}, {own}", repr(told))
    return None if asks_labels else names


def _examine_adapter(folder: Path) -> None:
    tensors: dict[str, Tensor] = {}
    if (folder / ADAPTER_WEIGHTS_FILE).is_file():  # whoever loads it says that it is missing
        tensors = read_tensors(folder / ADAPTER_WEIGHTS_FILE)
        refuse_no_numbers(folder / ADAPTER_WEIGHTS_FILE)
    check_adapter_config(read_object(folder / ADAPTER_FILE), tensors, folder / ADAPTER_FILE)


def _read_problem_type(folder: Path) -> str | None:
    """Return the kind of task that `finetune_config.json` says; None where there is none."""
    file = folder / SAYS_FILE
    return read_object(file).get("problem_type") if file.is_file() else None
