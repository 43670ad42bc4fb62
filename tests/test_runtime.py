"""The machine."""

import subprocess
import sys

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

CPU = torch.device("cpu")


def test_seeds_depend_on_every_part_and_its_place() -> None:
    seeds = {
        derive_seed(*parts)
        for parts in [("a", 1, 2), ("a", 2, 1), ("b", 1, 2), ("a", 12), ("a", "1", 2), ("a", 1)]
    }
    assert len(seeds) == 6
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed("augment", 0, 7) == 566892151478105442, "old runs must stay repeatable"


def test_a_device_that_is_not_there_is_refused_with_what_is() -> None:
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
def test_auto_is_bf16_only_where_the_cpu_computes_in_it(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict, expected: str
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert choose_precision("auto", CPU) == expected


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), "fp16"), ((8, 0), "bf16")])
def test_auto_is_fp16_on_gpus_before_bf16(
    monkeypatch: pytest.MonkeyPatch, capability: tuple, expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert choose_precision("auto", torch.device("cuda")) == expected


def test_fp16_is_refused_on_a_cpu() -> None:
    with pytest.raises(SpratError, match="needs a GPU"):
        choose_precision("fp16", CPU)


def test_autocast_halves_products_only_when_asked() -> None:
    a = torch.ones(4, 4)
    with autocast(CPU, "bf16"):
        assert (a @ a).dtype is torch.bfloat16
    with autocast(CPU, "fp32"):
        assert (a @ a).dtype is torch.float32


def test_threads_are_set_and_told() -> None:
    before = torch.get_num_threads()
    try:
        assert set_threads(1) == torch.get_num_threads() == 1
        assert set_threads(0) == torch.get_num_threads() >= 1
    finally:
        set_threads(before)


def test_a_figures_surroundings_are_plain_values() -> None:
    machine = describe_machine(CPU, "bf16", 2)
    assert machine["cpu"]
    assert (machine["device"], machine["precision"], machine["threads"]) == ("cpu", "bf16", 2)
    assert versions()["torch"] == torch.__version__
    state = git_state()
    assert state is None or len(state["commit"]) == 40


def test_peak_memory_grows_with_what_is_held() -> None:
    """In a process of its own, which has held little yet."""
    code = (
        "from sprat.runtime import peak_memory\n"
        "before = peak_memory()\n"
        "held = bytearray(2 * before) if before else b''\n"
        "held[::4096] = held[::4096]\n"  # fresh pages are there once they are touched
        "print(before, len(held), peak_memory())"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    before, held, after = done.stdout.split()
    if before == "None":
        pytest.skip("the system does not say")
    assert int(after) > int(before) + int(held) // 4
