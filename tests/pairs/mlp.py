"""A multi-layer perceptron with layer norm and GELU, in eval mode."""

import jax.numpy as jnp
import numpy as np
from flax import nnx
from torch import nn

from tests.pairs import Fault, randomise


class TorchNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.norm1 = nn.Linear(12, 16), nn.LayerNorm(16)
        self.act = nn.GELU()
        self.fc2, self.norm2 = nn.Linear(16, 16), nn.LayerNorm(16)
        self.drop = nn.Dropout(0.1)
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = self.act(self.norm1(self.fc1(x)))
        x = self.drop(self.act(self.norm2(self.fc2(x))))
        return self.head(x).log_softmax(-1)


def torch_model(seed=0):
    return randomise(TorchNet(), seed).eval()


class OwnNorm(nnx.Module):
    """Layer norm as people write it, with its mistakes."""

    def __init__(self, size, fault, rngs):
        self.fault = fault
        self.scale, self.bias = nnx.Param(jnp.ones(size)), nnx.Param(jnp.zeros(size))

    def __call__(self, x):
        mean = x.mean(-1, keepdims=True)
        if self.fault == "epsilon_outside":
            y = (x - mean) / (jnp.sqrt(((x - mean) ** 2).mean(-1, keepdims=True)) + 1e-5)
        elif self.fault == "unbiased_variance":
            y = (x - mean) / jnp.sqrt(x.var(-1, keepdims=True, ddof=1) + 1e-5)
        elif self.fault == "scale_plus_one":
            return (x - mean) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5) * (1 + self.scale[...]) + self.bias[
                ...
            ]
        else:
            y = (x - x.mean(0)) / jnp.sqrt(x.var(0) + 1e-5)  # over the batch
        return y * self.scale[...] + self.bias[...]


class Net(nnx.Module):
    def __init__(self, fault, rngs):
        self.fault = fault
        self.fc1 = nnx.Linear(12, 16, rngs=rngs)
        self.norm1 = nnx.LayerNorm(16, epsilon=1e-6 if fault == "default_epsilon" else 1e-5, rngs=rngs)
        self.fc2 = nnx.Linear(16, 16, rngs=rngs, use_bias=fault != "no_bias")
        if fault in ("epsilon_outside", "unbiased_variance", "scale_plus_one", "normalised_over_batch"):
            self.norm2 = OwnNorm(16, fault, rngs)
        elif fault == "rms_norm":
            self.norm2 = nnx.RMSNorm(16, epsilon=1e-5, rngs=rngs)
        else:
            self.norm2 = nnx.LayerNorm(16, epsilon=1e-5, rngs=rngs, use_bias=fault != "norm_without_bias")
        self.drop = nnx.Dropout(0.1, rngs=rngs)
        self.head = nnx.Linear(16, 5, rngs=rngs)

    def __call__(self, x):
        x = nnx.gelu(self.norm1(self.fc1(x)), approximate=self.fault == "tanh_gelu")
        x = self.norm2(self.fc2(x))
        x = nnx.silu(x) if self.fault == "silu" else nnx.gelu(x, approximate=False)
        x = self.drop(x, deterministic=False if self.fault == "dropout_on" else None)
        return nnx.log_softmax(self.head(x), axis=0 if self.fault == "softmax_over_batch" else -1)


def flax_model(fault=""):
    model = Net(fault, nnx.Rngs(0))
    if fault.startswith("converted"):
        theirs = {name: tensor.numpy(force=True) for name, tensor in torch_model().state_dict().items()}
        for name, layer in {"fc1": model.fc1, "fc2": model.fc2, "head": model.head}.items():
            layer.kernel.set_value(jnp.asarray(theirs[f"{name}.weight"].T))
            layer.bias.set_value(jnp.asarray(theirs[f"{name}.bias"]))
        for name, layer in {"norm1": model.norm1, "norm2": model.norm2}.items():
            layer.scale.set_value(jnp.asarray(theirs[f"{name}.weight"]))
            layer.bias.set_value(jnp.asarray(theirs[f"{name}.bias"]))
        if fault == "converted_transposed":
            model.fc2.kernel.set_value(model.fc2.kernel[...].T)
        if fault == "converted_exchanged":
            scale, bias = model.norm2.scale[...], model.norm2.bias[...]
            model.norm2.scale.set_value(bias)
            model.norm2.bias.set_value(scale)
        if fault == "converted_bfloat16":
            model.head.kernel.set_value(model.head.kernel[...].astype(jnp.bfloat16).astype(jnp.float32))
    return model


def inputs(rng):
    return rng.standard_normal((6, 12)).astype(np.float32)


AS_THEY_ARE = {"copy_weights": False}
FAULTS = {
    "default_epsilon": Fault("norm1", "epsilon is 1e-06 in the port, 1e-05"),
    "tanh_gelu": Fault("fc2", "GELU with erf.*GELU with tanh"),
    "silu": Fault("drop", "GELU with erf.*SiLU"),
    "no_bias": Fault("fc2", r"leaves out the parameter fc2\.bias"),
    "norm_without_bias": Fault("norm2", r"parameter norm2\.bias"),
    "epsilon_outside": Fault("norm2", "epsilon outside the root"),
    "unbiased_variance": Fault("norm2", "by n - 1"),
    "scale_plus_one": Fault("norm2", "an added number is 1 in the port, 0"),
    "normalised_over_batch": Fault("norm2", r"over axes \(1,\).*over axes \(0,\)"),
    "rms_norm": Fault("norm2", "without subtracting the mean"),
    "dropout_on": Fault("drop", "dropout"),
    "softmax_over_batch": Fault("(output)", r"over axes \(1,\).*over axes \(0,\)"),
    "converted_transposed": Fault("fc2", "not transposed", AS_THEY_ARE),
    "converted_exchanged": Fault("norm2", "has the reference's norm2", AS_THEY_ARE),
    "converted_bfloat16": Fault("head", "bfloat16", AS_THEY_ARE),
}
