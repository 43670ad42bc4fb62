"""Tests of published datasets in every published form, intact and damaged in many ways."""

import io
import json
import os
import pickle
import random
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
import scipy.io
import torch
from conftest import Hostile
from PIL import Image
from pyarrow import parquet

from sprat.cli import main
from sprat.data import (
    Dataset,
    cifar10,
    cifar100,
    fetch_dataset,
    load_dataset,
    svhn,
    verify_dataset,
)
from sprat.errors import SpratError

IMAGES = 2  # in each file of CIFAR-10 that these tests write
COUNTS = {"cifar10": (5 * IMAGES, IMAGES), "cifar100": (8, 4), "svhn": (7, 3)}
CLASSES = {"cifar10": 10, "cifar100": 100, "svhn": 10}

Images = tuple[np.ndarray, np.ndarray]  # uint8 N x 3 x 32 x 32, and labels


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Let a few images be a whole dataset, and use an empty cache."""
    monkeypatch.setattr(cifar10, "IMAGES_PER_FILE", IMAGES)
    monkeypatch.setattr(cifar100, "TRAIN_IMAGES", COUNTS["cifar100"][0])
    monkeypatch.setattr(cifar100, "TEST_IMAGES", COUNTS["cifar100"][1])
    monkeypatch.setattr(svhn, "COUNTS", dict(zip(svhn.COUNTS, COUNTS["svhn"], strict=True)))
    monkeypatch.delenv("SPRAT_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def _drawn(name: str, seed: int = 0) -> tuple[Images, Images]:
    """Return a training and a test set of noise."""
    rng = np.random.default_rng(seed)
    train, test = (
        (rng.integers(0, 256, (n, 3, 32, 32), np.uint8), rng.integers(0, CLASSES[name], n))
        for n in COUNTS[name]
    )
    return train, test


def _batch(images: Images, key: bytes = b"labels", **changes: object) -> bytes:
    batch = {b"data": images[0].reshape(len(images[0]), -1), key: images[1].tolist()}
    batch |= {name.encode(): value for name, value in changes.items()}
    return pickle.dumps(batch, protocol=3)


def _files(train: Images, test: Images, suffix: str = "") -> dict[str, Images]:
    """Return the images of CIFAR-10's six files, by name."""
    parts = zip(*(np.split(array, 5) for array in train), strict=True)
    return {f"data_batch_{i}{suffix}": p for i, p in enumerate(parts, 1)} | {
        f"test_batch{suffix}": test
    }


def _records(images: Images) -> bytes:
    labels = images[1].astype(np.uint8)
    return np.column_stack([labels, images[0].reshape(len(labels), -1)]).tobytes()


