"""Tests of own pictures: good and bad folders are read, split, cached and trained on."""

import contextlib
import csv
import io
import itertools
import json
import os
import random
import re
import resource
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SMALL, Hostile
from killed import kill_after
from own_pictures import draw, draw_picture
from PIL import Image

from sprat.classifier import find_pictures
from sprat.cli import app
from sprat.data import Dataset, assemble, load_dataset, pictures
from sprat.data.batches import Batches
from sprat.data.cache import Mapped, Writer, read
from sprat.data.imageset import PIECE, ImageSet, Normalization, Rows, stratified_split
from sprat.data.layout import find
from sprat.data.picture import SUFFIXES, read_picture
from sprat.data.pictures import cache_file
from sprat.errors import SpratError
from sprat.evaluation.records import read_json
from sprat.run_folder import read_config
from sprat.settings.config import PicturesConfig
from sprat.training.images import balanced_weights, split_off_val
from sprat.training.run import Run
from sprat.training.start import settle_for, train


@pytest.fixture(scope="module")
def cache_home(new_cache: Callable[[], Path]) -> Path:
    return new_cache()


@pytest.fixture(autouse=True)
def _cached_there(cache_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the tests out of the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache_home))


def _load(folder: Path, **changes: object) -> Dataset:
    return load_dataset(str(folder), own=PicturesConfig(side=16, **changes))  # type: ignore[arg-type]


def _bytes(images: object) -> list[bytes]:
    return [image.numpy().tobytes() for image in images[:]]  # type: ignore[index]


class TestReading:
    def test_every_mode_and_format_matches_predict(self, tmp_path: Path) -> None:
        folder = draw(tmp_path / "set", blue=9, red=9)
        loaded = _load(folder)
        files = [path for name in ("blue", "red") for path in sorted((folder / name).iterdir())]
        seen = [read_picture(path, 16).numpy().tobytes() for path in files]
        assert sorted(_bytes(loaded.train.images) + _bytes(loaded.test.images)) == sorted(seen)
        assert loaded.train.classes == ("blue", "red")
        for part in (loaded.train, loaded.test):
            for image, target in zip(_bytes(part.images), part.targets.tolist(), strict=True):
                assert seen.index(image) // 9 == target

    @pytest.mark.parametrize("side", [16, 33, 128])
    def test_images_have_the_requested_side(self, tmp_path: Path, side: int) -> None:
        folder = draw(tmp_path / "set", blue=5, red=5)
        loaded = load_dataset(str(folder), own=PicturesConfig(side=side))
        assert loaded.train.images.shape[1:] == (3, side, side)

    def test_normalisation_uses_only_training_pixels(self, tmp_path: Path) -> None:
        loaded = _load(draw(tmp_path / "set", blue=6, red=6))
        pixels = loaded.train.images[:].double() / 255
        assert loaded.normalization.mean == pytest.approx(pixels.mean((0, 2, 3)).tolist())

    def test_hidden_files_are_ignored_and_others_reported(self, tmp_path: Path) -> None:
        folder = draw(tmp_path / "set", blue=3, red=3)
        (folder / ".DS_Store").write_text("")
        (folder / "blue" / ".DS_Store").write_text("")
        (folder / ".git").mkdir()
        (folder / "labels.csv").write_text("")
        said: list[str] = []
        loaded = load_dataset(str(folder), log=said.append)
        assert len(loaded.train) + len(loaded.test) == 6
        assert "labels.csv" in said[0]

    def test_reports_progress(self, tmp_path: Path) -> None:
        reported: list[tuple[int, int]] = []
        folder = draw(tmp_path / "set", blue=4, red=3)
        load_dataset(str(folder), progress=lambda *done: reported.append(done))
        assert reported == [(done, 7) for done in range(1, 8)]


