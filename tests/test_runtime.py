"""Tests of seeds, devices, precision, threads and the description of the machine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sprat.errors import SpratError
from sprat.runtime import (
    autocast,
    choose_device,
    choose_precision,
    derive_seed,
    describe_machine,
    git_state,
    set_threads,
    versions,
)
from sprat.threads import SETTINGS, SPIN_COUNT, usable_cores

CPU = torch.device("cpu")


def test_seeds_depend_on_every_part_and_its_place() -> None:
    seeds = {
        derive_seed(*parts)
        for parts in [("a", 1, 2), ("a", 2, 1), ("b", 1, 2), ("a", 12), ("a", "1", 2), ("a", 1)]
    }
    assert len(seeds) == 6
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed("augment", 0, 7) == 566892151478105442, "old runs must stay repeatable"


def test_unavailable_device_is_refused() -> None:
    assert choose_device("auto").type in ("cpu", "cuda", "mps")
    if not torch.cuda.is_available():
        with pytest.raises(SpratError, match=r"'cuda' is not available.*available: .*cpu"):
            choose_device("cuda")


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx512_bf16": True}, "bf16"),
        ({"amx_bf16": True}, "bf16"),
        ({"bf16": True}, "bf16"),
        ({"avx512_f": True, "avx512_bf16": False}, "fp32"),
        ({}, "fp32"),
    ],
)
def test_auto_is_bf16_only_on_supporting_cpus(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict, expected: str
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert choose_precision("auto", CPU) == expected


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), "fp16"), ((8, 0), "bf16")])
def test_auto_is_fp16_on_gpus_without_bf16(
    monkeypatch: pytest.MonkeyPatch, capability: tuple, expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert choose_precision("auto", torch.device("cuda")) == expected


def test_fp16_is_refused_on_a_cpu() -> None:
    with pytest.raises(SpratError, match="needs a GPU"):
        choose_precision("fp16", CPU)


def test_autocast_uses_bf16_only_when_requested() -> None:
    a = torch.ones(4, 4)
    with autocast(CPU, "bf16"):
        assert (a @ a).dtype is torch.bfloat16
    with autocast(CPU, "fp32"):
        assert (a @ a).dtype is torch.float32


def test_thread_count_is_set_and_returned() -> None:
    before = torch.get_num_threads()
    try:
        assert set_threads(1) == torch.get_num_threads() == 1
        assert set_threads(0) == torch.get_num_threads() >= 1
    finally:
        set_threads(before)


@pytest.mark.parametrize("threads", [-1, 1_025, 10**20])
def test_invalid_thread_count_is_refused(threads: int) -> None:
    with pytest.raises(SpratError, match=f"--threads is {threads}, expected 1 to 1,024, or 0"):
        set_threads(threads)


def _tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


V1 = "4:memory:/docker/a\n1:cpu,cpuacct:/docker/a\n"


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 8),
        ({"proc/self/cgroup": "0::/\n"}, 8),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, 8),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "200000 100000\n"}, 2),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}, 2),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "5000 100000\n"}, 1),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "6400000 100000\n"}, 8),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "nonsense\n"}, 8),
        (
            {  # the tightest quota of a group and its parents
                "proc/self/cgroup": "0::/a/b/c\n",
                "sys/fs/cgroup/a/cpu.max": "300000 100000\n",
                "sys/fs/cgroup/a/b/cpu.max": "max 100000\n",
                "sys/fs/cgroup/a/b/c/cpu.max": "500000 100000\n",
                "sys/fs/cgroup/other/cpu.max": "100000 100000\n",
            },
            3,
        ),
        (  # a group outside the container's namespace
            {"proc/self/cgroup": "0::/../x\n", "sys/fs/cgroup/cpu.max": "200000 100000\n"},
            2,
        ),
        (
            {
                "proc/self/cgroup": f"{V1}0::/\n",
                "sys/fs/cgroup/cpu,cpuacct/docker/a/cpu.cfs_quota_us": "250000\n",
                "sys/fs/cgroup/cpu,cpuacct/docker/a/cpu.cfs_period_us": "100000\n",
            },
            3,
        ),
        (
            {  # the container's own group, mounted at the top
                "proc/self/cgroup": V1,
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "400000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            4,
        ),
        (
            {
                "proc/self/cgroup": V1,
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            8,
        ),
    ],
)
def test_usable_cores_respect_affinity_and_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], cores: int
) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)), raising=False)
    assert usable_cores(_tree(tmp_path, files)) == cores


WAITING = """
import os, subprocess, sys
{imports}
from sprat.threads import spinning_advice
inherited = subprocess.run(
    [sys.executable, "-c", "import os; print(os.environ.get('GOMP_SPINCOUNT'))"],
    capture_output=True, text=True, check=True,
).stdout.strip()
print(inherited, os.environ.get("OMP_WAIT_POLICY"), spinning_advice(2), spinning_advice(1))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="libgomp is Linux's")
@pytest.mark.parametrize(
    ("imports", "settings", "expected"),
    [
        ("import sprat", {}, f"{SPIN_COUNT} None None None"),
        ("import sprat", {"GOMP_SPINCOUNT": "7"}, "7 None None None"),
        ("import sprat", {"OMP_WAIT_POLICY": "active"}, "None active None None"),
        ("import {stub}, sprat", {"GOMP_SPINCOUNT": "7"}, "7 None None None"),
        (
            "import {stub}, sprat",
            {},
            f"{SPIN_COUNT} None torch was imported before sprat, so training is slow next to other "
            f"work: import sprat first, or start Python with GOMP_SPINCOUNT={SPIN_COUNT} in the "
            "environment None",
        ),
    ],
)
def test_threads_spin_briefly_unless_the_user_says_otherwise(
    tmp_path: Path, imports: str, settings: dict[str, str], expected: str
) -> None:
    (tmp_path / "torch.py").touch()  # stands in for torch, which only needs to be imported
    environment = {k: v for k, v in os.environ.items() if k not in SETTINGS}
    environment["PYTHONPATH"] = os.pathsep.join([str(tmp_path), *sys.path])
    code = WAITING.format(imports=imports.format(stub="torch"))
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment | settings, check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.strip() == expected
    assert done.stderr == ""


def test_machine_versions_and_git_state_are_described() -> None:
    machine = describe_machine(CPU, "bf16", 2)
    assert machine["cpu"]
    assert (machine["device"], machine["precision"], machine["threads"]) == ("cpu", "bf16", 2)
    assert versions()["torch"] == torch.__version__
    state = git_state()
    assert state is None or len(state["commit"]) == 40


def test_peak_memory_grows_with_allocations() -> None:
    """Measure in a new process, which has used little memory so far."""
    code = (
        "from sprat.runtime import peak_memory\n"
        "before = peak_memory()\n"
        "held = bytearray(2 * before) if before else b''\n"
        "held[::4096] = held[::4096]\n"  # pages take memory once they are touched
        "print(before, len(held), peak_memory())"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    before, held, after = done.stdout.split()
    if before == "None":
        pytest.skip("the system does not say")
    assert int(after) > int(before) + int(held) // 4
