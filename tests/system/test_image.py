"""Test that the Docker image can be built and serves, where Docker is available."""

import shutil
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def _docker(*words: str) -> str:
    done = subprocess.run(["docker", *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_docker_image_builds_and_serves() -> None:
    info = ["docker", "info"]
    if not shutil.which("docker") or subprocess.run(info, capture_output=True).returncode:
        pytest.skip("no docker runs here")
    _docker("build", "--tag", "sprat-test", str(ROOT))
    container = _docker("run", "--detach", "--publish", "127.0.0.1::8000", "sprat-test")
    try:
        place = _docker("port", container, "8000").splitlines()[0]
        assert _docker("exec", container, "id", "-u") == "1000"
        directly = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        for _ in range(60):
            time.sleep(1)
            try:
                with directly.open(f"http://{place}/healthz", timeout=10) as answer:
                    assert answer.status == 200
                break
            except OSError:
                continue
        else:
            pytest.fail(_docker("logs", container))
    finally:
        _docker("rm", "--force", container)
