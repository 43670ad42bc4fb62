"""Tests of sprat data check, which finds leaks, copies, conflicting labels and blank pictures."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Here
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

import sprat
from sprat.data import assemble, shapes10
from sprat.data.duplicates import find_pairs, traits_of
from sprat.data.imageset import ImageSet
from sprat.files import cache_dir

SIDE = 48  # of the pictures in the files, in pixels
COPIES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "resized": lambda image: image.resize((36, 36), Image.Resampling.LANCZOS),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.15),
    "of less contrast": lambda image: ImageEnhance.Contrast(image).enhance(0.8),
    "blurred": lambda image: image.filter(ImageFilter.GaussianBlur(0.6)),
    "mirrored": ImageOps.mirror,
    "moved by a pixel": lambda image: Image.fromarray(
        np.pad(np.asarray(image), ((0, 0), (1, 0), (0, 0)), "edge")[:, :-1]
    ),
}


@pytest.fixture(autouse=True)
def _cached_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def _photo(seed: int) -> Image.Image:
    """Return a picture of soft shapes, unlike that of any other seed."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (7, 7, 3), np.uint8))
    return coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def _folder(root: Path, pictures: dict[str, Image.Image]) -> Path:
    for name, image in pictures.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    return root


@pytest.fixture
def faulty(tmp_path: Path) -> Path:
    """Dataset with every kind of fault."""
    sound = {
        f"{part}/{label}/{n}.png": _photo(100 * p + 10 * c + n)
        for p, part in enumerate(("train", "val", "test"))
        for c, label in enumerate(("cat", "dog"))
        for n in range(4)
    }
    folder = _folder(
        tmp_path / "faulty",
        sound
        | {
            "test/cat/leaked.png": _photo(0),  # same as train/cat/0.png
            "val/dog/leaked.png": COPIES["brighter"](_photo(11)),  # of train/dog/1.png
            "train/cat/twin.png": _photo(1),  # same as train/cat/1.png
            "train/dog/two-labels.png": _photo(2),  # same as train/cat/2.png
            "train/cat/tiny.png": _photo(900).resize((9, 12)),
            "train/cat/white.png": Image.new("RGB", (SIDE, SIDE), "white"),
            "train/dog/grey.png": Image.linear_gradient("L").resize((SIDE, SIDE)).point(
                lambda value: 100 + value // 32
            ),
        },
    )  # fmt: skip
    (folder / "train/dog/broken.png").write_bytes(b"not a picture")
    return folder


def test_every_kind_of_fault_is_reported_by_path(faulty: Path, here: Here) -> None:
    done = here("data", "check", faulty, "--json")
    assert done.returncode == 1, done.stderr
    found = json.loads(done.stdout)

    def path(name: str) -> str:
        return str(faulty / name)

    leaks = [["train/dog/1.png", "val/dog/leaked.png"], ["train/cat/0.png", "test/cat/leaked.png"]]
    assert sorted(found["leaks"]) == sorted([path(a), path(b)] for a, b in leaks)
    twin, two_labels = (
        [path("train/cat/1.png"), path("train/cat/twin.png")],
        [path("train/cat/2.png"), path("train/dog/two-labels.png")],
    )
    assert found["duplicates"] == [twin, two_labels]
    assert found["conflicts"] == [two_labels]
    assert found["conflict_labels"] == [["cat", "dog"]]
    assert found["near"] == [[path("train/dog/1.png"), path("val/dog/leaked.png")]]
    assert [name for name, _ in found["unreadable"]] == [path("train/dog/broken.png")]
    assert found["tiny"] == [path("train/cat/tiny.png")]
    assert found["blank"] == [path("train/cat/white.png")]
    assert found["nearly_constant"] == [path("train/dog/grey.png")]
    assert found["per_class"]["train"] == {"cat": 7, "dog": 6}
    assert found["ok"] is False
    assert found == json.loads(json.dumps(sprat.check_data(faulty, quiet=True).to_dict()))


def test_pictures_of_an_archive_are_named_by_archive_and_file(
    faulty: Path, tmp_path: Path, here: Here
) -> None:
    """Check every place that names a picture: a path in the cache would help nobody."""
    packed = Path(shutil.make_archive(str(tmp_path / "set"), "zip", faulty))
    page, said = tmp_path / "page.html", []
    for words in (
        ("data", "check", packed, "--json"),
        ("data", "check", packed, "--output", page),
        ("data", "show", "--dataset", packed, "--pictures.unreadable", "skip"),
        ("evaluate", "SpratT", "--dataset", packed),
    ):
        done = here(*words)
        said.append(done.stdout + done.stderr)
    found = json.loads(said[0].split("\n")[0])
    assert [name for name, _ in found["unreadable"]] == [f"{packed}: train/dog/broken.png"]
    assert found["blank"] == [f"{packed}: train/cat/white.png"]
    assert [f"{packed}: train/dog/1.png", f"{packed}: val/dog/leaked.png"] in found["leaks"]
    assert "train/dog/1.png (dog) and val/dog/leaked.png (dog)" in said[1]
    assert "train: train/cat/white.png" not in page.read_text()
    for text in (*said, page.read_text()):
        assert f"{packed}: train/dog/broken.png cannot be read as a picture" in text
        assert str(cache_dir()) not in text


