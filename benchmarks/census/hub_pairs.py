"""Ports that load the original's checkpoint themselves: jimm (NNX), eqx-zoo (Equinox), diffusers (Linen).

Each original is written to a folder with random weights, and the port reads that. Nothing is downloaded.
"""

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from benchmarks.census.transformers_pairs import BATCH, ENCODER, LLAMA, LLAMA3_ROPE, TOKENS, VOCABULARY, stir

SIDE = 16
VISION = {
    "hidden_size": 128,  # jimm takes heads of 64 for CLIP's images
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 512,  # and four times the width between
    "image_size": SIDE,
    "patch_size": 4,
}
LABELS = {"num_labels": 3}
TEXT = VISION | {"vocab_size": VOCABULARY, "max_position_embeddings": TOKENS, "eos_token_id": VOCABULARY - 1}
SIGLIP_TEXT = TEXT | {"projection_size": 128}
BOTH = {"text_config": TEXT, "vision_config": VISION, "projection_dim": 128}
DECODER = LLAMA | {"head_dim": 6}
UNET = {
    "sample_size": 8,
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "cross_attention_dim": 24,
    "attention_head_dim": 4,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}
VAE = {"sample_size": SIDE, "block_out_channels": (32, 64), "down_block_types": ("DownEncoderBlock2D",) * 2,
       "up_block_types": ("UpDecoderBlock2D",) * 2, "norm_num_groups": 8}  # fmt: skip

# Of each pair: the original's class and its settings, the port's class, and which of the original's outputs.
JIMM: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "jimm_vit": ("ViTForImageClassification", VISION | LABELS, "VisionTransformer", "logits"),
    "jimm_vit_quick_gelu": (
        "ViTForImageClassification",
        VISION | LABELS | {"hidden_act": "quick_gelu"},
        "VisionTransformer",
        "logits",
    ),
    "jimm_dinov2": ("Dinov2Model", VISION, "DINOv2Model", "pooler_output"),
    "jimm_dinov3": ("DINOv3ViTModel", VISION, "DINOv3Model", "pooler_output"),
    "jimm_dinov3_registers": (
        "DINOv3ViTModel",
        VISION | {"num_register_tokens": 2},
        "DINOv3Model",
        "pooler_output",
    ),
    "jimm_dinov3_gated": (
        "DINOv3ViTModel",
        VISION | {"use_gated_mlp": True, "hidden_act": "silu"},
        "DINOv3Model",
        "pooler_output",
    ),
    "jimm_clip": ("CLIPModel", BOTH, "CLIP", "logits_per_image"),
    "jimm_siglip": ("SiglipModel", BOTH | {"text_config": SIGLIP_TEXT}, "SigLIP", "logits_per_image"),
}  # fmt: skip
ZOO: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "zoo_llama": ("LlamaForCausalLM", DECODER, "CausalLM", "logits"),
    "zoo_llama3": ("LlamaForCausalLM", DECODER | {"rope_scaling": LLAMA3_ROPE}, "CausalLM", "logits"),
    "zoo_qwen2": ("Qwen2ForCausalLM", DECODER, "CausalLM", "logits"),
    "zoo_qwen3": ("Qwen3ForCausalLM", DECODER | {"tie_word_embeddings": True}, "CausalLM", "logits"),
    "zoo_qwen3_moe": (
        "Qwen3MoeForCausalLM",
        DECODER | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
        "CausalLM",
        "logits",
    ),
    "zoo_bert": ("BertModel", ENCODER, "Encoder", "last_hidden_state"),
    "zoo_roberta": ("RobertaModel", ENCODER | {"pad_token_id": 1}, "Encoder", "last_hidden_state"),
}
DIFFUSERS: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "unet": ("UNet2DConditionModel", UNET, "FlaxUNet2DConditionModel", "sample"),
    "unet_linear": (
        "UNet2DConditionModel",
        UNET | {"use_linear_projection": True, "only_cross_attention": True},
        "FlaxUNet2DConditionModel",
        "sample",
    ),
    "vae": ("AutoencoderKL", VAE, "FlaxAutoencoderKL", "sample"),
}


def names() -> Iterator[str]:
    """Each pair's name."""
    yield from (*ZOO, *DIFFUSERS, *JIMM)  # jimm last: it sets a mesh


def package(name: str) -> str:
    """The package of a pair's port."""
    return "jimm" if name in JIMM else "eqx_zoo" if name in ZOO else "diffusers"


def flavour(name: str) -> str:
    """The library of a pair's port."""
    return {"jimm": "Flax NNX", "eqx_zoo": "Equinox", "diffusers": "Flax Linen"}[package(name)]


def build(name: str) -> tuple[Any, Any, dict[str, Any], Any]:
    """The original, which returns one tensor; the port with its weights; inputs of both; float32."""
    import torch

    class One(torch.nn.Module):
        """A model that returns one of its outputs."""

        def __init__(self, model: Any, output: str):
            super().__init__()
            self.model, self.output = model.eval(), output

        def forward(self, **inputs: Any) -> Any:
            return self.model(**inputs)[self.output]

    _, _, port_class, output = (JIMM | ZOO | DIFFUSERS)[name]
    model, rng = original(name, {}), np.random.default_rng(0)
    with tempfile.TemporaryDirectory(prefix="lockstep-") as folder:
        model.save_pretrained(folder, safe_serialization=package(name) != "diffusers")
        port, inputs, theirs = LOADERS[package(name)](port_class, folder, rng)
    return One(model, output), port, inputs, theirs


