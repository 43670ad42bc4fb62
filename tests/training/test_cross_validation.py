"""Tests of cross-validation: a run for each fold, one after another, and their results."""

import csv
import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SMALL, Here, StopAfter, weights
from own_pictures import draw
from safetensors.torch import load_file
from torch import Tensor

import sprat
from sprat.data import Dataset
from sprat.data.imageset import Rows
from sprat.errors import SpratError
from sprat.evaluation.records import FoldsResult, read_metrics, read_results
from sprat.reporting import read_run, write_report
from sprat.training.folds import train_folds
from sprat.training.observer import Observer
from sprat.training.run import Interrupted, Run

CONFIG = dataclasses.replace(SMALL, epochs=2, folds=3, patience=1, seed=4)


class Seen(Observer):
    """Observer that keeps which images each run was trained on, and which it was evaluated on."""

    def __init__(self) -> None:
        self.trained: list[Tensor] = []
        self.held_out: list[Tensor] = []

    def started(self, run: Run) -> None:
        assert run.images.val is not None
        for kept, images in (
            (self.trained, run.images.batches.dataset.images),
            (self.held_out, run.images.val.images),
        ):
            assert isinstance(images, Rows)
            kept.append(images.rows)


@dataclasses.dataclass
class Folded:
    folder: Path
    results: FoldsResult
    seen: Seen


