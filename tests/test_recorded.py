"""A recorded reference: what is written is read again, and a bad file is one line."""

import dataclasses

import numpy as np
import pytest

from lockstep.errors import UserError
from lockstep.record import Recorded, read, write
from lockstep.steps import Step
from lockstep.trace import Binding, Gradients, Leaf, Node, Rounded, Site, Trace


def example() -> Recorded:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 4))
    node = Node(
        0,
        "mm",
        "operation",
        (1, 2),
        (3, 4),
        "float64",
        (("model.py", 3),),
        fingerprint=x[0],
        params={"a": [1]},
    )
    trace = Trace(
        "PyTorch", [node], [Site(0, 0, "contract", np.arange(12), None, "w")], [Leaf("w", (12,), 0, 12, 0)]
    )
    trace.weights, trace.given, trace.outputs = x.ravel(), x.ravel() * 1j, {"": 0}
    trace.values = {
        0: x,
        1: x > 0,
        2: x.astype(np.complex64),
        3: np.array(2),
        4: x[:, ::2].T,
        5: np.zeros((0, 2)),
    }
    trace.scalars, trace.binding = [float("inf"), 0.1], Binding(np.arange(12), {0: 0}, [("a", "b", "c")])
    step = Step(x, x, 1.5, [{"lr": 0.1, "betas": (0.9, 0.99)}], {"w": 0}, "SGD")
    return Recorded({"[0][0]": x}, trace, [Gradients(1.5, x)], Rounded({"": x}, {"": 0.1}), [step])


def assert_same(a, b):
    assert type(a) is type(b)
    if isinstance(a, np.ndarray):
        np.testing.assert_array_equal(a, b)
    elif dataclasses.is_dataclass(a):
        for field in dataclasses.fields(a):
            assert_same(getattr(a, field.name), getattr(b, field.name))
    elif isinstance(a, dict):
        assert list(a) == list(b)
        assert_same(list(a.values()), list(b.values()))
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert a == b


def test_what_is_written_is_read(tmp_path):
    recorded = example()
    recorded.run.values[2] = recorded.run.values[2].astype(np.complex128)
    write(tmp_path / "reference.safetensors", recorded)
    assert_same(recorded, read(tmp_path / "reference.safetensors", ((recorded.inputs["[0][0]"],), {})))
    assert [path.name for path in tmp_path.iterdir()] == ["reference.safetensors"]


@pytest.mark.parametrize("damage", ["cut", "bit", "other", "missing", "folder"])
def test_bad_file_is_one_line(tmp_path, damage):
    path = tmp_path / "reference.safetensors"
    write(path, example())
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    if damage in ("cut", "bit"):
        path.write_bytes(content[:-20] if damage == "cut" else content)
    elif damage == "other":
        path.write_text("not a trace")
    else:
        path.unlink()
        if damage == "folder":
            path.mkdir()
    with pytest.raises(UserError) as caught:
        read(path, ((), {}))
    assert "\n" not in str(caught.value) and "reference.safetensors" in str(caught.value)


def test_other_inputs_are_refused(tmp_path):
    recorded = example()
    write(tmp_path / "reference.safetensors", recorded)
    with pytest.raises(UserError, match="other inputs"):
        read(tmp_path / "reference.safetensors", ((recorded.inputs["[0][0]"] + 1,), {}))