def original(name: str, changed: dict[str, Any]) -> Any:
    """The original of a pair, with some settings changed; ``edit`` is a function that changes the model."""
    import torch

    model_class, settings, _, _ = (JIMM | ZOO | DIFFUSERS)[name]
    edit = changed.get("edit", lambda model: None)
    settings = settings | {key: value for key, value in changed.items() if key != "edit"}
    torch.manual_seed(0)
    if name in DIFFUSERS:
        import diffusers  # pyright: ignore[reportMissingImports]

        model = getattr(diffusers, model_class)(**settings)
    else:
        import transformers  # pyright: ignore[reportMissingImports]

        made = getattr(transformers, model_class)
        model = made(made.config_class(**settings))
    edit(stir(model))
    return model


def outputs(name: str, changed: dict[str, Any], given: dict[str, Any]) -> tuple[dict, dict]:
    """Both models' outputs in float32; the port has the weights that it read itself."""
    import jax
    import jax.numpy as jnp
    import torch

    reference, port, inputs, theirs = build(name)
    weights, reference.model = reference.model.state_dict(), original(name, changed).eval()
    reference.model.load_state_dict(weights)
    with torch.no_grad():
        found = reference(**{key: torch.from_numpy(value) for key, value in (inputs | given).items()})
    theirs = jax.tree.map(jnp.asarray, theirs)
    args, kwargs = ((), theirs) if isinstance(theirs, dict) else (theirs, {})
    if package(name) == "jimm":
        out = port(*args)
    elif package(name) == "eqx_zoo":
        out = port.f(port.params, *args)
    else:
        out = port.module.apply(port.variables, **kwargs).sample
    return {"": found}, {"": out}


def _load_jimm(port_class: str, folder: str, rng: np.random.Generator) -> tuple[Any, dict[str, Any], Any]:
    import jax
    import jimm.models  # pyright: ignore[reportMissingImports]
    from jimm.common.sharding import NoSharding  # pyright: ignore[reportMissingImports]

    jax.set_mesh(jax.make_mesh((1,), ("fsdp",), (jax.sharding.AxisType.Explicit,)))  # jimm asks for one
    port = getattr(jimm.models, port_class).from_pretrained(folder, sharding=NoSharding())
    image = rng.standard_normal((BATCH, 3, SIDE, SIDE)).astype(np.float32)
    text = rng.integers(5, VOCABULARY - 1, (BATCH, TOKENS))
    text[:, -1] = VOCABULARY - 1  # the end of the text
    inputs = {"pixel_values": image, "input_ids": text}
    theirs: tuple = (np.moveaxis(image, 1, -1), text)
    if port_class not in ("CLIP", "SigLIP"):
        return port, {"pixel_values": image}, theirs[:1]
    return port, inputs, theirs


def _load_zoo(port_class: str, folder: str, rng: np.random.Generator) -> tuple[Any, dict[str, Any], Any]:
    import eqx_zoo  # pyright: ignore[reportMissingImports]
    import jax.numpy as jnp

    import lockstep

    def run(model: Any, tokens: Any) -> Any:
        rows = [model(row) for row in tokens]  # JAX cannot vmap the experts
        return jnp.stack([row[0] if isinstance(row, tuple) else row for row in rows])

    tokens = rng.integers(5, VOCABULARY, (BATCH, TOKENS))
    port = lockstep.function(run, getattr(eqx_zoo, port_class).from_pretrained(folder))
    return port, {"input_ids": tokens}, (tokens,)


def _load_diffusers(
    port_class: str, folder: str, rng: np.random.Generator
) -> tuple[Any, dict[str, Any], Any]:
    import diffusers  # pyright: ignore[reportMissingImports]

    import lockstep

    module, params = getattr(diffusers, port_class).from_pretrained(folder, from_pt=True)
    port = partial(lockstep.linen, module, {"params": params})
    if port_class == "FlaxAutoencoderKL":
        image = rng.standard_normal((BATCH, 3, SIDE, SIDE)).astype(np.float32)
        return port(), {"sample": image}, {"sample": image}
    inputs = {
        "sample": rng.standard_normal((BATCH, 4, 8, 8)).astype(np.float32),
        "timestep": np.array([3, 700]),
        "encoder_hidden_states": rng.standard_normal((BATCH, TOKENS, 24)).astype(np.float32),
    }
    theirs = {"timesteps" if key == "timestep" else key: value for key, value in inputs.items()}
    return port(), inputs, theirs


LOADERS: dict[str, Callable[[str, str, np.random.Generator], tuple[Any, dict[str, Any], Any]]] = {
    "jimm": _load_jimm,
    "eqx_zoo": _load_zoo,
    "diffusers": _load_diffusers,
}
