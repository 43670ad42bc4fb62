"""Tests of weights trained elsewhere: found in any wrapper, refused clearly, and never run."""

import argparse
import json
import os
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Here
from PIL import Image
from safetensors.torch import save_file
from torch import nn

import sprat
from sprat import SpratError
from sprat.foreign import Foreign, load_weights
from sprat.models import code

OWN = """
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes=10):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, 4, bias=False), nn.BatchNorm2d(6))
        self.head = nn.Linear(6, num_classes)

    def forward(self, images):
        return self.head(self.stem(images).relu().mean((2, 3)))

def small_net(**settings):
    return Net(**settings)

def not_a_network():
    return 3

class Pair(Net):
    def forward(self, images):
        return super().forward(images), images

class Soft(Net):
    def forward(self, images):
        return super().forward(images).softmax(1)
"""
MEAN = ("--mean", "0.5,0.4,0.3", "--std", "0.2", "0.25", "0.3")


@pytest.fixture
def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """Network `Net` of my_nets.py in the working folder, with random weights as if trained."""
    monkeypatch.setattr(code, "_used", {})
    monkeypatch.chdir(tmp_path)
    Path("my_nets.py").write_text(OWN)
    torch.manual_seed(3)
    made = _new()
    with torch.no_grad():
        for tensor in made.state_dict().values():
            tensor.add_(torch.rand(tensor.shape).to(tensor.dtype))
    monkeypatch.setattr(code, "_used", {})
    return made


def _new() -> nn.Module:
    code.use("my_nets.py")
    return code.find("my_nets.py:Net")()


def _prefixed(state: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def _changed(state: dict[str, Any], change: Callable[[torch.Tensor], Any]) -> dict[str, Any]:
    return {name: change(v) if v.is_floating_point() else v for name, v in state.items()}


FORMS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "alone": lambda state: state,
    "in a checkpoint": lambda state: {"epoch": 9, "model": state, "optimizer": {"state": {0: {}}}},
    "DataParallel": lambda state: _prefixed(state, "module."),
    "compiled": lambda state: {"net": _prefixed(state, "_orig_mod.")},
    "compiled in DataParallel": lambda state: _prefixed(state, "module._orig_mod."),
    "Lightning": lambda state: {
        "state_dict": {**_prefixed(state, "model."), "criterion.weight": torch.ones(2)},
        "hyper_parameters": {"lr": 0.1, "args": argparse.Namespace(widths=[8]), "out": Path("x")},
    },
    "timm": lambda state: {
        "state_dict": state,
        "state_dict_ema": _changed(state, torch.zeros_like),
        "args": argparse.Namespace(lr=1),
        "metric": np.float64(0.9),
    },
    "averaged": lambda state: {"n_averaged": torch.tensor(4), **_prefixed(state, "module.")},
    "without counters": lambda state: {
        name: tensor for name, tensor in state.items() if "num_batches" not in name
    },
    "counters as floats": lambda state: {name: v.float() for name, v in state.items()},
    "float64": lambda state: _changed(state, torch.Tensor.double),
    "nested deeply": lambda state: {"a": {"b": {"c": state}}},
}


@pytest.mark.parametrize("form", FORMS)
def test_weights_are_found_in_any_wrapper(net: nn.Module, form: str) -> None:
    wanted = net.state_dict()
    torch.save(FORMS[form](wanted), "net.pth")
    loaded = _new()
    load_weights(loaded, Path("net.pth"))
    for name, tensor in loaded.state_dict().items():
        if "num_batches" not in name:
            assert torch.equal(tensor, wanted[name]), name


