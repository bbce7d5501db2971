"""One pair of each kind of model, right and with a fault, and three independent faults in one."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen, nnx
from torch import nn

import lockstep
from lockstep.comparison import as_inputs, make_model
from lockstep.record import record, write
from tests import pairs
from tests.ports import CASES
from tests.ports.__main__ import compare, faulty_lines

X = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)
LAYERS = 3


class Reference(nn.Module):
    def __init__(self, gelu="none"):
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)
        self.blocks, self.norm = nn.ModuleList(nn.Linear(8, 8) for _ in range(LAYERS)), nn.LayerNorm(8)
        self.gelu = gelu

    def forward(self, x):
        x = self.first(x)
        for block in self.blocks:
            x = x + torch.tanh(block(x))
        return self.last(nn.functional.gelu(self.norm(x), approximate=self.gelu))


def reference():
    return pairs.randomise(Reference()).eval()


class NNX(nnx.Module):
    def __init__(self, fault=False):
        rngs = nnx.Rngs(0)
        self.first, self.last = nnx.Linear(6, 8, rngs=rngs), nnx.Linear(8, 3, rngs=rngs)
        self.blocks = nnx.List([nnx.Linear(8, 8, rngs=rngs) for _ in range(LAYERS)])
        self.norm, self.fault = nnx.LayerNorm(8, epsilon=1e-5, rngs=rngs), fault

    def __call__(self, x):
        x = self.first(x)
        for block in self.blocks:
            x = x + jnp.tanh(block(x))
        return self.last(nnx.gelu(self.norm(x), approximate=self.fault))


class Linen(linen.Module):
    fault: bool = False

    @linen.compact
    def __call__(self, x):
        x = linen.Dense(8, name="first")(x)
        for i in range(LAYERS):
            x = x + jnp.tanh(linen.Dense(8, name=f"blocks_{i}")(x))
        x = linen.LayerNorm(epsilon=1e-5, name="norm")(x)
        return linen.Dense(3, name="last")(linen.gelu(x, approximate=self.fault))


def make_linen(fault=False):
    return lockstep.linen(Linen(fault), Linen().init(jax.random.key(0), X))


def make_equinox(fault=False):
    """Takes one example; its blocks are stacked for a scan."""
    eqx = pytest.importorskip("equinox")

    class Net(eqx.Module):
        first: eqx.nn.Linear
        blocks: eqx.nn.Linear
        norm: eqx.nn.LayerNorm
        last: eqx.nn.Linear

        def __call__(self, x):
            arrays, static = eqx.partition(self.blocks, eqx.is_array)

            def step(x, block):
                return x + jnp.tanh(eqx.combine(block, static)(x)), None

            x, _ = jax.lax.scan(step, self.first(x), arrays)
            return self.last(jax.nn.gelu(self.norm(x), approximate=fault))

    keys = jax.random.split(jax.random.key(0), LAYERS + 2)
    blocks = eqx.filter_vmap(lambda key: eqx.nn.Linear(8, 8, key=key))(keys[2:])
    net = Net(eqx.nn.Linear(6, 8, key=keys[0]), blocks, eqx.nn.LayerNorm(8), eqx.nn.Linear(8, 3, key=keys[1]))
    return lockstep.function(lambda net, x: jax.vmap(net)(x), net)


def make_function(fault=False):
    rng = np.random.default_rng(1)
    shapes = {"w0": (6, 8), "b0": (8,), "ws": (LAYERS, 8, 8), "bs": (LAYERS, 8), "w1": (8, 3), "b1": (3,)}
    params = {name: jnp.asarray(rng.standard_normal(shape)) for name, shape in shapes.items()}
    params |= {"scale": jnp.ones(8), "shift": jnp.zeros(8)}

    def forward(p, x):
        x = x @ p["w0"] + p["b0"]
        for i in range(LAYERS):
            x = x + jnp.tanh(x @ p["ws"][i] + p["bs"][i])
        x = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return jax.nn.gelu(x * p["scale"] + p["shift"], approximate=fault) @ p["w1"] + p["b1"]

    return lockstep.function(forward, params)


def make_torch(fault=False):
    return pairs.randomise(Reference("tanh" if fault else "none"), seed=1).eval()


def check(given, make):
    """A right port is equal; one with the fault is different, at its line."""
    result = lockstep.compare(given, make(), X)
    assert result.equal and not result.near, str(result)
    result = lockstep.compare(given, make(True), X)
    assert len(result.differences) == 1 and result.first.kind == "values", str(result)
    sources = {line for side in (result.first.reference, result.first.port) for _, line in side.sources}
    text = Path(__file__).read_text().splitlines()
    assert sources & {i for i, line in enumerate(text, 1) if ", approximate=" in line}, str(result)


@pytest.mark.parametrize("make", [NNX, make_linen, make_equinox, make_function, make_torch])
def test_pytorch_against(make):
    check(reference(), make)


def compile_forward(module):
    module.forward = torch.compile(module.forward)
    return module


def compile_itself(module):
    module.compile()
    return module


@pytest.mark.parametrize(
    "compiled", [torch.compile, compile_forward, compile_itself, lambda m: nn.Sequential(torch.compile(m))]
)
def test_a_compiled_module_is_compared_as_it_was_written(compiled):
    check(compiled(reference()), NNX)


def test_linen_against_nnx():
    check(make_linen(), NNX)


def test_recorded_trace_is_as_its_model(tmp_path):
    path, inputs = tmp_path / "reference.safetensors", as_inputs(X)
    write(path, record(make_model(reference(), [inputs]), inputs, None, 0))
    for fault in (False, True):
        live, recorded = (lockstep.compare(given, NNX(fault), X) for given in (reference(), path))
        assert recorded.verdict == live.verdict
        assert [d.to_json() for d in recorded.differences] == [d.to_json() for d in live.differences]


@pytest.mark.subprocess
def test_onnx_file(tmp_path):
    path = tmp_path / "model.onnx"
    torch.onnx.export(reference(), (torch.from_numpy(X),), path, dynamo=True, verbose=False)
    for fault in (False, True):
        result = lockstep.compare(path, NNX(fault), X)
        assert result.equal is not fault, str(result)
    for model, equal in ((reference(), True), (make_torch(True), False)):
        result = lockstep.compare(model, path, X)
        assert result.equal is equal, str(result)


def test_three_faults_are_found():
    case = next(case for case in CASES if case.port == "three_faults")
    result = compare(case, True)
    found = [{line for _, line in difference.port.sources} for difference in result.differences]
    lines = [line for _, line in sorted(faulty_lines(case))][-3:]
    assert len(found) == 3 and all(any(line in places for places in found) for line in lines), str(result)


def test_a_wrapper_leaves_each_part_in_its_mode():
    class Wrapper(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5)).eval()

        def forward(self, x):
            return self.inner(x)

    class Port(nnx.Module):
        def __init__(self):
            self.linear, self.dropout = nnx.Linear(6, 8, rngs=nnx.Rngs(0)), nnx.Dropout(0.5, rngs=nnx.Rngs(0))

        def __call__(self, x):
            return self.dropout(self.linear(x))

    assert Wrapper().training  # as every new module, though what it holds is in evaluation mode
    result = lockstep.compare(Wrapper(), Port(), X)
    assert result.equal, str(result)


def test_sums_of_small_integers_keep_their_type():
    class Counts(nn.Module):
        def forward(self, tokens):
            return (tokens.cumsum(-1) // 2 % 3).double()

    def port(_, tokens):
        half = jax.lax.div(jnp.cumsum(tokens.astype(jnp.int32), -1), jnp.int32(2))
        return (half % 3).astype(jnp.float32)

    tokens = np.random.default_rng(0).integers(0, 9, (2, 7))
    result = lockstep.compare(
        Counts(), lockstep.function(port, {"unused": jnp.ones(2)}), tokens, backward=False
    )
    assert result.equal, str(result)


class Rotary(nn.Module):
    """Sines of positions, repeated and in float32, beside a weight."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 6)
        self.register_buffer("rates", (10_000.0 ** -(torch.arange(3) / 3)).float())

    def forward(self, x):
        angles = torch.arange(7)[:, None] * self.rates
        return self.linear(x) * torch.cat([angles, angles], -1).sin()


