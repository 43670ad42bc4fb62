"""Tests of `sprat data check --labels`: folds trained, resumed and reused, and refusals."""

import json
from pathlib import Path

import pytest
import torch
from conftest import Here
from own_pictures import draw

from sprat.data import Dataset, assemble
from sprat.data.check import check
from sprat.data.imageset import ImageSet
from sprat.errors import SpratError
from sprat.training.labels import check_foldable, labelled

RECIPE = """
epochs = 1
batch_size = 8
threads = 1
kernels = "torch"
[network]
name = "SpratNet"
widths = [8, 8]
depth = [1]
[optim]
warmup_epochs = 0
[augment]
crop = 2
"""
WORDS = ("--labels", "--folds", 2, "--recipe", "tiny.toml", "--pictures.side", 16)


@pytest.fixture(autouse=True)
def _cached_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    Path("tiny.toml").write_text(RECIPE)


def test_suspect_labels_are_listed_and_runs_reused(here: Here) -> None:
    draw(Path("set"), train__red=10, train__grey=10, test__red=6, test__grey=6)
    done = here("data", "check", "set", *WORDS, "--json", "--output", "page.html")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    about, suspects = found["labels"], found["suspects"]
    assert (about["folds"], about["epochs"], about["recipe"]) == (2, 1, "tiny.toml")
    assert len(suspects) == round(32 * (1 - about["top1"]))
    for each in suspects:
        assert Path(each["path"]).parent.name == each["label"] != each["suggested"]
        assert each["label_probability"] < each["suggested_probability"] <= 1
    margins = [each["label_probability"] - each["suggested_probability"] for each in suspects]
    assert margins == sorted(margins)
    assert sum(each["confident"] for each in suspects) == about["confident"]

    page = Path("page.html").read_text()
    assert "Suspect labels" in page
    for each in suspects:
        alt = f"labelled {each['label']}, probably {each['suggested']}"
        assert page.count(f'alt="{alt}') >= 1

    (runs,) = Path("runs").iterdir()
    before = {path: path.stat().st_mtime_ns for path in runs.rglob("model.safetensors")}
    assert len(before) == 2
    again = here("data", "check", "set", *WORDS)
    assert again.returncode == 0, again.stderr
    assert "are probably wrong, by confident learning" in again.stdout
    assert before == {path: path.stat().st_mtime_ns for path in before}
    Path("set/train/red/0.png").unlink()  # a changed set needs other runs
    assert here("data", "check", "set", *WORDS, "--json").returncode == 0
    assert len(list(Path("runs").iterdir())) == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--folds", 7), "folds is 7, but there are only 6"),
        (("--folds", 1), "folds is 1, expected 2 to"),
        (("--recipe", "nosuch"), "Unknown recipe 'nosuch'"),
        (("--recipe", "taught-t"), "folds is 5, expected 0, since there is a teacher"),
    ],
)
def test_invalid_options_are_refused_and_leave_nothing(
    words: tuple[object, ...], said: str, here: Here
) -> None:
    draw(Path("set"), train__red=4, train__grey=4, test__red=2, test__grey=2)
    done = here("data", "check", "set", "--labels", *words, "--json", "--output", "page.html")
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert not Path("page.html").exists()
    assert not Path("runs").exists()


def test_label_options_are_refused_without_labels(here: Here) -> None:
    for words in (("--folds", 3), ("--recipe", "quick"), ("--runs", "elsewhere")):
        done = here("data", "check", "shapes10", *words)
        assert done.returncode == 2
        assert "need --labels" in done.stderr


def test_without_labels_there_are_no_suspects_in_json(here: Here) -> None:
    draw(Path("set"), red=10, grey=10)
    found = json.loads(here("data", "check", "set", "--json").stdout)
    assert (found["labels"], found["suspects"]) == (None, None)


def _set(images: list[int], targets: list[int]) -> Dataset:
    """Return a training set of noise, in which equal numbers stand for equal pictures."""
    noise = [
        torch.randint(0, 256, (3, 16, 16), generator=torch.Generator().manual_seed(n))
        for n in images
    ]
    pixels = torch.stack(noise).byte()
    whole = ImageSet(pixels, torch.tensor(targets), ("a", "b"))
    return assemble("made", whole, whole.subset(torch.tensor([], dtype=torch.int64)))


def test_copies_are_in_one_fold() -> None:
    dataset = _set([1, 2, 3, 1, 2, 4, 1, 5], [0, 1, 0, 1, 1, 0, 0, 1])
    groups = labelled(check(dataset), dataset).groups
    assert groups is not None
    assert groups.tolist() == [0, 1, 2, 0, 1, 5, 0, 7]


def test_a_class_of_copies_alone_is_refused() -> None:
    dataset = _set([1, 2, 3, 4, 4, 4], [0, 0, 0, 1, 1, 1])
    with pytest.raises(SpratError, match="All pictures of 'b' are copies of one another"):
        check_foldable(labelled(check(dataset), dataset), 2)


def test_one_class_is_refused() -> None:
    dataset = _set([1, 2, 3], [0, 0, 0])
    with pytest.raises(SpratError, match="made has pictures of only one class"):
        check_foldable(labelled(check(dataset), dataset), 2)
