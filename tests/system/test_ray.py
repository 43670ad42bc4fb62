"""Tests of trials and seeds on a Ray cluster of two nodes, both on this machine."""

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import SMALL, weights

import sprat
from sprat import SpratError
from sprat.data import Dataset
from sprat.errors import Interrupted
from sprat.pools import Stopped, open_workers
from sprat.pools.cluster import connected
from sprat.pools.local import Here
from sprat.pools.source import Source
from sprat.searching.driver import Driver
from sprat.searching.plan import Plan
from sprat.searching.trial import Rung, Task, train_rung, trial_config
from sprat.settings.config import BudgetConfig
from sprat.settings.recipes import load_recipe
from sprat.training.start import settle_for

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.cluster
CONFIG = dataclasses.replace(SMALL, epochs=2, train_images=48, evaluate_every=2, tta=1)


class Machines:
    """Cluster of a head and a second node, both on this machine, with one core each."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # else workers lack it
        head = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 10**8}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.address = self.cluster.address
        self.second = self.cluster.add_node(num_cpus=1, object_store_memory=10**8)
        self.cluster.wait_for_nodes()

    def kill_second(self) -> None:
        self.cluster.remove_node(self.second, allow_graceful=False)


@pytest.fixture(scope="module")
def machines() -> Iterator[Machines]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray's own warnings
        made = Machines()
        yield made
        ray.shutdown()
        made.cluster.shutdown()


@pytest.fixture
def cluster(machines: Machines, monkeypatch: pytest.MonkeyPatch) -> Machines:
    """Cluster at the address that `--workers ray` looks for."""
    monkeypatch.setenv("RAY_ADDRESS", machines.address)
    return machines


def slowly(task: Task, source: Source, should_stop: Callable[[], bool]) -> Rung:
    """Train a trial's rung, recording its node first and lasting long enough to be killed."""
    import ray

    assert source.data_dir is not None
    node = ray.get_runtime_context().get_node_id()
    with (source.data_dir / "begun.txt").open("a") as file:
        file.write(json.dumps([task.key, task.until, node]) + "\n")
    rung = train_rung(task, source, should_stop)
    time.sleep(0.5)
    return rung


def test_cluster_trains_the_same_weights_as_one_process(
    cluster: Machines, tiny: Dataset, tmp_path: Path
) -> None:
    for folder, workers in (("alone", 1), ("ray", "ray")):
        sprat.train_seeds(
            CONFIG, seeds=2, dataset=tiny, output=tmp_path / folder, quiet=True, workers=workers
        )
    for seed in ("seed-0", "seed-1"):
        assert weights(tmp_path / "ray" / seed) == weights(tmp_path / "alone" / seed)
    assert not list((tmp_path / "ray").glob(".*"))


def two_seeds(folder: Path, epochs: int) -> list[str]:
    """Return a command that trains two seeds on the cluster."""
    return [
        sys.executable, "-m", "sprat", "train", "--dataset", "shapes10", "--seeds", "2",
        "--workers", "ray", "--train-images", "320", "--epochs", str(epochs), "--batch-size", "16",
        "--optim.warmup-epochs", "0.5", "--network.name", "SpratNet", "--network.widths", "8,12",
        "--network.depth", "1", "--device", "cpu", "--output", str(folder / "seeds"),
    ]  # fmt: skip


def begun(words: list[str], folder: Path, seeds: int) -> "subprocess.Popen[str]":
    """Start a command; return its process once it has saved the first seeds."""
    process = subprocess.Popen(words, text=True, stdout=-1, stderr=-1, cwd=folder)
    saved = [folder / "seeds" / f"seed-{seed}" / "last.pt" for seed in range(seeds)]
    while not all(path.exists() for path in saved):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    return process