def test_a_rounded_table_is_no_difference_of_gradients():
    rates = 10_000.0 ** -(np.arange(3) / 3)
    table = np.sin(np.tile(np.arange(20)[:, None] * rates, 2)).astype(np.float32)

    def port(params, x):
        return (x @ params["kernel"] + params["bias"]) * jnp.stack([jnp.asarray(table)[:7]] * len(x))

    x = np.random.default_rng(0).standard_normal((2, 7, 6)).astype(np.float32)
    params = {"kernel": jnp.zeros((6, 6)), "bias": jnp.zeros(6)}
    result = lockstep.compare(Rotary().eval(), lockstep.function(port, params), x)
    assert result.equal and "gradients of 2 parameters" in result.verdict, str(result)


# --- weights that are changed before they meet activations ---


class Standardised(nn.Conv2d):
    def forward(self, x):
        w = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return nn.functional.conv2d(x, w / (w.std((1, 2, 3), keepdim=True) + 1e-5), self.bias)


class Scaled(nn.Linear):
    def forward(self, x):
        return nn.functional.linear(x, self.weight * 0.5, self.bias)


class Modulated(nn.Module):
    """Each example has a kernel of its own, and the image is learned."""

    def __init__(self):
        super().__init__()
        self.style, self.const = nn.Linear(6, 4), nn.Parameter(torch.randn(4, 4, 4))
        self.weight = nn.Parameter(torch.randn(5, 4, 3, 3))

    def forward(self, x):
        b = len(x)
        w = self.weight * 0.5 * self.style(x)[:, None, :, None, None]
        y = self.const.repeat(b, 1, 1, 1).reshape(1, 4 * b, 4, 4)
        return nn.functional.conv2d(y, w.reshape(5 * b, 4, 3, 3), groups=b).reshape(b, 5, 2, 2)


