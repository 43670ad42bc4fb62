"""Tests of shapes10, CIFAR-10's files (made here, and real if available), splits and batches."""

import functools
import inspect
import io
import pickle
import random
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from sprat.data import Dataset, cifar10, load_dataset
from sprat.data import shapes10 as shapes10_module
from sprat.data.batches import Batches
from sprat.data.imageset import ImageSet, Normalization, stratified_split
from sprat.errors import SpratError

IMAGES = 20  # per batch file made here


def _batch(seed: int = 0, **changes: object) -> bytes:
    rng = np.random.default_rng(seed)
    batch = {
        b"data": rng.integers(0, 256, (IMAGES, 3072), dtype=np.uint8),
        b"labels": rng.integers(0, 10, IMAGES).tolist(),
    }
    for key, value in changes.items():
        batch[key.encode()] = value
    return pickle.dumps(batch, protocol=3)


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder with small batch files in CIFAR-10's format."""
    monkeypatch.setattr(cifar10, "IMAGES_PER_FILE", IMAGES)
    folder = tmp_path / "made" / cifar10.FOLDER
    folder.mkdir(parents=True)
    for seed, name in enumerate((*cifar10.TRAIN_FILES, *cifar10.TEST_FILES)):
        (folder / name).write_bytes(_batch(seed))
    return folder.parent


def _archive(folder: Path) -> Path:
    archive = folder / cifar10.ARCHIVE
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder / cifar10.FOLDER, cifar10.FOLDER)
    return archive


class TestShapes10:
    def test_has_fixed_sizes_and_balanced_classes(self, shapes10: Dataset) -> None:
        assert (len(shapes10.train), len(shapes10.test)) == (10_000, 2_000)
        assert shapes10.train.images.shape[1:] == (3, 32, 32)
        assert shapes10.train.targets.bincount().tolist() == [1_000] * 10
        assert shapes10.test.targets.bincount().tolist() == [200] * 10

    def test_is_determined_by_its_seed(self, shapes10: Dataset) -> None:
        draw = inspect.unwrap(shapes10_module.load)  # without the suite's cache
        again, _ = draw(seed=0)
        other, _ = draw(seed=1)
        assert torch.equal(again.images, shapes10.train.images)
        assert not torch.equal(other.images, shapes10.train.images)


