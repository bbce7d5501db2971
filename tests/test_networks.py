"""The built models against tables typed in here, those of the published runs and our own network's."""

import re

import jax
import numpy as np
import pytest
import torch
from flax import nnx
from torch.overrides import TorchFunctionMode

import jax_impl.model
import torch_impl.model
from recipe.console import UserError
from recipe.networks import (
    NETWORKS,
    Average,
    AvgPool,
    Conv,
    Dropout,
    MaxPool,
    Norm,
    Relu,
    build_network,
    get_network,
)
from tests.helpers import DEVICES

# Parameters of each convolution and of each batch norm, the shape each convolution gives, and all layers by
# their first letters: C is a convolution, C1 one with padding, Cb one with biases, Cs2 one with the weights
# of the second; M is max pooling, P average pooling.
TYPED_IN = {
    "net10040": {
        "conv": [72, 1152, 2304, 128, 1152, 2304, 128, 1152, 1440],
        "norm": [16, 32, 32, 16, 32, 32, 16, 32],
        "shapes": [
            (8, 28, 28), (16, 28, 28), (16, 28, 28), (8, 14, 14), (16, 14, 14), (16, 14, 14), (8, 7, 7),
            (16, 5, 5), (10, 3, 3),
        ],
        "layers": "C1NRD C1NRD C1NRD M CNRD C1NRD C1NRD M CNRD CNRD C A",
        "total": 10_040,
    },
    "net9954": {
        "conv": [80, 1168, 136, 1168, 2320, 4640, 330],
        "norm": [16, 32, 32, 32],
        "shapes": [
            (8, 26, 26), (16, 24, 24), (8, 24, 24), (16, 10, 10), (16, 8, 8), (32, 2, 2), (10, 2, 2),
        ],
        "layers": "CbRN CbRN Cb M D CbRN CbRN M D Cb Cb A",
        "total": 9_954,
    },
    "net9808": {
        "conv": [144, 2304, 2304, 0, 0, 2304, 2304, 0, 0, 160],
        "norm": [32, 32, 32, 32, 32, 32, 32, 32, 32],
        "shapes": [
            (16, 28, 28), (16, 14, 14), (16, 14, 14), (16, 14, 14), (16, 14, 14),
            (16, 7, 7), (16, 7, 7), (16, 7, 7), (16, 7, 7), (10, 1, 1),
        ],
        "layers": "C1NR P C1NR C1NR C1s2NR C1s3NR P C1NR C1NR C1s6NR C1s7NR A C",
        "total": 9_808,
    },
    "net3663": {
        "conv": [81, 729, 729, 0, 0, 729, 729, 0, 0, 216, 240],
        "norm": [18, 18, 18, 18, 18, 18, 18, 18, 18, 48],
        "shapes": [
            (9, 28, 28), (9, 14, 14), (9, 14, 14), (9, 14, 14), (9, 14, 14),
            (9, 7, 7), (9, 7, 7), (9, 7, 7), (9, 7, 7), (24, 7, 7), (10, 1, 1),
        ],
        "layers": "C1NR P C1NR C1NR C1s2NR C1s3NR P C1NR C1NR C1s6NR C1s7NR CNR A C",
        "total": 3_663,
    },
    "net3542": {
        "conv": [198, *[198, 484] * 2, *[0, 0] * 2, *[198, 484] * 2, *[0, 0] * 2, 220],
        "norm": [44] * 9,
        "shapes": [(22, 28, 28), *[(22, 14, 14)] * 8, *[(22, 7, 7)] * 8, (10, 1, 1)],
        "layers": "C1NR P C1dCNR C1dCNR C1ds2Cs3NR C1ds4Cs5NR P"
        "C1dCNR C1dCNR C1ds10Cs11NR C1ds12Cs13NR A C",
        "total": 3_542,
    },
    "net17816": {
        "conv": [72, 1152, 2304, 3456, 5184, 5184, 240],
        "norm": [16, 32, 32, 48, 48, 48],
        "shapes": [
            (8, 28, 28), (16, 14, 14), (16, 14, 14), (24, 7, 7), (24, 7, 7), (24, 7, 7), (10, 1, 1),
        ],
        "layers": "C1NR P C1NR C1NR P C1NR C1NR C1NR A C",
        "total": 17_816,
    },
}  # fmt: skip