def convolve(x, kernel):
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def standardised(p, x, ddof=1):
    w = p["w"] - p["w"].mean((0, 1, 2))
    return convolve(x, w / (w.std((0, 1, 2), ddof=ddof) + 1e-5)) + p["b"]


def normalised(p, x):
    return convolve(x, p["w"] * (p["g"] / jnp.sqrt(jnp.sum(p["w"] ** 2, (0, 1, 2))))) + p["b"]


def spectral(p, x):
    for q in (p["in"], p["out"]):
        x = jnp.tanh(x @ (q["w"] / (q["u"] @ q["w"].T @ q["v"])) + q["b"])
    return x


def scaled(p, x):
    for q in (p["0"], p["2"]):
        x = jax.nn.relu(x @ (q["w"] / 2) + q["b"])
    return x


def modulated(p, x):
    style = x @ p["style"]["w"] + p["style"]["b"]
    return convolve(p["const"] * style[:, None, None], p["w"] * 0.5)


IMAGE = np.random.default_rng(0).standard_normal((2, 4, 5, 5)).astype(np.float32)
KERNEL, SQUARE = (
    np.random.default_rng(1).standard_normal((3, 3, 4, 4)),
    {"w": np.zeros((6, 6)), "b": np.zeros(6)},
)
CHANGED = {
    "weight standardisation": (
        lambda: Standardised(4, 4, 3), standardised, {"w": KERNEL, "b": np.zeros(4)}, IMAGE,
    ),
    "weight norm": (
        lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 3)), normalised,
        {"w": KERNEL, "g": np.zeros(4), "b": np.zeros(4)}, IMAGE,
    ),
    "spectral norm": (
        lambda: nn.Sequential(
            nn.utils.parametrizations.spectral_norm(nn.Linear(6, 8)), nn.Tanh(),
            nn.utils.parametrizations.spectral_norm(nn.Linear(8, 3)), nn.Tanh(),
        ), spectral,
        {k: {"w": KERNEL.ravel()[: i * o].reshape(i, o), "b": np.zeros(o), "u": KERNEL[0, 0].ravel()[:o],
             "v": KERNEL[1, 1].ravel()[:i]}
         for k, i, o in (("in", 6, 8), ("out", 8, 3))}, X,
    ),
    "equalised learning rate": (
        lambda: nn.Sequential(Scaled(6, 6), nn.ReLU(), Scaled(6, 6), nn.ReLU()), scaled,
        {"0": SQUARE, "2": SQUARE}, X,
    ),
    "modulation": (
        Modulated, modulated,
        {"style": {"w": np.zeros((6, 4)), "b": np.zeros(4)}, "const": KERNEL[0, 0][None] * np.ones((4, 1, 1)),
         "w": np.ones((3, 3, 4, 5))}, X,
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", CHANGED)
def test_a_weight_that_is_changed_before_its_contraction(kind):
    torch.manual_seed(0)
    make, port, params, x = CHANGED[kind]
    result = lockstep.compare(make().eval(), lockstep.function(port, params), x)
    assert result.equal and not result.near, str(result)


def test_a_fault_in_the_change_of_a_weight_is_found():
    make, port, params, x = CHANGED["weight standardisation"]
    result = lockstep.compare(make(), lockstep.function(partial(port, ddof=0), params), x)
    assert len(result.differences) == 1 and "n - 1" in result.first.cause, str(result)


class Projected(nn.Linear):
    def forward(self, x):
        return super().forward(x.transpose(1, 2).flatten(2))


class Contracted(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, 4, 8))

    def forward(self, x):
        return torch.einsum("bhnd,hdc->bnc", x, self.weight)


