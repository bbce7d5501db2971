"""The exporter: folding, the file, its verification, and the promises of models/README.md."""

import dataclasses
import re
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from torch.nn import functional

from benchmarks.engines import normalised
from export import fold as folding
from export import verify
from export.__main__ import ExportOptions, main
from export.build import build_model
from export.fold import Affine, Convolution, Plain, Step, fold, multiplications, steps_of
from export.images import Images, load_images, random_images
from export.metadata import get_metadata, weights_sha256
from export.pipeline import Export, export
from export.quantize import quantize
from export.source import source_logits
from export.structure import check_structure, read_model
from export.verify import run_model
from recipe import checkpoint as checkpoints
from recipe.checkpoint import FILE_NAME, Checkpoint, Tensors, load_checkpoint, save_checkpoint, tensor_shapes
from recipe.console import UserError
from recipe.data import MEAN, STD
from recipe.networks import (
    NETWORKS,
    Average,
    AvgPool,
    Conv,
    Dropout,
    MaxPool,
    Network,
    Norm,
    Relu,
    build_network,
    get_network,
)
from recipe.recipes import get_recipe
from tests.helpers import make_config
from torch_impl.devices import select_devices
from torch_impl.model import ConvNet, load_tensors

CARD = (Path(__file__).parents[1] / "models" / "README.md").read_text()


def random_tensors(network: Network, rng: np.random.Generator, signs: tuple[float, ...] = (-1, 1)) -> Tensors:
    """Weights and statistics as different from their initial values as training could make them."""
    tensors = {}
    for name, shape in (network.parameters | network.buffers).items():
        if len(shape) == 4:
            value = rng.normal(0, (2 / np.prod(shape[1:])) ** 0.5, shape)
        elif name.endswith("running_var"):
            value = rng.uniform(0.3, 2, shape)
        elif name.startswith("norm") and name.endswith("weight"):
            value = rng.choice(signs, shape) * rng.uniform(0.3, 1.2, shape)
        else:
            value = rng.normal(0, 0.3, shape)
        tensors[name] = value.astype(np.float32)
    return tensors


def make_checkpoint(name: str, framework: str = "torch", averaged: bool = True) -> Checkpoint:
    """A checkpoint with random weights, always the same ones."""
    network, rng = get_network(name), np.random.default_rng(0)
    averages = {f"average/{name}": value for name, value in random_tensors(network, rng).items()}
    tensors = random_tensors(network, rng) | (averages if averaged else {})
    shapes = tensor_shapes(network, averaged)
    tensors |= {name: np.zeros(shape, np.float32) for name, shape in shapes.items() if "momentum/" in name}
    recipe = dataclasses.replace(get_recipe(name, "tuned"), ema_decay=0.999 if averaged else None)
    config = make_config(network=name, framework=framework, recipe=recipe, seed=3)
    return Checkpoint(2, tensors, np.array([2.0, 1.0]), [], config)


@cache
def make_images() -> Images:
    """The 360 test images of scikit-learn's digits."""
    return load_images(make_checkpoint("net9954"), None)


@cache
def exported(name: str) -> Export:
    """The file of `make_checkpoint`, verified on `make_images`."""
    return export(make_checkpoint(name), make_images())


@cache
def exact_logits(name: str) -> np.ndarray:
    """The logits of `make_checkpoint` on `make_images`, by PyTorch in float64."""
    return source_logits(make_checkpoint(name), make_images().test, "float64")


def torch_logits(network: Network, tensors: Tensors, images: np.ndarray) -> np.ndarray:
    model = ConvNet(network, 0.0, select_devices("cpu")).double().eval()
    load_tensors(model, tensors)
    with torch.inference_mode():
        return model((torch.from_numpy(images).double() - MEAN) / STD).numpy()


def tolerance(logits: np.ndarray) -> float:
    """How far float32 logits may be from the exact ones, as the model card says."""
    return max(1e-5, 4e-7 * float(np.abs(logits).max()))


def assert_close(logits: np.ndarray, expected: np.ndarray) -> None:
    """Within the tolerance, and of the same classes."""
    np.testing.assert_allclose(logits, expected, rtol=0, atol=tolerance(expected))
    assert (logits.argmax(1) == expected.argmax(1)).all()


# ------------------------------------------------------------------------------------------------- folding


