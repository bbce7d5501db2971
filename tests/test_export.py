import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from torch.nn import functional

from export import fold as folding
from export import pipeline, quantize, verify
from export.build import build_model
from export.fold import Affine, Convolution, Plain, fold, multiplications, steps_of
from export.images import Images, load_images, random_images, to_unit
from export.metadata import get_metadata, weights_sha256
from export.pipeline import export
from export.source import source_logits
from export.verify import check_structure, read_model, run_model
from recipe.checkpoint import Checkpoint, save_checkpoint, tensor_shapes
from recipe.errors import UserError
from recipe.networks import (
    NETWORKS,
    Average,
    Conv,
    Dropout,
    MaxPool,
    Network,
    Norm,
    Relu,
    build_network,
)
from recipe.warp import MEAN, STD
from torch_impl.model import ConvNet, load_tensors


def random_tensors(network: Network, rng: np.random.Generator, signs: tuple[float, ...] = (-1, 1)):
    """Weights and statistics as unlike their initial values as training could make them."""
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


def make_checkpoint(
    network: Network, rng: np.random.Generator, framework="torch", averaged=True
) -> Checkpoint:
    averages = {f"average/{name}": value for name, value in random_tensors(network, rng).items()}
    tensors = random_tensors(network, rng) | (averages if averaged else {})
    shapes = tensor_shapes(network, averaged)
    tensors |= {name: np.zeros(shape, np.float32) for name, shape in shapes.items() if "momentum/" in name}
    config = {
        "network": network.name,
        "framework": framework,
        "recipe": {"name": "tuned", "ema": 0.999 if averaged else None},
        "seed": 3,
        "data": {"name": "digits", "fingerprint": "0" * 64},
        "versions": {"numpy": np.__version__},
        "commit": None,
    }
    return Checkpoint(2, tensors, np.array([2.0, 1.0]), [], config)


@pytest.fixture
def checkpoint(network: Network, rng: np.random.Generator) -> Checkpoint:
    return make_checkpoint(network, rng)


@pytest.fixture(scope="module")
def images() -> Images:
    """The images of `export.images.random_images`, with labels, so that there is an accuracy."""
    rng = np.random.default_rng(1)
    train = rng.integers(0, 256, (1000, 28, 28), dtype=np.uint8)
    return Images("random", random_images(64), rng.integers(0, 10, 64, dtype=np.uint8), train)


def evaluate(steps: list[folding.Step], images: np.ndarray) -> np.ndarray:
    """What the steps mean, in float64, by PyTorch's functions."""
    x = torch.from_numpy(images).double()
    for step in steps:
        match step:
            case Affine(_, scale, shift):
                x = x * torch.from_numpy(scale)[:, None, None] + torch.from_numpy(shift)[:, None, None]
            case Convolution(_, weight, bias, pad):
                x = functional.conv2d(x, torch.from_numpy(weight), torch.from_numpy(bias), padding=pad)
            case Plain(_, Relu()):
                x = functional.relu(x)
            case Plain(_, MaxPool()):
                x = functional.max_pool2d(x, 2)
            case Plain(_, Average()):
                x = x.mean((2, 3), keepdim=True)
    return x.flatten(1).numpy()


def torch_logits(network: Network, tensors: dict[str, np.ndarray], images: np.ndarray) -> np.ndarray:
    model = ConvNet(network, dropout=0.0).double().eval()
    load_tensors(model, tensors)
    with torch.inference_mode():
        return model((torch.from_numpy(images).double() - MEAN) / STD).numpy()


def assert_folds_exactly(network: Network, rng: np.random.Generator, signs=(-1.0, 1.0)) -> None:
    """Every set of rewrites gives PyTorch's logits, all in float64, to 1e-12 of the largest."""
    tensors, images = random_tensors(network, rng, signs), random_images(3)
    wanted = torch_logits(network, tensors, images)
    steps = steps_of(network, tensors)
    for merge in (False, True):
        for merge_average in (False, True):
            found = evaluate(fold(steps, merge, merge_average), images)
            np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-12 * max(1, np.abs(wanted).max()))


# ------------------------------------------------------------------------------------------------- folding