@pytest.mark.parametrize("make", [lambda: Projected(8, 8, bias=False), Contracted])
@pytest.mark.parametrize("names", ["bhnd,hdc->bnc", "bhnk,hkc->bnc", "bhnd,dhc->bnc", "bznd,czd->bnc"])
def test_several_contracted_axes_in_any_order(make, names):
    x = np.random.default_rng(0).standard_normal((3, 2, 5, 4)).astype(np.float32)
    sizes = dict(zip(names[:4], x.shape, strict=True)) | {"c": 8}
    weight = np.zeros([sizes[name] for name in names[5:8]])
    port = lockstep.function(lambda p, x: jnp.einsum(names, x, p), weight)
    result = lockstep.compare(make(), port, x)
    assert result.equal, str(result)


class Experts(nn.Module):
    """Networks side by side, of which all are summed, or each row takes one (``chosen``)."""

    def __init__(self, chosen=False):
        super().__init__()
        self.first, self.last = (
            nn.ModuleList(nn.Linear(i, o) for _ in range(LAYERS)) for i, o in ((6, 5), (5, 2))
        )
        self.gate, self.chosen = nn.Linear(6, LAYERS, bias=False), chosen
        self.scales = nn.ParameterList(nn.Parameter(torch.randn(2)) for _ in range(LAYERS))

    def forward(self, x):
        found, gate = torch.zeros(len(x), 2, dtype=x.dtype), self.gate(x).softmax(-1)
        for e, (first, last, scale) in enumerate(zip(self.first, self.last, self.scales, strict=True)):
            rows = torch.where(gate.argmax(-1) == e)[0] if self.chosen else slice(None)
            found[rows] += gate[rows, e, None] * scale * last(first(x[rows]).relu())
        return found


def experts(p, x, chosen=False, slope=0.0):
    gate = jax.nn.softmax(x @ p["gate"])
    gate = jnp.where(gate == gate.max(-1, keepdims=True), gate, 0) if chosen else gate
    y = jax.nn.leaky_relu(jnp.einsum("ti,eih->eth", x, p["w"]) + p["b"][:, None], slope)
    y = p["scale"][:, None] * (jnp.einsum("eth,eho->eto", y, p["v"]) + p["c"][:, None])
    return jnp.einsum("te,eto->to", gate, y)


def ensemble(p, x):
    """The same by `jax.vmap` over the members."""

    def member(q, x):
        return q["scale"] * (jax.nn.relu(x @ q["w"] + q["b"]) @ q["v"] + q["c"])

    members = {name: value for name, value in p.items() if name != "gate"}
    y = jax.vmap(lambda q: jax.vmap(lambda row: member(q, row))(x))(members)
    return (jax.nn.softmax(x @ p["gate"]).T[..., None] * y).sum(0)


