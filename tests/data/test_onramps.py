"""Tests of the forms of own pictures: folders of parts, tables, archives and parquet files."""

import io
import json
import os
import random
import re
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from conftest import Hostile
from killed import kill_after
from own_pictures import draw, draw_picture
from pyarrow import parquet

from sprat.data import Dataset, archive, load_dataset
from sprat.data.own import FORMS, PicturesConfig
from sprat.errors import SpratError
from sprat.files import cache_dir


@pytest.fixture(autouse=True)
def _cached_there(new_cache: Callable[[], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the tests out of the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(new_cache()))


def _load(place: Path, whole: bool = False, **settings: Any) -> Dataset:
    return load_dataset(str(place), own=PicturesConfig(side=16, **settings), whole=whole)


def _parts(dataset: Dataset) -> dict[str, tuple[dict[str, int], str]]:
    """Return, for each part, the number of pictures per class and where they came from."""
    assert dataset.found is not None
    parts = dataset.found.to_dict()["parts"]
    return {name: (part["per_class"], part["from"]) for name, part in parts.items()}


class TestParts:
    @pytest.mark.parametrize(
        ("train", "val", "test"),
        [
            ("train", "val", "test"), ("Training", "valid", "Testing"), ("TRAIN", "Validation", ""),
            ("training", "", "TEST"), ("train", "DEV", ""), ("train", "", ""),
        ],
    )  # fmt: skip
    def test_are_found_under_any_usual_name(
        self, tmp_path: Path, train: str, val: str, test: str
    ) -> None:
        counts = {f"{train}__blue": 8, f"{train}__red": 12}
        counts |= {f"{val}__red": 3} if val else {}
        counts |= {f"{test}__blue": 4} if test else {}
        dataset = _load(draw(tmp_path / "set", **counts), test_fraction=0.25)
        parts = _parts(dataset)
        if test:
            assert parts["train"] == ({"blue": 8, "red": 12}, f"{train}/")
            assert parts["test"] == ({"blue": 4}, f"{test}/")
        else:
            assert parts["train"] == ({"blue": 6, "red": 9}, f"{train}/")
            assert parts["test"][0] == {"blue": 2, "red": 3}
            assert "split off train (pictures.test_fraction 0.25)" in parts["test"][1]
        assert parts["val"][0] == ({"red": 3} if val else {})
        assert (dataset.val is not None) is bool(val)
        kept = len(dataset.train) - (0 if dataset.val is None else len(dataset.val))
        assert kept == sum(parts["train"][0].values())

    def test_wrapping_folders_change_nothing(self, tmp_path: Path) -> None:
        folder = draw(tmp_path / "set", train__blue=4, train__red=4, test__red=2)
        wrapped = tmp_path / "download"
        shutil.copytree(folder, wrapped / "v2" / "flowers")
        (wrapped / "README.md").write_text("")
        (wrapped / "links.csv").write_text("url\nhttps://example.org\n")
        (wrapped / "__MACOSX").mkdir()
        loaded = _load(wrapped)
        assert loaded.md5 == _load(folder).md5
        assert loaded.found is not None
        assert loaded.found.layout == "a folder for each class in each part, in flowers/, in v2/"

    def test_class_may_be_named_like_a_part(self, tmp_path: Path) -> None:
        assert _load(draw(tmp_path / "set", train=3, bus=3)).train.classes == ("bus", "train")

    def test_dataset_without_train_loads_whole(self, tmp_path: Path) -> None:
        dataset = _load(draw(tmp_path / "set", test__blue=3, val__red=2), whole=True)
        assert (len(dataset.train), len(dataset.test)) == (2, 3)
        assert dataset.train.classes == ("blue", "red")
        one = _load(draw(tmp_path / "one", blue=3), whole=True)
        assert len(one.train) + len(one.test) == 3


@pytest.fixture
def flowers(tmp_path: Path) -> Path:
    return draw(tmp_path / "flowers", blue=6, red=9)


def _refused(
    hostile: Hostile, folder: Path, read: Callable[[], object], whole: object = None
) -> str:
    """Return the error about a bad input, which must change neither its folder nor the cache."""
    cached = {path for path in cache_dir().rglob("*") if path.name != "archives"}
    said = hostile.offer(folder, read, whole)
    assert {path for path in cache_dir().rglob("*") if path.name != "archives"} == cached
    return said


def _rows(folder: Path) -> list[tuple[str, str]]:
    """Return paths and labels of the pictures in a folder of class folders."""
    files = sorted(path for path in folder.glob("*/*") if path.is_file())
    return [(str(path.relative_to(folder)), path.parent.name) for path in files]


def _csv(separator: str = ",", path: str = "path", label: str = "label") -> Callable[..., str]:
    def text(rows: list[tuple[str, ...]], *more: str) -> str:
        return "".join(separator.join(row) + "\n" for row in [(path, label, *more), *rows])

    return text


class TestTables:
    @pytest.mark.parametrize(
        ("name", "write"),
        [
            ("a.csv", _csv()), ("a.CSV", _csv(";", "file_name", "Class Name")),
            ("a.tsv", _csv("\t", "Image", "target")), ("a.csv", _csv(",", "id_code", "diagnosis")),
            ("a.csv", lambda rows: "\ufeff" + _csv()(rows).replace("\n", "\r\n")),
            ("a.csv", lambda rows: _csv()(random.Random(1).sample(rows, len(rows)) + rows[:3])),
            ("a.csv", lambda rows: _csv()([(p.replace("/", "\\"), label) for p, label in rows])),
            ("a.csv", lambda rows: _csv()([(p.partition(".")[0], label) for p, label in rows])),
            ("a.jsonl", lambda rows: "\n".join(
                json.dumps({"file_name": p, "label": label, "box": [1, 2]}) for p, label in rows)),
        ],
    )  # fmt: skip
    def test_of_any_format_match_class_folders(
        self, flowers: Path, name: str, write: Callable[[list[tuple[str, str]]], str]
    ) -> None:
        plain = _load(flowers)
        rows = _rows(flowers)
        unique = len({path.partition(".")[0] for path, _ in rows}) == len(rows)
        assert unique, "names without extensions are unambiguous"
        (flowers / name).write_text(write(rows), newline="")
        loaded = _load(flowers / name)
        assert loaded.md5 == plain.md5
        assert loaded.train.classes == ("blue", "red")
        assert loaded.found is not None
        assert "pictures in '" in loaded.found.layout

    def test_unrecognised_columns_must_be_named(self, flowers: Path) -> None:
        table = flowers / "a.csv"
        table.write_text(_csv(",", "where", "what")([(*row, "x") for row in _rows(flowers)], "z"))
        asked = {"path_column": "where", "label_column": "what"}
        assert _load(table, **asked).md5 == _load(flowers).md5
        for missing in asked:
            with pytest.raises(SpratError, match=f"--pictures.{missing.replace('_', '-')}"):
                _load(table, **(asked | {missing: ""}))

    def test_split_column_assigns_parts(self, flowers: Path) -> None:
        part = {"blue/0.png": "test", "red/0.png": "Validation", "red/1.jpg": "testing"}
        rows = [(*row, part.get(row[0], "training")) for row in _rows(flowers)]
        (flowers / "a.csv").write_text(_csv()(rows, "split"))
        parts = _parts(_load(flowers / "a.csv"))
        assert [counts for counts, _ in parts.values()] == [
            {"blue": 5, "red": 7}, {"red": 1}, {"blue": 1, "red": 1}
        ]  # fmt: skip
        (flowers / "a.csv").write_text(_csv()([(*row, "A") for row in _rows(flowers)], "set"))
        assert _parts(_load(flowers / "a.csv"))["val"][0] == {}, "'set' may mean anything"

    def test_kaggle_layout_is_read(self, tmp_path: Path) -> None:
        folder = draw(tmp_path / "set", train=24, test=12)
        labels = [(str(i), str(i % 12)) for i in range(24)]
        (folder / "trainLabels.csv").write_text(_csv(",", "id", "level")(labels))
        (folder / "sampleSubmission.csv").write_text(_csv(",", "id", "level")(labels))
        said: list[str] = []
        dataset = load_dataset(str(folder), own=PicturesConfig(side=16), log=said.append)
        assert dataset.train.classes == tuple(map(str, range(12))), "in numeric order"
        assert _parts(dataset)["train"][1] == "trainLabels.csv, files in train/"
        assert said == [f"left out: sampleSubmission.csv in {folder}"]
        (folder / "test_images").mkdir()
        shutil.move(folder / "train", folder / "train_images")
        assert _load(folder).md5 == dataset.md5

    def test_one_table_per_part_is_read(self, flowers: Path) -> None:
        rows = _rows(flowers)
        shutil.move(flowers, flowers.parent / "pictures" / "all")
        folder = flowers.parent / "pictures"
        at = [(f"all/{path}", label) for path, label in rows]
        (folder / "train.csv").write_text(_csv()(at[:-2]))
        (folder / "test.csv").write_text(_csv()(at[-2:]))
        (folder / "val.csv").write_text("path\nall/x.png\n")  # without labels
        parts = _parts(_load(folder))
        assert parts["train"] == ({"blue": 6, "red": 7}, "train.csv")
        assert parts["test"] == ({"red": 2}, "test.csv")
        hub = folder.parent / "hub"  # laid out like the Hugging Face Hub's image folders
        for part, some in (("train", rows[:-2]), ("test", rows[-2:])):
            (hub / part).mkdir(parents=True)
            for n, (path, _) in enumerate(some):
                shutil.copy(folder / "all" / path, hub / part / f"{n}{Path(path).suffix}")
            named = [(f"{n}{Path(path).suffix}", label) for n, (path, label) in enumerate(some)]
            (hub / part / "metadata.csv").write_text(_csv(",", "file_name")(named))
        assert _parts(_load(hub))["train"][0] == parts["train"][0]

    def test_parts_follow_the_pictures_folders(self, tmp_path: Path) -> None:
        folder = draw(tmp_path / "set", train=9, Test=4)
        files = sorted(path.relative_to(folder) for path in folder.rglob("*.*"))
        rows = [(str(path), str(n % 2)) for n, path in enumerate(files)]
        (folder / "labels.csv").write_text(_csv()(rows))
        parts = _parts(_load(folder))
        assert [sum(counts.values()) for counts, _ in parts.values()] == [9, 0, 4]
        assert parts["test"][1] == "labels.csv, Test/"

    def test_class_folders_take_precedence_over_a_table(self, flowers: Path) -> None:
        """Check that runs from before tables were supported still find the same data."""
        md5 = _load(flowers).md5
        rows = [(path, "other") for path, _ in _rows(flowers)]
        (flowers / "metadata.csv").write_text(_csv()(rows))
        assert _load(flowers).md5 == md5

    def test_link_to_itself_is_ignored(self, flowers: Path) -> None:
        md5 = _load(flowers).md5
        (flowers / "blue" / ".." / "loop").symlink_to("loop")
        assert _load(flowers).md5 == md5
        rows = _rows(flowers)
        (flowers / "blue" / "loop").symlink_to("loop")
        (flowers / "a.csv").write_text(_csv()(rows))
        assert _load(flowers / "a.csv").md5 == md5

    def test_rows_without_files_are_refused_or_left_out(self, flowers: Path) -> None:
        (flowers / "a.csv").write_text(_csv()([*_rows(flowers), ("blue/more.png", "blue")]))
        with pytest.raises(SpratError, match=r"1 picture that is not there: blue/more.png \(Line"):
            _load(flowers / "a.csv")
        assert _load(flowers / "a.csv", unreadable="skip").md5 == _load(flowers).md5


BAD_TABLES: list[tuple[str, str]] = [
    ("", "a.csv is empty. Give a table"),
    ("path,label\n", "has no rows. Give a table"),
    ("path,path\n1,2\n", "two columns 'path'. Rename"),
    (
        "a,b,c\n1,2,3\n",
        "no column that clearly names the pictures: its columns are 'a', 'b', 'c'",
    ),
    ("path,b,c\n1,2,3\n", "clearly labels the pictures: .* --pictures.label-column"),
    ("path,label\nblue/0.png\n", "Line 2 of .* has no value in 'label'. Fill"),
    ("path,label\nblue/0.png,x\n\n,y\n", "Line 4 of .* has no value in 'path'. Fill"),
    ("path,label\n../x.png,blue\n", r"names '../x.png', which is outside .*/flowers. Give"),
    ("path,label\n/etc/passwd,blue\n", "names '/etc/passwd', which is outside"),
    ("path,label\nblue/../../../x,blue\n", "which is outside"),
    ("path,label\nblue/0.png,a\n", "has only the class 'a', expected at least two"),
    ("path,label\nblue/0.png,a\nblue/0.png,b\n", "Line 3 .* a different label or part than Line 2"),
    ("path,label,split\nblue/0.png,a,train\nred/0.png,b,val\n", "class 'b' only in val. Add"),
    ("path,label,split\nblue/0.png,a,train\nred/0.png,b,\n", "has the part '', expected train"),
    ("path,label,split\nblue/0.png,a,test\nred/0.png,b,test\n", "contains test but no train"),
    ("path,label\n.,a\nred/0.png,b\n", "names '.', which is outside"),
    ("path,label\nblue,a\nred/0.png,b\n", "1 picture that is not there: blue"),
    (f"path,label\nblue/0.png,{'x' * 300}\nred/0.png,b\n", "a label of 300 characters"),
    ("path,label\n" + "x" * 200_000 + ",a\n", "cannot be read as a table: field larger"),
    ('path,label\n"blue/0.png,a\n', "cannot be read as a table: unexpected end of data"),
    (f"path,label\n{'x' * 9_999},a\nred/0.png,b\n", "not there: x{150} … .*Add these files"),
    ("path,label\nblue/0\0.png,a\nred/0.png,b\n", "cannot be read as a table|not there"),
    ("path,label\nblue/\x1b[31m,a\nred/0.png,b\n", r"not there: blue/\\x1b\[31m \(Line 2"),
]


@pytest.mark.parametrize(("text", "message"), BAD_TABLES, ids=[m[:40] for _, m in BAD_TABLES])
def test_a_bad_table_is_refused_with_the_remedy(
    flowers: Path, hostile: Hostile, text: str, message: str
) -> None:
    (flowers / "a.csv").write_text(text)
    said = _refused(hostile, flowers, lambda: _load(flowers / "a.csv"))
    assert re.search(message, said), said


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
@pytest.mark.parametrize("bound", ["MOST_ROWS", "MOST_COLUMNS", "MOST_BYTES"])
def test_a_table_that_is_too_large_is_refused(
    flowers: Path, hostile: Hostile, monkeypatch: pytest.MonkeyPatch, name: str, bound: str
) -> None:
    rows = [(path, label, "") for path, label in _rows(flowers)]
    lines = [json.dumps({"path": path, "label": label, "x": x}) for path, label, x in rows]
    text = _csv()(rows, "x") if name == "a.csv" else "\n".join(lines)
    (flowers / name).write_text(text)
    monkeypatch.setattr(f"sprat.data.rows.{bound}", 2)
    said = _refused(hostile, flowers, lambda: _load(flowers / name))
    assert re.search("more than .* rows or .* columns|expected at most 2", said), said


@pytest.mark.parametrize(
    "text",
    ['[1]', '{"path": "x"', '{"path": 1e999}', '["path"]', '"' * 99_999, "[" * 99_999, "\0",
     '{"path": "blue/0.png", "label": "\\ud800"}', '{"path": "blue/0.png"}\n{"label": 3}',
     '{"path": {"a": 1}, "label": [1]}'],
)  # fmt: skip
def test_invalid_json_lines_are_refused(flowers: Path, hostile: Hostile, text: str) -> None:
    (flowers / "a.jsonl").write_text(text)
    said = _refused(hostile, flowers, lambda: _load(flowers / "a.jsonl"))
    assert re.search("cannot be read as a table|has no value in|no column|not Unicode", said), said


def _pack(folder: Path, place: Path) -> Path:
    """Pack a folder into an archive whose kind is that of the ending."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    if place.suffix == ".zip":
        with zipfile.ZipFile(place, "w", zipfile.ZIP_DEFLATED) as packed:
            for file in files:
                packed.write(file, file.relative_to(folder.parent))
        return place
    kind = {"z": "gz", "2": "bz2", "r": ""}.get(place.name[-1], "xz")
    with tarfile.open(place, f"w:{'gz' if place.name.endswith('gz') else kind}") as tar:
        tar.add(folder, folder.name)
    return place


ARCHIVES = [ending for ending, form in FORMS.items() if form == "archive"]


class TestArchives:
    @pytest.mark.parametrize("ending", ARCHIVES)
    def test_match_their_contents_and_are_extracted_once(self, flowers: Path, ending: str) -> None:
        packed = _pack(flowers, flowers.parent / f"x{ending}")
        loaded = _load(packed)
        assert loaded.md5 == _load(flowers).md5
        assert loaded.found is not None
        assert loaded.found.layout.startswith("an archive, which holds a folder for each class")
        (place,) = (cache_dir() / "archives").iterdir()
        made = place.stat().st_ino
        again = packed.rename(packed.with_name(f"moved{ending}"))
        assert _load(again).md5 == loaded.md5
        assert place.stat().st_ino == made, "archives are recognised by content"
        next(place.rglob("*.png")).unlink()
        assert _load(again).md5 == loaded.md5, "a removed file is extracted again"

    def test_may_contain_a_table(self, flowers: Path) -> None:
        (flowers / "labels.csv").write_text(_csv()(_rows(flowers)))
        md5 = _load(flowers).md5
        wrapped = flowers.parent / "all" / "of" / "it"
        shutil.copytree(flowers, wrapped / "images")
        shutil.move(wrapped / "images" / "labels.csv", wrapped)
        loaded = _load(_pack(wrapped.parents[1], flowers.parent / "x.tar"))
        assert loaded.md5 == md5
        assert _parts(loaded)["train"][1] == "labels.csv, files in images/"

    def test_are_named_in_errors(self, tmp_path: Path) -> None:
        packed = _pack(draw(tmp_path / "set", blue=2), tmp_path / "x.zip")
        with pytest.raises(SpratError, match=rf"{packed} has only the class 'blue', expected"):
            _load(packed)
        assert list((cache_dir() / "archives").iterdir()) == [], "refused archives are not kept"
        assert len(_load(packed, whole=True).train) == 2
        packed = _pack(draw(tmp_path / "set", blue=2, red__dark=2), tmp_path / "y.zip")
        with pytest.raises(
            SpratError, match=rf"The class folder {packed}: set/red contains folders"
        ):
            _load(packed)

    def test_killed_extraction_is_cleaned_up_and_repeated(self, flowers: Path) -> None:
        packed = _pack(flowers, flowers.parent / "x.zip")
        code = (
            "import sys, time; from pathlib import Path; from sprat.data import archive\n"
            "write = archive._write\n"
            "def slow(*args): write(*args); print(args[1].name, flush=True); time.sleep(0.2)\n"
            "archive._write = slow; archive.extract(Path(sys.argv[1]))"
        )
        kill_after(4, code, packed)
        place = cache_dir() / "archives"
        assert list(place.glob(".sprat-*.tmp")), "it was killed while it wrote"
        assert _load(packed).md5 == _load(flowers).md5
        assert [path.name for path in place.iterdir() if path.name.startswith(".")] == []

    @pytest.mark.parametrize("ending", [".zip", ".tar", ".tar.gz"])
    def test_truncated_or_corrupted_are_refused(
        self, tmp_path: Path, hostile: Hostile, ending: str
    ) -> None:
        folder = draw(tmp_path / "set", blue=2, red=2)
        whole = _pack(folder, tmp_path / f"x{ending}").read_bytes()
        files = sorted(path.read_bytes() for path in folder.rglob("*.*"))
        spoilt, rng = tmp_path / f"spoilt{ending}", random.Random(0)

        def extract() -> object:
            place = archive.extract(spoilt)
            found = [path.read_bytes() for path in place.rglob("*.*") if path.suffix != ".json"]
            shutil.rmtree(place)  # leaves the cache as it was
            return sorted(found)

        spoilt_ones = [whole[: rng.randrange(len(whole))] for _ in range(60)]
        spoilt_ones += [whole[:-512], whole[:-1], b"", whole[: 512 * 3]]
        for _ in range(60 if ending != ".tar" else 0):  # tar has no checksums of contents
            changed = bytearray(whole)
            changed[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
            spoilt_ones.append(bytes(changed))
        for content in spoilt_ones:
            spoilt.write_bytes(content)
            _refused(hostile, folder, extract, files)


def _tar(*members: tarfile.TarInfo) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for member in members:
            tar.addfile(member, io.BytesIO(bytes(member.size)))
    return file.getvalue()


def _member(name: str, size: int = 0, **attributes: Any) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size = size
    for key, value in attributes.items():
        setattr(member, key, value)
    return member


def _zip(*members: tuple[str, bytes], mode: int = 0) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in members:
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            packed.writestr(info, content, zipfile.ZIP_DEFLATED)
    return file.getvalue()


def _with_password() -> bytes:
    content = bytearray(_zip(("a/1.png", b"x")))
    content[6] |= 1
    content[content.index(b"PK\1\2") + 8] |= 1
    return bytes(content)


LINK, DEVICE = stat.S_IFLNK | 0o777, stat.S_IFCHR | 0o600
ATTACKS: list[tuple[str, Callable[[], bytes], str]] = [
    ("x.zip", lambda: _zip(("../../evil.png", b"")), "contains '../../evil.png', which is outside"),
    ("x.zip", lambda: _zip(("..\\evil.png", b"")), "contains '../evil.png', which is outside"),
    ("x.zip", lambda: _zip(("/etc/evil.png", b"")), "contains '/etc/evil.png', which is outside"),
    ("x.zip", lambda: _zip(("C:/evil.png", b"")), "contains 'C:/evil.png', which is outside"),
    ("x.zip", lambda: _zip(("a/1.png", b"/etc/passwd"), mode=LINK), "which is a link or a device"),
    ("x.zip", lambda: _zip(("a/1.png", b""), mode=DEVICE), "which is a link or a device"),
    ("x.zip", _with_password, "which is a file with a password"),
    ("x.zip", lambda: _zip(("a/1.png", b"1"), ("a/./1.png", b"2")), "contains 'a/./1.png' twice"),
    ("x.zip", lambda: _zip(("a", b"1"), ("a/1.png", b"2")), "contains 'a/1.png' twice"),
    ("x.zip", lambda: _zip(("a/" + "x" * 300, b"")), "a path of 302 characters .* shorter names"),
    ("x.zip", lambda: _zip(("a/" * 600 + "1.png", b"")), "a path of 1,205 characters"),
    ("x.zip", lambda: _zip(*[(f"a/{n}", b"") for n in range(60)]), "more than 50 files or"),
    ("x.zip", lambda: _zip(("a/1.png", bytes(3 << 20))), "or 2,097,152 bytes"),
    ("x.zip", lambda: _zip(*[(f"a/{n}", b"") for n in range(200)]), "a directory of 10,090 bytes"),
    ("x.zip", lambda: _zip((".git/a", b""), ("__MACOSX/b.png", b"")), "contains no files. Give"),
    (
        "x.zip",
        lambda: _tar(_member("a/1.png", 9)),
        "is damaged or not an archive: File is not a zip",
    ),
    ("x.tar", lambda: _tar(_member("../evil.png")), "contains '../evil.png', which is outside"),
    ("x.tar", lambda: _tar(_member("a/../../evil.png")), "which is outside"),
    ("x.tar", lambda: _tar(_member("/evil.png")), "contains '/evil.png', which is outside"),
    (
        "x.tar",
        lambda: _tar(_member("a", type=tarfile.SYMTYPE, linkname="/tmp"), _member("a/evil.png", 3)),
        "contains 'a', which is a link",
    ),
    ("x.tar", lambda: _tar(_member("a", type=tarfile.LNKTYPE, linkname="/etc/passwd")), "a link"),
    ("x.tar", lambda: _tar(_member("a", type=tarfile.FIFOTYPE)), "which is a link or a device"),
    ("x.tar", lambda: _tar(_member("a", type=tarfile.CHRTYPE)), "which is a link or a device"),
    ("x.tar", lambda: _tar(_member("a", 1), _member("a/b", 1)), "contains 'a/b' twice"),
    ("x.tar", lambda: _tar(_member("a/1.png", 3 << 20)), "or 2,097,152 bytes"),
    (
        "x.tar",
        lambda: _tar(_member("a/1.png", pax_headers={"comment": "x" * (2 << 20)})),
        "damaged or not an archive: a header of 2,",
    ),
    ("x.tar", lambda: _tar(_member("a", 9))[:1024], "it is damaged before its end marker"),
    ("x.tar", lambda: _zip(("a/1.png", b"")), "is damaged or not an archive"),
    ("x.tar.gz", lambda: b"\x1f\x8b" + bytes(99), "is damaged or not an archive"),
    ("x.tar.xz", lambda: b"\xfd7zXZ" + bytes(99), "is damaged or not an archive"),
    ("x.tar.bz2", lambda: b"BZh9" + bytes(99), "is damaged or not an archive"),
]


@pytest.mark.parametrize(("name", "make", "message"), ATTACKS, ids=[m[:40] for *_, m in ATTACKS])
def test_an_unsafe_archive_is_refused_and_writes_nothing(
    tmp_path: Path,
    hostile: Hostile,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    make: Callable[[], bytes],
    message: str,
) -> None:
    monkeypatch.setattr(archive, "MOST_FILES", 50)
    monkeypatch.setattr(archive, "MOST_BYTES", 2 << 20)
    monkeypatch.setattr(archive, "_LONGEST_HEADER", 1 << 20)
    monkeypatch.setattr(archive, "_LONGEST_DIRECTORY", 8_000)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_bytes(make())
    said = _refused(hostile, tmp_path, lambda: _load(tmp_path / "in" / name))
    assert re.search(message, said), said


def test_zip_bomb_is_refused(tmp_path: Path, hostile: Hostile) -> None:
    """Check that a large stated size is refused, and that an understated one is noticed."""
    content = _zip(("a/1.png", bytes(1 << 20)))
    size = (1 << 20).to_bytes(4, "little")
    for stated, message in ((2 << 30, "1,073,741,824 bytes, which is not safe"), (9, "damaged")):
        lie = content.replace(size, stated.to_bytes(4, "little"))
        (tmp_path / "x.zip").write_bytes(lie)
        said = _refused(hostile, tmp_path, lambda: _load(tmp_path / "x.zip"))
        assert re.search(message, said), said


def test_full_disk_is_reported(flowers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = _pack(flowers, flowers.parent / "x.zip")
    usage = shutil.disk_usage(flowers)._replace(free=1_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(SpratError, match=r"1,000 bytes are free\. Free some space there, name"):
        _load(packed)
    assert list((cache_dir() / "archives").iterdir()) == []


IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def _shard(
    path: Path, files: list[Path], labels: list[Any], names: list[str] | None = None, **more: Any
) -> Path:
    """Write a parquet file in the form of Hugging Face `datasets`."""
    images = [{"bytes": file.read_bytes(), "path": file.name} for file in files]
    table = pa.table({"image": pa.array(images, IMAGE), "label": labels, **more})
    if names:
        label = {"names": names, "_type": "ClassLabel"}
        features = {"image": {"_type": "Image"}, "label": label}
        about = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": about})
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, path, row_group_size=4)
    return path


@pytest.fixture
def files(flowers: Path) -> list[Path]:
    return [flowers / path for path, _ in _rows(flowers)]


class TestParquet:
    def test_matches_class_folders(self, flowers: Path, files: list[Path]) -> None:
        md5, labels = _load(flowers).md5, [0] * 6 + [1] * 9
        words = ["blue"] * 6 + ["red"] * 9
        folder = flowers.parent
        for place in (
            _shard(folder / "a.parquet", files, labels, ["blue", "red"]),
            _shard(folder / "b.parquet", files, words),
            _shard(folder / "c.parquet", files, pa.array(words).dictionary_encode()),
            _shard(folder / "d.parquet", files, labels),
        ):
            loaded = _load(place)
            assert loaded.md5 == md5
            names = ("0", "1") if place.name == "d.parquet" else ("blue", "red")
            assert loaded.train.classes == names

    def test_shards_and_parts_are_read(self, tmp_path: Path, files: list[Path]) -> None:
        names, labels = ["red", "unused", "blue"], [2] * 6 + [0] * 9
        data = tmp_path / "set" / "data"
        for n, some in enumerate((slice(0, 5), slice(5, 12))):
            _shard(data / f"train-0000{n}-of-00002.parquet", files[some], labels[some], names)
        _shard(data / "validation-00000-of-00001.parquet", files[12:13], labels[12:13], names)
        _shard(data / "test-00000-of-00001.parquet", files[13:], labels[13:], names)
        loaded = _load(tmp_path / "set")
        parts = _parts(loaded)
        assert loaded.train.classes == ("red", "blue"), "in the given order, without unused ones"
        assert parts["train"] == ({"red": 6, "blue": 6}, "2 of them")
        assert [parts[part][0] for part in ("val", "test")] == [{"red": 1}, {"red": 2}]
        for old in data.iterdir():  # as the Hub converts datasets
            part = old.name.partition("-")[0]
            (tmp_path / "hub" / part).mkdir(parents=True, exist_ok=True)
            shutil.copy(old, tmp_path / "hub" / part / f"{old.name[-22:-17]}.parquet")
        assert _load(tmp_path / "hub").md5 == loaded.md5

    def test_pictures_may_be_separate_files(self, flowers: Path, files: list[Path]) -> None:
        """Check the form that `datasets` gives a set of local files."""
        place, md5 = flowers.parent / "a.parquet", _load(flowers).md5
        names = [str(files[0]), *(str(file.relative_to(flowers.parent)) for file in files[1:])]
        images = [{"bytes": None, "path": name} for name in names]
        labels = [file.parent.name for file in files]
        parquet.write_table(pa.table({"image": pa.array(images, IMAGE), "label": labels}), place)
        assert _load(place).md5 == md5
        draw_picture(files[3], seed=99)
        assert _load(place).md5 == _load(flowers).md5 != md5, "a change is noticed"
        away = shutil.move(place, flowers / "red")
        with pytest.raises(SpratError, match=r"no picture in row 0 but names '.*', which is outsi"):
            _load(away)

    def test_unreadable_picture_is_named_by_its_row(
        self, tmp_path: Path, files: list[Path]
    ) -> None:
        files[3].write_bytes(b"no picture")
        place = _shard(tmp_path / "a.parquet", files, ["a"] * 8 + ["b"] * 7)
        with pytest.raises(SpratError, match=r"a.parquet, row 3 cannot be read as a picture"):
            _load(place)
        loaded = _load(place, unreadable="skip")
        assert len(loaded.train) + len(loaded.test) == 14

    def test_truncated_file_is_refused(
        self, tmp_path: Path, files: list[Path], hostile: Hostile
    ) -> None:
        place = _shard(tmp_path / "in" / "a.parquet", files[4:8], ["a", "b", "a", "b"])
        whole, rng = place.read_bytes(), random.Random(0)
        for _ in range(40):
            place.write_bytes(whole[: rng.randrange(len(whole))])
            said = _refused(hostile, place.parent, lambda: _load(place))
            assert "is damaged or not a parquet file" in said

    def test_missing_extra_error_says_what_to_install(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "a.parquet").write_bytes(b"PAR1")
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(SpratError, match=r"pip install 'sprat\[parquet\]'"):
            _load(tmp_path / "a.parquet")


BAD_SHARDS: list[tuple[Callable[[Path, list[Path]], object], str]] = [
    (lambda f, p: _shard(f, p[:2], [0, 5], ["a", "b"]), "the label 5 in row 1, expected 0 to 1"),
    (lambda f, p: _shard(f, p[:2], [-1, -1], ["a", "b"]), "the label -1 in row 0, expected 0 to 1"),
    (lambda f, p: _shard(f, p[:2], [None, "a"]), "the label None in row 0, expected a whole"),
    (lambda f, p: _shard(f, p[:2], [0.5, 1.5]), "the label 0.5 in row 0"),
    (lambda f, p: _shard(f, p[:2], ["a", "a"]), "has only the class 'a', expected at least two"),
    (lambda f, p: _shard(f, [], pa.array([], pa.int64())), "has 0 of 0 rows"),
    (
        lambda f, p: _shard(f.with_name("train-0.parquet"), p[:2], [0, 1])
        and _shard(f.with_name("test-0.parquet"), p[:2], [0, 1], ["a", "b"]),
        "test-0.parquet has other columns or classes than .*train-0.parquet. Give files of the",
    ),
    (
        lambda f, p: _shard(f.with_name("train-0.parquet"), p[:2], ["a", "b"])
        and _shard(f.with_name("val-0.parquet"), p[:2], ["a", "c"]),
        "has the class 'c' only in val. Add training pictures",
    ),
    (
        lambda f, p: _shard(f.with_name("train-0.parquet"), p[:2], ["a", "b"])
        and _shard(f, p[:2], [0, 1]),
        "x.parquet does not say its part, .* Rename it to train-x.parquet",
    ),
    (lambda f, p: os.mkfifo(f), "x.parquet is damaged or not a parquet file: it is a device, pipe"),
    (lambda f, p: _shard(f, p[:2], [0, 1], ["a", "\ud800"]), "label '.ud800', which is not Unico"),
    (
        lambda f, p: parquet.write_table(pa.table({"image": ["1.png"], "label": [1]}), f),
        r"pictures in any column, .*its columns are 'image' \(string\), 'label' \(int64\)\). Write",
    ),
    (
        lambda f, p: parquet.write_table(pa.table({"image": [b"1"], "b": [1], "c": [2]}), f),
        "no column that clearly labels the pictures: its columns are 'image', 'b', 'c'",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("make", "message"), BAD_SHARDS, ids=[m[:40] for _, m in BAD_SHARDS])
def test_invalid_parquet_is_refused(
    tmp_path: Path,
    files: list[Path],
    hostile: Hostile,
    make: Callable[[Path, list[Path]], object],
    message: str,
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    make(folder / "x.parquet", files)
    said = _refused(hostile, folder, lambda: _load(folder))
    assert re.search(message, said), said


def test_unsupported_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "set.7z").write_bytes(b"")
    with pytest.raises(SpratError, match=r"set.7z is not a dataset. Give a folder of your own"):
        _load(tmp_path / "set.7z")