class TestSplit:
    @pytest.mark.parametrize("trial", range(12))
    def test_parts_are_disjoint_and_stratified(self, tmp_path: Path, trial: int) -> None:
        """Check sets of random sizes, written straight to cache files so that it is fast."""
        rng = random.Random(trial)
        counts = [rng.randrange(3, 200) for _ in range(rng.randrange(2, 12))]
        config = PicturesConfig(side=16, test_fraction=rng.uniform(0.1, 0.5), test_seed=trial)
        path = tmp_path / "x.pixels"
        with path.open("wb") as file:
            writer, total = Writer(file, 16), sum(counts)
            number = torch.arange(total)
            images = torch.stack([number // 256, number % 256, number * 0], 1).to(torch.uint8)
            writer.add(images[:, :, None, None].expand(total, 3, 16, 16))
            writer.finish({"counts": [["", label, n] for label, n in enumerate(counts)]})
        found = read(path, lambda about: True)
        assert found is not None
        classes = tuple(map(str, range(len(counts))))

        def parts(config: PicturesConfig) -> list[list[int]]:
            set_ = assemble("x", *pictures.split(classes, *found, config))
            kept, val = split_off_val(set_, replace(SMALL, val_fraction=0.2, split_seed=trial))
            sets = [set_.train.subset(kept), set_.train.subset(val), set_.test]
            for part, share in ((set_.test, config.test_fraction), (sets[1], None)):
                held = part.targets.bincount(minlength=len(counts))
                of = torch.tensor(counts) if share else set_.train.targets.bincount()
                share = share or 0.2
                whole = round(share * int(of.sum())) / int(of.sum())
                assert (held - of * whole).abs().max() < 1
            return [
                (part.images[:][:, :2, 0, 0].int() @ torch.tensor([256, 1], dtype=torch.int32))
                .tolist()
                for part in sets
            ]  # fmt: skip

        first = parts(config)
        assert sorted(itertools.chain(*first)) == list(range(total))
        torch.manual_seed(trial)
        assert parts(config) == first, "depends only on its seeds"
        assert parts(replace(config, test_seed=trial + 99))[2] != first[2]

    def test_existing_parts_are_kept(self, tmp_path: Path) -> None:
        folder = draw(
            tmp_path / "set", train__blue=5, train__red=6, val__blue=2, val__red=1, test__red=4,
        )  # fmt: skip
        loaded = _load(folder)
        assert (len(loaded.train), len(loaded.test)) == (14, 4)
        kept, val = split_off_val(loaded, SMALL)
        held_out = loaded.train.subset(val)
        wanted = [read_picture(p, 16).numpy().tobytes() for p in (folder / "val").rglob("*.*")]
        assert sorted(_bytes(held_out.images)) == sorted(wanted)
        assert loaded.train.subset(kept).targets.tolist() == [0] * 5 + [1] * 6
        assert loaded.test.targets.tolist() == [1] * 4

    def test_val_is_split_off_if_missing(self, tmp_path: Path) -> None:
        folder = draw(tmp_path / "set", train__blue=10, train__red=10, test__red=2, test__blue=2)
        kept, val = split_off_val(_load(folder), replace(SMALL, val_fraction=0.2))
        assert (len(kept), len(val)) == (16, 4)


class TestCache:
    def test_gives_same_data_without_reading_again(self, tmp_path: Path) -> None:
        folder = draw(tmp_path / "set", blue=5, red=5)
        fresh = _load(folder)
        reported: list[int] = []
        again = load_dataset(
            str(folder),
            own=PicturesConfig(side=16),
            progress=lambda done, all_: reported.append(done),
        )
        assert reported == [], "nothing is read again"
        assert again.md5 == fresh.md5
        cache_file(folder, 16).unlink()
        assert _load(folder).md5 == fresh.md5

    def test_notices_changed_added_and_removed_files(self, tmp_path: Path) -> None:
        folder = draw(tmp_path / "set", blue=5, red=5)
        _load(folder)
        caches = len(list(cache_file(folder, 16).parent.glob("*.pixels")))
        md5s, sizes = [], []
        changes: list[Callable[[], object]] = [
            lambda: None,
            lambda: draw_picture(folder / "blue" / "0.png", "RGB", 77),
            lambda: draw_picture(folder / "blue" / "more.png", "RGB", 78),
            lambda: (folder / "red" / "1.jpg").unlink(),
        ]
        for change in changes:
            change()
            loaded = _load(folder)
            md5s.append(loaded.md5)
            sizes.append(len(loaded.train) + len(loaded.test))
        assert len(set(md5s)) == 4
        assert sizes == [10, 10, 11, 10]
        now = len(list(cache_file(folder, 16).parent.glob("*.pixels")))
        assert now == caches, "the new cache replaces the old one"

    @pytest.mark.parametrize("damage", ["cut", "emptied", "pixel", "footer", "tail", "version"])
    def test_damaged_or_outdated_cache_is_rebuilt(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
    ) -> None:
        folder = draw(tmp_path / "set", blue=5, red=5)
        if damage == "version":
            with monkeypatch.context() as older:
                older.setattr("sprat.data.cache.FORMAT", 0)
                md5 = _load(folder).md5
        else:
            md5 = _load(folder).md5
        path = cache_file(folder, 16)
        whole = path.read_bytes()
        if damage != "version":
            spoilt = bytearray(whole)
            place = {"pixel": 99, "footer": len(whole) - 40, "tail": -10}.get(damage, 0)
            spoilt[place] ^= 0xFF
            cut = {"cut": len(whole) // 2, "emptied": 0}.get(damage, len(whole))
            path.write_bytes(spoilt[:cut])
        reported: list[int] = []
        loaded = load_dataset(
            str(folder),
            own=PicturesConfig(side=16),
            progress=lambda done, all_: reported.append(done),
        )
        assert len(reported) == 10, "read again"
        assert loaded.md5 == md5
        if damage != "version":
            assert path.read_bytes() == whole

    def test_damage_anywhere_is_noticed(self, tmp_path: Path, hostile: Hostile) -> None:
        folder = draw(tmp_path / "set", blue=2, red=2)
        _load(folder)
        path, rng = cache_file(folder, 16), random.Random(0)
        whole = path.read_bytes()
        assert read(path, lambda about: True) is not None
        for _ in range(200):
            spoilt = bytearray(whole)
            spoilt[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
            path.write_bytes(spoilt[: rng.choice([len(whole), rng.randrange(len(whole))])])
            hostile.offer(path.parent, lambda: read(path, lambda about: True))

    def test_killed_writer_leaves_no_partial_cache(self, tmp_path: Path) -> None:
        folder = draw(tmp_path / "set", blue=40, red=40)
        code = (
            "import sys, time; from sprat.data import load_dataset\n"
            "def slow(done, total): print(done, flush=True); time.sleep(0.05)\n"
            "load_dataset(sys.argv[1], progress=slow)"
        )
        kill_after(50, code, folder)
        place = cache_file(folder, 32)
        assert not place.exists()
        assert list(place.parent.glob(".*.pixels")), "it was killed while it wrote"
        assert len(load_dataset(str(folder)).train) == 64
        assert place.exists()
        assert list(place.parent.glob(".*.pixels")) == [], "its leftovers are removed"
        lock = place.with_name(f".{place.name}.lock")
        lock.touch()  # as if killed once the pixels were written
        load_dataset(str(folder))
        assert not lock.exists()

    def test_full_disk_is_reported_and_leaves_nothing(self, tmp_path: Path) -> None:
        """Simulate a full disk by the system's limit on file sizes."""
        folder = draw(tmp_path / "set", blue=5, red=5)
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
        try:
            with pytest.raises(
                SpratError, match=r"need 7,680 bytes: .*. Free some space there, or name"
            ):
                _load(folder)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        place = cache_file(folder, 16)
        assert [
            path for path in place.parent.glob(f"*{place.stem}*") if path.suffix != ".lock"
        ] == []
        assert len(_load(folder).train) == 8

    def test_insufficient_space_is_reported_before_reading(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = draw(tmp_path / "set", blue=5, red=5)
        usage = shutil.disk_usage(tmp_path)._replace(free=1_000)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
        reported: list[int] = []
        with pytest.raises(SpratError, match=r"1,000 bytes are free\. Free some space"):
            load_dataset(str(folder), progress=lambda done, all_: reported.append(done))
        assert reported == []


class TestUnreadable:
    @pytest.fixture
    def folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """Folder of ten pictures and six files that cannot be read as pictures."""
        folder = draw(tmp_path / "set", blue=5, red=5)
        (folder / "blue" / "notes.txt").write_text("not a picture")
        (folder / "blue" / "empty.png").write_bytes(b"")
        whole = (folder / "red" / "4.bmp").read_bytes()
        (folder / "red" / "cut.bmp").write_bytes(whole[: len(whole) // 2])
        (folder / "red" / "link.png").symlink_to(tmp_path / "nowhere")
        os.mkfifo(folder / "red" / "pipe")
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3_000_000)
        Image.new("1", (2_000, 2_000)).save(folder / "blue" / "bomb.png")
        return folder

    def test_are_listed_and_refused(self, folder: Path, hostile: Hostile) -> None:
        text = hostile.offer(folder, lambda: _load(folder))
        assert text.startswith(f"6 of the files in {folder} cannot be read as pictures:")
        for name in ("notes.txt", "empty.png", "cut.bmp", "link.png", "pipe"):
            assert f"{name} cannot be read as a picture" in text
        assert "bomb.png has too many pixels to be safe" in text
        assert "leave them out with --pictures.unreadable skip" in text

    def test_are_skipped_on_request_without_reading_again(self, folder: Path) -> None:
        with pytest.raises(SpratError):
            _load(folder)
        said: list[str] = []
        reported: list[int] = []
        loaded = load_dataset(
            str(folder),
            log=said.append,
            progress=lambda done, all_: reported.append(done),
            own=PicturesConfig(side=16, unreadable="skip"),
        )
        assert reported == []
        assert len(loaded.train) + len(loaded.test) == 10
        assert "left out: 6 of the files" in said[0]
        assert "notes.txt" in said[0]

    def test_only_the_first_20_are_named(self, tmp_path: Path) -> None:
        folder = draw(tmp_path / "set", blue=2, red=2)
        for i in range(30):
            (folder / "blue" / f"x{i}.png").write_text("")
        with pytest.raises(SpratError, match="30 of the files in") as caught:
            _load(folder)
        assert str(caught.value).count("cannot be read as a picture:") == 20
        assert "and 10 more" in str(caught.value)


def _empty(folder: Path) -> None:
    draw(folder, blue=3, red=3)
    (folder / "green").mkdir()


def _nested(folder: Path) -> None:
    draw(folder, blue=3, red=3, red__dark=2)


BAD: list[tuple[Callable[[Path], object], str]] = [
    (_empty, "The class folder .*/green is empty. Put pictures into it"),
    (lambda f: draw(f, blue=3), "has only the class 'blue', expected at least two"),
    (lambda f: f.mkdir(), "contains no folders, expected one folder of pictures for each"),
    (_nested, r"The class folder .*/red contains folders \(dark\), expected only pictures"),
    (
        lambda f: draw(f, train__blue=3, train__red=3, train__red__dark=2, dev__red=1),
        r"The class folder .*/red contains folders \(dark\), expected only pictures",
    ),
    (
        lambda f: draw(f, test__blue=2, test__red=2),
        "contains test but no train, so .* sprat evaluate MODEL --dataset ",
    ),
    (lambda f: draw(f, VAL__blue=2, test__red=2), "contains val and test but no train, so"),
    (
        lambda f: draw(f, train__blue=2, train__red=2, test__Red=1, test__blue=1),
        r"test/Red is a class that .*/train lacks; did you mean 'red'\? Add training pictures",
    ),
    (
        lambda f: draw(f, Training__blue=9, Training__red=9, dev__green=1),
        r"dev/green is a class that .*/Training lacks. Add training pictures",
    ),
    (
        lambda f: draw(f, train__blue=2, train__red=2, test__red=1, more__red=1),
        "contains test/, train/ and next to them more, expected",
    ),
    (
        lambda f: draw(f, training__blue=2, testing__blue=2, rest__x=1),
        "contains testing/, training/ and next to them rest, expected",
    ),
    (
        lambda f: draw(f, Train=2, Test=2),
        "/Train contains no class folders, so the labels of its 2",
    ),
    (
        lambda f: draw(f, train__blue=2, Training__red=2, test__red=2),
        "Training/, test/, train/, several of which are the same part. Merge or rename them.",
    ),
    (
        lambda f: draw(f, all__train__blue=2, all__test__blue=2, red=2),
        r"/all contains folders \(test, train\) that are parts of a dataset. Give the class",
    ),
    (lambda f: draw(f, blue=1, red=1), "None of the 2 pictures in .* is left to test on"),
]


@pytest.mark.parametrize(("make", "message"), BAD, ids=[message[:30] for _, message in BAD])
def test_invalid_folder_is_refused_with_the_remedy(
    tmp_path: Path, hostile: Hostile, make: Callable[[Path], object], message: str
) -> None:
    folder = tmp_path / "set"
    make(folder)
    assert re.search(message, hostile.offer(folder, lambda: _load(folder)))


def test_class_may_be_named_like_a_part(tmp_path: Path) -> None:
    folder = draw(tmp_path / "set", Train=3, bus=3)
    assert _load(folder).train.classes == ("Train", "bus")


def test_training_and_predict_find_the_same_pictures(tmp_path: Path) -> None:
    """Check that training uses what `sprat predict FOLDER` finds, whatever the names."""
    folder = draw(tmp_path / "set", blue=5, red=5)
    blue = folder / "blue"
    for suffix, format in SUFFIXES.items():
        Image.new("RGB" if suffix != ".pbm" else "1", (20, 20)).save(saved := io.BytesIO(), format)
        (blue / f"x{suffix}").write_bytes(saved.getvalue())
        (blue / f"y{suffix.upper()}").write_bytes(saved.getvalue())
    for name in ("IMG_1", "x.dat"):  # recognised by their content
        (blue / name).write_bytes(saved.getvalue())
    for name in ("Thumbs.db", "desktop.ini", ".DS_Store", "._x.png"):
        (blue / name).write_text("no picture")
        (folder / name).write_text("no picture")
    for place in (folder, blue):
        (place / "__MACOSX").mkdir()
        (place / "__MACOSX" / "x.png").write_text("no picture")
    said: list[str] = []
    loaded = load_dataset(str(folder), log=said.append, own=PicturesConfig(side=16))
    assert said == []
    assert loaded.train.classes == ("blue", "red")
    listed = [each for each in find(folder, PicturesConfig()).pictures() if each.parent == blue]
    found = find_pictures([blue])
    assert found == listed
    assert len(found) == 5 + 2 * len(SUFFIXES) + 2
    assert len(loaded.train) + len(loaded.test) == len(found) + 5


def test_class_without_readable_pictures_is_refused(tmp_path: Path, hostile: Hostile) -> None:
    folder = draw(tmp_path / "set", blue=5, red=5)
    (folder / "green").mkdir()
    (folder / "green" / "x.png").write_text("")
    said = hostile.offer(folder, lambda: _load(folder, unreadable="skip"))
    assert re.search(r"No picture of 'green' in .* is left to train on", said)


@pytest.fixture
def nobody() -> Iterator[Path]:
    """Folder that anyone may enter; the test runs without root's right to read everything."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield folder
    finally:
        if root:
            os.seteuid(0)
        for path in folder.rglob("*"):
            if path.is_dir():
                path.chmod(0o700)
        shutil.rmtree(folder)


def test_unreadable_folder_is_reported(
    nobody: Path, hostile: Hostile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(nobody / "cache"))
    folder = draw(nobody / "set", blue=3, red=3)
    (folder / "red").chmod(0)
    said = hostile.offer(folder / "blue", lambda: _load(folder))
    assert re.search(r"red cannot be read: .*chmod u\+rx", said)


def test_unknown_dataset_error_mentions_folders() -> None:
    with pytest.raises(SpratError, match=r"Available: auto, .*, or the path of a folder"):
        load_dataset("flowers")


def _mapped(tmp_path: Path, count: int) -> ImageSet:
    """Return a set of noise mapped from a file, with all rows in order."""
    images = torch.randint(256, (count, 3, 16, 16), dtype=torch.uint8)
    path = tmp_path / "x.pixels"
    path.write_bytes(images.numpy().tobytes())
    mapped = Mapped(path, images.shape)
    assert torch.equal(mapped[torch.arange(count)], images)
    return ImageSet(Rows(mapped, torch.arange(count)), torch.arange(count) % 3, tuple("abc"))


class TestMappedImages:
    def test_give_the_same_batches_as_copies(self, tmp_path: Path) -> None:
        mapped = _mapped(tmp_path, 300)
        whole = mapped.images[:]
        for first in (torch.randperm(300)[:200], torch.arange(300)):
            second = torch.randperm(len(first))[:130]
            view = mapped.subset(first).subset(second)
            copied = ImageSet(whole[first][second], mapped.targets[first][second], tuple("abc"))
            assert isinstance(view.images, Rows)
            assert view.images.shape == copied.images.shape
            for flip in (False, True):
                ours, theirs = (
                    Batches(each, 32, seed=1, alternating_flip=flip) for each in (view, copied)
                )
                for epoch in (0, 1):
                    for a, b in zip(ours.epoch(epoch), theirs.epoch(epoch), strict=True):
                        assert torch.equal(a[0], b[0])
                        assert torch.equal(a[1], b[1])

    def test_are_normalised_and_split_like_copies(self, tmp_path: Path) -> None:
        view = _mapped(tmp_path, 2 * PIECE + 3).subset(torch.arange(1, 2 * PIECE + 1, 2))
        whole = view.images[:]
        assert Normalization.of(view.images) == Normalization.of(whole)
        assert torch.equal(torch.cat(list(view.images.split(70))), whole)
        assert torch.equal(view.images[-5:], whole[-5:])

    def test_train_to_the_same_weights_as_copies(self, tmp_path: Path, shapes10: Dataset) -> None:
        """Compare runs on a mapped file and on tensors, bit for bit."""
        chosen = stratified_split(shapes10.train.targets, 160, 0)[1]
        images, targets = shapes10.train.images[chosen], shapes10.train.targets[chosen]
        (tmp_path / "x.pixels").write_bytes(images.contiguous().numpy().tobytes())
        mapped = Rows(Mapped(tmp_path / "x.pixels", images.shape), torch.arange(160))
        config = replace(SMALL, epochs=1, optim=replace(SMALL.optim, warmup_epochs=0.0))
        weights = []
        for name, source in (("copied", images), ("mapped", mapped)):
            part = ImageSet(source, targets, shapes10.train.classes)
            dataset = replace(shapes10, train=part)
            train(config, dataset, tmp_path / name, recipe="small")
            weights.append((tmp_path / name / "model.safetensors").read_bytes())
        assert weights[0] == weights[1]

    def test_run_does_not_copy_the_training_set(self, tmp_path: Path) -> None:
        mapped = _mapped(tmp_path, 3_000)
        dataset = Dataset("x", mapped, mapped, Normalization((0.5,) * 3, (0.25,) * 3), "")
        config = settle_for(replace(SMALL, train_images=2_000), dataset)
        training = Run(config, dataset, tmp_path)
        assert training.images.val is not None
        sets = (training.images.val, training.images.probe, training.images.batches.dataset)
        assert all(isinstance(part.images, Rows) for part in sets)
        assert isinstance(training.images.batchnorm, Rows)


class TestClassWeights:
    def _set(self, counts: list[int]) -> ImageSet:
        targets = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
        images = torch.zeros(len(targets), 3, 16, 16, dtype=torch.uint8)
        return ImageSet(images, targets, tuple(map(str, range(len(counts)))))

    def test_every_class_weighs_the_same_and_the_mean_is_1(self) -> None:
        part = self._set([10, 30, 60])
        weights = balanced_weights(part)
        assert (weights * torch.tensor([10, 30, 60])).tolist() == pytest.approx([100 / 3] * 3)
        assert weights[part.targets].mean().item() == pytest.approx(1)
        assert balanced_weights(self._set([7, 7])).tolist() == [1, 1]
        assert balanced_weights(self._set([7, 0, 7])).tolist()[::2] == [1, 1]

    def test_change_the_loss_only_of_imbalanced_sets(
        self, tmp_path: Path, shapes10: Dataset
    ) -> None:
        config = replace(SMALL, epochs=1, optim=replace(SMALL.optim, warmup_epochs=0.0), final=True)
        even = stratified_split(shapes10.train.targets, 100, 0)[1]
        uneven = torch.cat([even, (shapes10.train.targets == 0).nonzero().flatten()[:60]])
        for chosen, same in ((even, True), (uneven, False)):
            losses = []
            for weights in ("none", "balanced"):
                dataset = replace(shapes10, train=shapes10.train.subset(chosen))
                wanted = settle_for(replace(config, class_weights=weights), dataset)
                training = Run(wanted, dataset, tmp_path)
                training.step.network.train()
                losses.append(training.step(*next(training.images.batches.epoch(0)), 0).item())
            assert (losses[0] == pytest.approx(losses[1])) is same


def _sprat(*words: object) -> int:
    return app(list(map(str, words)), result_action="return_int_as_exit_code_else_zero")


class TestEndToEnd:
    def test_trains_evaluates_and_predicts_from_the_cli(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("COLUMNS", "200")
        folder = draw(tmp_path / "set", blue=30, green=30, red=60)
        few = ["--epochs", 6, "--optim.warmup-epochs", 1, "--batch-size", 16, "--device", "cpu"]
        few += ["--pictures.side", 16, "--class-weights", "balanced", "--optim.lr", "0.05"]
        assert _sprat("train", "--dataset", "set", *few, "--output", "run") == 0
        shown = capsys.readouterr().out
        assert f"on {folder}: 86 training images" in shown
        assert "The classes are imbalanced, from 21 training images (" in shown

        config, _, changed = read_config(tmp_path / "run")
        assert config.dataset == str(folder), "a resumed run finds it from anywhere"
        assert changed["pictures.side"] == 16
        results = read_json(tmp_path / "run" / "results.json")
        assert results["side"] == 16
        assert sorted(results["train_per_class"].values()) == [21, 22, 43]
        assert results["val"]["per_class"].keys() == {"blue", "green", "red"}

        monkeypatch.chdir("/")
        assert _sprat("evaluate", tmp_path / "run") == 0
        assert f"{100 * results['val']['top1']:.2f} %" in capsys.readouterr().out
        assert _sprat("evaluate", tmp_path / "run" / "model.safetensors") == 0
        reported = capsys.readouterr()
        assert "24 images" in reported.out
        assert reported.err == ""
        assert _sprat("predict", tmp_path / "run", folder / "red" / "0.png") == 0
        assert capsys.readouterr().out.count("%") == 3
        self._check_other_pictures(tmp_path, folder, results, capsys)
        self._check_csv(tmp_path, folder, capsys)

        draw_picture(folder / "red" / "more.png", "RGB", 5)
        assert _sprat("evaluate", tmp_path / "run", "--split", "test") == 0
        assert "have changed since" in capsys.readouterr().err
        with pytest.raises(SpratError, match="was trained on other images"):
            _sprat("evaluate", tmp_path / "run")

    def _check_other_pictures(
        self,
        tmp_path: Path,
        folder: Path,
        results: dict[str, Any],
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        """Evaluate on pictures that the model never saw, in other classes and parts."""

        def evaluate(*words: object) -> dict[str, Any]:
            assert _sprat("evaluate", tmp_path / "run", "--json", *words) == 0
            return json.loads(capsys.readouterr().out)

        other = draw(tmp_path / "other", red=3, blue=2)
        found = evaluate("--dataset", other)
        assert (found["split"], found["n"], found["dataset"]) == ("all", 5, str(other))
        assert found["per_class"]["green"] is None
        assert [sum(row) for row in found["confusion"]] == [2, 0, 3]
        assert found["found"]["parts"]["all"]["per_class"] == {"blue": 2, "red": 3}
        assert evaluate("--dataset", other, "--split", "test")["n"] == 1
        labels = "".join(f"{path.relative_to(other)},red\n" for path in other.glob("red/*"))
        (other / "labels.csv").write_text(f"what,kind\n{labels}")
        columns = ["--pictures.path-column", "what", "--pictures.label-column", "kind"]
        assert evaluate("--dataset", other / "labels.csv", *columns)["n"] == 3
        parts = draw(tmp_path / "parts", Test__red=2)
        assert evaluate("--dataset", parts)["found"]["parts"]["all"] == {
            "from": "Test/", "per_class": {"red": 2}
        }  # fmt: skip
        moved = shutil.copytree(folder, tmp_path / "moved")
        same = evaluate("--dataset", moved)
        assert (same["split"], same["top1"]) == ("val", results["val"]["top1"])
        assert evaluate("--split", "all")["n"] == 120
        assert _sprat("evaluate", tmp_path / "run", "--split", "all", "--dataset", moved) == 0
        assert "include those that" in capsys.readouterr().err
        draw(parts, Test__Red=1)
        with pytest.raises(SpratError, match=r"class 'Red', but .* did you mean 'red'\? Rename"):
            _sprat("evaluate", tmp_path / "run", "--dataset", parts)
        with pytest.raises(SpratError, match="was trained on other images"):
            _sprat("evaluate", tmp_path / "run", "--dataset", other, "--split", "val")
        with pytest.raises(SpratError, match="has no images in the split test"):
            _sprat("evaluate", tmp_path / "run", "--dataset", draw(tmp_path / "one", red=1),
                   "--split", "test")  # fmt: skip

    def _check_csv(self, tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (folder / "red" / "up").symlink_to(folder)  # a cycle, not followed
        (tmp_path / "notes.png").write_text("no picture")
        words = [tmp_path / "run", folder, tmp_path / "notes.png", "--csv", "--top", 2]
        assert _sprat("predict", *words) == 2
        reported = capsys.readouterr()
        assert "notes.png cannot be read as a picture" in reported.err
        header, *rows = csv.reader(reported.out.splitlines())
        assert header == ["file", "class", "probability", "class_2", "probability_2"]
        assert [row[0] for row in rows] == sorted(
            (str(path) for path in folder.glob("*/*.*")), key=Path
        )
        for _, first, probability, second, less in rows:
            assert {first, second} < {"blue", "green", "red"}
            assert 1 >= float(probability) >= float(less) > 0
        (folder / "red" / "up").unlink()
        self._check_csv_of_odd_names(tmp_path, capsys)
        with pytest.raises(SpratError, match="--csv and --json exclude each other"):
            _sprat("predict", *words, "--json")

    def _check_csv_of_odd_names(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """Check that programs read the names as is and spreadsheets compute none of them."""
        names = [
            "=1+1.png",
            "+x.png",
            "-x.png",
            "@x.png",
            "a,b.png",
            'a"b.png',
            "a\nb.png",
            "a\rb.png",
        ]
        folder, bad = tmp_path / "odd", os.fsdecode(b"\xff.png")
        folder.mkdir()
        for name in (*names, bad):
            draw_picture(folder / name)
        with contextlib.chdir(folder):
            assert _sprat("predict", "../run", ".", "--csv", "--top", 1) == 0
        text = capsys.readouterr().out
        _, *rows = csv.reader(io.StringIO(text.encode().decode(), newline=""))
        safe = [f"./{name}" if name[0] in "=+-@" else name for name in names]
        assert {row[0] for row in rows} == {*safe, r"\udcff.png"}
        with pytest.raises(SpratError, match=r"name of a picture is empty\. Give"):
            _sprat("predict", tmp_path / "run", "")

    def test_shows_pictures_and_previews_augmentation(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.chdir(tmp_path)
        draw(tmp_path / "set", blue=3, red=9)
        assert _sprat("data", "show", "--dataset", "set", "--pictures.side", 48) == 0
        assert capsys.readouterr().out.strip().endswith("set.png")
        assert _sprat("augment", "preview", "--dataset", "set") == 0
        with Image.open(tmp_path / "set.png") as sheet:
            assert min(sheet.size) > 100

    @pytest.mark.parametrize("side", [16, 33, 128])
    def test_trains_and_evaluates_at_any_side(self, tmp_path: Path, side: int) -> None:
        folder = draw(tmp_path / "set", blue=12, red=12)
        dataset = load_dataset(str(folder), own=PicturesConfig(side=side))
        config = replace(
            SMALL, epochs=1, batch_size=16, optim=replace(SMALL.optim, warmup_epochs=0.0)
        )
        results = train(config, dataset, tmp_path / "run", recipe="small")
        assert results["side"] == side
        assert results["val"]["n"] == 2

    def test_a_crop_wider_than_the_images_is_refused(self, tmp_path: Path) -> None:
        dataset = _load(draw(tmp_path / "set", blue=12, red=12))
        config = replace(SMALL, augment=replace(SMALL.augment, crop=16))
        with pytest.raises(
            SpratError, match=r"augment\.crop is 16, but the images are only 16 px wide"
        ):
            train(config, dataset, tmp_path / "run", recipe="small")

    def test_final_trains_on_val_too(self, tmp_path: Path) -> None:
        folder = draw(
            tmp_path / "set", train__blue=9, train__red=9, val__blue=4, val__red=4,
            test__blue=2, test__red=2,
        )  # fmt: skip
        dataset = _load(folder)
        config = settle_for(replace(SMALL, batch_size=16, final=True), dataset)
        assert len(Run(config, dataset, tmp_path).images.batches.dataset) == 26
        training = Run(replace(config, final=False), dataset, tmp_path)
        assert len(training.images.batches.dataset) == 18
        assert training.images.val is not None
        assert len(training.images.val) == 8
