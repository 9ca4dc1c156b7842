"""The Hugging Face Hub: whether it answers, who is logged in, which commit is the newest, and its refusals.

Left alone, `datasets` retries for 23 seconds and `transformers` for 47 before they say that the network is down; here
that is asked once, answered within seconds, and then believed.
"""

import functools
import importlib
import random
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeVar

from huggingface_hub import HfApi, constants, get_session
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from finetune.errors import FinetuneError
from finetune.escape import say

__all__ = [
    "CLIENT",
    "HUB_ERRORS",
    "check_login",
    "explain",
    "find_commit",
    "is_commit",
    "parse_hub_id",
    "reach_hub",
    "retry",
]

# The HTTP client of huggingface_hub, whose errors pass through it: httpx before its version 2, httpx2 since.
CLIENT = importlib.import_module(type(get_session()).__module__.split(".")[0])
TIMEOUT_SECONDS = 3.0
# Of a single request: the client itself would wait for ever. A commit of many files takes the Hub a while.
REQUEST_TIMEOUT = CLIENT.Timeout(120.0, connect=15.0)
NUM_ATTEMPTS = 5
COMMIT = re.compile("[0-9a-f]{40}")
# Of a repository: the small file that is fetched with its commit, the flag of its revision, and what does without it.
SMALL_FILES = {"model": "config.json", "dataset": "README.md"}
REVISION_FLAGS = {"model": "--model_revision", "dataset": "--dataset_revision"}
WITHOUT_HUB = {
    "model": "pass --model_name_or_path embedded or a folder",
    "dataset": "pass --dataset_name embedded or your own --train_file",
}
HUB_ID = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[\w./-]+))?")
HUB_ERRORS = (HfHubHTTPError, CLIENT.HTTPError, OfflineModeIsEnabled, LocalTokenNotFoundError, LocalEntryNotFoundError)
Result = TypeVar("Result")


@functools.cache
def reach_hub() -> bool:
    """Return whether the Hub (`HF_ENDPOINT`) answers; if not, put the libraries in offline mode.

    In offline mode they take what lies in their cache of the Hub, and fail at once where it doesn't.
    """
    if constants.is_offline_mode():
        return False
    try:
        CLIENT.head(constants.ENDPOINT, timeout=TIMEOUT_SECONDS)
    except CLIENT.HTTPError:
        import datasets

        constants.HF_HUB_OFFLINE = True
        datasets.config.HF_HUB_OFFLINE = True
        assert constants.is_offline_mode()
        return False
    return True


def parse_hub_id(name: str) -> tuple[str, str | None] | None:
    """Read `user/name` or `user/name@revision`; None if it is neither.

    Example:
        >>> parse_hub_id("me/reviews@v2")
        ('me/reviews', 'v2')
        >>> parse_hub_id("runs/imdb/full-seed42") is None
        True
    """
    match = HUB_ID.fullmatch(name)
    if match is None or ".." in name:
        return None
    try:
        validate_repo_id(match["name"])
    except HFValidationError:  # too long, "--" in it, ".git" at its end
        return None
    return match["name"], match["revision"]


def is_commit(revision: str | None) -> bool:
    """Return whether a revision is a full commit hash, which always means the same files.

    Example:
        >>> is_commit("main"), is_commit("86b5e0934494bd15c9632b12f734a8a67f723594")
        (False, True)
    """
    return revision is not None and COMMIT.fullmatch(revision) is not None


def find_commit(name: str, revision: str | None = None, kind: Literal["model", "dataset"] = "model") -> str:
    """Find the commit that a revision stands for: by the Hub, or by its cache where the Hub can't be reached.

    A branch can move between two requests. What is loaded in several steps is loaded by its commit, so that all of it
    is of one version and the version on record is the one that was used.

    Args:
        name: `user/name`.
        revision: A branch, a tag or a commit; `main` if None.
        kind: What the repository holds.

    Returns:
        The full hash. The cache keeps it for the revision, so that it is found offline too.

    Raises:
        FinetuneError: If there is no such repository or revision, or the Hub can't be reached and the cache lacks it.
    """
    if revision is not None and is_commit(revision):
        return revision
    api = HfApi()
    what = {"model": "model", "dataset": "data set"}[kind]
    try:
        if reach_hub():  # what the Hub refuses, its client would silently take from its cache, however old
            retry(functools.partial(api.repo_info, name, revision=revision, repo_type=kind))
        wanted = SMALL_FILES[kind]
        return Path(api.snapshot_download(name, revision=revision, repo_type=kind, allow_patterns=[wanted])).name
    except LocalEntryNotFoundError:
        raise FinetuneError(
            f"No copy of the {what} {name!r}{f' at {revision!r}' if revision else ''} in the cache, and the Hub at "
            f"{constants.ENDPOINT} does not answer or is not to be asked (HF_HUB_OFFLINE). Check the network and "
            f"HF_ENDPOINT, or {WITHOUT_HUB[kind]}."
        ) from None
    except RevisionNotFoundError:
        raise FinetuneError(
            f"No revision {revision or 'main'!r} of the {what} {name!r} on the Hub. "
            f"Pass another {REVISION_FLAGS[kind]}."
        ) from None
    except HFValidationError:
        raise FinetuneError(
            f"No {what} can be named {name!r} on the Hub. Check the name, or {WITHOUT_HUB[kind]}."
        ) from None
    except HUB_ERRORS as error:
        if isinstance(error, HfHubHTTPError) and _may_pass(error):
            raise FinetuneError(
                f"No answer on the {what} {name!r}: {_reason(error)}. Run the same command again later, or set "
                "HF_HUB_OFFLINE=1 to take what the cache has."
            ) from None
        raise explain(error, name) from None


