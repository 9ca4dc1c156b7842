"""What may differ between a run that was cut off and its continuation: settings, data, machine."""

import json
from pathlib import Path
from typing import Any

from finetune.errors import FinetuneError
from finetune.escape import say
from finetune.hub_client import is_commit
from finetune.lookup import family_of
from finetune.run.fields import Change, Environment, Settings
from finetune.run.record import RunRecord
from finetune.settings.arguments import Arguments
from finetune.settings.declaration import Values
from finetune.settings.declared import facts_of

__all__ = ["flatten", "go_on_from"]

# Parts whose settings decide what the weights in a checkpoint are: they can't change on the way.
FIXED_PARTS = ("model", "method", "family")
# Of the optimizer the checkpoint holds the state; by the trials what trains was chosen.
FIXED = ("optim", "optim_args", "trials", "budget")


def go_on_from(before: RunRecord, record: RunRecord, checkpoint: Path, arguments: Arguments, directory: Path) -> bool:
    """Let a record go on where an earlier start of its run left off; refuse what has changed since its checkpoint.

    `--resume_with_changes` confirms what may change; `record` then lists it. What of the machine has changed is said.

    Args:
        before: The earlier start's record.
        record: This one's, with its data.
        checkpoint: The checkpoint that it resumes from.
        arguments: This start's settings.
        directory: The run directory, for messages.

    Returns:
        Whether settings or data have changed since the checkpoint.

    Raises:
        FinetuneError: With a list of what differs.
    """
    changed, fixed = _find_changes(before, record.as_read(), arguments)
    where = f"the unfinished run in {str(directory)!r}"
    if fixed:
        raise FinetuneError(
            f"Expected what {where} was started with, but these differ: {', '.join(fixed + changed)}. Restore "
            "them to resume, or pass --restart to start over."
        )
    if changed and not arguments.run.resume_with_changes:
        raise FinetuneError(
            f"Expected what {where} was started with, but these differ: {', '.join(changed)}. Restore them to "
            "resume, pass --resume_with_changes to go on with them, or --restart to start over."
        )
    record.started = before.started
    changes = list(before.changes or [])
    step = int(str(checkpoint).rpartition("-")[2])
    if changed:
        changes.append(Change(after_step=step, changed=changed))
        say(f"warning: changed after step {step}: {', '.join(changed)}")
    elif _has_moved(before, record) and before.data is not None and record.data is not None:
        moved = f"from commit {before.data.commit} to {record.data.commit}"
        say(f"warning: the data set moved {moved}: the same rows")
    if changes:
        record.changes = changes
    for name in _changed_machine(before.environment, record.environment):
        say(f"warning: {name} since the checkpoint: the last bits of the result may differ")
    return any(change.after_step >= step for change in changes)


def flatten(settings: Settings) -> dict[str, Any]:
    """Return the settings of all parts by name, as JSON holds them, but for those that may differ between hosts."""
    return {
        name: json.dumps(value, default=str)
        for _, part in settings
        for name, value in part.items()
        if facts_of(name).changes != "nothing"
    }


def _find_changes(before: RunRecord, now: RunRecord, arguments: Arguments) -> tuple[list[str], list[str]]:
    """List what differs of settings, model and data: what may change on the way, and what may not."""
    changed, fixed = _changed_settings(before, now)
    if before.pretrained is not None and before.pretrained != now.pretrained:
        name, was = arguments.model.model_name_or_path, before.pretrained
        how = f"pass --model_revision {was}" if is_commit(was) else "its files have changed"
        fixed.append(f"the model {name!r} ({how})")
    vectors = [None if record.word_vectors is None else record.word_vectors.sha256 for record in (before, now)]
    if None not in vectors and vectors[0] != vectors[1]:
        fixed.append(f"the word vectors {arguments.model.word_vectors!r} (they have changed)")
    if before.data is None or now.data is None:
        return changed, fixed
    if before.data.label_names != now.data.label_names:
        fixed.append("the names of the labels")
    moved = f" (pass --dataset_revision {before.data.commit})" if _has_moved(before, now) else ""
    for (name, then), (_, split) in zip(before.data.splits, now.data.splits, strict=True):
        if then.sha256 != split.sha256:
            own_words = name == "train" and family_of(now.method).learns_tokens(Values(arguments.values()))
            (fixed if own_words else changed).append(f"the data: split {name!r} has changed since{moved}")
    kept = [data.unlabeled and data.unlabeled.sha256 for data in (before.data, now.data)]
    if kept[0] != kept[1]:
        changed.append("the data: the texts without labels have changed since")
    teachers = [record.teacher and record.teacher.sha256 for record in (before, now)]
    if all(teachers) and teachers[0] != teachers[1]:
        fixed.append(f"the teacher {arguments.method.teacher!r} (its files have changed)")
    return changed, fixed


def _has_moved(before: RunRecord, now: RunRecord) -> bool:
    """Return whether a data set on the Hub is at another commit than it was."""
    was = None if before.data is None else before.data.commit
    return was is not None and now.data is not None and was != now.data.commit


def _changed_settings(before: RunRecord, now: RunRecord) -> tuple[list[str], list[str]]:
    """List the settings that differ: those that may change on the way, and those that may not."""
    changed: list[str] = []
    fixed: list[str] = []
    commits = {"model_revision": before.pretrained, "dataset_revision": before.data and before.data.commit}
    earlier = {name: value for _, part in before.arguments for name, value in part.items()}  # some have moved
    searched = set() if before.search is None else before.search.chosen.keys()  # the trials will choose them again
    for part, settings in now.arguments:
        for name, value in settings.items():
            is_pinned = value is not None and value == commits.get(name)  # since the branch has moved on
            is_same = name not in earlier or earlier[name] == value or is_pinned or name in searched
            if facts_of(name).changes != "nothing" and not is_same:
                line = f"{name} ({earlier[name]!r} then, {value!r} now)"
                (fixed if part in FIXED_PARTS or name in FIXED else changed).append(line)
    processes = before.environment.num_processes, now.environment.num_processes
    if processes[0] != processes[1]:
        fixed.append(f"num_processes ({processes[0]} then, {processes[1]} now)")
    return changed, fixed


def _changed_machine(before: Environment, now: Environment) -> list[str]:
    """List what the bits of a sum depend on."""
    changed = [
        f"{name} has changed from {getattr(before, name)} to {getattr(now, name)}"
        for name in ("processor", "gpus", "num_threads", "precision")
        if getattr(before, name) != getattr(now, name)
    ]
    packages, own = before.packages, now.packages
    return changed + [
        f"{name} has changed from {packages[name]} to {own.get(name)}"
        for name in ("torch", "transformers", "peft", "numpy")
        if name in packages and packages[name] != own.get(name)
    ]
