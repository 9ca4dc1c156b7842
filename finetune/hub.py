"""Whether the Hugging Face Hub can be reached: asked once, answered within seconds, and then believed.

Left alone, `datasets` retries for 23 seconds and `transformers` for 47 before they say that the network is down.
"""

import functools

import datasets
import httpx2
from huggingface_hub import constants

__all__ = ["reach_hub"]

TIMEOUT_SECONDS = 3.0


@functools.cache
def reach_hub() -> bool:
    """Tell whether the Hub (`HF_ENDPOINT`) answers; if not, put the libraries in offline mode.

    In offline mode they take what lies in their cache of the Hub, and fail at once where it doesn't.
    """
    if constants.is_offline_mode():
        return False
    try:
        httpx2.head(constants.ENDPOINT, timeout=TIMEOUT_SECONDS)
    except httpx2.HTTPError:
        constants.HF_HUB_OFFLINE = True
        datasets.config.HF_HUB_OFFLINE = True
        return False
    return True