def evaluate(steps: list[Step], images: np.ndarray) -> np.ndarray:
    """What the steps mean, in float64, by PyTorch's functions."""
    x = torch.from_numpy(images).double()
    for step in steps:
        match step:
            case Affine(_, scale, shift):
                x = x * torch.from_numpy(scale)[:, None, None] + torch.from_numpy(shift)[:, None, None]
            case Convolution(_, weight, bias, pad, _, depthwise):
                tensors = torch.from_numpy(weight), torch.from_numpy(bias)
                x = functional.conv2d(x, *tensors, padding=pad, groups=len(weight) if depthwise else 1)
            case Plain(_, Relu()):
                x = functional.relu(x)
            case Plain(_, MaxPool()):
                x = functional.max_pool2d(x, 2)
            case Plain(_, AvgPool()):
                x = functional.avg_pool2d(x, 2)
            case Plain(_, Average()):
                x = x.mean((2, 3), keepdim=True)
    return x.flatten(1).numpy()


def assert_folds_exactly(network: Network, tensors: Tensors) -> list[Step]:
    """The folded steps give PyTorch's logits, both in float64, to 1e-12 of the largest."""
    images = random_images(3)
    logits, steps = torch_logits(network, tensors, images), fold(steps_of(network, tensors))
    atol = 1e-12 * max(1, np.abs(logits).max())
    np.testing.assert_allclose(evaluate(steps, images), logits, rtol=0, atol=atol)
    return steps


def test_a_network_of_ones_own_is_exported():
    line = "6 pool 6x5 avgpool 6@a 6s dropout pool dropout pool 6@a 8x1 average 10x1 bias"
    model = onnx.load_model_from_string(exported(line).content)
    assert {entry.key: entry.value for entry in model.metadata_props}["network"] == line


PADDED = [Conv(4), Relu(), Norm(), Conv(4, pad=1), Relu(), Norm(epsilon=0.1), Conv(10), Average()]
ORDERS = {
    "norm before padding": PADDED,
    "norm before pool and padding": [Conv(4), Relu(), Norm(), MaxPool(), Conv(10, pad=1), Average()],
    "norm first, twice and last": [Norm(), Norm(), Conv(10), Relu(), Average(), Norm()],
    "norm between pools": [Conv(4), Relu(), MaxPool(), Norm(), Dropout(), MaxPool(), Conv(10), Average()],
    "norm before average pool and padding": [Conv(4), Relu(), Norm(), AvgPool(), Conv(10, pad=1), Average()],
    "shared weights": [
        *[Conv(4, bias=False), Norm(), Conv(4, pad=1), Norm(), Relu(), Conv(4, pad=1, shared=2), Norm()],
        *[Conv(10), Average()],
    ],
    "depthwise after shift and before pool": [
        *[Conv(4), Norm(), Conv(4, depthwise=True), Norm(), MaxPool(), Conv(4, pad=1, depthwise=True)],
        *[Conv(4, kernel=1), Conv(4, depthwise=True), Conv(10, kernel=1), Average()],
    ],
    "three linear convolutions": [Conv(8), Conv(4, kernel=1), Conv(10, kernel=1), Average()],
    "padding between linear convolutions": [Conv(8, pad=1), Conv(10, kernel=1, pad=1), Average()],
}


@pytest.mark.parametrize("network", NETWORKS | ORDERS)
@pytest.mark.parametrize("signs", [(1,), (-1, 1), (-1,)])
def test_folding_is_exact(network, signs, rng):
    built = build_network(network, ORDERS[network]) if network in ORDERS else NETWORKS[network]
    assert_folds_exactly(built, random_tensors(built, rng, signs))


@st.composite
def networks(draw) -> Network:
    operation = st.one_of(
        st.builds(Conv, st.integers(1, 5), st.sampled_from([1, 3]), st.sampled_from([0, 1]), st.booleans()),
        st.sampled_from([Norm(), Norm(), Relu(), Dropout()]),
    )
    first, second, third = (draw(st.lists(operation, max_size=size)) for size in (3, 2, 1))
    end = draw(st.sampled_from([[Conv(10, kernel=1), Average()], [Average(), Conv(10, kernel=1)]]))
    pools = draw(st.permutations([MaxPool(), AvgPool()]))
    return build_network("random", [*first, pools[0], *second, pools[1], *third, *end])