def _png(image: np.ndarray, kind: str = "PNG", mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.fromarray(image.transpose(1, 2, 0)).convert(mode).save(file, kind)
    return file.getvalue()


def _rows(images: Images) -> list[dict[str, Any]]:
    return [
        {"img": {"bytes": _png(image), "path": None}, "label": int(label)}
        for image, label in zip(*images, strict=True)
    ]


def _write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def _names(count: int = 100) -> list[bytes]:
    return [f"class {i}".encode() for i in range(count)]


def _python(folder: Path, train: Images, test: Images) -> Path:
    place = folder / cifar10.FOLDER
    place.mkdir()
    for name, images in _files(train, test).items():
        (place / name).write_bytes(_batch(images))
    return place


def _binary(folder: Path, train: Images, test: Images) -> Path:
    place = folder / cifar10.BINARY.folder
    place.mkdir()
    for name, images in _files(train, test, ".bin").items():
        (place / name).write_bytes(_records(images))
    return place


def _parquet(folder: Path, train: Images, test: Images) -> Path:
    _write_rows(folder / "train-00000-of-00001.parquet", _rows(train))
    _write_rows(folder / "test-00000-of-00001.parquet", _rows(test))
    return folder


def _shards(folder: Path, train: Images, test: Images) -> Path:
    place = folder / "plain_text"
    place.mkdir()
    rows = _rows(train)
    _write_rows(place / "train-00000-of-00002.parquet", rows[:3])
    _write_rows(place / "train-00001-of-00002.parquet", rows[3:])
    _write_rows(place / "test-00000-of-00001.parquet", _rows(test))
    return place


def _hundred(folder: Path, train: Images, test: Images) -> Path:
    place = folder / cifar100.PYTHON.folder
    place.mkdir()
    for name, images in (("train", train), ("test", test)):
        coarse = [0] * len(images[1])
        (place / name).write_bytes(_batch(images, b"fine_labels", coarse_labels=coarse))
    (place / "meta").write_bytes(pickle.dumps({b"fine_label_names": _names()}, protocol=3))
    return place


def _mat(folder: Path, train: Images, test: Images) -> Path:
    for name, (images, labels) in ((svhn.TRAIN, train), (svhn.TEST, test)):
        y = np.where(labels == 0, 10, labels).astype(np.uint8)[:, None]
        held = {"X": images.transpose(2, 3, 1, 0), "y": y}
        scipy.io.savemat(folder / name, held, do_compression=True)
    return folder


def _pack(extracted: Path) -> Path:
    """Replace an extracted folder with its archive; return the archive."""
    by_folder = {form.folder: form for form in (cifar10.PYTHON, cifar10.BINARY, cifar100.PYTHON)}
    archive = extracted.with_name(by_folder[extracted.name].archive)
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(extracted, extracted.name)
    for path in extracted.iterdir():
        path.unlink()
    extracted.rmdir()
    return archive


Make = Callable[[Path, Images, Images], Path]
FORMS: dict[str, tuple[str, Make]] = {
    "python": ("cifar10", _python),
    "python archive": ("cifar10", lambda *all_: _pack(_python(*all_))),
    "binary": ("cifar10", _binary),
    "binary archive": ("cifar10", lambda *all_: _pack(_binary(*all_))),
    "parquet": ("cifar10", _parquet),
    "parquet in shards": ("cifar10", _shards),
    "CIFAR-100": ("cifar100", _hundred),
    "CIFAR-100 archive": ("cifar100", lambda *all_: _pack(_hundred(*all_))),
    "SVHN": ("svhn", _mat),
}


def _make(form: str, folder: Path, seed: int = 0) -> tuple[str, Path]:
    """Write a whole dataset into `folder`; return its name and its path."""
    name, make = FORMS[form]
    folder.mkdir(exist_ok=True)
    return name, make(folder, *_drawn(name, seed))


def _md5(name: str, folder: Path) -> str:
    return load_dataset(name, folder).md5


class TestForms:
    @pytest.mark.parametrize("form", FORMS)
    def test_each_loads_the_original_images(self, form: str, tmp_path: Path) -> None:
        name, place = _make(form, tmp_path / "data")
        for given in (tmp_path / "data", place):
            read = load_dataset(name, given)
            for part, (images, labels) in zip((read.train, read.test), _drawn(name), strict=True):
                assert torch.equal(part.images, torch.from_numpy(images))
                assert part.targets.tolist() == labels.tolist()

    def test_the_same_images_have_the_same_md5_in_every_form(self, tmp_path: Path) -> None:
        md5s = {}
        for form, (name, _) in FORMS.items():
            _make(form, tmp_path / form)
            md5s[form] = (name, _md5(name, tmp_path / form))
        assert len(set(md5s.values())) == 3, md5s

    def test_column_major_array_is_read_correctly(self, tmp_path: Path) -> None:
        _, place = _make("python", tmp_path / "data")
        whole = _md5("cifar10", tmp_path / "data")
        for path in place.iterdir():
            held = pickle.loads(path.read_bytes())
            held[b"data"] = np.asfortranarray(held[b"data"])
            path.write_bytes(pickle.dumps(held, protocol=3))
        assert _md5("cifar10", tmp_path / "data") == whole

    def test_classes_are_those_published(self, tmp_path: Path) -> None:
        classes = {}
        for form, (name, _) in FORMS.items():
            _make(form, tmp_path / form)
            classes[name] = load_dataset(name, tmp_path / form).train.classes
        assert classes["cifar10"] == cifar10.CLASSES
        assert classes["cifar100"] == tuple(each.decode() for each in _names())
        assert classes["svhn"] == tuple("0123456789")

    @pytest.mark.parametrize(
        "form", [form for form, (name, _) in FORMS.items() if name == "cifar10"]
    )
    def test_the_python_version_comes_first(self, form: str, tmp_path: Path) -> None:
        other = _make(form, tmp_path / "data", seed=1)[1]
        assert cifar10.find(tmp_path / "data") == other
        if form != "python":
            python = _make("python", tmp_path / "data")[1]
            assert cifar10.find(tmp_path / "data") == python
            if form != "python archive":
                archive = _pack(python)
                assert cifar10.find(tmp_path / "data") == archive

    @pytest.mark.parametrize(("name", "title"), [("cifar100", "CIFAR-100"), ("svhn", "SVHN")])
    def test_are_found_in_environment_and_cache(
        self, name: str, title: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        form = next(form for form, (of, _) in FORMS.items() if of == name)
        _make(form, tmp_path / "given")
        with pytest.raises(SpratError, match=rf"does not contain {title}, expected .*fetch"):
            load_dataset(name, tmp_path)
        monkeypatch.setenv("SPRAT_DATA", str(tmp_path / "given"))
        assert load_dataset(name).name == name
        monkeypatch.setenv("SPRAT_DATA", str(tmp_path))
        (tmp_path / "cache").mkdir()
        (tmp_path / "given").rename(tmp_path / "cache" / "sprat")
        assert load_dataset(name).name == name

    @pytest.mark.parametrize(
        ("form", "package", "extra"),
        [("parquet", "pyarrow", "parquet"), ("SVHN", "scipy", "svhn")],
    )
    def test_missing_extra_error_says_what_to_install(
        self,
        form: str,
        package: str,
        extra: str,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        name, _ = _make(form, tmp_path / "data")
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(SpratError, match=rf"{package}.*pip install 'sprat\[{extra}\]'"):
            load_dataset(name, tmp_path / "data")

    def test_contact_sheet_draws_a_hundred_classes(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        _make("CIFAR-100", tmp_path / "data")
        sheet = tmp_path / "sheet.png"
        words = ["--dataset", "cifar100", "--data-dir", str(tmp_path / "data"), "--columns", "3"]
        monkeypatch.setattr(sys, "argv", ["sprat", "data", "show", *words, "--output", str(sheet)])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 0
        with Image.open(sheet) as image:
            assert image.height > 10 * image.width


class TestRealCIFAR10:
    @pytest.fixture
    def real(self, cifar10_place: Path, monkeypatch: pytest.MonkeyPatch) -> Dataset:
        monkeypatch.setattr(cifar10, "IMAGES_PER_FILE", 10_000)
        return load_dataset("cifar10", cifar10_place)

    def test_is_the_same_in_its_binary_version(self, real: Dataset, tmp_path: Path) -> None:
        """Check the md5s too: the written files must have the published ones."""
        train, test = ((s.images.numpy(), s.targets.numpy()) for s in (real.train, real.test))
        _binary(tmp_path, train, test)
        assert set(cifar10.verify(tmp_path).values()) == {"ok"}
        assert load_dataset("cifar10", tmp_path).md5 == real.md5

    def test_is_recognised_in_any_image_order(self, real: Dataset) -> None:
        for split, part in (("train", real.train), ("test", real.test)):
            order = torch.randperm(len(part), generator=torch.Generator().manual_seed(0))
            md5 = cifar10._content_md5(part.images[order], part.targets[order])
            assert md5 == cifar10.CONTENT_MD5S[split]

    def test_has_the_md5_of_every_result(self, real: Dataset) -> None:
        assert real.md5 == "3d7df60196cbb162eae0001b44824de8"


class TestVerify:
    @pytest.mark.parametrize("form", FORMS)
    def test_reports_noise_as_damaged_in_every_form(self, form: str, tmp_path: Path) -> None:
        name, place = _make(form, tmp_path / "data")
        folder, states = verify_dataset(name, tmp_path / "data")
        assert folder == tmp_path / "data"
        assert "damaged" in states.values()
        assert "ok" not in states.values()
        assert all(place in (path, path.parent) for path in states)

    def test_reports_which_parquet_files_are_intact(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        _, place = _make("parquet in shards", tmp_path / "data")
        md5s = {}
        for split, (images, labels) in zip(("train", "test"), _drawn("cifar10"), strict=True):
            both = torch.from_numpy(images).flip(0), torch.from_numpy(labels).flip(0)
            md5s[split] = cifar10._content_md5(*both)
        monkeypatch.setattr(cifar10, "CONTENT_MD5S", md5s)
        assert list(cifar10.verify(tmp_path / "data").values()) == ["ok"] * 3
        cut = place / "train-00001-of-00002.parquet"
        cut.write_bytes(cut.read_bytes()[:-1])
        states = {path.name: state for path, state in cifar10.verify(place).items()}
        assert states["test-00000-of-00001.parquet"] == "ok"
        assert list(states.values()).count("damaged") == 2

    def test_missing_svhn_file_is_reported(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        _make("SVHN", tmp_path / "data")
        (tmp_path / "data" / svhn.TEST).unlink()
        words = ["--dataset", "svhn", "--data-dir", str(tmp_path / "data"), "--json"]
        monkeypatch.setattr(sys, "argv", ["sprat", "data", "verify", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 1
        states = json.loads(capsys.readouterr().out)["files"]
        assert list(states.values()) == ["damaged", "missing"]

    def test_only_published_datasets_can_be_verified(self) -> None:
        with pytest.raises(SpratError, match="not a published dataset\\. Available: "):
            verify_dataset("shapes10")


@pytest.mark.parametrize("kind", ["file", "pipe", "/dev/zero"])
@pytest.mark.parametrize("given_by", ["--data-dir", "SPRAT_DATA"])
def test_path_that_is_not_a_folder_is_refused(
    kind: str, given_by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Path("/dev/zero") if kind == "/dev/zero" else tmp_path / kind
    if kind == "pipe":
        os.mkfifo(place)
    elif kind == "file":
        place.touch()
    monkeypatch.setenv("SPRAT_DATA", str(place))
    data_dir = place if given_by == "--data-dir" else None
    for use in (verify_dataset, fetch_dataset, load_dataset):
        with pytest.raises(SpratError, match=rf"\({given_by}\) is not a folder. Name the folder"):
            use("cifar10", data_dir)


def test_pipe_in_place_of_file_does_not_block(tmp_path: Path) -> None:
    for name in (*cifar10.PLACES, "train-0.parquet", "test-0.parquet", svhn.TRAIN, svhn.TEST):
        os.mkfifo(tmp_path / name)
    with pytest.raises(SpratError, match="There is nothing to verify"):
        verify_dataset("cifar10", tmp_path)
    assert set(verify_dataset("svhn", tmp_path)[1].values()) == {"missing"}
    for name in ("cifar10", "svhn"):
        with pytest.raises(SpratError, match=r"\(--data-dir\) does not contain"):
            load_dataset(name, tmp_path)


@pytest.mark.parametrize("form", FORMS)
def test_truncated_file_is_refused(form: str, tmp_path: Path, hostile: Hostile) -> None:
    name, _ = _make(form, tmp_path / "data")
    whole, rng = _md5(name, tmp_path / "data"), random.Random(form)
    files = sorted(path for path in (tmp_path / "data").rglob("*") if path.is_file())
    contents = {path: path.read_bytes() for path in files}
    read_whole = 0
    cuts = [rng.choice(files) for _ in range(1_000 if form in ("python", "binary") else 200)]
    for path, content in contents.items():
        lengths = (rng.randrange(len(content)) for _ in range(cuts.count(path)))
        for length in sorted(lengths, reverse=True):  # longest first, which needs no rewriting
            os.truncate(path, length)
            said = hostile.offer(tmp_path, lambda: _md5(name, tmp_path / "data"), whole)
            read_whole += not said
            assert not said or "ownload" in said
        path.write_bytes(content)
    # a .mat that lacks only the last bytes of its checksum is still read
    assert read_whole <= (4 if form == "SVHN" else 0)


class Attack:
    """Object that runs a command when it is unpickled without care."""

    def __init__(self, harmed: Path) -> None:
        self.harmed = harmed

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.harmed}",)


ATTACKS: dict[str, Callable[[Attack], object]] = {
    "alone": lambda attack: attack,
    "in the place of the labels": lambda attack: {b"data": b"", b"labels": attack},
    "beside": lambda attack: [{b"data": b"", b"labels": []}, attack],
}


@pytest.mark.parametrize("form", [f for f in FORMS if "python" in f or "CIFAR-100" in f])
@pytest.mark.parametrize("attack", ATTACKS)
def test_malicious_pickle_is_refused(
    form: str, attack: str, tmp_path: Path, hostile: Hostile
) -> None:
    content = pickle.dumps(ATTACKS[attack](Attack(tmp_path / "harmed")), protocol=3)
    pickle.loads(content)
    assert (tmp_path / "harmed").exists(), "the attack must work where nothing stops it"
    (tmp_path / "harmed").unlink()
    plain = form.removesuffix(" archive")
    name, extracted = _make(plain, tmp_path / "data")
    for path in sorted(extracted.iterdir()):
        whole = path.read_bytes()
        path.write_bytes(content)
        archive = _pack(extracted) if plain != form else None
        said = hostile.offer(tmp_path, lambda: _md5(name, tmp_path / "data"))
        assert f"{path.name} asks for posix.system" in said
        assert "may be an attack. Delete it" in said
        if archive:
            archive.unlink()
            _make(plain, tmp_path / "data")
        path.write_bytes(whole)


class Forged:
    """Array whose pickle claims that its raw bytes are addresses of objects."""

    def __reduce__(self) -> tuple[Any, ...]:
        rebuild, arguments, _ = np.zeros(1).__reduce__()  # type: ignore[misc]
        return rebuild, arguments, (1, (2, 3072), ForgedDtype(), False, b"A" * 2 * 3072 * 8)


class ForgedDtype:
    def __reduce__(self) -> tuple[Any, ...]:
        no_flags = 0  # by which numpy would recognise objects
        return np.dtype, ("O8", False, True), (3, "|", None, None, None, -1, -1, no_flags)


Spoil = Callable[[Path], object]  # replaces a good file with a bad one


def _rewrite(file: str, change: Callable[[bytes], bytes]) -> Spoil:
    return lambda place: (place / file).write_bytes(change((place / file).read_bytes()))


def _with(**changes: object) -> Callable[[bytes], bytes]:
    """Return a function that changes values in a pickled dictionary; None removes a key."""

    def change(content: bytes) -> bytes:
        held = pickle.loads(content, encoding="bytes")
        held |= {key.encode(): value for key, value in changes.items()}
        return pickle.dumps({k: v for k, v in held.items() if v is not None}, protocol=3)

    return change


def _with_mat(**changes: object) -> Spoil:
    def spoil(place: Path) -> None:
        held = {"X": np.zeros((32, 32, 3, 7), np.uint8), "y": np.ones((7, 1), np.uint8)}
        held |= changes
        held = {k: v for k, v in held.items() if v is not None}
        scipy.io.savemat(place / svhn.TRAIN, held)

    return spoil


def _with_rows(change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]) -> Spoil:
    def spoil(place: Path) -> None:
        rows = _rows(_drawn("cifar10")[0])
        _write_rows(place / "train-00000-of-00001.parquet", change(rows))

    return spoil


def _with_picture(picture: bytes | None) -> Spoil:
    picture_row = {"img": {"bytes": picture, "path": None}, "label": 1}
    return _with_rows(lambda rows: [*rows[:-1], picture_row])


def _with_label(label: object) -> Spoil:
    return _with_rows(lambda rows: [row | {"label": label} for row in rows])


GREY = np.full((3, 32, 32), 128, np.uint8)
OTHER_MAT = np.zeros((32, 32, 3, 6), np.uint8)
SPOILED: dict[str, tuple[str, Spoil, str]] = {
    "python: a label of 10": ("python", _rewrite("data_batch_2", _with(labels=[0, 10])), "0 to 9"),
    "python: a label of -1": ("python", _rewrite("test_batch", _with(labels=[0, -1])), "0 to 9"),
    "python: a label of True": ("python", _rewrite("test_batch", _with(labels=[0, True])), "0 to"),
    "python: labels as text": ("python", _rewrite("test_batch", _with(labels="01")), "0 to 9"),
    "python: a label too few": ("python", _rewrite("test_batch", _with(labels=[0])), "2 labels"),
    "python: no labels": ("python", _rewrite("test_batch", _with(labels=None)), "no data and"),
    "python: a pixel too few": (
        "python", _rewrite("test_batch", _with(data=np.zeros((2, 3071), np.uint8))), "of shape"),
    "python: floats": (
        "python", _rewrite("test_batch", _with(data=np.zeros((2, 3072)))), "not uint8"),
    "python: objects": (
        "python", _rewrite("test_batch", _with(data=np.full((2, 3072), None))), "not uint8"),
    "python: addresses": ("python", _rewrite("test_batch", _with(data=Forged())), "not uint8"),
    "python: an array without a state": (
        "python", _rewrite("test_batch", _with(data=np.ndarray)), "not uint8"),
    "python: another order in memory, too large": (
        "python",
        _rewrite("test_batch", _with(data=np.asfortranarray(np.zeros((3, 3072), np.uint8)))),
        "of shape",
    ),
    "binary: a label of 10": ("binary", _rewrite("data_batch_1.bin", lambda c: b"\n" + c[1:]), "0"),
    "binary: a label of 255": (
        "binary", _rewrite("test_batch.bin", lambda c: c[:3073] + b"\xff" + c[3074:]), "0 to 9"),
    "binary: a byte too many": (
        "binary", _rewrite("test_batch.bin", lambda c: c + b"\0"), "6,147 bytes, not 6,146"),
    "binary: a record too many": (
        "binary", _rewrite("test_batch.bin", lambda c: c + c[:3073]), "9,219 bytes"),
    "binary: empty": ("binary", _rewrite("data_batch_5.bin", lambda c: b""), "has 0 bytes"),
    "CIFAR-100: a label of 100": (
        "CIFAR-100", _rewrite("test", _with(fine_labels=[0, 1, 2, 100])), "labels from 0 to 99"),
    "CIFAR-100: coarse labels alone": (
        "CIFAR-100", _rewrite("train", _with(fine_labels=None)), "no data and labels"),
    "CIFAR-100: sets exchanged": (
        "CIFAR-100", lambda place: (place / "train").replace(place / "test"), "contain CIF"),
    "CIFAR-100: test for train": (
        "CIFAR-100",
        lambda place: (place / "train").write_bytes((place / "test").read_bytes()),
        "of shape",
    ),
    "CIFAR-100: 99 names": (
        "CIFAR-100", _rewrite("meta", _with(fine_label_names=_names(99))), "100 names"),
    "CIFAR-100: a name twice": (
        "CIFAR-100", _rewrite("meta", _with(fine_label_names=_names(99) * 2)), "100 names"),
    "CIFAR-100: a name that commands terminals": (
        "CIFAR-100", _rewrite("meta", _with(fine_label_names=[*_names(99), b"\x1b[2J"])), "names"),
    "CIFAR-100: names that are none": (
        "CIFAR-100", _rewrite("meta", _with(fine_label_names=list(range(100)))), "100 names"),
    "CIFAR-100: no names": ("CIFAR-100", _rewrite("meta", _with(fine_label_names=None)), "names"),
    "CIFAR-100: a list for a dictionary": (
        "CIFAR-100", _rewrite("meta", lambda c: pickle.dumps([1], protocol=3)), "no data"),
    "SVHN: no MATLAB file": ("SVHN", _rewrite(svhn.TEST, lambda c: b"not a mat" * 99), "a MATLAB"),
    "SVHN: empty": ("SVHN", _rewrite(svhn.TEST, lambda c: b""), "a MATLAB"),
    "SVHN: MATLAB 7.3": (
        "SVHN",
        _rewrite(svhn.TEST, lambda c: c[:124] + b"\0\2IM" + b"\x89HDF\r\n\x1a\n" * 99),
        "a MATLAB",
    ),
    "SVHN: a label of 11": ("SVHN", _with_mat(y=np.full((7, 1), 11, np.uint8)), "from 1 to 10"),
    "SVHN: a label of 0": ("SVHN", _with_mat(y=np.zeros((7, 1), np.uint8)), "from 1 to 10"),
    "SVHN: a label of 1.5": ("SVHN", _with_mat(y=np.full((7, 1), 1.5)), "from 1 to 10"),
    "SVHN: a label that is no number": ("SVHN", _with_mat(y=np.full((7, 1), np.nan)), "1 to 10"),
    "SVHN: labels in a row": ("SVHN", _with_mat(y=np.ones((1, 7), np.uint8)), "7 labels"),
    "SVHN: labels as text": ("SVHN", _with_mat(y="1234567"), "7 labels"),
    "SVHN: no labels": ("SVHN", _with_mat(y=None), "7 labels"),
    "SVHN: no images": ("SVHN", _with_mat(X=None), "an X that is not uint8"),
    "SVHN: an image too few": ("SVHN", _with_mat(X=OTHER_MAT), "of shape"),
    "SVHN: floats": ("SVHN", _with_mat(X=np.zeros((32, 32, 3, 7))), "not uint8"),
    "SVHN: a structure": ("SVHN", _with_mat(X={"a": 1}), "not uint8"),
    "parquet: text": (
        "parquet", _rewrite("test-00000-of-00001.parquet", lambda c: b"img,label\n"), "damaged"),
    "parquet: other columns": (
        "parquet", _with_rows(lambda rows: [{"image": 1, "labels": 2} for _ in rows]), "another"),
    "parquet: pixels for pictures": (
        "parquet", _with_rows(lambda rows: [{"img": b"x" * 3072, "label": 1}] * 10), "another"),
    "parquet: a row too few": ("parquet", _with_rows(lambda rows: rows[1:]), "hold 9 images, not"),
    "parquet: a row too many": ("parquet", _with_rows(lambda rows: rows + rows[:1]), "at most 10"),
    "parquet: a label of 10": ("parquet", _with_label(10), "beyond 0 to 9"),
    "parquet: a label of -1": ("parquet", _with_label(-1), "beyond 0 to 9"),
    "parquet: labels as text": ("parquet", _with_label("cat"), "a label is 'cat'"),
    "parquet: labels as floats": ("parquet", _with_label(1.0), "a label is 1.0"),
    "parquet: no label": ("parquet", _with_label(None), "a label is None"),
    "parquet: no picture": ("parquet", _with_picture(None), "another kind"),
    "parquet: an empty picture": ("parquet", _with_picture(b""), "another kind"),
    "parquet: half a picture": ("parquet", _with_picture(_png(GREY)[:60]), "another kind"),
    "parquet: a JPEG": ("parquet", _with_picture(_png(GREY, "JPEG")), "another kind"),
    "parquet: a small picture": ("parquet", _with_picture(_png(GREY[:, 1:])), "expected RGB"),
    "parquet: a grey picture": ("parquet", _with_picture(_png(GREY, mode="L")), "expected RGB"),
    "parquet: a shard too few": (
        "parquet in shards",
        lambda place: (place / "train-00000-of-00002.parquet").unlink(),
        "hold 7 images, not 10",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SPOILED)
def test_invalid_file_is_refused_with_the_remedy(
    case: str, tmp_path: Path, hostile: Hostile
) -> None:
    form, spoil, message = SPOILED[case]
    name, place = _make(form, tmp_path / "data")
    spoil(place)
    said = hostile.offer(tmp_path, lambda: _md5(name, tmp_path / "data"))
    assert message in said
    assert str(tmp_path / "data") in said
    assert "ownload" in said


def _member(name: str, **changes: Any) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    for key, value in changes.items():
        setattr(member, key, value)
    return member


TO_PASSWD: dict[str, Any] = {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}
TO_OUTSIDE: dict[str, Any] = {"type": tarfile.LNKTYPE, "linkname": "../../outside"}
# what an archive contains instead of its third file, or in addition to all of its files
INSTEAD: dict[str, tuple[Callable[[str], tarfile.TarInfo], str]] = {
    "a path out of the folder": (lambda file: _member(f"../{file}"), "lacks"),
    "an absolute path": (lambda file: _member(f"/{file}"), "lacks"),
    "a symbolic link": (lambda file: _member(file, **TO_PASSWD), "lacks"),
    "a hard link": (lambda file: _member(file, **TO_OUTSIDE), "lacks"),
    "a folder": (lambda file: _member(file, type=tarfile.DIRTYPE), "lacks"),
    "a device": (lambda file: _member(file, type=tarfile.CHRTYPE), "lacks"),
    "a file of a terabyte": (lambda file: _member(file, size=1 << 40), "1,099,511,627,776 bytes"),
    "nothing": (lambda file: _member("readme"), "lacks"),
}
EXTRA_MEMBERS = ("../evil", "/evil-of-sprat", "cifar/../../../evil", "evil\x1b[2J", "..")
ARCHIVED = [form for form in FORMS if "archive" in form]


def _repack(archive: Path, change: Callable[[list[tarfile.TarInfo]], None]) -> list[str]:
    """Rewrite an archive with its members changed; return the names of its original ones."""
    with tarfile.open(archive) as tar:
        members = [m for m in tar.getmembers() if m.isfile()]
        contents = {m.name: tar.extractfile(m).read() for m in members}  # type: ignore[union-attr]
    names = [m.name for m in members]
    change(members)
    with tarfile.open(archive, "w:gz") as tar:
        for member in members:
            content = contents.get(member.name, b"")
            tar.addfile(member, io.BytesIO(content) if member.size == len(content) else None)
    return names


class TestArchives:
    @pytest.mark.parametrize("form", ARCHIVED)
    @pytest.mark.parametrize("instead", INSTEAD)
    def test_with_a_missing_or_invalid_member_are_refused(
        self, form: str, instead: str, tmp_path: Path, hostile: Hostile
    ) -> None:
        name, archive = _make(form, tmp_path / "data")
        make, message = INSTEAD[instead]

        def change(members: list[tarfile.TarInfo]) -> None:
            members[2] = make(members[2].name)

        missing = _repack(archive, change)[2]
        said = hostile.offer(tmp_path, lambda: _md5(name, tmp_path / "data"))
        assert f"{archive} " in said
        assert message in said
        assert Path(missing).name in said
        assert "download it again" in said

    @pytest.mark.parametrize("form", ARCHIVED)
    @pytest.mark.parametrize("beside", EXTRA_MEMBERS)
    def test_members_outside_the_folder_are_not_extracted(
        self, form: str, beside: str, tmp_path: Path, hostile: Hostile
    ) -> None:
        name, archive = _make(form, tmp_path / "data")
        whole = _md5(name, tmp_path / "data")
        _repack(archive, lambda members: members.insert(1, _member(beside)))
        assert hostile.offer(tmp_path, lambda: _md5(name, tmp_path / "data"), whole) == ""
        assert not Path("/evil-of-sprat").exists()

    @pytest.mark.parametrize("form", ARCHIVED)
    @pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"\x1f\x8b", b"PK\3\4"])
    def test_invalid_archives_are_refused(
        self, form: str, content: bytes, tmp_path: Path, hostile: Hostile
    ) -> None:
        name, archive = _make(form, tmp_path / "data")
        archive.write_bytes(content)
        said = hostile.offer(tmp_path, lambda: _md5(name, tmp_path / "data"))
        assert "cannot be read as a tar.gz" in said or "lacks" in said
        assert "download it again" in said


@contextmanager
def _without_root() -> Iterator[None]:
    """Give up root's rights for a while, since root may read everything."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65_534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("what", ["folder", "file"])
def test_denied_permission_is_reported(form: str, what: str, hostile: Hostile) -> None:
    with tempfile.TemporaryDirectory() as made:  # only its owner may read pytest's
        folder = Path(made)
        folder.chmod(0o755)
        name, place = _make(form, folder / "data")
        inside = place if place.is_file() else min(place.glob("t*"))
        closed = folder / "data" if what == "folder" else inside
        closed.chmod(0)

        def read() -> str:
            with _without_root():
                return _md5(name, folder / "data")

        said = hostile.offer(folder, read)
        assert f"{closed} cannot be read: Permission denied. Change its permissions" in said
        closed.chmod(0o755)