def test_formats_dtypes_and_keys_load_correctly(
    net: nn.Module, capfd: pytest.CaptureFixture[str]
) -> None:
    wanted, images = net.state_dict(), torch.rand(2, 3, 32, 32)
    save_file(wanted, "net.safetensors")
    torch.save(wanted, "old.pth", _use_new_zipfile_serialization=False)
    for file in ("net.safetensors", "old.pth"):
        loaded = _new()
        load_weights(loaded, Path(file))
        assert torch.equal(loaded.eval()(images), net.eval()(images)), file
    for dtype in (torch.float16, torch.bfloat16):
        rounded = _changed(wanted, lambda v, to=dtype: v.to(to))  # type: ignore[misc]
        torch.save(rounded, "half.pth")
        load_weights(loaded, Path("half.pth"))
        found = loaded.state_dict()["head.weight"]
        assert found.dtype == torch.float32
        assert torch.equal(found, rounded["head.weight"].float())
    both = {"model": wanted, "model_ema": _changed(wanted, torch.zeros_like)}
    torch.save(both, "both.pth")
    assert capfd.readouterr().err == ""
    load_weights(loaded, Path("both.pth"))
    assert "contains model, model_ema; using model (see --key)" in capfd.readouterr().err
    assert torch.equal(loaded.state_dict()["head.weight"], wanted["head.weight"])
    load_weights(loaded, Path("both.pth"), "model_ema")
    assert not loaded.state_dict()["head.weight"].any()
    with pytest.raises(SpratError, match="no weights under 'mode_ema'; did you mean 'model_ema'"):
        load_weights(loaded, Path("both.pth"), "mode_ema")


MISFITS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "renamed": (
        lambda state: {name.replace("head", "fc"): v for name, v in state.items()},
        r"it lacks head\.weight, nearest to 'fc\.weight' \(2 of 8 tensors\)",
    ),
    "more": (
        lambda state: state | {"head.scale": torch.ones(1)},
        r"it holds 'head\.scale' too, nearest to 'head\.\w+' \(1 tensors in all\)",
    ),
    "another shape": (
        lambda state: state | {"head.weight": torch.ones(100, 6)},
        r"head\.weight is of shape \(100, 6\), expected \(10, 6\)",
    ),
    "huge": (
        lambda state: state | {"head.weight": torch.ones(1).expand(10**13)},
        r"head\.weight is of shape \(10000000000000,\)",
    ),
    "no numbers": (
        lambda state: _changed(state, lambda v: v * torch.nan),
        "holds an infinite value",
    ),
    "a negative variance": (
        lambda state: state | {"stem.1.running_var": -torch.ones(6)},
        "a variance, holds -1",
    ),
    "sparse": (
        lambda state: state | {"head.weight": state["head.weight"].to_sparse()},
        r"head\.weight is sparse",
    ),
    "nothing": (lambda state: {"epoch": 3}, "contains no state dict"),
    "a list": (lambda state: list(state.values()), "contains no state dict"),
}


@pytest.mark.parametrize("kind", MISFITS)
def test_weights_that_do_not_fit_are_refused(net: nn.Module, kind: str) -> None:
    make, message = MISFITS[kind]
    torch.save(make(net.state_dict()), "net.pth")
    with pytest.raises(SpratError, match=message):
        load_weights(_new(), Path("net.pth"))


class Attack:
    """Object that makes whoever unpickles it call a function."""

    def __init__(self, function: Callable[..., Any], *words: Any) -> None:
        self.asked = function, words

    def __reduce__(self) -> Any:
        return self.asked


LEFT_OUT = (np.savetxt,)  # of modules whose objects are replaced by placeholders


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "attack",
    [
        Attack(os.system, "touch harmed"),
        Attack(exec, "open('harmed', 'w')"),
        Attack(subprocess.check_call, ["touch", "harmed"]),
        Attack(Path.touch, Path("harmed")),
        Attack(np.savetxt, "harmed", [1]),
        Attack(nn.Linear, 3, 4),
    ],
    ids=lambda attack: attack.asked[0].__qualname__,
)
def test_malicious_pickle_never_runs_code(net: nn.Module, attack: Attack, zipped: bool) -> None:
    torch.save(
        {"model": net.state_dict(), "x": attack},
        "net.pth",
        _use_new_zipfile_serialization=zipped,
    )
    if attack.asked[0] in LEFT_OUT and zipped:
        load_weights(_new(), Path("net.pth"))
    else:
        with pytest.raises(
            SpratError, match=r"objects that need Python code .*torch\.save\(network\."
        ):
            load_weights(_new(), Path("net.pth"))
    assert not Path("harmed").exists()


