"""Push a model to the Hub, and make sure that it works there.

Reloaded in a fresh process it gives the same logits, or nothing is pushed; one commit, all or nothing; then the commit
is downloaded into an empty cache and gives the same logits again.
"""

import fnmatch
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants
from huggingface_hub.errors import RevisionNotFoundError
from huggingface_hub.utils import disable_progress_bars, logging

from finetune.catalogue import FAMILIES
from finetune.errors import FinetuneError
from finetune.escape import blank_tokens, say
from finetune.hub.stage import Staged, stage
from finetune.hub_client import HUB_ERRORS, check_login, explain, parse_hub_id, retry
from finetune.inference.load import download_model
from finetune.inference.predict import load_predictor
from finetune.inference.reload import compute_logits_elsewhere
from finetune.lookup import import_family, name_of
from finetune.models.answers import unit_of_logits
from finetune.run.run import Run

__all__ = ["push", "push_run", "upload_folder"]

MAX_DIFFERENCE = 1e-4
BRANCH = re.compile(r"(?!refs/)\w[\w./-]*(?<![./])")
# Files of an earlier push that would change how the model loads. What else lies in the repository stays.
REPLACED = [
    "*.safetensors", "*.safetensors.index.json", "*.bin", "config.json", "adapter_config.json", "finetune_config.json",
    "tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json",
]  # fmt: skip


def push(
    path: str | Path,
    name: str,
    *,
    private: bool = True,
    revision: str | None = None,
    adapter: bool = False,
    message: str | None = None,
    card: str | None = None,
) -> str:
    """Push the model of a run to the Hub, and check what arrived.

    Args:
        path: A run directory or model folder.
        name: `user/name`; the repository is made if it does not exist.
        private: Whether only its owner can see it.
        revision: The branch to push to, made if it does not exist; None for main.
        adapter: Ship an adapter as it is instead of merged into its base.
        message: The commit's; by default what it is.
        card: A file with a model card to ship instead of the one drawn from the run.

    Returns:
        The commit.

    Raises:
        FinetuneError: If the model does not reload to the same logits before or after, or the Hub refuses it.
    """
    known = parse_hub_id(name)
    if known is None or known[1] is not None:
        raise FinetuneError(f"Expected the repository as user/name, but got {name!r}. A branch goes to --revision.")
    if revision is not None and (BRANCH.fullmatch(revision) is None or ".." in revision):
        raise FinetuneError(f"Expected --revision to be the name of a branch, but got {revision!r}. Pass another one.")
    logging.set_verbosity_error()  # retries are reported here
    disable_progress_bars()
    api = HfApi()
    check_login(api, name)
    with tempfile.TemporaryDirectory() as workplace:
        staged = stage(path, Path(workplace) / "model", name, revision, adapter, None if card is None else Path(card))
        difference = _compare(
            staged,
            compute_logits_elsewhere(staged.folder, staged.probes.texts, staged.probes.pairs),
            "Nothing was pushed.",
        )
        count = f"{len(staged.probes.texts)} texts, logits differ by at most"
        say(f"reloaded in a fresh process: {count} {difference:.1e}", file=sys.stdout)
        kind = "adapter" if staged.shipped.is_adapter else name_of(staged.shipped.family)
        what = blank_tokens(message or f"{kind} model for {len(staged.shipped.label_names)} labels, by finetune")
        commit = upload_folder(api, staged.folder, name, private=private, revision=revision, message=what)
        say(
            f"pushed to {constants.ENDPOINT}/{name}: commit {commit}, {'private' if private else 'public'}",
            file=sys.stdout,
        )

        pushed = download_model(name, commit, Path(workplace) / "cache")
        found, _ = load_predictor(pushed, torch.float32).compute_logits(staged.probes.texts, staged.probes.pairs)
        difference = _compare(staged, found, f"Don't use commit {commit}; please report this.")
        say(f"downloaded into an empty cache: {count} {difference:.1e}", file=sys.stdout)
    return commit


def push_run(run: Run) -> None:
    """Push a finished run, if its settings say where to.

    Raises:
        FinetuneError: See `push`; the run itself is complete all the same.
    """
    hub = run.arguments.hub
    if hub is None or not run.is_main:
        return
    try:
        push(run.directory, hub.model_id, private=hub.private, revision=hub.revision)
    except FinetuneError as error:
        raise FinetuneError(
            f"{error} The run is complete; to push it again: finetune push {run.directory} {hub.model_id}"
        ) from error


def _compare(staged: Staged, found: np.ndarray, otherwise: str) -> float:
    """Return the largest difference between the logits that a folder gives and those that it must give."""
    if found.shape != staged.logits.shape:
        raise FinetuneError(f"Expected logits of shape {staged.logits.shape}, but got {found.shape}. {otherwise}")
    difference = float(np.abs(found - staged.logits).max())
    if not difference <= MAX_DIFFERENCE * unit_of_logits(staged.logits, staged.shipped.config.problem_type):
        raise FinetuneError(
            f"Expected the model to give the same logits when it is loaded again, but they differ by {difference:.1e}. "
            f"{otherwise}"
        )
    return difference


def upload_folder(
    api: HfApi, folder: Path, name: str, *, private: bool = True, revision: str | None = None, message: str
) -> str:
    """Put a folder's files into a repository by one commit.

    Safe to repeat: files that lie there already are not sent again, and where nothing differs there is no new commit.
    So an answer that got lost does no harm. Files of an earlier push that the folder lacks are deleted in the same go.

    Args:
        api: The Hub.
        folder: Its files are all uploaded.
        name: `user/name`; made if it does not exist.
        private: Whether only its owner can see it, also of a repository that exists.
        revision: The branch, made if it does not exist; None for main.
        message: The commit's.

    Returns:
        The commit.

    Raises:
        FinetuneError: If the Hub refuses it, or does not answer for long.
    """
    branch = revision or constants.DEFAULT_REVISION
    files = sorted(path for path in folder.rglob("*") if path.is_file())

    def commit() -> str:
        api.create_repo(name, private=private, exist_ok=True)
        if private and not api.repo_info(name).private:
            raise FinetuneError(
                f"Expected {name!r} to be private, but everybody can see it. Pass --public to push there all the same."
            )
        if revision is not None:
            api.create_branch(name, branch=branch, exist_ok=True)
        head: Any = api.repo_info(name, revision=branch)
        paths = [file.relative_to(folder).as_posix() for file in files]
        there = [sibling.rfilename for sibling in head.siblings or []]
        stale = [path for path in there if path not in paths and _is_replaced(path)]
        operations: list[Any] = [
            *(CommitOperationAdd(path, file) for path, file in zip(paths, files, strict=True)),
            *(CommitOperationDelete(path) for path in stale),
        ]
        info = api.create_commit(name, operations, commit_message=message, revision=branch, parent_commit=head.sha)
        return info.oid

    try:
        return retry(commit)
    except RevisionNotFoundError:
        raise FinetuneError(
            f"Expected --revision to be a branch, but {branch!r} of {name!r} is none. Pass the name of a branch."
        ) from None
    except HUB_ERRORS as error:
        raise explain(error, name) from None


def _is_replaced(path: str) -> bool:
    patterns = [*REPLACED, *(file for name in FAMILIES for file in import_family(name).files)]
    return "/" not in path and any(fnmatch.fnmatch(path, pattern) for pattern in patterns)
