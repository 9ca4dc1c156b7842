"""The Hugging Face Hub: whether it can be reached, who is logged in, and what its refusals mean, in one line each.

Left alone, `datasets` retries for 23 seconds and `transformers` for 47 before they say that the network is down; here
that is asked once, answered within seconds, and then believed.
"""

import functools
import importlib
import random
import re
import sys
import time
from collections.abc import Callable
from typing import TypeVar

import datasets
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

__all__ = ["CLIENT", "HUB_ERRORS", "check_login", "explain", "parse_hub_id", "reach_hub", "retry"]

# The HTTP client of huggingface_hub, whose errors pass through it: httpx before its version 2, httpx2 since.
CLIENT = importlib.import_module(type(get_session()).__module__.split(".")[0])
TIMEOUT_SECONDS = 3.0
# Of a single request: the client itself would wait for ever. A commit of many files takes the Hub a while.
REQUEST_TIMEOUT = CLIENT.Timeout(120.0, connect=15.0)
NUM_ATTEMPTS = 5
HUB_ID = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[\w./-]+))?")
HUB_ERRORS = (HfHubHTTPError, CLIENT.HTTPError, OfflineModeIsEnabled, LocalTokenNotFoundError, LocalEntryNotFoundError)
Result = TypeVar("Result")


@functools.cache
def reach_hub() -> bool:
    """Tell whether the Hub (`HF_ENDPOINT`) answers; if not, put the libraries in offline mode.

    In offline mode they take what lies in their cache of the Hub, and fail at once where it doesn't.
    """
    if constants.is_offline_mode():
        return False
    try:
        CLIENT.head(constants.ENDPOINT, timeout=TIMEOUT_SECONDS)
    except CLIENT.HTTPError:
        constants.HF_HUB_OFFLINE = True
        datasets.config.HF_HUB_OFFLINE = True
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
            print(f"warning: {_reason(error)}; trying again in {seconds:.0f} s", file=sys.stderr)
            time.sleep(seconds)
    raise AssertionError("the last attempt returns or raises")


def _may_pass(error: Exception) -> bool:
    """Tell whether a failure is of the kind that goes away: the Hub's own, too many requests, a broken connection."""
    return not isinstance(error, HfHubHTTPError) or error.response.status_code in (408, 429, 500, 502, 503, 504)


def _reason(error: Exception) -> str:
    if isinstance(error, HfHubHTTPError):
        return f"the Hub answered {error.response.status_code}"
    return f"the connection to {constants.ENDPOINT} broke ({type(error).__name__})"


def explain(error: Exception, name: str) -> FinetuneError:
    """Say in one line what the Hub or the network refused, and the fix.

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
