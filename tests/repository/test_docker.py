"""Tests that the Dockerfile keeps hadolint's main rules and refers to what exists."""

import itertools
import json
import re
import tomllib
from pathlib import Path

import pytest

from sprat.cli import app

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def instructions(text: str) -> list[tuple[str, str]]:
    """Return a Dockerfile's instructions without comments: keyword, and the rest on one line."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    joined = re.sub(r"\s*\\\n\s*", " ", "\n".join(lines))
    return [tuple(line.split(maxsplit=1)) for line in joined.splitlines()]  # type: ignore[misc]


def broken_rules(text: str) -> set[str]:
    """Return the rules of hadolint that a Dockerfile breaks, of those that matter here."""
    found = instructions(text)
    stages = [at for at, (word, _) in enumerate(found) if word == "FROM"]
    last = dict(found[stages[-1] :])
    runs = [rest for word, rest in found if word == "RUN"]
    broken = set()
    for word, rest in found:
        if word == "FROM" and not re.match(r"[\w./-]+:\S+", rest):
            broken.add("DL3006: tag the version of an image")
        if word == "FROM" and ":latest" in rest:
            broken.add("DL3007: latest is another image every month")
        if word == "WORKDIR" and not rest.startswith("/"):
            broken.add("DL3000: WORKDIR is absolute")
        if word == "ADD":
            broken.add("DL3020: COPY instead of ADD")
        if word in ("CMD", "ENTRYPOINT") and not rest.startswith("["):
            broken.add("DL3025: CMD and ENTRYPOINT are JSON")
        if word == "MAINTAINER":
            broken.add("DL4000: MAINTAINER is deprecated")
    for run in runs:
        if "pip install" in run and "--constraint" not in run:
            broken.add("DL3013: pin versions")
        if "pip " in run and "--no-cache-dir" not in run:
            broken.add("DL3042: pip keeps no cache")
        if "apt-get install" in run and "--no-install-recommends" not in run:
            broken.add("DL3015: no recommended packages")
        if re.search(r"\bsudo\b", run):
            broken.add("DL3004: no sudo")
        if " | " in run and not any(word == "SHELL" and "pipefail" in rest for word, rest in found):
            broken.add("DL4006: pipefail")
        if re.search(r"(^|&& )cd ", run):
            broken.add("DL3003: WORKDIR instead of cd")
    if last.get("USER", "root") in ("root", "0"):
        broken.add("DL3002: the last user is not root")
    if "HEALTHCHECK" not in last:
        broken.add("DL3057: a health check")
    for stage, end in zip(stages, [*stages[1:], len(found)], strict=True):
        words = [word for word, _ in found[stage:end]]
        if any(pair == ("RUN", "RUN") for pair in itertools.pairwise(words)):
            broken.add("DL3059: consecutive RUNs")
    return broken


def test_dockerfile_follows_the_rules() -> None:
    assert broken_rules(DOCKERFILE) == set()


@pytest.mark.parametrize(
    ("change", "to", "rule"),
    [
        (":3.11-slim-bookworm\n", "\n", "DL3006"),
        (":3.11-slim-bookworm\n", ":latest\n", "DL3007"),
        ("USER sprat", "USER root", "DL3002"),
        ("USER sprat\n", "", "DL3002"),
        ("WORKDIR /home/sprat", "WORKDIR home", "DL3000"),
        ("COPY src src", "ADD src src", "DL3020"),
        (r'CMD ["serve", "--host", "0.0.0.0"]', "CMD serve", "DL3025"),
        ("--constraint /constraints.txt", "", "DL3013"),
        ("--no-cache-dir --constraint", "--constraint", "DL3042"),
        ("HEALTHCHECK", "LABEL", "DL3057"),
        ("USER sprat", "RUN true\nRUN true\nUSER sprat", "DL3059"),
    ],
)
def test_broken_rule_is_found(change: str, to: str, rule: str) -> None:
    assert change in DOCKERFILE
    broken = broken_rules(DOCKERFILE.replace(change, to))
    assert any(each.startswith(rule) for each in broken), broken


def test_dockerfile_refers_to_existing_files_and_options() -> None:
    found = instructions(DOCKERFILE)
    for word, rest in found:
        if word == "COPY" and not rest.startswith("--from"):
            for source in rest.split()[:-1]:
                assert (ROOT / source).exists(), source
                assert f"!{source}\n" in (ROOT / ".dockerignore").read_text(), source
    words = json.loads(dict(found)["CMD"])
    assert words[0] in list(app)
    app.parse_args(words)
    (extras,) = re.findall(r"\[([\w,]+)\]\" ", DOCKERFILE)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(extras.split(",")) <= project["optional-dependencies"].keys()
    (torch,) = re.findall(r"builds for CPUs, ([\d.]+)\+cpu", DOCKERFILE)
    assert f"torch=={torch}\n" in (ROOT / "constraints.txt").read_text()