class ConvolutionShapes(TorchFunctionMode):
    """Records the shape of one image's part of what each convolution gives."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        if function is torch.conv2d:
            self.shapes.append(tuple(output.shape[1:]))
        return output


def own_counts(name: str) -> dict[str, list[int]]:
    """Parameters of the convolutions and batch norms that have some of their own."""
    return {kind: [count for count in TYPED_IN[name][kind] if count] for kind in ("conv", "norm")}


@pytest.mark.parametrize("name", TYPED_IN)
def test_torch_model_has_the_layers_typed_in(name):
    model = torch_impl.model.ConvNet(get_network(name), 0.1, DEVICES["torch"].select_devices("cpu"))
    modules = list(model.children())
    counts = {
        kind: [sum(p.numel() for p in m.parameters()) for m in modules if isinstance(m, cls)]
        for kind, cls in (("conv", torch.nn.Conv2d), ("norm", torch_impl.model.BatchNorm))
    }
    assert counts == own_counts(name)
    assert len(modules) == len(counts["conv"]) + len(counts["norm"])
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == TYPED_IN[name]["total"]
    assert not any(isinstance(m, torch.nn.Linear) for m in model.modules())

    with ConvolutionShapes() as record:
        assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    assert record.shapes == TYPED_IN[name]["shapes"]


@pytest.mark.parametrize("name", TYPED_IN)
def test_flax_model_has_the_layers_typed_in(name):
    model = jax_impl.model.ConvNet(get_network(name), 0.1, DEVICES["jax"].select_devices("cpu"))
    kinds = {"conv": jax_impl.model.Convolution, "norm": jax_impl.model.BatchNorm}
    for kind, expected in own_counts(name).items():
        modules = [module for _, module in nnx.iter_children(model) if isinstance(module, kinds[kind])]
        states = [jax.tree.leaves(nnx.state(module, nnx.Param)) for module in modules]
        assert sorted(sum(leaf.size for leaf in leaves) for leaves in states) == sorted(expected)
    parameters = jax.tree.leaves(nnx.state(model, nnx.Param))
    assert sum(leaf.size for leaf in parameters) == TYPED_IN[name]["total"]
    assert all(leaf.ndim != 2 for leaf in parameters), "a kernel of two dimensions would be a dense layer"
    model.eval()
    assert jax.eval_shape(model, jax.ShapeDtypeStruct((2, 28, 28, 1), np.float32)).shape == (2, 10)


@pytest.mark.parametrize("name", TYPED_IN)
def test_the_table_says_the_same(name):
    table, expected = NETWORKS[name], TYPED_IN[name]
    kinds = [(type(layer.operation).__name__, layer) for layer in table.layers]
    assert [layer.out_shape for kind, layer in kinds if kind == "Conv"] == expected["shapes"]
    assert [layer.parameter_count for kind, layer in kinds if kind == "Conv"] == expected["conv"]
    assert [layer.parameter_count for kind, layer in kinds if kind == "Norm"] == expected["norm"]
    assert table.parameter_count == expected["total"]
    assert "".join(letters(layer.operation) for layer in table.layers) == expected["layers"].replace(" ", "")


def letters(operation) -> str:
    kind = type(operation).__name__
    if kind != "Conv":
        return "P" if kind == "AvgPool" else kind[0]
    marks = (operation.pad or "", "d" * operation.depthwise, "b" * operation.bias)
    return "C" + "".join(map(str, marks)) + (f"s{operation.shared}" if operation.shared else "")


def test_layers_are_numbered_by_their_convolution():
    operations = [Conv(4, pad=1), Norm(), Relu(), MaxPool(), Dropout(), Conv(10, kernel=1), Average()]
    names = [layer.name for layer in build_network("small", operations).layers]
    assert names == ["conv1", "norm1", "relu1", "maxpool1", "dropout1", "conv2", "average2"]


def test_shared_weights_belong_to_one_layer():
    network = build_network("shared", [Conv(1), Conv(1, shared=1), Norm(), Conv(10), Average()])
    assert list(network.parameters) == [
        *("conv1.weight", "conv1.bias", "norm2.weight", "norm2.bias", "conv3.weight", "conv3.bias")
    ]
    assert [layer.owner for layer in network.layers[:3]] == ["conv1", "conv1", "norm2"]
    assert network.parameter_count == 10 + 2 + 100


@pytest.mark.parametrize(
    "operations",
    [
        [Conv(4, shared=1)],  # itself
        [Conv(4, shared=2), Conv(4)],  # a later one
        [Conv(4), Conv(4, shared=1)],  # four input channels, not one
        [Conv(4), Conv(4), Conv(4, pad=1, shared=2)],
        [Conv(4), Conv(4), Conv(4, shared=2), Conv(4, shared=3)],  # one that has no weights itself
    ],
)
def test_weights_that_cannot_be_shared_are_refused(operations):
    with pytest.raises(ValueError, match="cannot have the weights"):
        build_network("shared", [*operations, Conv(10), Average()])


def test_impossible_networks_are_refused():
    with pytest.raises(ValueError, match="too small for it"):
        build_network("small", [MaxPool(), MaxPool(), MaxPool(), MaxPool(), Conv(10), Average()])
    with pytest.raises(ValueError, match="ends in"):
        build_network("open", [Conv(10)])


def test_a_list_of_layers_is_read_as_it_is_written():
    network = get_network("10 30  10x1 pool dropout 14 average 10x1 bias ")
    kinds = [type(layer.operation) for layer in network.layers]
    block = [Conv, Norm, Relu]
    assert kinds == [*block, *block, *block, MaxPool, Dropout, *block, Average, Conv]
    convolutions = [layer.operation for layer in network.layers if isinstance(layer.operation, Conv)]
    assert [c.channels for c in convolutions] == [10, 30, 10, 14, 10]
    assert [(c.kernel, c.pad) for c in convolutions] == [(3, 1), (3, 1), (1, 0), (3, 1), (1, 0)]
    assert [c.bias for c in convolutions] == [False, False, False, False, True]
    assert network.parameter_count == 90 + 2700 + 300 + 1260 + 150 + 2 * (10 + 30 + 10 + 14)
    assert network.name == "10 30 10x1 pool dropout 14 average 10x1 bias"


def test_letters_share_weights():
    network = get_network("4 4@a 4@b 4@a avgpool 4@a average 10x1")
    assert [layer.owner for layer in network.layers if isinstance(layer.operation, Conv)] == [
        *("conv1", "conv2", "conv3", "conv2", "conv2", "conv6")
    ]
    assert AvgPool in [type(layer.operation) for layer in network.layers]


def test_a_separable_convolution_is_a_depthwise_and_a_pointwise_one():
    network = get_network("4 6s@a 6s@b 6s@b avgpool 6s@b 10s average")
    convolutions = [layer for layer in network.layers if isinstance(layer.operation, Conv)]
    operations = [layer.operation for layer in convolutions]
    assert operations[1:3] == [Conv(4, 3, 1, False, depthwise=True), Conv(6, 1, 0, False)]
    assert operations[-2:] == [Conv(6, 3, 1, False, depthwise=True), Conv(10, 1, 0, False)]
    assert [layer.owner for layer in convolutions] == [
        *("conv1", "conv2", "conv3", "conv4", "conv5", "conv4", "conv5", "conv4", "conv5", "conv10", "conv11")
    ]
    assert network.parameter_count == 36 + 36 + 24 + 54 + 36 + 54 + 60 + 2 * (4 + 4 * 6)
    assert [type(layer.operation) for layer in network.layers[3:7]] == [Conv, Conv, Norm, Relu]


def test_every_network_has_a_file_name_of_its_own():
    assert [network.label for network in NETWORKS.values()] == list(NETWORKS)
    lists = ["13 pool 13 13 average 10x1", "13 13 pool 13 average 10x1"]
    assert [get_network(text).label for text in lists] == ["net3367-48044c", "net3367-f69fe8"]


def test_layers_after_the_same_convolution_have_names_of_their_own():
    network = get_network("8 dropout pool dropout pool avgpool average 10x1")
    names = [layer.name for layer in network.layers]
    assert len(set(names)) == len(names)
    assert network.dropouts == ["dropout1", "dropout1b"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("10 average 9x1", "ends in"),
        ("10 20", "ends in"),
        ("10 swim 10", "unknown layer 'swim'"),
        ("10x 10xx", "unknown layer '10x'"),
        ("-3 10", "unknown layer '-3'"),
        ("1_0 10", "unknown layer '1_0'"),
        ("\u0661\u0660 10", "unknown layer"),
        ("bias 10", "unknown layer 'bias'"),
        ("10 bias average 10x1", "unknown layer 'bias'"),
        ("10x2 average 10x1", "only odd kernels"),
        ("10 8@a 10@a", "cannot have the weights"),
        ("10 10@a 9 10@a", "cannot have the weights"),
        ("10 10@a 10s@a", "cannot have the weights"),
        ("10 10s@a 10@a", "cannot have the weights"),
        ("10 10sx1", "unknown layer '10sx1'"),
        ("0 average 10x1", "at least one channel"),
        ("pool pool", "ends in"),
        ("8 average pool 10x1", "too small for it"),
        ("8 pool pool 900 900 average 10x1", "parameters; at most"),
        ("84 average 10x1", "65,856 numbers for an image; at most 65,536"),
        ("16x11 average 10x1", "unknown layer '16x11'"),
        (" ".join(["8"] * 101), "101 words"),
        ("net1", "unknown network 'net1'"),
        ("", "unknown network ''"),
    ],
)
def test_what_is_no_network_is_refused(text, said):
    with pytest.raises(UserError, match=re.escape(said)):
        get_network(text)
