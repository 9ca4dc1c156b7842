"""Write `docs/reference/run.md` from the record's own descriptions.

    python -m finetune.run.document > docs/reference/run.md

The introduction and the table of files stand here; every field of `run.json` comes from where it is declared.
"""

import types
from collections.abc import Iterator
from string import Template
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from finetune.catalogue import CATALOGUE
from finetune.metrics import METRICS, MULTI_LABEL, REGRESSION, SINGLE_LABEL
from finetune.run.fields import Metrics, Part
from finetune.run.record import SCHEMA_VERSION, CompleteRecord

__all__ = ["build_page", "describe_type", "iterate_parts"]

TASKS = {SINGLE_LABEL: "one class", MULTI_LABEL: "several labels", REGRESSION: "a number"}
WORDS = {str: "text", int: "whole number", float: "number", bool: "true or false", type(None): "null", Any: "anything"}
PAGE = Template("""\
<!-- Written by `python -m finetune.run.document > docs/reference/run.md`: edit that module, and fields.py. -->
# The run directory

A recipe writes one directory per run, and everything that comes after training reads only this.

| path | content |
|---|---|
| `run.json` | what ran, on what, at what cost, how well; described below |
| `findings.json` | what the data doctor found in the splits that were given: `name`, `severity`, `splits`, \
`num_rows`, `message`, `advice`, `examples` |
| `history.jsonl` | one JSON object per logged step: `step`, `epoch`, `loss` (of a number to predict in shares of its \
variance), `grad_norm`, `learning_rate`; per evaluation `eval_accuracy`, `eval_loss` and the other metrics |
| `trials.jsonl` | with `--trials` or `--budget`: a line with what the trials depend on, then one JSON object per \
trial: `number`, `settings`, `state` (`complete`, `pruned`, `failed`), `value`, `values` on the way, `seconds`, \
`cpu_seconds`, and of a failed one `message` |
| `encoder/` | with `--pretrain_epochs`: what training started from, once it was trained on texts alone; a folder that \
`--model_name_or_path` takes, and of a PEFT method the base on which the adapter in `model/` stands |
| `model/` | what `finetune.load` reloads: a `transformers` model with its tokenizer; of a PEFT method the adapter, \
its tokenizer and `label_names.json`; for TF-IDF its arrays, terms and `label_names.json`; with each \
`finetune_config.json`: `problem_type`, and `text`, how long texts are cut, \
and where they are known `encoding`, of files that are not UTF-8, and `is_numbered`, whether numbers may stand for the \
labels' names; and `checksums.json`, the SHA-256 of these files ([faults.md](../explanations/faults.md)) |
| `predictions/validation.parquet`, `predictions/test.parquet` | one row per example: `id`, `text` and for pairs \
`text_pair` (not with `--no_store_text`), `num_tokens`, `label` (not where it is withheld), `logits` (float32) |
| `checkpoints/` | what a run resumes from: `--save_total_limit` of them, each with sizes and hashes in \
`complete.json` ([faults.md](../explanations/faults.md)) |
| `tensorboard/` | with `--report_to tensorboard` what TensorBoard reads |
| `run.lock` | there while a process is at work in the directory |
| `before-restart/` | what `--restart` set aside, until the new run is complete |

`model/`, `run.json` and the predictions are written aside and renamed, so a file of that name is whole. A run of
several processes writes from its main process only.

## `run.json`, schema version $version

`finetune.run.record.RunRecord` is what writes this file and reads it. What is not a number (ROC-AUC where a class has
no example) is `null`. Fields may be added without another `schema_version`, and readers pass over those that they don't
know; where the meaning or the place of one changes, the version does. A record with another version is not read.

$fields

## Methods

`method` is one of these ([methods.md](methods.md)):

$methods
""")


def build_page() -> str:
    """Return the page."""
    fields = "\n\n".join(_describe_part(path, part) for path, part in iterate_parts(CompleteRecord))
    lines = [f"| `{name}` | {method.what} | {method.paper} |" for name, method in CATALOGUE.items()]
    methods = "\n".join(["| method | what moves | from |", "|---|---|---|", *lines])
    return PAGE.substitute(version=SCHEMA_VERSION, fields=fields, methods=methods)


def iterate_parts(part: type[Part], path: str = "") -> Iterator[tuple[list[str], type[Part]]]:
    """Find the models that a record consists of, each once and an outer one first, with the paths where it stands."""
    places: dict[type[Part], list[str]] = {}

    def visit(part: type[Part], path: str) -> None:
        places.setdefault(part, []).append(path)
        for name, field in part.model_fields.items():
            for inner, suffix in _parts_of(field.annotation):
                visit(inner, f"{path}.{name}{suffix}".removeprefix("."))

    visit(part, path)
    yield from ((paths, part) for part, paths in places.items())


def _parts_of(annotation: Any, suffix: str = "") -> Iterator[tuple[type[Part], str]]:
    """Find the models in a field's type; of a list or dictionary of them with a sign of that."""
    if isinstance(annotation, type) and issubclass(annotation, Part):
        yield annotation, suffix
        return
    origin = get_origin(annotation)
    sign = {list: "[]", dict: ".*"}.get(origin, "")  # type: ignore[call-overload]
    for inner in get_args(annotation):
        yield from _parts_of(inner, suffix + sign)


def _describe_part(paths: list[str], part: type[Part]) -> str:
    about = " ".join((part.__doc__ or "").split())
    head = ["field", "type", *(["of"] if part is Metrics else []), "meaning"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name, field in part.model_fields.items():
        tasks = [_tasks_of(name)] if part is Metrics else []
        lines.append(f"| {' | '.join([f'`{name}`', _type_of(field), *tasks, str(field.description)])} |")
    title = "" if paths == [""] else f"### {', '.join(f'`{path}`' for path in paths)}\n\n{about}\n\n"
    return title + "\n".join(lines)


def _tasks_of(name: str) -> str:
    known = [words for task, words in TASKS.items() if name.removesuffix("_interval") in METRICS[task]]
    if name == "per_class":
        known = [TASKS[SINGLE_LABEL], TASKS[MULTI_LABEL]]
    return ", ".join(known) if 0 < len(known) < len(TASKS) else "all"


def _type_of(field: FieldInfo) -> str:
    described = describe_type(field.annotation)
    return described if field.is_required() else f"{described.removesuffix(' or null')}, may be absent"


def describe_type(annotation: Any) -> str:
    """Write a type in words, as JSON has it."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if annotation in WORDS:
        return WORDS[annotation]
    if origin is Annotated:
        return describe_type(inner[0])
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in inner)
    if origin in (Union, types.UnionType):
        if set(inner) == {int, float}:
            return "number"
        return " or ".join(dict.fromkeys(describe_type(one) for one in inner))
    if origin is list:
        return f"list of {describe_type(inner[0])}"
    if origin is tuple:
        return "list of two numbers"
    if origin is dict:
        return f"{describe_type(inner[1])} by name"
    return "object"


if __name__ == "__main__":
    print(build_page(), end="")
