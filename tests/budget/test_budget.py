"""Tests of summaries against brute force: gradients for receptive fields, all orders for memory."""

import dataclasses
import itertools
import json
import math
import random
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from sprat.budget import (
    Summary,
    check_limits,
    effective_field,
    effective_side,
    memory_plan,
    receptive_field,
    summarize,
)
from sprat.budget.graph import LARGEST_RUN, Map, Op, export, list_ops, trace
from sprat.budget.memory import peak_activations
from sprat.errors import SpratError
from sprat.models import NETWORKS, build_network

# name -> receptive field in pixels, MACs of a 32 x 32 image with ten classes
KNOWN = {
    "OptimizedCIFAR10Net200K": (109, 8_409_920),  # the original project claims 67
    "SpratNet": (59, 44_359_752),
    "SpratT": (41, 11_471_904),
    "SpratS": (59, 17_280_776),
    "SpratM": (59, 42_735_392),
    "SpratL": (59, 80_802_480),
    "ResNet8": (25, 12_501_632),
    "ResNet20": (81, 40_813_184),
    "ResNet20A": (81, 40_551_040),
    "WRN16x1": (53, 26_657_408),
    "DenseNetBC40": (90, 72_365_352),
    "Tiniest": (186, 43_878_176),
    "ShuffleNetV2x05": (527, 815_392),
    "MobileNetV2": (491, 6_124_928),
    "ResNet18": (109, 555_422_720),
}


def _extent_of_the_gradient(network: nn.Module, side: int, width: int | None = None) -> int:
    """Return the height of the image's part on which one central value before pooling depends.

    The network is changed so that nothing can cancel or be cut off: float64, positive weights, no
    activations, and means instead of maxima.
    """
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU | nn.ReLU6 | nn.BatchNorm2d | nn.LayerNorm):
                setattr(module, name, nn.Identity())
            if isinstance(child, nn.MaxPool2d):
                pool = nn.AvgPool2d(child.kernel_size, child.stride, child.padding)
                setattr(module, name, pool)
    probe = network.double().eval()
    with torch.no_grad():
        for name, parameter in probe.named_parameters():
            share = 1 / max(1, parameter[0].numel() if parameter.ndim > 1 else 1)
            parameter.fill_(0 if name.endswith("bias") else share)
    shape = (1, 3, side, width or side)  # dark, otherwise products would grow without bound
    images = torch.full(shape, 1e-3, dtype=torch.double, requires_grad=True)
    features = probe.features(images)  # type: ignore[operator]
    features[0, :, features.shape[2] // 2, features.shape[3] // 2].sum().backward()
    assert images.grad is not None
    rows = images.grad.abs().sum(dim=(0, 1, 3)).nonzero()
    return int(rows.max() - rows.min()) + 1


def test_claimed_field_of_67_comes_from_a_late_jump() -> None:
    """Check that 67 follows if the jump grows after a stage, not at its strided convolution."""
    late = late_jump = 1
    right = right_jump = 1
    for stride, convolutions in ((1, 1), (1, 4), (2, 4), (2, 4), (2, 4)):
        late += convolutions * 2 * late_jump
        late_jump *= stride
        for convolution in range(convolutions):
            right += 2 * right_jump
            right_jump *= stride if convolution == 0 else 1
    assert (late, right) == (67, 109)


@pytest.mark.parametrize("name", NETWORKS)
class TestEveryNetwork:
    def test_has_its_known_field_and_macs(self, name: str) -> None:
        summary = summarize(build_network(name))
        assert (summary.receptive_field, summary.macs) == KNOWN[name]

    def test_receptive_field_equals_extent_of_gradient(self, name: str) -> None:
        field = KNOWN[name][0]
        assert _extent_of_the_gradient(build_network(name), 2 * field + 64, width=32) == field

    def test_macs_are_half_of_torchs_flops(self, name: str) -> None:
        network = build_network(name).eval()
        with FlopCounterMode(display=False) as counter:
            network(torch.zeros(1, 3, 32, 32))
        assert counter.get_total_flops() == 2 * summarize(network).macs

    def test_trace_matches_torch_export(self, name: str) -> None:
        """Compare everything but the last argument of batch_norm, a flag of the backend."""
        network = build_network(name)
        pairs = zip(trace(network), list_ops(export(network, 32)), strict=True)
        for ours, theirs in pairs:
            flagged = len(ours.args) - 1 if ours.kind == "batch_norm" else len(ours.args)
            assert ours.args[:flagged] == theirs.args[:flagged]
            assert dataclasses.replace(ours, args=()) == dataclasses.replace(theirs, args=())

    @pytest.mark.parametrize("depth", [0, 1, 2])
    def test_rows_add_up_to_the_totals(self, name: str, depth: int) -> None:
        network = build_network(name)
        summary = summarize(network, depth=depth)
        assert sum(layer.macs for layer in summary.layers) == summary.macs
        assert sum(layer.parameters for layer in summary.layers) == summary.parameters
        assert summary.layers[-1].output == (10,)
        names = [layer.name for layer in summary.layers]
        assert len(set(names)) == len(names)

    def test_summary_leaves_network_unchanged(self, name: str) -> None:
        network = build_network(name).train()
        before = {key: value.clone() for key, value in network.state_dict().items()}
        summarize(network)
        assert network.training
        assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())