class TestCIFAR10Files:
    def test_folder_and_archive_load_identically(self, made: Path) -> None:
        from_folder = load_dataset("cifar10", made)
        _archive(made)
        for name in (*cifar10.TRAIN_FILES, *cifar10.TEST_FILES):
            (made / cifar10.FOLDER / name).unlink()
        from_archive = load_dataset("cifar10", made)
        assert torch.equal(from_folder.train.images, from_archive.train.images)
        assert from_folder.md5 == from_archive.md5
        assert len(from_folder.train) == 5 * IMAGES
        assert from_folder.train.targets[:IMAGES].tolist() == pickle.loads(_batch(0))[b"labels"]

    def test_are_found_in_folder_environment_and_cache(
        self, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert len(load_dataset("cifar10", made / cifar10.FOLDER).test) == IMAGES
        monkeypatch.setenv("SPRAT_DATA", str(made))
        assert load_dataset("auto").name == "cifar10"
        monkeypatch.setenv("SPRAT_DATA", str(tmp_path))
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        (tmp_path / "cache").mkdir()
        made.rename(tmp_path / "cache" / "sprat")
        assert load_dataset("cifar10").name == "cifar10"

    def test_malicious_pickle_is_refused(self, made: Path, tmp_path: Path) -> None:
        class Attack:
            def __reduce__(self) -> tuple:
                import os

                return os.system, (f"touch {tmp_path}/harmed",)

        pickle.loads(pickle.dumps(Attack()))
        assert (tmp_path / "harmed").exists(), "the attack must work where nothing stops it"
        (tmp_path / "harmed").unlink()
        (made / cifar10.FOLDER / "data_batch_3").write_bytes(pickle.dumps(Attack()))
        with pytest.raises(SpratError, match=r"asks for posix.system.*may be an attack"):
            load_dataset("cifar10", made)
        assert not (tmp_path / "harmed").exists()

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "is damaged"),
            (_batch()[:1000], "is damaged"),
            (b"not a pickle", "is damaged"),
            (pickle.dumps([1, 2], protocol=3), "holds no data and labels"),
            (_batch(labels=[10] * IMAGES), "labels from 0 to 9"),
            (_batch(labels=[0] * 3), "labels from 0 to 9"),
            (_batch(labels=["cat"] * IMAGES), "labels from 0 to 9"),
            (_batch(data=np.zeros((IMAGES, 3071), np.uint8)), "not uint8 of shape"),
            (_batch(data=np.zeros((IMAGES, 3072), np.float32)), "not uint8 of shape"),
        ],
    )
    def test_damaged_file_is_refused_and_named(
        self, made: Path, content: bytes, message: str
    ) -> None:
        (made / cifar10.FOLDER / "test_batch").write_bytes(content)
        with pytest.raises(SpratError, match=f"test_batch.*{message}.*Download the dataset again"):
            load_dataset("cifar10", made)

    def test_a_truncated_or_foreign_archive_is_refused(self, made: Path) -> None:
        archive = _archive(made)
        content = archive.read_bytes()
        archive.write_bytes(content[: len(content) // 2])
        with pytest.raises(SpratError, match=r"cannot be read as a tar\.gz|lacks"):
            cifar10.load(archive)
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
            tar.addfile(tarfile.TarInfo("readme"))
        archive.write_bytes(buffer.getvalue())
        with pytest.raises(SpratError, match="lacks data_batch_1"):
            cifar10.load(archive)

    def test_damaged_archive_is_refused_or_read_correctly(self, made: Path) -> None:
        archive = _archive(made)
        content, rng = archive.read_bytes(), random.Random(0)
        whole = cifar10.load(archive)
        refused = 0
        for _ in range(60):
            damaged = bytearray(content)
            for _ in range(20):
                damaged[rng.randrange(len(content))] ^= 0xFF
            archive.write_bytes(damaged)
            try:
                read = cifar10.load(archive)
            except SpratError:
                refused += 1
                continue
            assert all(torch.equal(a.images, b.images) for a, b in zip(read, whole, strict=True))
        assert refused > 50

    def test_explicit_folder_is_the_only_one_searched(
        self, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SPRAT_DATA", str(made))
        with pytest.raises(SpratError, match=r"\(--data-dir\) does not contain CIFAR-10"):
            load_dataset("cifar10", tmp_path)


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulate a machine without CIFAR-10 and without internet access."""
    monkeypatch.delenv("SPRAT_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    dead = functools.partial(cifar10.download, mirrors=["http://127.0.0.1:9/x"])
    monkeypatch.setattr(cifar10, "download", dead)


@pytest.mark.usefixtures("nowhere")
class TestWithoutCIFAR10:
    def test_auto_warns_that_it_uses_shapes10(self) -> None:
        said: list[str] = []
        assert load_dataset("auto", log=said.append).name == "shapes10"
        assert "TRAINING ON shapes10 INSTEAD" in said[-1]

    def test_an_explicit_cifar10_never_falls_back(self) -> None:
        with pytest.raises(SpratError, match="CIFAR-10 could not be downloaded"):
            load_dataset("cifar10")


def test_an_unknown_dataset_is_refused() -> None:
    with pytest.raises(
        SpratError,
        match="Unknown dataset 'cifar'; did you mean 'cifar10'",
    ):
        load_dataset("cifar")


def test_normalization_is_mean_and_std_of_pixels() -> None:
    images = torch.randint(256, (50, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    images[:, 2] //= 3
    fractions = images.double() / 255
    found = Normalization.of(images.to(torch.uint8))
    assert found.mean == pytest.approx(fractions.mean((0, 2, 3)).tolist())
    assert found.std == pytest.approx(fractions.std((0, 2, 3), correction=0).tolist())
    flat = Normalization.of(torch.zeros(2, 3, 4, 4, dtype=torch.uint8))
    assert min(flat.std) > 0, "a set of one colour must not divide by zero"


class TestSplit:
    def test_is_a_stratified_partition(self) -> None:
        targets = torch.arange(5_000) % 10
        kept, held_out = stratified_split(targets, 500, seed=0)
        assert torch.equal(torch.cat([kept, held_out]).sort().values, torch.arange(5_000))
        assert targets[held_out].bincount().tolist() == [50] * 10

    @pytest.mark.parametrize("held_out", [0, 1, 7, 500, 999, 1_000])
    def test_holds_out_exactly_the_requested_number(self, held_out: int) -> None:
        generator = torch.Generator().manual_seed(0)
        targets = torch.randint(10, (1_000,), generator=generator) ** 2 // 9
        kept, out = stratified_split(targets, held_out, seed=0)
        assert (len(kept), len(out)) == (1_000 - held_out, held_out)
        shares = targets.bincount() * held_out / 1_000
        assert (targets[out].bincount(minlength=len(shares)) - shares).abs().max() < 1

    def test_depends_on_its_seed_only(self) -> None:
        targets = torch.arange(1_000) % 10
        torch.manual_seed(1)
        first = stratified_split(targets, 100, seed=0)[1]
        torch.manual_seed(2)
        assert torch.equal(stratified_split(targets, 100, seed=0)[1], first)
        assert not torch.equal(stratified_split(targets, 100, seed=1)[1], first)


class TestBatches:
    def _numbered(self, n: int) -> ImageSet:
        images = torch.arange(n, dtype=torch.uint8).view(n, 1, 1, 1).expand(n, 3, 2, 2)
        return ImageSet(images.contiguous(), torch.arange(n), tuple(map(str, range(n))))

    def test_an_epoch_shows_each_image_at_most_once_with_its_own_target(self) -> None:
        batches = Batches(self._numbered(50), 8, seed=0)
        seen = []
        for images, targets in batches.epoch(0):
            assert images.shape == (8, 3, 2, 2)
            assert torch.equal(images[:, 0, 0, 0].long(), targets)
            seen += targets.tolist()
        assert len(seen) == len(set(seen)) == 48 == 8 * len(batches)

    def test_the_order_is_a_function_of_seed_and_epoch(self) -> None:
        def order(seed: int, epoch: int, start: int = 0) -> list[list[int]]:
            batches = Batches(self._numbered(40), 8, seed)
            return [targets.tolist() for _, targets in batches.epoch(epoch, start)]

        assert order(0, 3) == order(0, 3)
        assert order(0, 3)[2:] == order(0, 3, start=2)
        assert order(0, 3) != order(0, 4)
        assert order(0, 3) != order(1, 3)

    def test_fewer_images_than_a_batch_are_refused(self) -> None:
        with pytest.raises(SpratError, match="batch_size is 16, but there are only 10"):
            Batches(self._numbered(10), 16, seed=0)


def test_real_cifar10_matches_published_values(cifar10_place: Path) -> None:
    train, test = cifar10.load(cifar10_place)
    assert (len(train), len(test)) == (50_000, 10_000)
    assert train.targets.bincount().tolist() == [5_000] * 10
    # the published values, which have four digits
    found = Normalization.of(train.images)
    assert found.mean == pytest.approx((0.4914, 0.4822, 0.4465), abs=5e-5)
    assert found.std == pytest.approx((0.2470, 0.2435, 0.2616), abs=5e-5)