@settings(max_examples=25, deadline=None, derandomize=True)
@given(networks(), st.integers(0, 2**32))
def test_folding_is_exact_in_any_order(network, seed):
    assert_folds_exactly(network, random_tensors(network, np.random.default_rng(seed)))


def test_a_channel_that_batch_norm_switched_off_folds(rng):
    """Its scale cannot be divided by: before padding that batch norm stays, as one step."""
    network = build_network("off", PADDED)
    tensors = random_tensors(network, rng)
    tensors["norm1.weight"][1] = 0
    (affine,) = (step for step in assert_folds_exactly(network, tensors) if isinstance(step, Affine))
    assert affine.name == "norm1"


def test_little_remains_of_batch_norm(rng):
    """In net10040 the image's shift remains, since its first convolution pads. In net9954 only the signs of
    scales before the second pool remain, if there are negative ones, and conv6 and conv7 become one."""

    def fold_random(name: str, signs: tuple[float, ...]) -> tuple[list[Affine], list[int]]:
        steps = fold(steps_of(NETWORKS[name], random_tensors(NETWORKS[name], rng, signs)))
        affine = [step for step in steps if isinstance(step, Affine)]
        return affine, [multiplications(step) for step in steps if isinstance(step, Convolution)]

    (shift,), _ = fold_random("net10040", (-1, 1))
    np.testing.assert_allclose(shift.scale, 1)
    np.testing.assert_allclose(shift.shift, -MEAN)
    affine, costs = fold_random("net9954", (1,))
    assert (len(affine), len(costs), sum(costs)) == (0, 6, 1_068_320 - 13_952)
    (sign,), _ = fold_random("net9954", (-1, 1))
    assert sign.name == "norm5"
    assert set(sign.scale) == {-1.0, 1.0}
    assert not sign.shift.any()


# ------------------------------------------------------------------------------------------------ the file


def test_the_file_has_the_logits_of_the_framework(network):
    exact = exact_logits(network.name)
    for logits in (
        source_logits(make_checkpoint(network.name), make_images().test, "float32"),
        run_model(exported(network.name).content, make_images().test, 64)[0],
    ):
        assert_close(logits, exact)


def test_run_of_jax():
    """It is verified against Flax, and gives the file that the same weights give as a run of PyTorch."""
    checkpoint = make_checkpoint("net9954", "jax")
    files = export(checkpoint, make_images()), exported("net9954")
    models = [onnx.load_model_from_string(file.content) for file in files]
    assert [get_metadata(model)["framework"] for model in models] == ["jax", "torch"]
    for model in models:
        del model.metadata_props[:]
    assert models[0] == models[1]


def test_averaged_weights_are_the_model():
    """Where there are any. Those of a float64 run are rounded once, after folding."""
    for averaged, dtype in ((True, "float32"), (False, "float64")):
        checkpoint = make_checkpoint("net9954", averaged=averaged)
        tensors = {name: (value * np.pi).astype(dtype) for name, value in checkpoint.tensors.items()}
        content = export(dataclasses.replace(checkpoint, tensors=tensors), make_images()).content
        prefix = "average/" if averaged else ""
        model = {name: tensors[prefix + name] for name in checkpoint.model}
        images = make_images().test
        assert_close(run_model(content, images, 64)[0], torch_logits(checkpoint.network, model, images))


def test_structure(network, tmp_path):
    """One small file of plain operators, the same bytes every time, with the names of layers and outputs."""
    path, content = tmp_path / "model.onnx", exported(network.name).content
    path.write_bytes(content)
    assert len(content) < 100_000
    assert export(make_checkpoint(network.name), make_images()).content == content
    assert read_model(path)[0] == content
    model = read_model(path)[1]
    assert (model.opset_import[0].version, model.ir_version) == (17, 8)
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert [node.name for node in model.graph.node[-2:]] == ["logits", "probabilities"]
    layers = {node.name.split(".")[0] for node in model.graph.node[:-2]}
    assert layers <= {"normalise"} | {layer.name for layer in network.layers}
    if network.name == "net10040":  # some converters fail on the addition of a negative constant
        first, weights = model.graph.node[0], {each.name: each for each in model.graph.initializer}
        assert first.op_type == "Sub"
        assert numpy_helper.to_array(weights[first.input[1]]).item() == np.float32(MEAN)