@pytest.fixture(scope="module")
def folded(tiny: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Folded:
    """Finished cross-validation of a dataset with its own val and without a test part."""
    folder, seen = tmp_path_factory.mktemp("folds") / "cv", Seen()
    results = train_folds(CONFIG, _untestable(tiny), folder, recipe="small", observer=seen)
    return Folded(folder, results, seen)


def _untestable(tiny: Dataset) -> Dataset:
    return dataclasses.replace(tiny, test=None, val=torch.arange(7))  # type: ignore[arg-type]


def test_each_image_is_predicted_once_out_of_fold(folded: Folded, tiny: Dataset) -> None:
    assert len(folded.seen.trained) == 3
    for trained, held_out in zip(folded.seen.trained, folded.seen.held_out, strict=True):
        together = torch.cat([trained, held_out]).sort().values
        assert together.tolist() == list(range(200)), "each image is in one of the two, even val's"
    predictions = folded.results["predictions"]
    assert predictions is not None
    assert predictions["image"] == [f"train/{number}" for number in range(200)]
    for fold, held_out in enumerate(folded.seen.held_out, 1):
        assert held_out.tolist() == [n for n, of in enumerate(predictions["fold"]) if of == fold]
    classes = tiny.train.classes
    assert predictions["label"] == [classes[label] for label in tiny.train.targets.tolist()]


def test_predictions_match_the_runs(folded: Folded) -> None:
    """Compare them with each run's own evaluation on its fold."""
    predictions = folded.results["predictions"]
    assert predictions is not None
    for fold in (1, 2, 3):
        of_run = read_results(folded.folder / f"fold-{fold}" / "results.json")
        evaluation = of_run["val"]
        assert evaluation is not None
        hits = [
            label == predicted
            for label, predicted, of in zip(
                predictions["label"], predictions["predicted"], predictions["fold"], strict=True
            )
            if of == fold
        ]
        assert sum(hits) / len(hits) == evaluation["top1"]
        assert folded.results["folds"][fold - 1]["top1"] == evaluation["top1"]
        assert (of_run["fold"], of_run["folds"]) == (fold, 3)
        assert of_run["test"] is None


def test_results_contain_mean_and_out_of_fold_accuracy(folded: Folded) -> None:
    results = folded.results
    assert results == json.loads((folded.folder / "results.json").read_text())
    accuracies = [each["top1"] for each in results["folds"]]
    assert results["top1"]["mean"] == pytest.approx(sum(accuracies) / 3)
    assert (results["top1"]["n"], results["top1"]["min"]) == (3, min(accuracies))
    together = results["out_of_fold"]
    assert together["n"] == 200
    counts = [each["n"] for each in results["folds"]]
    shares = zip(accuracies, counts, strict=True)
    assert together["top1"] == pytest.approx(sum(top1 * n for top1, n in shares) / 200)


def test_files_match_the_results(folded: Folded, tiny: Dataset) -> None:
    predictions = folded.results["predictions"]
    assert predictions is not None
    with (folded.folder / "out-of-fold.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["predicted"] for row in rows] == predictions["predicted"]
    assert [int(row["fold"]) for row in rows] == predictions["fold"]
    tensors = load_file(folded.folder / "out-of-fold.safetensors")
    probabilities = tensors["probabilities"]
    assert probabilities.shape == (200, 10)
    assert torch.equal(tensors["labels"], tiny.train.targets)
    assert tensors["fold"].tolist() == predictions["fold"]
    assert probabilities.max(1).values.tolist() == predictions["predicted_probability"]
    of_labels = probabilities[torch.arange(200), tiny.train.targets]
    assert of_labels.tolist() == predictions["label_probability"]


def test_nothing_is_chosen_on_a_fold(folded: Folded) -> None:
    """Check that every run trains to the end despite `patience` and keeps its last weights."""
    for fold in (1, 2, 3):
        run = folded.folder / f"fold-{fold}"
        results = read_results(run / "results.json")
        assert (results["epochs"], results["best_epoch"]) == (2, None)
        assert not results["stopped_early"]
        evaluation, last = results["val"], read_metrics(run)[-1]
        assert evaluation is not None
        assert evaluation["top1"] == last["top1"]


def test_an_interrupted_cross_validation_is_resumed_bit_for_bit(
    folded: Folded, tiny: Dataset, tmp_path: Path
) -> None:
    dataset = _untestable(tiny)
    with pytest.raises(Interrupted) as stopped:  # within the second fold
        train_folds(CONFIG, dataset, tmp_path, recipe="small", should_stop=StopAfter(20))
    assert stopped.value.folder == tmp_path / "fold-2"
    assert not (tmp_path / "results.json").exists()
    rest = Seen()
    results = train_folds(CONFIG, dataset, tmp_path, recipe="small", observer=rest)
    assert len(rest.trained) == 2, "the first fold is not trained again"
    for fold in (1, 2, 3):
        assert weights(tmp_path / f"fold-{fold}") == weights(folded.folder / f"fold-{fold}")
    for key in ("top1", "out_of_fold", "predictions"):
        assert results[key] == folded.results[key]
    assert (tmp_path / "out-of-fold.csv").read_bytes() == (
        folded.folder / "out-of-fold.csv"
    ).read_bytes()


def test_single_fold_equals_that_of_all_folds(
    folded: Folded, tiny: Dataset, tmp_path: Path
) -> None:
    config = dataclasses.replace(CONFIG, fold=2)
    run = sprat.train(config, dataset=_untestable(tiny), output=tmp_path / "run", quiet=True)
    assert weights(run.folder) == weights(folded.folder / "fold-2")
    assert run.results["val"] == read_results(folded.folder / "fold-2" / "results.json")["val"]


def test_folder_with_other_settings_is_refused_unchanged(
    folded: Folded, tiny: Dataset, tmp_path: Path
) -> None:
    def refused(folder: Path, said: str, **changes: Any) -> None:
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        with pytest.raises(SpratError, match=said):
            train_folds(
                dataclasses.replace(CONFIG, **changes), _untestable(tiny), folder, recipe="small"
            )
        assert before == {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}

    refused(folded.folder, "fold-1 is a run with other settings .*dropout", dropout=0.1)
    refused(folded.folder, "fold-1 is a run with other settings .*folds", folds=4)
    refused(folded.folder / "fold-1", "contains another run")
    (tmp_path / "results.json").write_text("{}")
    refused(tmp_path, "or other results. Give another --output")
    refused(tmp_path / "new", "folds is 99, but there are only", folds=99)
    assert not (tmp_path / "new").exists()


class TestCommands:
    def test_groups_of_own_pictures_stay_together(
        self, here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        files = draw(tmp_path / "eyes", red=18, blue=18).rglob("*.*")
        patients = {path: f"p{n // 3}" for n, path in enumerate(sorted(files))}
        lines = [f"{path},{path.parent.name},{patient}" for path, patient in patients.items()]
        Path("eyes/all.csv").write_text("\n".join(["path,label,patient", *lines]))
        words = ["train", "--dataset", "eyes/all.csv", "--pictures.group-column", "patient"]
        words += ["--pictures.side", "16", "--folds", "2", "--precision", "fp32", "--tta", "1"]
        words += ["--model", "SpratNet", "--network.widths", "8,12", "--network.depth", "1"]
        words += ["--batch-size", "8", "--epochs", "1", "--optim.warmup-epochs", "0"]
        done = here(*words, "--device", "cpu", "--augment.crop", "2")
        assert done.returncode == 0, done.stderr
        results = json.loads(Path("runs/quick-folds/results.json").read_text())
        assert results["group_column"] == "patient"
        predictions = results["predictions"]
        folds_of: dict[str, set[int]] = {}
        for image, fold in zip(predictions["image"], predictions["fold"], strict=True):
            folds_of.setdefault(patients[Path(image)], set()).add(fold)
        assert all(len(folds) == 1 for folds in folds_of.values())
        assert 3 * len(folds_of) == len(predictions["image"]), "no patient is also in the test part"
        assert "accuracy is measured on fold 2 of 2, which is not used to choose" in done.stdout
        assert f"{100 * results['top1']['mean']:.2f} ± {100 * results['top1']['std']:.2f} %" in (
            done.stdout
        )
        assert Path("runs/quick-folds/fold-2/curves.png").exists()
        Path("runs/quick-folds/fold-2/results.json").unlink()
        resumed = here("train", "--resume", "runs/quick-folds/fold-2")
        assert "fold 2 of 2, on which it was not trained" in resumed.stdout

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["--folds", 1], r"folds is 1, expected 0 \(one run\) or at least 2"),
            (["--folds", -1], "folds is -1, expected 0"),
            (["--folds", 3, "--fold", 4], r"fold is 4, expected at most folds \(= 3\)"),
            (["--fold", 1], r"fold is 1, expected at most folds \(= 0\)"),
            (["--folds", 3, "--final"], "folds is 3, expected 0, since final is True"),
            (["--folds", 3, "--seeds", 2], "folds is 3, but several seeds were requested"),
            (["--folds", 3, "--resume", "runs/x"], "--resume continues a run with exactly"),
            (["--folds", 3, "--distill.teacher", "tiniest"], "there is a teacher, which"),
            (["--folds", 1_001], r"folds is 1001, expected 0 \(one run\) to 1,000"),
        ],
    )  # fmt: skip
    def test_invalid_options_are_refused(
        self,
        here: Here,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        words: list[Any],
        said: str,
    ) -> None:
        monkeypatch.chdir(tmp_path)
        done = here("train", "--dataset", "shapes10", "--device", "cpu", "--epochs", 4, *words)
        assert done.returncode == 2
        assert re.search(said, done.stderr), done.stderr
        assert "Traceback" not in done.stderr
        assert not list(tmp_path.rglob("*"))

    @pytest.mark.parametrize("verb", [["report"], ["evaluate"], ["train", "--resume"]])
    def test_folder_of_folds_is_refused_as_a_run(
        self, here: Here, folded: Folded, verb: list[str]
    ) -> None:
        done = here(*verb, folded.folder)
        assert done.returncode == 2
        assert "contains several folds (fold-1, fold-2, fold-3). Name one of them" in done.stderr

    def test_compare_accepts_a_folder_of_folds(self, here: Here, folded: Folded) -> None:
        done = here("compare", folded.folder, "--no-published", "--json")
        assert done.returncode == 0, done.stderr
        (entry,) = json.loads(done.stdout)
        assert entry["top1"] == folded.results["top1"]["mean"]
        assert (entry["n"], entry["protocol"]) == (3, "cross-validation, 3 folds")
        assert not entry["front"]


def test_train_and_train_folds_refuse_each_others_config(tiny: Dataset, tmp_path: Path) -> None:
    for verb, config in ((sprat.train, CONFIG), (sprat.train_folds, SMALL)):
        with pytest.raises(SpratError, match="folds is"):
            verb(config, dataset=tiny, output=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_report_says_that_a_fold_chose_nothing(folded: Folded, tmp_path: Path) -> None:
    write_report(read_run(folded.folder / "fold-1"), tmp_path / "page.html", "no answers")
    page = (tmp_path / "page.html").read_text()
    assert "(fold 1 of 3) correctly. These images were not used" in page