@pytest.mark.parametrize("signs", [(1,), (-1, 1), (-1,)])
def test_folding_is_exact(network, rng, signs):
    assert_folds_exactly(network, rng, signs)


TRICKY = {
    "norm before a padded convolution": [
        Conv(4),
        Relu(),
        Norm(),
        Conv(4, pad=1),
        Relu(),
        Norm(),
        Conv(10),
        Average(),
    ],
    "norm before pool and padding": [
        Conv(4),
        Relu(),
        Norm(),
        MaxPool(),
        Conv(10, pad=1, bias=False),
        Average(),
    ],
    "norm first, and twice": [Norm(), Norm(), Conv(10), Average()],
    "norm last": [Conv(10), Relu(), Average(), Norm()],
    "norm between two pools": [Conv(4), Relu(), MaxPool(), Norm(), Dropout(), MaxPool(), Conv(10), Average()],
    "average before the last convolution": [
        *[Conv(6, bias=False), Norm(), Relu(), MaxPool(), Dropout(), Conv(7, bias=False), Norm(), Relu()],
        *[Average(), Conv(10, kernel=1)],
    ],
    "three linear convolutions": [Conv(8), Conv(4, kernel=1), Conv(10, kernel=1), Average()],
    "linear convolution before a padded one": [Conv(8, kernel=1), Conv(10, pad=1), Average()],
    "padded linear convolution": [Conv(8, pad=1), Conv(10, kernel=1), Average()],
}


@pytest.mark.parametrize("name", TRICKY)
def test_folding_is_exact_in_odd_orders(name, rng):
    assert_folds_exactly(build_network(name, TRICKY[name]), rng)


@st.composite
def networks(draw) -> Network:
    small = st.integers(1, 5)
    operation = st.one_of(
        st.builds(Conv, small, st.sampled_from([1, 3]), st.sampled_from([0, 1]), st.booleans()),
        st.sampled_from([Norm(), Norm(), Relu(), Dropout(), MaxPool()]),
    )
    pools = 0
    operations = []
    for each in draw(st.lists(operation, max_size=8)):
        pools += isinstance(each, MaxPool)
        if pools <= 2 or not isinstance(each, MaxPool):
            operations.append(each)
    end = draw(st.sampled_from([[Conv(10, kernel=1), Average()], [Average(), Conv(10, kernel=1)]]))
    return build_network("random", [*operations, *end, *draw(st.sampled_from([[], [Norm()]]))])


@settings(max_examples=25, deadline=None, derandomize=True)
@given(networks(), st.integers(0, 2**32))
def test_folding_is_exact_in_any_order(network, seed):
    """A map is never smaller than its kernel: 28 pixels outlast eight operations with two pools."""
    assert_folds_exactly(network, np.random.default_rng(seed))


def test_a_channel_that_batch_norm_switched_off_folds(rng):
    network = build_network("off", TRICKY["norm before a padded convolution"])
    tensors, images = random_tensors(network, rng), random_images(4)
    tensors["norm1.weight"][1] = 0
    found = evaluate(fold(steps_of(network, tensors)), images)
    np.testing.assert_allclose(found, torch_logits(network, tensors, images), rtol=0, atol=1e-12)


def test_batch_norm_disappears(rng):
    """Of net10040 the image's shift stays (its first convolution pads); of net9954 nothing, if no scale is
    negative before the second pool, else those channels' signs."""

    def affine(network: str, signs: tuple[float, ...]) -> list[Affine]:
        steps = fold(steps_of(NETWORKS[network], random_tensors(NETWORKS[network], rng, signs)))
        return [step for step in steps if isinstance(step, Affine)]

    (shift,) = affine("net10040", (-1, 1))
    np.testing.assert_allclose(shift.scale, 1)
    np.testing.assert_allclose(shift.shift, -MEAN)
    assert affine("net9954", (1,)) == []
    (sign,) = affine("net9954", (-1, 1))
    assert sign.name == "norm5"
    assert set(sign.scale) == {-1.0, 1.0}
    assert not sign.shift.any()