def test_sigterm_saves_seeds_and_the_same_command_resumes(
    cluster: Machines, tmp_path: Path
) -> None:
    words = two_seeds(tmp_path, 4)
    process = begun(words, tmp_path, 2)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 128 + signal.SIGTERM, err
    assert "Stopped and saved. Resume with" in err
    done = subprocess.run(words, text=True, capture_output=True, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "2 seeds, on val" in done.stdout
    assert "ray" not in out.lower() + err.lower().replace("--workers ray", ""), "Ray prints nothing"


def dies(task: int, shared: Source, should_stop: Callable[[], bool]) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return task


def hangs(task: int, shared: Source, should_stop: Callable[[], bool]) -> int:
    time.sleep(1_000)
    return task


def fails(task: int, shared: Source, should_stop: Callable[[], bool]) -> int:
    raise RuntimeError("not the cluster's")


def waits(task: int, shared: Source, should_stop: Callable[[], bool]) -> int:
    assert shared.data_dir is not None
    (shared.data_dir / f"{task}.txt").touch()
    while not should_stop():
        time.sleep(0.02)
    (shared.data_dir / f"{task}.txt").write_text("saved")
    raise Interrupted(shared.data_dir)


def reads(task: int, shared: Source, should_stop: Callable[[], bool]) -> int:
    return int(shared.load(16).train.images.sum()) if task else len(shared.load(32).train)


def test_cluster_pool_handles_failures_and_stopping(
    cluster: Machines, tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sprat.pools.OVERTIME", 1.0)
    source = Source("tiny", tmp_path, SMALL.pictures, {16: tiny.md5}, False, tiny, named=False)
    before = signal.getsignal(signal.SIGTERM)
    with connected("auto") as workers:
        pool: Any = workers.pool(dies, source, lambda: False, threads=1)
        pool.start(1)
        with pytest.raises(SpratError, match="The workers of 4 tries of one training died"):
            pool.next()
        pool = workers.pool(
            hangs, source, lambda: False, threads=1, limit=lambda task: (0.1, -task)
        )
        pool.start(3)
        assert pool.next() == -3, "the task is given up and its worker ended"
        pool = workers.pool(fails, source, lambda: False, threads=1)
        pool.start(1)
        with pytest.raises(RuntimeError, match="not the cluster's"):
            pool.next()
        pool = workers.pool(reads, source, lambda: False, threads=1)
        pool.start(1)
        assert pool.next() == int(tiny.train.images.sum())
        moved = Source("shapes10", None, SMALL.pictures, {32: "another"}, False)
        pool = workers.pool(reads, moved, lambda: False, threads=1)
        pool.start(0)
        with pytest.raises(SpratError, match=r"shapes10 has changed .* or is another one on"):
            pool.next()
        begun = [tmp_path / f"{task}.txt" for task in (1, 2)]
        pool = workers.pool(waits, source, lambda: all(f.exists() for f in begun), threads=1)
        pool.start(1)
        pool.start(2)
        with pytest.raises(Stopped):
            pool.next()
        assert [file.read_text() for file in begun] == ["saved", "saved"]
        with pytest.raises(SpratError, match="Each training needs 64 CPUs, but no machine"):
            workers.check(64, 0)
        with pytest.raises(SpratError, match=r"1 CPU and 0.5 GPUs, but no machine"):
            workers.check(1, 0.5)
        with pytest.raises(SpratError, match="this machine has no GPU"):
            workers.gpus(1, "cpu")
    assert signal.getsignal(signal.SIGTERM) == before


def test_too_many_cpus_are_refused_before_writing(
    cluster: Machines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SpratError, match="Each training needs 64 CPUs, but no machine"):
        sprat.search(trials=1, dataset="shapes10", workers="ray", cpus_per_trial=64, quiet=True)
    with pytest.raises(SpratError, match="Each training needs 64 CPUs, but no machine"):
        sprat.train_seeds("quick", {"threads": 64}, seeds=2, dataset="shapes10", workers="ray")
    assert not list(tmp_path.iterdir())


def test_another_ray_version_is_refused(cluster: Machines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "__version__", "2.0.0")
    with (
        pytest.raises(SpratError, match=r"cluster cannot be used from here.*Install the same"),
        connected("auto"),
    ):
        pass


def test_unreachable_cluster_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        free = server.getsockname()[1]
    with (
        pytest.raises(SpratError, match=f"No Ray cluster answers at ray://127.0.0.1:{free}"),
        connected(f"ray://127.0.0.1:{free}"),
    ):
        pass
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{free}")
    with (
        pytest.raises(SpratError, match=f"No Ray cluster answers at 127.0.0.1:{free}"),
        connected("auto"),
    ):
        pass


def test_node_dying_during_a_trial_changes_no_results(
    cluster: Machines, tiny: Dataset, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    recipe = load_recipe("sprat-cpu").changed({
        "batch_size": 16, "augment.crop": 2, "threads": 1, "device": "cpu", "tta": 1,
    })  # fmt: skip
    recipe = dataclasses.replace(recipe, budget=BudgetConfig(max_parameters=4_000))
    settled = settle_for(trial_config(recipe, 2, 32), tiny)
    plan = Plan(
        config=recipe, recipe="sprat-cpu", trial=settled, rungs=(1, 2), generation=4, trials=4,
        seconds=0.0, data={16: tiny.md5}, classes=10, images=180, own=False,
    )  # fmt: skip
    source = Source("tiny", tmp_path, recipe.pictures, {16: tiny.md5}, False, tiny, named=False)

    def begun() -> list[list[Any]]:
        file = tmp_path / "begun.txt"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def kill() -> None:
        while not any(node == cluster.second.node_id for _, _, node in begun()):
            time.sleep(0.02)
        cluster.kill_second()

    for name in ("ray", "alone"):
        (tmp_path / name).mkdir()
    with open_workers("ray") as workers:
        pool = workers.pool(slowly, source, lambda: False, threads=1)
        assert pool.workers == 2
        killer = threading.Thread(target=kill, daemon=True)
        killer.start()
        found = Driver(plan, tmp_path / "ray", pool).run()
        killer.join()
        pool.close()
    alone = Driver(plan, tmp_path / "alone", Here(train_rung, source, lambda: False)).run()

    def results(decision: Any) -> list[tuple[int, Any]]:
        return [(trial.number, trial.rungs) for trial in decision.trials]

    assert results(found) == results(alone)
    assert [each.val for each in found.finalists] == [each.val for each in alone.finalists]
    tasks = [(key, until) for key, until, _ in begun()]
    assert len(tasks) == len(set(tasks)) + 1, "only the trial in progress there is repeated"
    assert capfd.readouterr() == ("", ""), "Ray prints nothing"


def test_loss_of_the_head_node_is_reported(cluster: Machines, tmp_path: Path) -> None:
    """Kill the head; this test must be the last, since it ends the cluster."""
    process = begun(two_seeds(tmp_path, 1_000), tmp_path, 1)
    head = cluster.cluster.head_node
    head.kill_gcs_server(check_alive=False)
    head.kill_raylet(check_alive=False)
    _, err = process.communicate(timeout=200)
    assert process.returncode == 2, err
    assert err.startswith("sprat: The Ray cluster was lost")
    assert "Then resume with\n  sprat train --dataset shapes10" in err