@pytest.mark.parametrize("content", [b"", b"junk", b"PK junk", b"\x80\x02junk", b"12345678{}"])
def test_damaged_files_are_refused(net: nn.Module, content: bytes) -> None:
    Path("net.pth").write_bytes(content)
    with pytest.raises(SpratError, match=r"net\.pth is damaged, or not a file of torch\.save"):
        load_weights(net, Path("net.pth"))


def test_truncated_file_is_refused(net: nn.Module) -> None:
    torch.save(net.state_dict(), "net.pth")
    whole = Path("net.pth").read_bytes()
    for share in (0.1, 0.5, 0.9):
        Path("net.pth").write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(SpratError, match="is damaged"):
            load_weights(net, Path("net.pth"))


def test_pickled_network_and_torchscript_are_refused(net: nn.Module) -> None:
    torch.save(nn.Sequential(nn.Linear(2, 2)), "whole.pth")
    with pytest.raises(SpratError, match=r"Python code \(torch\.nn\.modules\.container\.Sequ"):
        load_weights(net, Path("whole.pth"))
    torch.save({}, "program.pt")
    with zipfile.ZipFile("program.pt", "a") as archive:
        archive.writestr("program/constants.pkl", b"")
    with pytest.raises(SpratError, match="it is a TorchScript program"):
        load_weights(net, Path("program.pt"))


class TestMeanAndStd:
    def test_accept_fractions_or_0_to_255(self, capfd: pytest.CaptureFixture[str]) -> None:
        fractions = Foreign(mean=(0.49, 0.48, 0.45), std=0.25).normalization()  # type: ignore[arg-type]
        assert (fractions.mean, fractions.std) == ((0.49, 0.48, 0.45), (0.25,) * 3)
        assert capfd.readouterr().err == ""
        bytes_ = Foreign(mean=(124.95,), std=(63.75, 51, 102)).normalization()
        assert bytes_.mean == pytest.approx((0.49,) * 3)
        assert bytes_.std == pytest.approx((0.25, 0.2, 0.4))
        assert "are read on a scale of 0 to 255" in capfd.readouterr().err
        assert Foreign(mean=(0,), std=(255,)).normalization().std == (1, 1, 1)
        assert Foreign(mean=(0,), std=(1,)).normalization().std == (1, 1, 1)
        capfd.readouterr()
        Foreign(mean=(0.49,), std=(0.001,)).normalization()
        assert "unusually small" in capfd.readouterr().err

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"mean": (0.5, 0.5)}, r"mean has 2 values \(0.5, 0.5\), expected 3"),
            ({"std": (0.5,) * 4}, "std has 4 values"),
            ({"std": (63,)}, "mean is 0.5 and std is 63, but one is on a scale of 0 to 1"),
            ({"mean": (120,)}, "mean is 120 and std is 0.5, but one"),
            ({"mean": ()}, "--mean is missing"),
            ({"std": ()}, "--std is missing"),
            ({"weights": "gone.pth"}, r"There is no file gone\.pth"),
            ({"weights": ""}, "No weights are given, which --mean is about"),
        ],
    )
    def test_inconsistent_or_missing_settings_are_refused(
        self, given: dict[str, Any], message: str
    ) -> None:
        sound: dict[str, Any] = {"weights": __file__, "mean": (0.5,), "std": (0.5,)}
        with pytest.raises(SpratError, match=message):
            Foreign(**sound | given).check_given()

    @pytest.mark.parametrize("given", [{"mean": (-1,)}, {"std": (0,)}, {"mean": ("a",)}])
    def test_invalid_values_are_refused(self, given: dict[str, Any]) -> None:
        with pytest.raises(SpratError, match="expected a list"):
            Foreign(**given)