def test_merging_takes_fewer_multiplications(rng):
    network = NETWORKS["net9954"]
    steps = steps_of(network, random_tensors(network, rng))

    def cost(**options: bool) -> tuple[int, int]:
        convolutions = [step for step in fold(steps, **options) if isinstance(step, Convolution)]
        return len(convolutions), sum(map(multiplications, convolutions))

    assert cost(merge=False) == (7, 1_068_320)
    assert cost(merge=True) == (6, 1_054_368)  # conv6 and conv7
    assert cost(merge=True, merge_average=True) == (6, 1_051_168)


# ------------------------------------------------------------------------------------------------ the file


def test_file_and_both_frameworks_agree(network, rng, images):
    """Both frameworks in float32 and float64, and the file, from one checkpoint: 1e-5 apart at most."""
    checkpoint = make_checkpoint(network, rng)
    exported = export(checkpoint, images)
    found = exported.verification
    assert found.difference <= found.limit
    assert found.same_class == found.images == 64
    assert found.accuracy == images.accuracy(run_model(exported.content, images.test, 64)[0])
    logits = [run_model(exported.content, images.test, 64)[0]]
    for other in ("torch", "jax"):
        logits.append(source_logits(checkpoint, images.test, "float32", other))
        logits.append(source_logits(checkpoint, images.test, "float64", other))
    np.testing.assert_allclose(logits[2], logits[4], rtol=0, atol=1e-11)  # torch and jax in float64
    scale = max(1, np.abs(logits[2]).max() / 25)  # see export.verify.RELATIVE_TOLERANCE
    for each in logits:
        np.testing.assert_allclose(each, logits[2], rtol=0, atol=1e-5 * scale)


def test_run_of_jax(rng, images):
    """It is verified against Flax, and gives the file that the same weights give as a run of PyTorch."""
    files = []
    for framework in ("torch", "jax"):
        checkpoint = make_checkpoint(NETWORKS["net9954"], np.random.default_rng(0), framework)
        model = onnx.load_model_from_string(export(checkpoint, images).content)
        assert get_metadata(model)["framework"] == framework
        del model.metadata_props[:]
        files.append(model.SerializeToString(deterministic=True))
    assert files[0] == files[1]