def test_feature_maps(network):
    """Further outputs: PyTorch's own maps at each ReLU, the layer table's shapes, and the same logits."""
    images, checkpoint = make_images(), make_checkpoint(network.name)
    content = export(checkpoint, images, feature_maps=True).content
    session = onnxruntime.InferenceSession(content)
    names = [output.name for output in session.get_outputs()]
    assert names[:2] == ["logits", "probabilities"]
    maps = dict(zip(names, session.run(None, {"image": images.test[:20]}), strict=True))
    assert_close(maps["logits"], exact_logits(network.name)[:20])

    model, theirs = ConvNet(network, 0.0, select_devices("cpu")).eval(), {}
    load_tensors(model, checkpoint.model)

    def keep(name, module, arguments, result):
        theirs[name] = torch.relu(result).numpy()

    for before, layer in pairwise(network.layers):
        if isinstance(layer.operation, Relu):  # which is no module
            model.get_submodule(before.name).register_forward_hook(partial(keep, layer.name))
    with torch.inference_mode():
        model(torch.from_numpy((images.test[:20] - np.float32(MEAN)) / np.float32(STD)))
    shapes = {layer.name: layer.out_shape for layer in network.layers}
    assert [name for name in names if name in theirs] == list(theirs)
    for name in names[2:]:
        assert maps[name].shape[2:] == shapes[name][1:]
        if name in theirs:
            np.testing.assert_allclose(maps[name], theirs[name], rtol=0, atol=2e-5)


def test_metadata(network):
    """Every key that the model card lists, with the checkpoint's facts, as ONNX Runtime reads them."""
    checkpoint, content = make_checkpoint(network.name), exported(network.name).content
    about = onnxruntime.InferenceSession(content).get_modelmeta().custom_metadata_map
    table = CARD.split("| key | meaning |", 1)[1]
    assert set(about) == set(re.findall(r"`([\w.]+)`", "".join(re.findall(r"^\|([^|]*)\|", table, re.M))))
    assert about["model_license"] == "MIT"
    assert about["labels"] == '["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]'
    assert (float(about["mean"]), float(about["std"])) == (MEAN, STD)
    assert (about["network"], about["framework"]) == (network.name, "torch")
    assert about["averaged_weights"] == "true"
    assert about["weights_sha256"] == weights_sha256(checkpoint.model)
    images = make_images()
    accuracy = images.accuracy(run_model(content, images.test, 7)[0])
    assert float(about["accuracy"]) == pytest.approx(accuracy, abs=5e-5)
    assert about["accuracy_images"] == "360 digits test"


def test_weights_digest_sees_every_tensor():
    model = make_checkpoint("net10040").model
    changed = [model | {name: tensor + np.float32(1)} for name, tensor in model.items()]
    assert len({weights_sha256(tensors) for tensors in (model, *changed)}) == 1 + len(model)


def test_model_card_runs(tmp_path, monkeypatch, capsys):
    """The example of the model card, as it is printed there."""
    monkeypatch.chdir(tmp_path)
    Path("model.onnx").write_bytes(exported("net10040").content)
    np.save("digits.npy", (255 * make_images().test[:5, 0]).astype(np.uint8))
    exec(CARD.split("```python\n", 1)[1].split("```", 1)[0], {})
    assert len(capsys.readouterr().out.splitlines()) == 5


# ---------------------------------------------------------------------------------------- other exporters


