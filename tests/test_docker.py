"""docker/Dockerfile: an export is served with docker/requirements.txt, what that requires, and no more."""

import json
import re
import socket
import subprocess
import sys
import time
import urllib.request
from importlib.metadata import requires

import pytest
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REQUIRED = (ROOT / "docker/requirements.txt").read_text(encoding="utf-8")
ONLY_THESE = """
import sys
from importlib.metadata import packages_distributions
from packaging.utils import canonicalize_name

allowed = set(sys.argv.pop(1).split(","))
installed = {name: {canonicalize_name(one) for one in found} for name, found in packages_distributions().items()}

class OnlyThese:
    @staticmethod
    def find_spec(name, path=None, target=None):
        found = installed.get(name.partition(".")[0])
        if found and not found & allowed and not name.startswith("finetune"):
            raise ModuleNotFoundError(f"{name} is not in docker/requirements.txt", name=name)

for name in [name for name in sys.modules if name.partition(".")[0] == "packaging"]:
    del sys.modules[name]
sys.meta_path.insert(0, OnlyThese)
from finetune.cli import main
main()
"""


def close(names):
    """Add to distributions all that they require."""
    found, left = set(), [canonicalize_name(name) for name in names]
    while left:
        name = left.pop()
        if name not in found:
            found.add(name)
            needed = map(Requirement, requires(name) or ())
            left += [
                canonicalize_name(one.name)
                for one in needed
                if one.marker is None or one.marker.evaluate({"extra": ""})
            ]
    return found


def ask(address, body=None):
    request = urllib.request.Request(address, body and json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def test_an_export_is_served_with_what_the_container_has(exports):
    names = [line for line in REQUIRED.splitlines() if not line.startswith("#")]
    assert not {"torch", "transformers"} & close(names)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [",".join(close(names)), "serve", str(exports / "int8"), "--port", str(port)]
    service = subprocess.Popen([sys.executable, "-c", ONLY_THESE, *words], stderr=subprocess.PIPE, text=True)
    try:
        for _ in range(600):
            try:
                ask(f"http://127.0.0.1:{port}/health/ready")
                break
            except OSError:
                assert service.poll() is None, service.stderr.read()
                time.sleep(0.1)
        (prediction,) = ask(f"http://127.0.0.1:{port}/predict", {"text": "a great film"})["predictions"]
        assert prediction["labels"][0] in ("neg", "pos")
    finally:
        service.terminate()
        service.communicate(timeout=60)
    assert service.returncode == 0


def test_the_script_knows_every_instruction():
    """Run by hand it takes minutes: `python docker/run_without_docker.py FOLDER`."""
    script = (ROOT / "docker/run_without_docker.py").read_text(encoding="utf-8")
    lines = (ROOT / "docker/Dockerfile").read_text(encoding="utf-8").splitlines()
    instructions = {line.split()[0] for line in lines if line and not line.startswith("#")}
    assert instructions >= {"FROM", "COPY", "RUN", "CMD"}
    for instruction in instructions:
        assert re.search(rf'"{instruction}"', script), instruction


@pytest.mark.slow
def test_the_script_serves_an_export_without_docker(exports, tmp_path):
    """It installs what the container has, from the package index."""
    for name in ("docker", "constraints.txt"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "exported").symlink_to(exports / "int8")
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--wheel-dir", tmp_path / "dist", ROOT]
    subprocess.run(build, check=True, timeout=500)
    script = [sys.executable, "docker/run_without_docker.py", "served"]
    service = subprocess.Popen(script, cwd=tmp_path)
    try:
        for _ in range(500):
            try:
                assert ask("http://127.0.0.1:8000/health/ready") == {"status": "ready"}
                break
            except OSError:
                assert service.poll() is None
                time.sleep(1)
        assert ask("http://127.0.0.1:8000/predict", {"text": "a great film"})["predictions"][0]["labels"]
    finally:
        service.terminate()
        service.wait(timeout=60)