@pytest.mark.parametrize("count", [500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_real_images(network, rng, mnist, count):
    """MNIST's test images, in every batch size."""
    checkpoint = make_checkpoint(network, rng)
    images = Images("mnist", to_unit(mnist.val_images[:count]), mnist.val_labels[:count], mnist.train_images)
    found = export(checkpoint, images).verification
    assert found.images == found.same_class == count
    assert found.difference <= found.limit


def test_averaged_weights_are_the_model(rng, images):
    network = NETWORKS["net9954"]
    averaged, plain = (
        make_checkpoint(network, np.random.default_rng(0), averaged=ema) for ema in (True, False)
    )
    assert averaged.model["conv1.weight"] is averaged.tensors["average/conv1.weight"]
    for checkpoint in (averaged, plain):
        logits, _ = run_model(export(checkpoint, images).content, images.test, 64)
        wanted = torch_logits(network, checkpoint.model, images.test)
        np.testing.assert_allclose(logits, wanted, rtol=0, atol=1e-5 * max(1, np.abs(wanted).max() / 25))


def test_float64_run(rng, images):
    """Its weights are rounded once, after folding."""
    checkpoint = make_checkpoint(NETWORKS["net9954"], rng)
    precise = {
        name: tensor + rng.normal(0, 1e-9, tensor.shape) for name, tensor in checkpoint.tensors.items()
    }
    found = export(dataclasses.replace(checkpoint, tensors=precise), images).verification
    assert found.difference <= found.limit


def test_structure_and_metadata(checkpoint, images, tmp_path):
    exported = export(checkpoint, images)
    path = tmp_path / "model.onnx"
    path.write_bytes(exported.content)
    content, model = read_model(path)
    assert content == exported.content
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    operators = {node.op_type for node in model.graph.node}
    assert "BatchNormalization" not in operators
    assert operators <= {"Conv", "Relu", "MaxPool", "GlobalAveragePool", "Flatten", "Softmax", "Add", "Mul"}
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"

    about = get_metadata(model)
    assert about["model_license"] == "MIT"
    assert about["labels"] == '["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]'
    assert (float(about["mean"]), float(about["std"])) == (MEAN, STD)
    assert about["network"] == checkpoint.network.name
    assert about["framework"] == "torch"
    assert about["weights_sha256"] == weights_sha256(checkpoint.model)
    assert float(about["accuracy"]) == pytest.approx(exported.verification.accuracy, abs=5e-5)
    runtime = onnxruntime.InferenceSession(content).get_modelmeta()
    assert runtime.custom_metadata_map == about


def test_same_checkpoint_same_file(checkpoint, images):
    assert export(checkpoint, images).content == export(checkpoint, images).content


def test_weights_digest_sees_every_tensor(checkpoint):
    digests = {weights_sha256(checkpoint.model)}
    for name, tensor in checkpoint.model.items():
        changed = tensor.copy()
        changed.flat[-1] += 1
        digests.add(weights_sha256(checkpoint.model | {name: changed}))
    assert len(digests) == 1 + len(checkpoint.model)


def test_model_card_runs(checkpoint, images, tmp_path):
    """The ten lines of the model card, as they stand."""
    card = (Path(__file__).parents[1] / "docs" / "model-card.md").read_text()
    code = card.split("```python\n", 1)[1].split("```", 1)[0]
    (tmp_path / "model.onnx").write_bytes(export(checkpoint, images).content)
    np.save(tmp_path / "digits.npy", (255 * images.test[:5, 0]).astype(np.uint8))
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert len(answer.stdout.splitlines()) == 5


# ---------------------------------------------------------------------------------------------------- int8


def test_int8(network, rng, images):
    """Of random weights and noise int8 keeps nearly every class; the file is int8, and describes itself."""
    checkpoint = make_checkpoint(network, rng)
    model = build_model(network, fold(steps_of(network, checkpoint.model)))
    assert images.train is not None
    model = quantize.quantize(model, images.train)
    check_structure(model)
    exact = source_logits(checkpoint, images.test, "float64")
    logits, _ = run_model(model.SerializeToString(), images.test, 7)
    assert np.abs(logits - exact).max() < 0.25 * np.abs(exact).max()
    kernels = [tensor for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.INT8]
    assert sum(numpy_helper.to_array(tensor).size for tensor in kernels) >= 6_000


def test_int8_needs_training_images(checkpoint, images):
    with pytest.raises(UserError, match="training images"):
        export(checkpoint, dataclasses.replace(images, train=None, note="no network"), int8=True)


# --------------------------------------------------------------------------------------------- verification


def tampered(content: bytes, change) -> bytes:
    model = onnx.load_model_from_string(content)
    change(model)
    return model.SerializeToString()


def change_weights(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[-1]
    value = numpy_helper.to_array(tensor) * np.float32(1.001)
    tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))


def fix_batch(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2


def rename_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].name = model.graph.node[0].input[0] = "x"


def swap_outputs(model: onnx.ModelProto) -> None:
    """Logits that are probabilities are within range and of the right class."""
    softmax = model.graph.node[-1]
    for value in model.graph.output:
        value.name = {"logits": "probabilities", "probabilities": "logits"}[value.name]
    model.graph.node[-2].output[0] = softmax.input[0] = "probabilities"
    softmax.output[0] = "logits"
    first, second = model.graph.output[1], model.graph.output[0]
    outputs = [onnx.ValueInfoProto.FromString(each.SerializeToString()) for each in (first, second)]
    del model.graph.output[:]
    model.graph.output.extend(outputs)


def wrong_axis(model: onnx.ModelProto) -> None:
    """Softmax over the batch: right in shape only."""
    model.graph.node[-1].attribute[0].i = 0


def point_elsewhere(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (change_weights, "logits differ by|in the class"),
        (fix_batch, "other inputs"),
        (rename_input, "other inputs"),
        (swap_outputs, "softmax"),
        (wrong_axis, "softmax"),
        (point_elsewhere, "other files"),
    ],
)
def test_verification_fails_for(change, message, rng, images):
    """Each check, by the mistake it is there for; unchanged, the same file passes."""
    checkpoint = make_checkpoint(NETWORKS["net10040"], rng)
    content = export(checkpoint, images).content
    source64 = source_logits(checkpoint, images.test, "float64")
    source32 = source_logits(checkpoint, images.test, "float32")
    verify.verify(content, images, source64, source32)
    with pytest.raises(UserError, match=message):
        verify.verify(tampered(content, change), images, source64, source32)