def export_by_torch(run: Path) -> bytes:
    """PyTorch's own exporter, of `torch_impl`'s network."""
    program = torch.onnx.export(
        normalised(run / FILE_NAME),
        (torch.zeros(2, 1, 28, 28),),
        input_names=["image"],
        dynamic_shapes=[{0: torch.export.Dim("batch")}],
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    return program.model_proto.SerializeToString()


def export_by_jax2onnx(run: Path) -> bytes:
    """jax2onnx, of the same layers as nnx's own modules; those of `jax_impl` are made for training."""
    import jax.numpy as jnp
    from flax import nnx
    from jax2onnx import to_onnx

    checkpoint, rngs = load_checkpoint(run / FILE_NAME), nnx.Rngs(0)
    # Random initial kernels would take seconds to compile.
    make_conv = partial(nnx.Conv, kernel_init=nnx.initializers.zeros_init(), rngs=rngs)

    def make_layer(layer):
        channels, prefix = layer.in_shape[0], f"{layer.owner}."
        tensors = {name.removeprefix(prefix): jnp.asarray(value) for name, value in checkpoint.model.items()}
        match layer.operation:
            case Conv(filters, kernel, pad, bias, _, depthwise):
                options = {
                    "padding": pad,
                    "use_bias": bias,
                    "feature_group_count": channels if depthwise else 1,
                }
                module = make_conv(channels, filters, (kernel, kernel), **options)
                module.kernel[...] = tensors["weight"].transpose(2, 3, 1, 0)
                if bias:
                    module.bias[...] = tensors["bias"]
                return module
            case Norm():
                module = nnx.BatchNorm(channels, epsilon=1e-5, use_running_average=True, rngs=rngs)
                module.scale[...], module.bias[...] = tensors["weight"], tensors["bias"]
                module.mean[...], module.var[...] = tensors["running_mean"], tensors["running_var"]
                return module
            case Relu():
                return nnx.relu
            case MaxPool():
                return partial(nnx.max_pool, window_shape=(2, 2), strides=(2, 2))
            case AvgPool():
                return partial(nnx.avg_pool, window_shape=(2, 2), strides=(2, 2))
            case Average():
                return partial(jnp.mean, axis=(1, 2), keepdims=True)
            case Dropout():
                return nnx.identity

    layers = [make_layer(layer) for layer in checkpoint.network.layers]

    def predict(image):
        x = (image.transpose(0, 2, 3, 1) - 0.1307) / 0.3081
        for layer in layers:
            x = layer(x)
        return x.squeeze((1, 2))

    return to_onnx(predict, [("batch", 1, 28, 28)], input_names=["image"]).SerializeToString()


@pytest.fixture(scope="module")
def process():
    """A process of its own: an exporter leaves functions of its framework changed."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        yield pool


@pytest.mark.slow
@pytest.mark.subprocess
@pytest.mark.parametrize("export_otherwise", [export_by_torch, export_by_jax2onnx])
def test_other_exporters_give_the_same_logits(network, export_otherwise, process, tmp_path):
    """Each file rounds in float32 in its own way and may be as far from the exact logits as `tolerance` says:
    from each other the two may be twice as far. Of net10040 and net9954 they were 7e-6 apart at most."""
    save_checkpoint(tmp_path / FILE_NAME, make_checkpoint(network.name))
    try:
        content = process.submit(export_otherwise, tmp_path).result()
    except (ModuleNotFoundError, AttributeError) as error:
        if "jax" not in str(error):
            raise
        pytest.skip(f"jax2onnx is not installed or does not know this version of JAX: {error}")
    assert "jax2onnx" not in sys.modules, "the other tests need JAX as it is"
    images, session = make_images().test, onnxruntime.InferenceSession(content)
    (theirs,) = session.run(None, {"image": images})
    ours, _ = run_model(exported(network.name).content, images, 1000)
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=2 * tolerance(ours))
    assert (theirs.argmax(1) == ours.argmax(1)).all()


# ---------------------------------------------------------------------------------------------------- int8


def test_int8(network):
    """Of random weights and noise int8 keeps nearly every class; ONNX's reference runs it as ONNX Runtime.

    A channel a thousand times smaller whose next weights are as much larger costs no exactness.
    """
    checkpoint, images = make_checkpoint(network.name), make_images()
    assert images.train is not None
    model = build_model(network, fold(steps_of(network, checkpoint.model)))
    values = {tensor.name: numpy_helper.to_array(tensor).copy() for tensor in model.graph.initializer}
    values["conv1.weight"][0] /= 1000
    values["conv1.bias"][0] /= 1000
    second = values["conv2.weight"]
    (second if second.shape[1] == 1 else second.swapaxes(0, 1))[0] *= 1000  # one of its inputs
    uneven = build_model(network, fold(steps_of(network, checkpoint.model)))
    for tensor in uneven.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(values[tensor.name], tensor.name))
    exact = exact_logits(network.name)
    for float32 in (uneven, model):
        int8 = quantize(float32, images.train)
        check_structure(int8)
        logits, _ = run_model(int8.SerializeToString(), images.test, 7)
        assert np.abs(logits - exact).max() < 0.25 * np.abs(exact).max()
    kernels = [tensor for tensor in int8.graph.initializer if tensor.data_type == onnx.TensorProto.INT8]
    weights = sum(value.size for value in values.values() if value.ndim == 4)
    quantized = sum(numpy_helper.to_array(tensor).size for tensor in kernels)
    assert quantized >= weights - values["conv1.weight"].size
    reference, _ = ReferenceEvaluator(int8).run(None, {"image": images.test[:4]})
    assert np.abs(reference - logits[:4]).max() < 0.05 * np.abs(exact).max()


# --------------------------------------------------------------------------------------------- verification


def change_weights(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[-1]
    value = numpy_helper.to_array(tensor) * np.float32(1.001)
    tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))


def fix_batch(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2


def swap_outputs(model: onnx.ModelProto) -> None:
    """Logits that are probabilities are in range and of the right class."""
    flatten, softmax = model.graph.node[-2:]
    flatten.output[0] = softmax.input[0] = "probabilities"
    softmax.output[0] = "logits"


def wrong_axis(model: onnx.ModelProto) -> None:
    """Softmax over the batch: right in shape only."""
    model.graph.node[-1].attribute[0].i = 0


def point_elsewhere(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")


def raise_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 18


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (change_weights, "logits differ by|get the class"),
        (fix_batch, "other inputs"),
        (swap_outputs, "softmax"),
        (wrong_axis, "softmax"),
        (point_elsewhere, "other files"),
        (raise_opset, "operator sets"),
    ],
)
def test_verification_fails_for(change, message):
    """Each check, by the mistake it is there for."""
    model, images = onnx.load_model_from_string(exported("net10040").content), make_images().test
    change(model)
    source = exact_logits("net10040")
    with pytest.raises(UserError, match=message):
        verify.verify(model.SerializeToString(), images, source, source.astype(np.float32))


def test_verification_sees_a_class_that_flips():
    """Within the tolerance, but decided otherwise: the two best logits are almost equal."""
    content, images, source = exported("net9954").content, make_images().test, exact_logits("net9954")
    source32 = source.astype(np.float32)
    verify.verify(content, images, source, source32)
    best, second = np.argsort(-source32[0])[:2]
    source32[0, second] = np.nextafter(source32[0, best], np.float32(np.inf))
    with pytest.raises(UserError, match="only 359 of 360 images get the class"):
        verify.verify(content, images, source, source32)
    source32[:8] = -source32[:8]  # below 98 % int8 is refused too
    with pytest.raises(UserError, match="only 352 of 360 images get the class"):
        verify.verify(content, images, source, source32, int8=True)


def test_verification_fails_for_a_batch_that_is_treated_otherwise(monkeypatch):
    content, images, source = exported("net9954").content, make_images().test, exact_logits("net9954")

    def run(content, images, batch):
        logits, probabilities = run_model(content, images, batch)
        return logits + (1e-3 if batch == 7 else 0), probabilities

    monkeypatch.setattr(verify, "run_model", run)
    for int8, message in ((False, "logits differ by"), (True, "between batch sizes")):
        with pytest.raises(UserError, match=message):
            verify.verify(content, images, source, source.astype(np.float32), int8)


def fold_into_padding(monkeypatch):
    """The classic mistake: treat a padded convolution as one without."""

    def wrong(affine, convolution):
        pair = folding._rewrite(affine, dataclasses.replace(convolution, pad=0))
        assert pair is not None
        return [dataclasses.replace(pair[0], pad=convolution.pad)]

    monkeypatch.setattr(folding, "_fold_before_padding", wrong)


def fold_across_pool(monkeypatch):
    """The other one: forget that a maximum of negatives is a minimum."""
    monkeypatch.setattr(folding, "_fold_before_maximum", lambda affine, pool: [pool, affine])


def map_other_features(monkeypatch):
    monkeypatch.setattr("export.pipeline.add_feature_maps", change_weights)


@pytest.mark.parametrize(
    ("name", "mistake"),
    [("net10040", fold_into_padding), ("net9954", fold_across_pool), ("net9954", map_other_features)],
)
def test_what_is_wrong_is_not_written(name, mistake, monkeypatch, tmp_path):
    out = tmp_path / "model.onnx"
    save_checkpoint(tmp_path / FILE_NAME, make_checkpoint(name))
    out.write_bytes(b"old")
    mistake(monkeypatch)
    with pytest.raises(UserError, match=r"model\.onnx was not written: .*(logits differ|get the class)"):
        main(ExportOptions(tmp_path, out, feature_maps=True))
    assert out.read_bytes() == b"old"


# ---------------------------------------------------------------------------------- the command line, files


def test_command_line(tmp_path, capsys):
    """From a run's folder, on scikit-learn's digits; in float32, int8 and with feature maps."""
    save_checkpoint(tmp_path / FILE_NAME, make_checkpoint("net9954"))
    out = tmp_path / "new" / "model.onnx"
    main(ExportOptions(tmp_path, out))
    printed = capsys.readouterr().out
    assert "verified on 360 digits images in batches of 1, 2, 7, 1000" in printed
    assert "same class as torch: 360 of 360" in printed
    assert [path.name for path in out.parent.iterdir()] == ["model.onnx"]
    content = out.read_bytes()
    main(ExportOptions(tmp_path / FILE_NAME, out, int8=True))
    assert get_metadata(read_model(out)[1])["precision"] == "int8"
    main(ExportOptions(tmp_path / FILE_NAME, out, feature_maps=True))
    _, model = read_model(out)
    assert len(model.graph.output) == 10
    del model.graph.output[2:]
    assert model.SerializeToString(deterministic=True) == content  # all that a file with maps has more


def test_mistakes_are_named_before_anything_is_written(tmp_path):
    source, out = tmp_path / FILE_NAME, tmp_path / "model.onnx"
    (tmp_path / "file").touch()
    for folder in (tmp_path, tmp_path / "file" / "model.onnx", tmp_path / ("x" * 300)):
        with pytest.raises(UserError, match="cannot write"):
            main(ExportOptions(tmp_path / "nothing", folder))
    with pytest.raises(UserError, match="--feature-maps are float32"):
        main(ExportOptions(tmp_path, out, int8=True, feature_maps=True))
    with pytest.raises(UserError, match="there is no checkpoint"):
        main(ExportOptions(tmp_path, out))
    save_checkpoint(source, make_checkpoint("net9954", framework="other"))
    with pytest.raises(UserError, match="unknown framework 'other'"):
        main(ExportOptions(source, out))
    assert not out.exists()


def test_unreadable_models(tmp_path):
    """Missing, a folder, no ONNX model, or cut; `test_damaged` tries more."""
    path, content = tmp_path / "model.onnx", exported("net9954").content
    for missing in (path, tmp_path):
        with pytest.raises(UserError, match="cannot read the model"):
            read_model(missing)
    for faulty in (b"", content[:9000], b"PK\x03\x04 not a model"):
        path.write_bytes(faulty)
        with pytest.raises(UserError, match="export it again"):
            read_model(path)


def test_random_images_where_there_is_no_data(tmp_path, monkeypatch):
    """Without MNIST the file is verified on random images and says so; a faulty folder is a mistake."""
    monkeypatch.setenv("LOCKSTEP_CACHE", str(tmp_path))
    monkeypatch.delenv("MNIST_DIR", raising=False)
    checkpoint = make_checkpoint("net9954")
    config = dataclasses.replace(checkpoint.config, data=checkpoints.Images("mnist", "0" * 64))
    checkpoint = dataclasses.replace(checkpoint, config=config)

    def offline():
        raise OSError("no network")

    monkeypatch.setattr("recipe.data.download_originals", offline)
    images = load_images(checkpoint, None)
    assert images.labels is None
    assert images.note is not None and "no network" in images.note
    few = export(checkpoint, dataclasses.replace(images, test=images.test[:20]))
    assert few.accuracy is None
    assert "accuracy" not in get_metadata(onnx.load_model_from_string(few.content))
    with pytest.raises(UserError, match="int8 is calibrated on training images"):
        export(checkpoint, images, int8=True)
    with pytest.raises(UserError, match="there is no train-images"):
        load_images(checkpoint, tmp_path / "nowhere")
    monkeypatch.setenv("MNIST_DIR", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="there is no train-images"):
        load_images(checkpoint, None)
