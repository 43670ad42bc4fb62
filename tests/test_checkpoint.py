"""Tests of weight files: they load unchanged, describe themselves, and cannot run code."""

import copy
import dataclasses
import hashlib
import json
import os
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from sprat.checkpoint import (
    Model,
    load_model,
    load_resume,
    metadata,
    save_model,
    save_resume,
)
from sprat.data.imageset import Normalization
from sprat.errors import SpratError
from sprat.files import replacing
from sprat.models import NetworkConfig, build_network, to_record


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    return Model(
        network=build_network("OptimizedCIFAR10Net200K", num_classes=3).eval(),
        name="OptimizedCIFAR10Net200K",
        classes=("ant", "bee", "crow"),
        normalization=Normalization((0.1, 0.2, 0.3), (0.4, 0.5, 0.6)),
        side=32,
        about={"recipe": "quick"},
    )


def test_loaded_model_equals_the_saved_one(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_model(path, model)
    for place in (path, tmp_path):
        loaded = load_model(place)
        images = torch.randn(4, 3, 32, 32)
        assert torch.equal(loaded.network(images), model.network(images))
        assert (loaded.name, loaded.classes, loaded.side) == (model.name, model.classes, 32)
        assert loaded.normalization == model.normalization
        assert loaded.about == {"recipe": "quick"}


def test_values_beyond_half_precision_stay_float32(model: Model, tmp_path: Path) -> None:
    key = next(key for key in model.network.state_dict() if key.endswith("running_var"))
    model.network.state_dict()[key].fill_(1e6)
    path = tmp_path / "model.safetensors"
    save_model(path, model, torch.float16)
    state = load_model(path).network.state_dict()
    assert (state[key] == 1e6).all()
    with safe_open(path, "pt") as file:
        types = {name: file.get_tensor(name).dtype for name in file.keys()}  # noqa: SIM118
    assert [name for name, dtype in types.items() if dtype is torch.float32] == [key]


def test_older_file_keeps_former_widths(model: Model, tmp_path: Path) -> None:
    """Check a file from when SpratM was wider and files did not record widths."""
    path = tmp_path / "model.safetensors"
    before = build_network(NetworkConfig(name="SpratM", widths=(48, 84)), 3).eval()
    save_model(path, dataclasses.replace(model, network=before, name="SpratM"))
    loaded = load_model(path)
    assert loaded.network_config == NetworkConfig(name="SpratM", widths=(48, 84))
    save_model(path, loaded)
    assert load_model(path).network_config == loaded.network_config
    assert to_record(NetworkConfig(name="spratm")).widths == (48, 80)


def test_saved_names_have_no_wrapper_prefix(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_model(path, model)
    with safe_open(path, "pt") as file:
        names = set(file.keys())
        meta = json.loads(file.metadata()["sprat"])
    assert {"stem.0.weight", "layer4.1.conv2.bn.running_var", "classifier.bias"} <= names
    assert not [name for name in names if name.startswith(("module.", "_orig_mod."))]
    assert meta["classes"] == ["ant", "bee", "crow"]


def test_weights_in_another_memory_layout_keep_their_values(model: Model, tmp_path: Path) -> None:
    before = {k: v.clone() for k, v in model.network.state_dict().items()}
    model.network.to(memory_format=torch.channels_last)
    assert not model.network.stem[0].weight.is_contiguous()
    save_model(tmp_path / "m.safetensors", model)
    after = load_model(tmp_path / "m.safetensors").network.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_missing_foreign_and_damaged_models_are_refused(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    with pytest.raises(SpratError, match="There is no model at"):
        load_model(path)
    with pytest.raises(SpratError, match="There is no model at"):
        load_model(tmp_path)
    path.write_bytes(b"junk")
    with pytest.raises(SpratError, match="damaged or not a safetensors file"):
        load_model(path)
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(SpratError, match="not written by sprat"):
        load_model(path)
    save_file({"x": torch.zeros(1)}, path, {"sprat": "{}"})
    with pytest.raises(SpratError, match="is damaged"):
        load_model(path)
    save_file({"x": torch.zeros(1)}, path, {"sprat": '{"format": 1, "model": 5, "classes": []}'})
    with pytest.raises(SpratError, match="is damaged"):
        load_model(path)
    save_file({"x": torch.zeros(1)}, path, {"sprat": '{"format": 99}'})
    with pytest.raises(SpratError, match=r"has format 99.*Upgrade"):
        load_model(path)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_truncated_file_is_refused(model: Model, tmp_path: Path, share: float) -> None:
    path = tmp_path / "m.safetensors"
    save_model(path, model)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(SpratError, match="damaged"):
        load_model(path)


def test_resume_file_that_executes_code_is_refused(tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple:
            import os

            return os.system, (f"touch {tmp_path}/harmed",)

    path = tmp_path / "last.pt"
    torch.save({"epoch": Attack()}, path)
    with pytest.raises(SpratError, match="damaged or was not written by sprat"):
        load_resume(path)
    assert not (tmp_path / "harmed").exists()
    path.write_bytes(b"")
    with pytest.raises(SpratError, match="damaged"):
        load_resume(path)
    with pytest.raises(SpratError, match="There is no"):
        load_resume(tmp_path / "other.pt")
    save_resume(path, STATE)
    assert load_resume(path)["epoch"] == 1


EPOCH = {
    "epoch": 1, "step": 2, "loss": 2.3, "evaluated_on": "val", "top1": 0.1, "ema_top1": None,
    "probe_top1": 0.2, "lr": 0.1, "seconds": 1.0, "images_per_s": 64.0,
}  # fmt: skip
WEIGHTS = {"weight": torch.ones(2, 3), "count": torch.tensor(3)}
STATE: dict[str, Any] = {
    "epoch": 1, "batch": 1, "losses": torch.ones(2), "epoch_seconds": 0.5, "seconds": 1.5,
    "history": [EPOCH], "best": {"epoch": 1, "top1": 0.1, "weights": WEIGHTS},
    "config": {"epochs": 2}, "dataset_md5": "0", "teacher": None,
    "git": {"commit": "0", "dirty": False}, "network": WEIGHTS,
    "optimizer": {"state": {0: {"momentum_buffer": torch.ones(2, 3)}}, "param_groups": [{}]},
    "scaler": {}, "ema": None,
}  # fmt: skip
HUGE = torch.ones(1).expand(2**50)  # a single value in memory
NAN = torch.tensor(float("nan"))


def _deep(levels: int) -> list:
    value: list = []
    for _ in range(levels):
        value = [value]
    return value


def test_the_same_model_gives_the_same_file(model: Model, tmp_path: Path) -> None:
    files = [tmp_path / f"{number}.safetensors" for number in range(8)]
    for file in files:
        save_model(file, model)
    assert len({file.read_bytes() for file in files}) == 1


class TestDamage:
    """Tests that any flipped bit is either refused or changes nothing that is used."""

    def test_to_a_model_file_is_refused_or_harmless(
        self, model: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = tmp_path / "m.safetensors"
        save_model(path, model)
        whole, expected = path.read_bytes(), load_model(path)
        header = 8 + int.from_bytes(whole[:8], "little")
        rng = random.Random(0)
        places = [rng.randrange(8 * header) for _ in range(60)]
        places += [rng.randrange(8 * len(whole)) for _ in range(30)] + [8 * len(whole) - 1]
        refused = 0
        for place in places:
            path.write_bytes(_flipped(whole, place))
            try:
                loaded = load_model(path)
            except SpratError:
                refused += 1
                continue
            assert metadata(loaded) == metadata(expected)  # the flip was in the key "sha256"
            found = loaded.network.state_dict()
            assert all(torch.equal(found[k], v) for k, v in expected.network.state_dict().items())
        assert refused >= len(places) - 3

    def test_to_a_resume_file_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "last.pt"
        save_resume(path, STATE)
        whole, rng = path.read_bytes(), random.Random(0)
        places = [rng.randrange(8 * len(whole)) for _ in range(300)]
        for place in [*range(8 * 16), *places]:
            path.write_bytes(_flipped(whole, place))
            with pytest.raises(SpratError, match=r"damaged or was not written by sprat"):
                load_resume(path)

    def test_to_a_shipped_model_is_refused(self, model: Model, tmp_path: Path) -> None:
        """Check a file without a digest of its own, whose sha256 is in the card."""
        path = tmp_path / "model.safetensors"
        tensors = {key: value.half() for key, value in model.network.state_dict().items()}
        tensors = {k: v.long() if "num_batches" in k else v for k, v in tensors.items()}
        save_file(tensors, path, {"sprat": json.dumps(metadata(model))})
        whole = path.read_bytes()
        card = {"sha256": hashlib.sha256(whole).hexdigest()}
        (tmp_path / "card.json").write_text(json.dumps(card))
        assert load_model(tmp_path).classes == model.classes
        path.write_bytes(_flipped(whole, 8 * len(whole) - 3))
        with pytest.raises(SpratError, match=r"its sha256 is not the one in its card\.json"):
            load_model(path)


def _flipped(content: bytes, bit: int) -> bytes:
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_files_without_digest_load_with_one_warning(
    model: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file(
        model.network.state_dict(), tmp_path / "m.safetensors",
        {"sprat": json.dumps(metadata(model))},
    )  # fmt: skip
    torch.save(STATE, tmp_path / "last.pt")
    for read, name in ((load_model, "m.safetensors"), (load_resume, "last.pt")):
        read(tmp_path / name)
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert f"{tmp_path / name} was written by an older version of sprat" in said
        read(tmp_path / name)
        assert not capsys.readouterr().err
    save_model(tmp_path / "new.safetensors", model)
    load_model(tmp_path / "new.safetensors")
    assert not capsys.readouterr().err


class TestHostileModels:
    """Tests that every hostile file is refused in one sentence."""

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            *(("side", side) for side in (100_000, 0, -1, 8, "32", True, 1e9, 32.0, None, [32])),
            *(("mean", mean) for mean in ([0.5] * 4, [], ["0"] * 3, [None] * 3, 0.5, [1e39] * 3)),
            *(("std", std) for std in ([0, 1, 1], [-1, 1, 1], ["1", 1, 1], [1, 1], [1e-30] * 3)),
            *(("classes", c) for c in (
                [], ["a"], ["a", "a", "b"], ["a", "b", 3], ["a", "b", ""], ["a", "b", None], "abc",
                {"a": 1}, ["a", "b", "x" * 300], [["a"], ["b"], ["c"]], ["a", "b", "c\0"],
            )),
            *(("about", about) for about in (
                [], None, "x", {"recipe": 3}, {"dataset": ["a"]}, {"dataset_md5": 1},
                {"pictures": []}, {"test_top1": "x"}, {"val_top1": 2}, {"seed": 0.5},
                {"more": _deep(50)}, {"more": 10**30},
            )),
            *(("model", name) for name in (5, None, "NoSuchNet", ["ResNet8"])),
            *(("format", form) for form in (0, "1", None, 1.5, True, [1])),
        ],
    )  # fmt: skip
    def test_invalid_metadata_is_refused(
        self, model: Model, tmp_path: Path, key: str, value: object
    ) -> None:
        text = json.dumps(metadata(model) | {key: value})
        save_file(model.network.state_dict(), tmp_path / "m.safetensors", {"sprat": text})
        _refused(tmp_path / "m.safetensors", load_model)

    @pytest.mark.parametrize(
        "text",
        ["", "1", "[]", "null", "{", "[" * 100_000, '{"a":' * 5_000, "9" * 5_000, '{"format": NaN}',
         '{"format": 1}'],
    )  # fmt: skip
    def test_malformed_metadata_is_refused(self, model: Model, tmp_path: Path, text: str) -> None:
        save_file(model.network.state_dict(), tmp_path / "m.safetensors", {"sprat": text})
        _refused(tmp_path / "m.safetensors", load_model)

    @pytest.mark.parametrize(
        ("key", "change"),
        [
            ("stem.0.weight", lambda t: t * float("nan")),
            ("stem.0.weight", lambda t: t / 0),
            ("stem.0.weight", lambda t: t.int()),
            ("stem.0.weight", lambda t: t.double()),
            ("stem.0.weight", lambda t: t.to(torch.float8_e4m3fn)),
            ("stem.0.weight", lambda t: t[..., :2].contiguous()),
            ("stem.0.weight", lambda t: torch.zeros(0)),
            ("layer4.1.conv2.bn.running_var", lambda t: t - 2),
            ("layer4.1.conv2.bn.running_mean", lambda t: t + float("inf")),
            ("layer4.1.conv2.bn.num_batches_tracked", lambda t: t.float()),
            ("classifier.bias", lambda t: t + torch.tensor([3e38, -3e38, 0]) * 10),
            ("classifier.weight", lambda t: t * 0 + 3e38),
            ("classifier.weight", lambda t: None),
            ("added.weight", lambda t: torch.zeros(3)),
        ],
    )
    def test_invalid_weights_are_refused(
        self, model: Model, tmp_path: Path, key: str, change: Callable[[Any], Tensor | None]
    ) -> None:
        state = model.network.state_dict()
        changed = state | {key: change(state.get(key))}
        tensors = {name: value for name, value in changed.items() if value is not None}
        save_file(tensors, tmp_path / "m.safetensors", {"sprat": json.dumps(metadata(model))})
        _refused(tmp_path / "m.safetensors", load_model)

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            (2**60).to_bytes(8, "little") + b"{}",
            (2**64 - 1).to_bytes(8, "little"),
            *(
                len(text).to_bytes(8, "little") + text.encode()
                for text in (
                    "[" * 50_000, "{}", "[]", '{"__metadata__":null}', '{"__metadata__":{"a":1}}',
                    '{"a":{"dtype":"F32","shape":[0,18446744073709551615],"data_offsets":[0,0]}}',
                    '{"a":{"dtype":"F32","shape":[9223372036854775807,4],"data_offsets":[0,0]}}',
                    '{"a":{"dtype":"F8_E8M0","shape":[0],"data_offsets":[0,0]}}',
                    '{"a":{"dtype":"F4","shape":[0],"data_offsets":[0,0]}}',
                    '{"a":{"dtype":"Q9","shape":[0],"data_offsets":[0,0]}}',
                )
            ),
        ],
    )  # fmt: skip
    def test_invalid_headers_are_refused(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "m.safetensors").write_bytes(content)
        _refused(tmp_path / "m.safetensors", load_model)


@pytest.mark.parametrize(("name", "read"), [("m.safetensors", load_model), ("l.pt", load_resume)])
def test_special_files_are_refused_without_blocking(
    tmp_path: Path, name: str, read: Callable[[Path], object]
) -> None:
    path = tmp_path / name
    os.mkfifo(path)
    _refused(path, read)
    path.unlink()
    path.symlink_to(path)
    _refused(path, read)
    path.unlink()
    path.symlink_to("/dev/zero")
    _refused(path, read)
    path.unlink()
    path.mkdir()
    _refused(path, read)
    path.rmdir()
    path.touch()
    os.truncate(path, 2**40)  # sparse: takes no disk space
    _refused(path, read)


def _refused(path: Path, read: Callable[[Path], object]) -> None:
    with pytest.raises(SpratError) as caught:
        read(path)
    message = str(caught.value)
    assert path.name in message or str(path.parent) in message or "model" in message
    assert len(message) < 600
    assert "\n" not in message


class TestHostileResumeFiles:
    @pytest.mark.parametrize(
        ("key", "value"),
        [
            *(("epoch", epoch) for epoch in ("3", -1, [1], 1.0, True, None, 10**30, HUGE)),
            *(("batch", batch) for batch in ("0", -1, None)),
            *(("losses", losses) for losses in ([1.0], None, NAN, HUGE, torch.ones(2).to_sparse())),
            *(("seconds", seconds) for seconds in ("1", -1.0, float("nan"), float("inf"))),
            *(("history", history) for history in (
                "x", {}, ["x"], [[]], [{}], [EPOCH, EPOCH], [EPOCH | {"epoch": 2}],
                [EPOCH | {"loss": "2"}], [EPOCH | {"loss": float("nan")}], [EPOCH | {"top1": 7}],
            )),
            *(("best", best) for best in (
                [], {"epoch": 1}, {"epoch": 1, "top1": 0.5, "weights": {"weight": 3}},
                {"epoch": 1, "top1": 0.5, "weights": {"weight": NAN}},
            )),
            *(("network", network) for network in (None, {}, [1], {"weight": HUGE})),
            *(("optimizer", state) for state in (
                None, {}, {"state": []}, {"state": {"0": {}}}, {"state": {0: {"x": "y"}}},
            )),
            ("config", "x"), ("dataset_md5", 3), ("teacher", 3), ("git", "x"), ("scaler", []),
            ("ema", {"weight": "x"}),
        ],
    )  # fmt: skip
    def test_invalid_values_are_refused(self, tmp_path: Path, key: str, value: object) -> None:
        path = tmp_path / "last.pt"
        save_resume(path, STATE | {key: value})
        _refused(path, load_resume)

    @pytest.mark.parametrize("key", STATE)
    def test_missing_key_is_refused(self, tmp_path: Path, key: str) -> None:
        state = copy.copy(STATE)
        del state[key]
        save_resume(tmp_path / "last.pt", state)
        _refused(tmp_path / "last.pt", load_resume)

    def test_zip_bomb_is_refused(self, tmp_path: Path) -> None:
        torch.save(STATE, tmp_path / "whole.pt")
        with (
            zipfile.ZipFile(tmp_path / "whole.pt") as whole,
            zipfile.ZipFile(tmp_path / "last.pt", "w", zipfile.ZIP_DEFLATED) as bomb,
        ):
            for entry in whole.infolist():
                bomb.writestr(entry.filename, whole.read(entry))
            bomb.writestr("whole/data/99", bytes(50_000_000))
        with pytest.raises(SpratError, match="would unpack to"):
            load_resume(tmp_path / "last.pt")


def test_replacing_keeps_old_file_if_writing_fails(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text("old")

    def fail_halfway() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_halfway()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    with replacing(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]
    assert path.stat().st_mode & 0o044, "readable by others, unlike a temporary file"