def test_verification_sees_a_class_that_flips(rng, images):
    """Within the tolerance, but decided otherwise: the two best logits almost equal."""
    checkpoint = make_checkpoint(NETWORKS["net9954"], rng)
    content = export(checkpoint, images).content
    source64 = source_logits(checkpoint, images.test, "float64")
    source32 = source_logits(checkpoint, images.test, "float32")
    best, second = np.argsort(-source32[0])[:2]
    source32[0, second] = np.nextafter(source32[0, best], np.float32(np.inf))
    with pytest.raises(UserError, match="63 of 64 images are in the class"):
        verify.verify(content, images, source64, source32)


def test_verification_fails_for_a_batch_that_is_treated_otherwise(rng, images, monkeypatch):
    checkpoint = make_checkpoint(NETWORKS["net9954"], rng)
    content = export(checkpoint, images).content
    honest = verify.run_model

    def run(content, images, batch):
        logits, probabilities = honest(content, images, batch)
        return logits + (1e-3 if batch == 7 else 0), probabilities

    monkeypatch.setattr(verify, "run_model", run)
    source = source_logits(checkpoint, images.test, "float64")
    with pytest.raises(UserError, match="logits differ"):
        verify.verify(content, images, source, source.astype(np.float32))


def forget_epsilon(monkeypatch):
    monkeypatch.setattr(folding, "BN_EPSILON", 1e-3)


def fold_into_padding(monkeypatch):
    """The classic mistake: treat a padded convolution as one without."""
    honest = folding._fold_before_padding

    def wrong(affine, convolution):
        unpadded = dataclasses.replace(convolution, pad=0)
        pair = folding._fold_pair(affine, unpadded)
        assert pair is not None and honest is not None
        return [dataclasses.replace(pair[0], pad=convolution.pad)]

    monkeypatch.setattr(folding, "_fold_before_padding", wrong)


def fold_across_pool(monkeypatch):
    """The other one: forget that a maximum of negatives is a minimum."""
    monkeypatch.setattr(folding, "_fold_before_maximum", lambda affine, pool: [pool, affine])


@pytest.mark.parametrize(
    ("name", "mistake"),
    [("net10040", forget_epsilon), ("net10040", fold_into_padding), ("net9954", fold_across_pool)],
)
def test_export_refuses_to_write_what_is_wrong(name, mistake, rng, images, monkeypatch, tmp_path, capsys):
    from export.__main__ import ExportOptions, main

    source, out = tmp_path / "checkpoint.safetensors", tmp_path / "model.onnx"
    checkpoint = make_checkpoint(NETWORKS[name], rng)
    save_checkpoint(source, checkpoint)
    out.write_bytes(b"old")
    monkeypatch.setattr("export.__main__.load_images", lambda *_: images)
    mistake(monkeypatch)
    with pytest.raises(UserError, match=r"model\.onnx was not written: .*(logits differ|in the class)"):
        main(ExportOptions(source, out))
    assert out.read_bytes() == b"old"
    monkeypatch.undo()
    monkeypatch.setattr("export.__main__.load_images", lambda *_: images)
    main(ExportOptions(source, out))
    assert out.read_bytes() == export(checkpoint, images).content
    assert "same class as torch: 64 of 64" in " ".join(capsys.readouterr().out.split())


def test_jax2onnx_gives_the_same_logits(network, rng, images):
    pytest.importorskip("jax2onnx")
    checkpoint = make_checkpoint(network, rng, "jax")
    found = export(checkpoint, images, via="jax2onnx")
    ours = export(checkpoint, images)
    logits = [run_model(each.content, images.test, 7)[0] for each in (found, ours)]
    scale = max(1, np.abs(logits[0]).max() / 25)
    np.testing.assert_allclose(*logits, rtol=0, atol=1e-5 * scale)


# ---------------------------------------------------------------------------------- the command line, files