def apart(p, x, order=(2, 3, 4, 5)):
    return x[:, :2] @ p["x"] + x[:, np.array(order)] @ p["h"] + p["b"]


EXPERTS = {
    "w": np.ones((3, 6, 5)), "b": np.ones((3, 5)), "v": np.ones((3, 5, 2)), "c": np.ones((3, 2)),
    "gate": np.ones((6, 3)), "scale": np.ones((3, 2)),
}  # fmt: skip
PARTS = {"x": np.zeros((2, 3)), "h": np.zeros((4, 3)), "b": np.zeros(3)}
SIDE_BY_SIDE = {
    "experts": (Experts, experts, EXPERTS),
    "chosen experts": (partial(Experts, chosen=True), partial(experts, chosen=True), EXPERTS),
    "ensemble": (Experts, ensemble, EXPERTS),
    "apart": (partial(nn.Linear, 6, 3), apart, PARTS),
}


@pytest.mark.parametrize("kind", SIDE_BY_SIDE)
def test_weights_that_one_side_has_in_one_and_the_other_in_parts(kind):
    torch.manual_seed(0)
    make, port, params = SIDE_BY_SIDE[kind]
    result = lockstep.compare(make(), lockstep.function(port, params), X)
    assert result.equal and not result.near, str(result)


@pytest.mark.parametrize(
    "kind, fault",
    [("experts", {"slope": 0.01}), ("chosen experts", {"slope": 0.01}), ("apart", {"order": (3, 2, 4, 5)})],
)
def test_a_fault_beside_such_weights_is_found(kind, fault):
    make, port, params = SIDE_BY_SIDE[kind]
    result = lockstep.compare(make(), lockstep.function(partial(port, **fault), params), X)
    assert not result.equal, str(result)


def test_a_value_is_put_into_an_input():
    """The port leaves out the norm of an input that two products take: one difference, not three."""

    class Normed(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.a, self.c = nn.LayerNorm(6), nn.Linear(6, 4), nn.Linear(6, 4)

        def forward(self, x):
            x = self.norm(x)
            return self.a(x) * torch.tanh(self.c(x))

    def port(p, x):
        return (x @ p["a"] + p["ab"]) * jnp.tanh(x @ p["c"] + p["cb"])

    params = {"a": np.ones((6, 4)), "ab": np.ones(4), "c": np.ones((6, 4)), "cb": np.ones(4)}
    result = lockstep.compare(pairs.randomise(Normed()), lockstep.function(port, params), X)
    assert len(result.differences) == 1 and "norm" in result.first.cause, str(result)


def test_a_sign_is_named():
    class Signed(nn.Linear):
        def forward(self, x):
            y = super().forward(x)
            return torch.tanh(y), y.sum(-1) + x.sum(-1)

    def negative(p, x):
        y = x @ p["w"] + p["b"]
        return jnp.tanh(y), x.sum(-1) - y.sum(-1)

    params = {"w": np.ones((6, 3)), "b": np.ones(3)}
    result = lockstep.compare(Signed(6, 3), lockstep.function(negative, params), X)
    assert "subtracts" in result.first.cause, str(result)


def test_rounding_of_the_optimizer_is_said():
    """Optax adds epsilon inside Adagrad's root, PyTorch outside: beside 0.1 that is rounding."""
    optax = pytest.importorskip("optax")
    port = lockstep.function(lambda p, x: x @ p["w"] + p["b"], {"w": np.ones((6, 3)), "b": np.ones(3)})

    def steps(epsilon):
        optimizers = (
            lambda parameters: torch.optim.Adagrad(
                parameters, 0.05, initial_accumulator_value=0.1, eps=epsilon
            ),
            optax.adagrad(0.05, 0.1, epsilon),
        )
        return lockstep.compare(nn.Linear(6, 3), port, X, optimizers=optimizers)

    assert "training steps" in " ".join(steps(1e-7).notes) and steps(1e-7).equal
    assert not steps(1e-4).equal