def test_findings_are_printed(faulty: Path, here: Here) -> None:
    done = here("data", "check", faulty)
    assert done.returncode == 1
    assert "leaks, the same picture in two parts: 2" in done.stdout
    assert "train/dog/1.png (dog) and val/dog/leaked.png (dog), nearly the same" in done.stdout
    assert "train/cat/2.png (cat) and train/dog/two-labels.png (dog)" in done.stdout
    assert "broken.png cannot be read as a picture" in done.stdout


def test_page_shows_pairs_and_is_not_overwritten(faulty: Path, here: Here) -> None:
    page = Path("page.html")
    done = here("data", "check", faulty, "--output", page, "--json")
    assert done.returncode == 1, done.stderr
    text = page.read_text()
    for name in ("leaked.png", "twin.png", "two-labels.png", "tiny.png", "white.png", "broken.png"):
        assert name in text
    assert text.count("<img") == 2 * (2 + 1 + 2) + 3
    assert "<script" not in text
    again = here("data", "check", faulty, "--output", page)
    assert again.returncode == 2
    assert "is not overwritten" in again.stderr
    assert page.read_text() == text
    assert here("data", "check", faulty, "--output", page, "--overwrite").returncode == 1
    assert here("data", "check", faulty, "--output", "page.png").returncode == 2


def test_clean_dataset_exits_with_0(tmp_path: Path, here: Here) -> None:
    folder = _folder(
        tmp_path / "sound",
        {f"{label}/{n}.png": _photo(10 * c + n) for c, label in enumerate("ab") for n in range(5)},
    )
    done = here("data", "check", folder, "--json", "--output", "sound.html")
    assert done.returncode == 0, done.stdout
    found = json.loads(done.stdout)
    assert (found["ok"], found["leaks"], found["duplicates"]) == (True, [], [])
    assert "None: no picture has two labels." in Path("sound.html").read_text()


def test_unknown_dataset_exits_with_2(here: Here) -> None:
    done = here("data", "check", "nosuch", "--json")
    assert (done.returncode, done.stdout) == (2, "")
    assert "Unknown dataset 'nosuch'" in done.stderr


@pytest.mark.parametrize("how", COPIES)
def test_modified_copies_are_found(how: str, tmp_path: Path) -> None:
    copied = {f"test/b/{n}.jpg": COPIES[how](_photo(n)) for n in range(8)}
    folder = _folder(
        tmp_path / "copied",
        {f"train/{'ab'[n % 2]}/{n}.png": _photo(n) for n in range(16)}
        | {"test/a/other.png": _photo(99)}
        | copied,
    )
    found = sprat.check_data(folder, quiet=True)
    pairs = {
        (Path(found.names[p.first]).stem, Path(found.names[p.second]).stem) for p in found.leaks
    }
    assert pairs == {(str(n), str(n)) for n in range(8)}
    assert not any(pair.exact for pair in found.leaks)
    assert len(found.conflicts) == 4


def test_each_copy_is_paired_once_per_part() -> None:
    image = torch.from_numpy(np.array(_photo(0).resize((32, 32)))).permute(2, 0, 1)
    noise = torch.randint(-3, 4, (40, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    images = (image.long() + noise).clamp(0, 255).byte()
    images[1] = images[0]
    parts = np.repeat([0, 1, 2], [20, 10, 10])
    pairs = find_pairs(images, parts, traits_of(images))
    assert len(pairs) == (19 + 9 + 9) + (10 + 10 + 10)
    assert len({(pair.second, parts[pair.first]) for pair in pairs}) == len(pairs)
    assert all(pair.first < pair.second for pair in pairs)
    assert pairs[0].exact
    assert len(find_pairs(images, parts, traits_of(images), within=False)) == 30


def test_random_pictures_are_not_reported_as_copies() -> None:
    train, test = shapes10.load(train_images=600, test_images=200)
    leaked = ImageSet(
        torch.cat([test.images[:], train.images[:][5:6]]),
        torch.cat([test.targets, train.targets[5:6]]),
        test.classes,
    )
    found = sprat.check_data(assemble("shapes10", train, leaked), quiet=True)
    assert found.to_dict()["leaks"] == [["train/5", "test/200"]]
    assert found.duplicates == found.conflicts == []


def test_train_warns_of_leaks_once(faulty: Path, tmp_path: Path, here: Here) -> None:
    (faulty / "train/dog/broken.png").unlink()
    words = ("--epochs", 1, "--batch-size", 4, "--model", "SpratT", "--kernels", "torch", "--quiet")
    done = here("train", "--dataset", faulty, *words, "--pictures.side", 16, "--output", "run")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("2 pictures of val or test") == 1
    assert f"sprat data check {faulty} --pictures.side 16" in done.stderr