def run_cli(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "export", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def assert_one_line(answer: subprocess.CompletedProcess[str], *words: str) -> None:
    assert answer.returncode == 2
    assert answer.stderr.startswith("error: ")
    assert len(answer.stderr.splitlines()) == 1
    for word in words:
        assert word in answer.stderr


def test_command_line(rng, tmp_path):
    """From a checkpoint on disk, on scikit-learn's digits, as a user would."""
    source, out = tmp_path / "checkpoint.safetensors", tmp_path / "new" / "model.onnx"
    save_checkpoint(source, make_checkpoint(NETWORKS["net9954"], rng))
    answer = run_cli("--checkpoint", source, "--out", out)
    assert answer.returncode == 0, answer.stderr
    assert "verified on 360 digits images in batches of 1, 2, 7, 1000" in answer.stdout
    assert get_metadata(read_model(out)[1])["accuracy_images"] == "360 digits test"


def test_faulty_checkpoint(rng, tmp_path):
    source, out = tmp_path / "checkpoint.safetensors", tmp_path / "model.onnx"
    assert_one_line(run_cli("--checkpoint", source, "--out", out), "there is no checkpoint")
    save_checkpoint(source, make_checkpoint(NETWORKS["net9954"], rng))
    source.write_bytes(source.read_bytes()[:-100])
    assert_one_line(run_cli("--checkpoint", source, "--out", out), "checkpoint.safetensors", "whole")
    assert not out.exists()


def test_unknown_way(tmp_path):
    from export.__main__ import ExportOptions, main

    with pytest.raises(UserError, match="--via 'magic' is unknown"):
        main(ExportOptions(tmp_path / "checkpoint", tmp_path / "model.onnx", via="magic"))
    with pytest.raises(UserError, match="--int8"):
        main(ExportOptions(tmp_path / "checkpoint", tmp_path / "model.onnx", via="jax2onnx", int8=True))


def test_unwritable_destination(rng, images, tmp_path, monkeypatch):
    from export.__main__ import ExportOptions, main

    source = tmp_path / "checkpoint.safetensors"
    save_checkpoint(source, make_checkpoint(NETWORKS["net9954"], rng))
    monkeypatch.setattr("export.__main__.load_images", lambda *_: images)
    with pytest.raises(UserError, match="cannot write"):
        main(ExportOptions(source, tmp_path))


@pytest.mark.parametrize("content", [b"", b"\x00" * 100, b"PK\x03\x04 not a model", b"{}" * 50])
def test_no_onnx_model(content, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(UserError, match="no ONNX model"):
        read_model(path)


def test_truncated_anywhere(rng, images, tmp_path):
    """Cut at any tenth of its length, a file is refused in one line."""
    content = export(make_checkpoint(NETWORKS["net9954"], rng), images).content
    path = tmp_path / "model.onnx"
    for tenth in range(10):
        path.write_bytes(content[: len(content) * tenth // 10])
        with pytest.raises(UserError, match="export it again") as caught:
            read_model(path)
        assert "\n" not in str(caught.value)


def test_model_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="there is no model"):
        read_model(tmp_path / "model.onnx")
    with pytest.raises(UserError, match="cannot read the model"):
        read_model(tmp_path)


def test_random_images_where_there_is_no_data(checkpoint, tmp_path, monkeypatch):
    """Without MNIST the file is verified on random images and says so; a faulty folder is a mistake."""
    monkeypatch.setenv("LOCKSTEP_CACHE", str(tmp_path))
    monkeypatch.delenv("MNIST_DIR", raising=False)
    checkpoint.config["data"]["name"] = "mnist"

    def offline(_: Path | None):
        raise OSError("no network")

    monkeypatch.setattr("torch_impl.data.read_mnist", offline)
    images = load_images(checkpoint, None)
    assert images.labels is None
    assert images.note is not None and "no network" in images.note
    few = dataclasses.replace(images, test=images.test[:20])
    exported = pipeline.export(checkpoint, few)
    assert exported.verification.accuracy is None
    assert "accuracy" not in get_metadata(onnx.load_model_from_string(exported.content))
    with pytest.raises(UserError, match="there is no data folder"):
        load_images(checkpoint, tmp_path / "nowhere")