def check_login(api: HfApi, name: str) -> None:
    """Make sure that the Hub answers, that somebody is logged in, and may write under the name's first part.

    Raises:
        FinetuneError: If not, with what to do.
    """
    user_or_organization = name.split("/")[0]
    if not reach_hub():
        raise FinetuneError(
            f"Expected the Hub at {constants.ENDPOINT}, but it does not answer, or the libraries are in offline mode. "
            "Check the network, HF_ENDPOINT and HF_HUB_OFFLINE."
        )
    try:
        found = retry(api.whoami)
    except HUB_ERRORS as error:
        raise explain(error, name) from None
    known = [found["name"], *(organization["name"] for organization in found.get("orgs", []))]
    if user_or_organization not in known:
        raise FinetuneError(
            f"Expected a repository of {' or '.join(known)}, whose token this is, but got {name!r}. "
            f"Pass {found['name']}/{name.split('/')[1]}, or log in with another token."
        )


def retry(ask: Callable[[], Result]) -> Result:
    """Ask the Hub, again after a while when it fails or the connection breaks; the last failure is raised.

    What is asked must be safe to repeat: an answer can be lost after the Hub has done what it was asked for.
    """
    for attempt in range(NUM_ATTEMPTS):
        try:
            get_session().timeout = REQUEST_TIMEOUT
            return ask()
        except (HfHubHTTPError, CLIENT.TransportError) as error:
            if attempt == NUM_ATTEMPTS - 1 or not _may_pass(error):
                raise
            seconds = 2**attempt * (0.5 + random.random())
            say(f"warning: {_reason(error)}; trying again in {seconds:.0f} s")
            time.sleep(seconds)
    raise AssertionError("the last attempt returns or raises")


def _may_pass(error: Exception) -> bool:
    """Return whether a failure is of the kind that goes away: the Hub's own, too many requests, a broken connection."""
    return not isinstance(error, HfHubHTTPError) or error.response.status_code in (408, 429, 500, 502, 503, 504)


def _reason(error: Exception) -> str:
    if isinstance(error, HfHubHTTPError):
        return f"the Hub answered {error.response.status_code}"
    return f"the connection to {constants.ENDPOINT} broke ({type(error).__name__})"


def explain(error: Exception, name: str) -> FinetuneError:
    """Explain in one line what the Hub or the network refused, and the fix.

    Args:
        error: One of `HUB_ERRORS`.
        name: The repository, `user/name`.
    """
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if isinstance(error, LocalTokenNotFoundError):
        message = f"Expected a login to write to {name!r}, but found no token. Run `hf auth login`, or set HF_TOKEN."
    elif isinstance(error, OfflineModeIsEnabled) or (
        isinstance(error, LocalEntryNotFoundError) and constants.is_offline_mode()
    ):
        message = (
            f"Expected the Hub for {name!r}, but the libraries are in offline mode or {constants.ENDPOINT} does not "
            "answer. Unset HF_HUB_OFFLINE, and check the network and HF_ENDPOINT."
        )
    elif isinstance(error, RevisionNotFoundError):
        message = f"Expected the revision in {name!r}, but the Hub has none of that name. Check it: user/name@revision."
    elif isinstance(error, GatedRepoError):
        message = f"Expected access to {name!r}, but it is gated. Ask for access on its page, and log in."
    elif isinstance(error, RemoteEntryNotFoundError):
        message = f"Expected a file in {name!r}, but the Hub has none of that name: {_url(error)}."
    elif status == 401 and "whoami" in _url(error):
        message = (
            "Expected a valid token, but the Hub refuses it (401). Make one at "
            f"{constants.ENDPOINT}/settings/tokens, and run `hf auth login` or set HF_TOKEN."
        )
    elif isinstance(error, RepositoryNotFoundError) or status in (401, 404):
        message = (
            f"Expected {name!r} on {constants.ENDPOINT}, but it does not exist or is private ({status or 404}). "
            "Check the name, and log in with `hf auth login` or HF_TOKEN."
        )
    elif status == 403:
        message = (
            f"Expected a token that may write to {name!r}, but the Hub forbids it (403). Make one with the right to "
            f"write at {constants.ENDPOINT}/settings/tokens, or push to a name of your own."
        )
    elif status in (409, 412):
        message = (
            f"Expected {name!r} to stay as it was while it was written to, but somebody else changed it ({status}). "
            "Look at what they did, then run the same command again."
        )
    elif status is not None:
        message = f"Expected the Hub to take {name!r}, but it answered {status}. Run the same command again later."
    else:
        message = (
            f"Expected the Hub for {name!r}, but {_reason(error)}. Check the network, and run the same command again."
        )
    return FinetuneError(message)


def _url(error: Exception) -> str:
    return str(error.response.url) if isinstance(error, HfHubHTTPError) else ""
