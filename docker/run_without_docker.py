"""Run the steps of docker/Dockerfile without Docker: `python docker/run_without_docker.py FOLDER`, in a checkout.

COPY copies into FOLDER, RUN runs there in a virtual environment of its own, and CMD starts what the container would.
EXPOSE and USER have no equivalent here and are passed over; anything else that the file says is refused.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

DOCKERFILE = Path(__file__).with_name("Dockerfile")
PASSED_OVER = ("FROM", "WORKDIR", "EXPOSE", "USER")


def copy(words: list[str], folder: Path) -> None:
    """Copy files, or the content of one folder, as COPY does."""
    *sources, target = words
    for pattern in sources:
        found = list(Path().glob(pattern))
        if not found:
            sys.exit(f"error: found no {pattern} in {Path.cwd()} to COPY; {DOCKERFILE} says what to do first")
        for source in found:
            if source.is_dir():
                shutil.copytree(source, folder / target, dirs_exist_ok=True)
            else:
                shutil.copy(source, folder / target)


def main() -> None:
    """Read the Dockerfile line by line, and do what each says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="gets the files and the environment; made if it is not there")
    folder = parser.parse_args().folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, "-m", "venv", folder / ".venv"], check=True)
    environment = {**os.environ, "PATH": f"{folder / '.venv/bin'}{os.pathsep}{os.environ['PATH']}"}
    environment.pop("PYTHONPATH", None)
    for line in DOCKERFILE.read_text(encoding="utf-8").splitlines():
        instruction, _, rest = line.partition(" ")
        if instruction == "COPY":
            copy(rest.split(), folder)
        elif instruction == "RUN":
            subprocess.run(["bash", "-euo", "pipefail", "-c", rest], cwd=folder, env=environment, check=True)
        elif instruction == "CMD":
            os.chdir(folder)
            command = json.loads(rest)
            os.execvpe(command[0], command, environment)
        elif line.strip() and not line.startswith("#") and instruction not in PASSED_OVER:
            sys.exit(f"error: {DOCKERFILE} has {instruction}, which this script does not know")


if __name__ == "__main__":
    main()
