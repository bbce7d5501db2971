"""An encoder block with the frameworks' own attention, a class token, and a convolution over patches."""

import jax.numpy as jnp
import torch
from flax import nnx
from torch import nn
from torch.nn import functional

from tests.pairs import Fault, images, randomise

WIDTH, HEADS = 12, 3


class TorchNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(3, WIDTH, 4, 4)
        self.token, self.position = (
            nn.Parameter(torch.zeros(1, 1, WIDTH)),
            nn.Parameter(torch.zeros(1, 5, WIDTH)),
        )
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH, eps=1e-6), nn.LayerNorm(WIDTH, eps=1e-6)
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, dropout=0.1, batch_first=True)
        self.fc1, self.fc2 = nn.Linear(WIDTH, 24), nn.Linear(24, WIDTH)
        self.scale = nn.Parameter(torch.ones(WIDTH))
        self.norm, self.head = nn.LayerNorm(WIDTH, eps=1e-6), nn.Linear(WIDTH, 4)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.position
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        x = x + self.scale * self.fc2(functional.gelu(self.fc1(self.norm2(x))))
        return self.head(self.norm(x)[:, 0])


def torch_model(seed=0):
    return randomise(TorchNet(), seed).train()


class Net(nnx.Module):
    def __init__(self, fault, rngs):
        self.fault = fault
        self.patch = nnx.Conv(3, WIDTH, (4, 4), 4, padding="VALID", rngs=rngs)
        self.token, self.position = nnx.Param(jnp.zeros((1, 1, WIDTH))), nnx.Param(jnp.zeros((1, 5, WIDTH)))
        self.norm1, self.norm2, self.norm = (nnx.LayerNorm(WIDTH, rngs=rngs) for _ in range(3))
        heads = {"wrong_heads": 4}.get(fault, HEADS)
        self.attention = nnx.MultiHeadAttention(heads, WIDTH, dropout_rate=0.1, decode=False, rngs=rngs)
        self.fc1, self.fc2 = nnx.Linear(WIDTH, 24, rngs=rngs), nnx.Linear(24, WIDTH, rngs=rngs)
        self.scale = nnx.Param(jnp.ones(WIDTH))
        self.head = nnx.Linear(WIDTH, 4, rngs=rngs)

    def __call__(self, x):
        x = self.patch(x)
        if self.fault == "patches_by_column":
            x = jnp.swapaxes(x, 1, 2)
        x = x.reshape(x.shape[0], -1, WIDTH)
        x = jnp.concatenate([jnp.broadcast_to(self.token[...], (x.shape[0], 1, WIDTH)), x], 1)
        x = x + self.position[...]
        x = x + self.attention(self.norm1(x), is_causal=self.fault == "causal")
        y = self.fc2(nnx.gelu(self.fc1(self.norm2(x)), approximate=False))
        x = x + (y if self.fault == "no_layer_scale" else y * self.scale[...])
        x = self.norm(x)
        return self.head(x.mean(1) if self.fault == "mean_for_token" else x[:, 0])


def flax_model(fault=""):
    model = Net(fault, nnx.Rngs(0))
    if fault.startswith("converted"):
        theirs = {name: jnp.asarray(x.numpy(force=True)) for name, x in torch_model().state_dict().items()}
        for name, layer in {"fc1": model.fc1, "fc2": model.fc2, "head": model.head}.items():
            layer.kernel.set_value(theirs[f"{name}.weight"].T)
            layer.bias.set_value(theirs[f"{name}.bias"])
        for name, norm in {"norm": model.norm, "norm1": model.norm1, "norm2": model.norm2}.items():
            norm.scale.set_value(theirs[f"{name}.weight"])
            norm.bias.set_value(theirs[f"{name}.bias"])
        for name, parameter in {
            "token": model.token,
            "position": model.position,
            "scale": model.scale,
        }.items():
            parameter.set_value(theirs[name])
        a = model.attention
        q, k, v = (w.T.reshape(WIDTH, HEADS, -1) for w in jnp.split(theirs["attention.in_proj_weight"], 3))
        a.query.kernel.set_value(k if fault == "converted_exchanged" else q)
        a.key.kernel.set_value(q if fault == "converted_exchanged" else k)
        a.value.kernel.set_value(v)
        for layer, bias in zip(
            (a.query, a.key, a.value), jnp.split(theirs["attention.in_proj_bias"], 3), strict=True
        ):
            layer.bias.set_value(bias.reshape(HEADS, -1))
        a.out.kernel.set_value(theirs["attention.out_proj.weight"].T.reshape(HEADS, -1, WIDTH))
        a.out.bias.set_value(theirs["attention.out_proj.bias"])
        kernel = theirs["patch.weight"]
        order = (2, 3, 1, 0) if fault != "converted_patch" else (3, 2, 1, 0)
        model.patch.kernel.set_value(kernel.transpose(order))
        model.patch.bias.set_value(theirs["patch.bias"])
    return model


def inputs(rng):
    return images(rng, 2, 3, 8, 8)


AS_THEY_ARE = {"copy_weights": False}
FAULTS = {
    "wrong_heads": Fault("attention", r"heads|3, 4.* 4, 3|4, 3.* 3, 4"),
    "causal": Fault("attention", "causal|mask"),
    "patches_by_column": Fault("norm1", "transposed|order of axes|interleaved"),
    "no_layer_scale": Fault("norm", "parameter scale"),
    "mean_for_token": Fault("head", "the first along .* the mean over"),
    "converted_exchanged": Fault("attention", "the projection of the (key|query)", AS_THEY_ARE),
    "converted_patch": Fault("patch", "not transposed", AS_THEY_ARE),
}
