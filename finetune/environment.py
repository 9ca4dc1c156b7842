"""What a run ran on: versions, the commit of the code, and the machine; for `run.json`."""

import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

from finetune import __version__
from finetune.hardware import describe_hardware

__all__ = ["describe_environment"]

PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets", "evaluate", "scikit-learn", "numpy")


def describe_environment() -> dict[str, Any]:
    """Describe the Python, the packages, the commit that this package runs from, and the hardware."""
    return {
        "python": platform.python_version(),
        "packages": {"finetune": __version__, **{name: _version(name) for name in PACKAGES}},
        "git_commit": _git_commit(),
        **describe_hardware(),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """Name the commit of the checkout, with "+changes" where tracked files differ; None outside of a checkout."""
    commit = _git("rev-parse", "HEAD")
    return commit and commit + ("+changes" if _git("status", "--porcelain", "--untracked-files=no") else "")


def _git(*arguments: str) -> str | None:
    try:
        result = subprocess.run(
            ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=5, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()