def test_cli_and_python_evaluate_and_import_alike(net: nn.Module, here: Here) -> None:
    torch.save({"state_dict": _prefixed(net.state_dict(), "module.")}, "net.pth")
    words = ("my_nets.py:Net", "--weights", "net.pth", *MEAN, "--dataset", "shapes10")
    done = here("evaluate", *words, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    settings = {"weights": "net.pth", "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.25, 0.3)}
    same = sprat.evaluate("my_nets.py:Net", **settings, dataset="shapes10", quiet=True)
    assert found == json.loads(json.dumps(same))
    assert (found["split"], found["tta_views"], found["n"]) == ("test", 2, 2_000)

    done = here("import", *words, "--output", "a.safetensors", "--json")
    assert done.returncode == 0, done.stderr
    made = sprat.import_model(
        "my_nets.py:Net", **settings, dataset="shapes10", output="b.safetensors", quiet=True
    )
    assert json.loads(done.stdout)["parameters"] == made.parameters == found["parameters"]
    assert Path("a.safetensors").read_bytes() == Path("b.safetensors").read_bytes()
    imported = sprat.evaluate("a.safetensors", code="my_nets.py", quiet=True)
    assert json.loads(json.dumps(imported)) == found, "same protocol and same dataset"
    about = sprat.load("a.safetensors", code="my_nets.py").about
    assert about["imported"]["weights"] == "net.pth"

    Image.radial_gradient("L").save("picture.png")
    done = here("predict", "a.safetensors", "picture.png", "--code", "my_nets.py", "--json")
    assert done.returncode == 0, done.stderr
    refused = here("import", *words, "--output", "a.safetensors")
    assert refused.returncode == 2
    assert "a.safetensors exists already and is not overwritten" in refused.stderr
    assert here("import", *words, "--output", "a.safetensors", "--overwrite").returncode == 0


def test_one_channel_weights_import_and_evaluate(net: nn.Module, here: Here) -> None:
    """Compare with a network of colour images that has a third of each weight per channel."""
    Path("grey.py").write_text(OWN.replace("nn.Conv2d(3,", "nn.Conv2d(1,"))
    state = net.state_dict()
    state["stem.0.weight"] = state["stem.0.weight"].sum(1, keepdim=True)
    torch.save(state, "grey.pth")
    settings = {"weights": "grey.pth", "mean": 0.5, "std": 0.25, "channels": 1}
    Image.linear_gradient("L").save("grey.png")
    names = tuple("abcdefghij")
    made = sprat.import_model("grey.py:Net", **settings, classes=names, output="g.safetensors")
    assert (made.mean, made.std) == ((0.5,), (0.25,))
    answer = sprat.load("g.safetensors", code="grey.py")("grey.png").probabilities
    state["stem.0.weight"] = state["stem.0.weight"].expand(-1, 3, -1, -1) / 3
    torch.save(state, "colour.pth")
    settings |= {"weights": "colour.pth", "channels": 3}
    sprat.import_model("my_nets.py:Net", **settings, classes=names, output="c.safetensors")
    other = sprat.load("c.safetensors", code="my_nets.py")("grey.png").probabilities
    torch.testing.assert_close(answer, other, rtol=1e-4, atol=1e-5)

    words = ("grey.py:Net", "--weights", "grey.pth", "--mean", "0.5", "--std", "0.25")
    done = here("evaluate", *words, "--channels", "1", "--dataset", "shapes10", "--json")
    assert done.returncode == 0, done.stderr
    done = here("evaluate", "my_nets.py:Net", *words[1:], "--dataset", "shapes10")
    assert "--channels 1 is for networks of grey images" in done.stderr


def test_class_names_determine_the_output_order(net: nn.Module) -> None:
    """Check that outputs in another order, with their names, give the same results."""
    torch.save(net.state_dict(), "net.pth")
    order = torch.randperm(10)
    turned = net.state_dict() | {
        name: net.state_dict()[name][order] for name in ("head.weight", "head.bias")
    }
    torch.save(turned, "turned.pth")
    settings = {"mean": 0.5, "std": 0.5, "dataset": "shapes10", "quiet": True, "tta": 1}
    plain = sprat.evaluate("my_nets.py:Net", weights="net.pth", **settings)
    names = [list(plain["per_class"])[place] for place in order.tolist()]
    Path("classes.txt").write_text("\n".join(names) + "\n")
    for classes in (names, "classes.txt", Path("classes.txt")):
        same = sprat.evaluate(
            "my_nets.py:Net", weights=Path("turned.pth"), classes=classes, **settings
        )
        assert same["top1"] == plain["top1"]
        assert same["per_class"] == plain["per_class"]
    assert sprat.evaluate("my_nets.py:Net", weights="turned.pth", **settings) != plain


def test_factory_function_runs_only_when_named(net: nn.Module, here: Here) -> None:
    torch.save(net.state_dict(), "net.pth")
    words = ("--weights", "net.pth", *MEAN, "--classes", "a,b,c,d,e,f,g,h,i,j")
    done = here("import", "my_nets.py:small_net", *words)
    assert done.returncode == 0, done.stderr
    assert (
        "sprat predict small_net.safetensors picture.jpg --code my_nets.py:small_net" in done.stdout
    )
    code._used.clear()
    with pytest.raises(code.CodeNotNamed, match=r"--code my_nets\.py:small_net"):
        sprat.load("small_net.safetensors", code="my_nets.py")
    assert sprat.load("small_net.safetensors", code="my_nets.py:small_net").classes == (
        *"abcdefghij",
    )
    refused = here("import", "my_nets.py:not_a_network", *words)
    assert "my_nets.py:not_a_network returns 3, expected a torch.nn.Module" in refused.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("evaluate my_nets.py:Net", "my_nets.py:Net is a network without weights. Give the file"),
        ("evaluate my_nets.py:Net --mean 0.5", "No weights are given, which --mean is about"),
        ("evaluate my_nets.py:Net --weights net.pth --mean 0.5,0.5 --std 1", "mean has 2 values"),
        ("evaluate my_nets.py:Nat {} --dataset shapes10", "did you mean 'Net'"),
        ("evaluate ResNat20 {} --dataset shapes10", "did you mean 'ResNet20'"),
        (
            "evaluate ResNet20 {} --dataset shapes10",
            "it lacks blocks.0.residual.0.weight, nearest to",
        ),
        ("evaluate my_nets.py:Pair {} --dataset shapes10", "returns a tuple"),
        ("evaluate my_nets.py:Soft {} --dataset shapes10", "returns probabilities, expected"),
        (
            "evaluate my_nets.py:Net {} --dataset shapes10 --side 64",
            "side of 32 pixels, but --side",
        ),
        ("evaluate my_nets.py:Net {} --dataset shapes10 --split val", "has no val"),
        ("evaluate my_nets.py:Net {} --dataset shapes10 --classes a,b", "is of shape (10, 6)"),
        ("import my_nets.py:Net {}", "The classes have no names. Give --classes"),
        ("import my_nets.py:Net {} --classes a,a", "--classes names 'a' twice"),
        ("import my_nets.py:Net {} --classes gone.txt", "There is no file gone.txt"),
        ("import my_nets.py:Net {} --dataset shapes", "did you mean 'shapes10'"),
        ("import my_nets.py:Net {} --dataset shapes10 --output m.pth", "ends in .safetensors"),
        (
            "import my_nets.py:Net {} --dataset shapes10 --side 2",
            "cannot process an image of 3 x 2",
        ),
        ("import my_nets.py:Net --dataset shapes10", "No weights are given. Add --weights FILE."),
    ],
)
def test_mistake_is_reported_and_writes_nothing(
    net: nn.Module, here: Here, words: str, message: str
) -> None:
    torch.save(net.state_dict(), "net.pth")
    before = {path for path in Path().rglob("*") if path.name != "__pycache__"}
    done = here(*words.format("--weights net.pth --mean 0.5 --std 0.5").split())
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert {path for path in Path().rglob("*") if path.name != "__pycache__"} == before


def test_own_pictures_are_resized_and_all_evaluated(net: nn.Module) -> None:
    for name, colour in (("a", "red"), ("b", "blue")):
        Path("set", name).mkdir(parents=True)
        Image.new("RGB", (70, 50), colour).save(Path("set", name, "1.png"))
    torch.save({k: v[:2] if "head" in k else v for k, v in net.state_dict().items()}, "net.pth")
    settings = {"weights": "net.pth", "mean": 0, "std": 1, "side": 48, "quiet": True, "tta": 1}
    found = sprat.evaluate("my_nets.py:Net", dataset="set", **settings)
    assert (found["split"], found["n"], found["side"]) == ("all", 2, 48)
    assert list(found["per_class"]) == ["a", "b"]