class Random(nn.Module):
    """Network of consecutive windows, some of them next to a shortcut or another window."""

    def __init__(self, layers: list[dict[str, int | str]]) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        self.parallel = nn.ModuleList()
        for layer in layers:
            kernel, dilation = int(layer["kernel"]), int(layer["dilation"])
            padding = dilation * (kernel - 1) // 2
            if layer["kind"] == "conv":
                window: nn.Module = nn.Conv2d(
                    3, 3, kernel, int(layer["stride"]), int(layer["padding"]), dilation
                )
            elif layer["kind"] == "pool":
                window = nn.AvgPool2d(kernel, int(layer["stride"]), min(kernel // 2, 1))
            else:
                window = nn.Conv2d(3, 3, kernel, 1, padding, dilation)
            self.layers.append(window)
            parallel = (
                nn.Identity() if layer["kind"] == "shortcut" else nn.Conv2d(3, 3, 5, padding=2)
            )
            self.parallel.append(
                parallel if layer["kind"] in ("shortcut", "branches") else nn.Identity()
            )
        self.kinds = [layer["kind"] for layer in layers]

    def features(self, x: Tensor) -> Tensor:
        for kind, window, parallel in zip(self.kinds, self.layers, self.parallel, strict=True):
            x = window(x) + parallel(x) if kind in ("shortcut", "branches") else window(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.features(x).mean((2, 3))


LAYERS = st.lists(
    st.fixed_dictionaries(
        {
            "kind": st.sampled_from(["conv", "pool", "shortcut", "branches"]),
            "kernel": st.sampled_from([1, 3, 5]),
            "stride": st.integers(1, 3),
            "padding": st.integers(0, 3),
            "dilation": st.integers(1, 2),
        }
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(LAYERS)
def test_field_of_random_networks_equals_extent_of_gradient(
    layers: list[dict[str, int | str]],
) -> None:
    network = Random(layers)
    field = receptive_field(network, side=256)
    assert field is not None
    assert _extent_of_the_gradient(network, 2 * field + 100) == field


class TestTracing:
    def test_unsupported_operation_is_refused_by_name(self) -> None:
        class Odd(nn.Sequential):
            def __init__(self) -> None:
                super().__init__()
                self.grow = nn.ConvTranspose2d(3, 3, 3)

        with pytest.raises(SpratError, match=r"receptive field of conv_transpose2d \(in grow\)"):
            receptive_field(Odd())

    @pytest.mark.parametrize("side", [32, LARGEST_RUN + 1])
    @pytest.mark.parametrize(
        "forward",
        [
            lambda x: x if x.sum() > 0 else -x,
            lambda x: x * x.mean().item(),
            lambda x: x[x > 0],
            lambda x: x[:, x[0, :, 0, 0].nonzero()[0]],
        ],
    )
    def test_a_graph_that_depends_on_the_pixels_is_refused(
        self, side: int, forward: Callable[[Tensor], Tensor]
    ) -> None:
        class Dynamic(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return forward(x)

        with pytest.raises(SpratError, match=f"Dynamic cannot be traced on .* 3 x {side} x {side}"):
            summarize(Dynamic(), side)

    def test_tensors_created_in_forward_are_supported(self) -> None:
        class Reordered(nn.Module):
            """Network with tensors that are neither image nor buffer, and a write in place."""

            kept = torch.ones(1, 3, 1, 1)

            def forward(self, x: Tensor) -> Tensor:
                ramp = torch.arange(x.shape[3]).float()
                x = (x * self.kept + ramp)[:, torch.tensor([2, 1, 0])]
                first, _, last = x.relu_().split(1, 1)
                return torch.cat([last, first], 1).mean((2, 3))

        for side in (32, LARGEST_RUN + 1):  # traced with values, and with shapes alone
            ops = trace(Reordered(), side)
            *_, cat, mean = ops
            assert (mean.kind, mean.shape, mean.inputs) == ("mean", (1, 2), (len(ops) - 2,))
            assert [ops[place].args[1] for place in cat.inputs] == [2, 0]

    def test_unsupported_image_size_is_reported(self) -> None:
        with pytest.raises(SpratError, match=r"images of 3 x 8 x 8: .*expected B x 3 x H x W"):
            summarize(build_network("ResNet8"), side=8)

    def test_receptive_field_is_none_with_global_attention(self) -> None:
        class Squeezed(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv, self.weigh = nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 1)

            def forward(self, x: Tensor) -> Tensor:
                x = self.conv(x)
                x = x * self.weigh(x.mean((2, 3), keepdim=True)).sigmoid()
                return x.mean((2, 3))

        summary = summarize(Squeezed())
        assert summary.receptive_field is None
        assert json.loads(json.dumps(summary.to_dict()))["receptive_field"] is None

    @pytest.mark.parametrize(("padding", "field"), [("same", 9), ("valid", 9), (4, 9), (0, 9)])
    def test_padding_does_not_change_receptive_field(self, padding: int | str, field: int) -> None:
        assert receptive_field(nn.Conv2d(3, 4, 5, padding=padding, dilation=2)) == field  # type: ignore[arg-type]

    def test_channel_layer_norm_keeps_receptive_field(self) -> None:
        class ChannelsLast(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv, self.norm = nn.Conv2d(3, 4, 5), nn.LayerNorm(4)
                self.wide = nn.Linear(4, 4)

            def forward(self, x: Tensor) -> Tensor:
                x = self.wide(self.norm(self.conv(x).permute(0, 2, 3, 1)))
                return x.permute(0, 3, 1, 2).mean((2, 3))

        assert receptive_field(ChannelsLast()) == 5


class TestEffectiveField:
    def test_of_one_convolution_equals_its_weights(self) -> None:
        """Use a linear network, whose gradient is the same on every image: the window."""
        network = nn.Conv2d(3, 1, 5, padding=2, bias=False)
        field = effective_field(network, 16)
        window = network.weight[0].detach().abs().mean(0)
        middle = slice(8 - 2, 8 + 3)
        torch.testing.assert_close(field[middle, middle], window / window.max())
        assert int((field > 0).sum()) == 25

    def test_is_deterministic_and_within_receptive_field(self) -> None:
        network = build_network("ResNet8")
        field = effective_field(network, 64)
        assert torch.equal(field, effective_field(network, 64))
        rows = field.sum(1).nonzero()
        assert 1 < effective_side(field) < int(rows.max() - rows.min()) + 1 <= 25

    def test_is_refused_if_network_depends_on_whole_image(self) -> None:
        class Weighed(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return (x * x.mean((2, 3), keepdim=True)).mean((2, 3))

        with pytest.raises(SpratError, match="Weighed depends on the whole image"):
            effective_field(Weighed(), 16)


def _random_graph(rng: random.Random) -> list[Op]:
    """Return a small graph of convolutions, activations and sums."""
    ops = [Op("input", "", (), (1, rng.randint(1, 4)))]
    for place in range(1, rng.randint(3, 7)):
        kind = rng.choice(["conv2d", "relu", "add"])
        source = rng.randrange(place)
        size = rng.randint(1, 9) if kind == "conv2d" else ops[source].shape[1]
        same = [p for p in range(place) if ops[p].shape[1] == size]
        inputs = [source] if kind != "add" else [source, rng.choice(same)]
        ops.append(Op(kind, f"op{place}", tuple(map(Map, inputs)), (1, size)))
    used = {i for op in ops for i in op.inputs}
    ends = [p for p in range(len(ops)) if p not in used]
    size = sum(ops[end].shape[1] for end in ends)
    ops.append(Op("cat", "end", tuple(map(Map, ends)), (1, size)))
    return ops


def _least_peak_of_all_orders(ops: list[Op]) -> int:
    """Return the least peak, from trying every order with a plain list of what is held."""
    least = math.inf
    for order in itertools.permutations(range(1, len(ops))):
        done, peak = [0], ops[0].shape[1]
        for place in order:
            if not set(ops[place].inputs) <= set(done):
                break
            left = [p for p in order if p not in done and p != place]

            def is_read_by(readers: list[int], source: int) -> bool:
                return any(source in ops[reader].inputs for reader in readers)

            held = [p for p in done if is_read_by([place, *left], p)]
            dying = [p for p in ops[place].inputs if not is_read_by(left, p)]
            size = ops[place].shape[1]
            in_place = ops[place].kind in ("relu", "add") and any(
                ops[p].shape[1] == size for p in dying
            )
            peak = max(peak, sum(ops[p].shape[1] for p in held) + (0 if in_place else size))
            done.append(place)
        else:
            least = min(least, peak)
    return int(least)


class TestMemory:
    def test_is_the_least_peak_of_all_orders(self) -> None:
        rng = random.Random(0)
        for _ in range(60):
            ops = _random_graph(rng)
            assert peak_activations(ops).values == _least_peak_of_all_orders(ops)

    def test_peak_of_optimized200k_is_three_maps_of_first_block(self) -> None:
        """Check for three maps: the shortcut's, and those that the depthwise and the pointwise
        convolutions write."""
        summary = summarize(build_network("OptimizedCIFAR10Net200K"))
        assert summary.peak_activations == 3 * 20 * 32 * 32
        assert summary.peak_layer == "layer1.0.conv1.pointwise"
        assert summary.peak_bytes == {"fp32": 245_760, "fp16": 122_880, "int8": 61_440}

    @pytest.mark.parametrize("name", ["OptimizedCIFAR10Net200K", "ResNet8", "SpratT"])
    def test_ram_and_int8_flash_come_from_the_plan(self, name: str) -> None:
        network = build_network(name)
        summary, plan = summarize(network), memory_plan(network, 32)
        assert summary.ram_bytes == {
            "fp32": 4 * plan.arena, "fp16": 2 * plan.arena, "int8": plan.arena
        }  # fmt: skip
        assert summary.flash_bytes == {
            "fp32": 4 * summary.parameters, "fp16": 2 * summary.parameters, "int8": plan.weights
        }  # fmt: skip
        values = json.loads(json.dumps(summary.to_dict()))
        assert (values["ram_bytes"], values["ram_layer"]) == (summary.ram_bytes, plan.layer)
        assert (values["image_bytes"], values["unplanned"]) == (3_072, None)

    def test_grows_with_the_images(self) -> None:
        small, large = (
            summarize(build_network("OptimizedCIFAR10Net200K"), side=side) for side in (32, 64)
        )
        assert isinstance(small, Summary)
        assert large.peak_activations == 4 * small.peak_activations
        assert large.receptive_field == small.receptive_field

    def test_too_many_branches_fall_back_to_the_traced_order(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from sprat.budget import memory

        sources = ((0,), (0,), (1,), (2,), (3, 4))  # two wide maps, then what is computed from each
        ops = [Op("input", "", (), (1, 1))]
        for reads, size in zip(sources, (9, 9, 1, 1, 2), strict=True):
            ops.append(Op("conv2d", "", tuple(map(Map, reads)), (1, size)))
        assert peak_activations(ops).values == 1 + 9 + 1  # one branch after the other
        monkeypatch.setattr(memory, "MOST_STATES", 0)
        assert peak_activations(ops).values == 1 + 9 + 9  # side by side, as traced


@pytest.fixture(scope="module")
def summary() -> Summary:
    """Return the summary of OptimizedCIFAR10Net200K."""
    return summarize(build_network("OptimizedCIFAR10Net200K"))


class TestLimits:
    @pytest.mark.parametrize(
        ("name", "achieved"),
        [
            ("max_parameters", 150_690),
            ("max_macs", 8_409_920),
            ("min_receptive_field", 109),
            ("max_flash", 170_810),
            ("max_ram", 41_658),
            ("min_accuracy", 0.875),
        ],
    )
    def test_is_kept_up_to_and_including_target(
        self, summary: Summary, name: str, achieved: float
    ) -> None:
        step = 0.001 if name == "min_accuracy" else 1
        inward, outward = (step, -step) if name.startswith("max_") else (-step, step)
        for target, kept in (
            (achieved, True), (achieved + inward, True), (achieved + outward, False)
        ):  # fmt: skip
            (verdict,) = check_limits({name: target}, summary, "int8", accuracy=0.875)
            assert verdict.kept is kept
            assert (verdict.margin >= 0) is kept
            assert verdict.margin == pytest.approx(
                abs(target - achieved) / target * (1 if kept else -1)
            )

    def test_only_given_limits_are_checked(self, summary: Summary) -> None:
        assert check_limits({}, summary) == []
        given = {"max_macs": 0, "min_receptive_field": 45}
        (verdict,) = check_limits(given, summary)
        assert (verdict.metric, verdict.target, verdict.achieved) == (
            "receptive field", "≥ 45 px", "109 px"
        )  # fmt: skip

    def test_min_accuracy_needs_a_finished_run(self, summary: Summary) -> None:
        with pytest.raises(SpratError, match=r"min_accuracy is 0\.9, but only a finished run"):
            check_limits({"min_accuracy": 0.9}, summary)

    def test_ram_limit_accepts_its_former_name(self, summary: Summary) -> None:
        (verdict,) = check_limits({"max_peak_memory": 41_657}, summary, "int8")
        assert (verdict.metric, verdict.kept) == ("arena in int8", False)

    def test_ram_limit_is_refused_without_a_plan(self) -> None:
        summary = summarize(build_network("Tiniest"))
        assert (summary.plan, summary.ram_bytes) == (None, None)
        for stored_as in ("fp32", "int8"):
            with pytest.raises(
                SpratError,
                match=r"cannot plan the memory of Tiniest: layer_norm in stem\.1\.norm .*\.",
            ):
                check_limits({"max_ram": 2**30}, summary, stored_as)
        assert all(v.kept for v in check_limits({"max_flash": 2**30}, summary, "int8"))
