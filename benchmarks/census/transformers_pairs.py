"""transformers' models that exist in PyTorch and in Flax (Linen), in tiny configurations with random weights.

transformers 4.57.6 is the last version with Flax models. Nothing is downloaded.
"""

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

BATCH, TOKENS, TARGETS, VOCABULARY = 2, 7, 5, 50

ENCODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 20,
}
SEQUENCE = {
    "vocab_size": VOCABULARY,
    "d_model": 24,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 3,
    "decoder_attention_heads": 3,
    "encoder_ffn_dim": 40,
    "decoder_ffn_dim": 40,
    "max_position_embeddings": 20,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
    "use_cache": False,
}
T5 = {
    "vocab_size": VOCABULARY,
    "d_model": 24,
    "d_kv": 8,
    "d_ff": 40,
    "num_layers": 1,
    "num_decoder_layers": 1,
    "num_heads": 3,
    "use_cache": False,
    "decoder_start_token_id": 0,
}
GPT2 = {
    "vocab_size": VOCABULARY,
    "n_embd": 24,
    "n_layer": 2,
    "n_head": 3,
    "n_positions": 20,
    "use_cache": False,
}
LLAMA = ENCODER | {"num_attention_heads": 4, "num_key_value_heads": 2, "use_cache": False}
VISION = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "image_size": 16,
    "patch_size": 4,
}
RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 2]}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 10,
}
PADDED = {"pad_token_id": 1}
BEIT = VISION | {"use_mask_token": False}
DISTIL = {
    "vocab_size": VOCABULARY,
    "dim": 24,
    "n_layers": 2,
    "n_heads": 3,
    "hidden_dim": 40,
    "max_position_embeddings": 20,
}
WHISPER = {key: value for key, value in SEQUENCE.items() if key != "max_position_embeddings"} | {
    "num_mel_bins": 8,
    "max_source_positions": 10,
    "max_target_positions": 12,
}
WAV2VEC2 = {
    "vocab_size": VOCABULARY,
    "hidden_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "conv_dim": (16, 16),
    "conv_stride": (3, 2),
    "conv_kernel": (5, 3),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "do_stable_layer_norm": True,
    "feat_extract_norm": "layer",
    "mask_time_prob": 0.0,
}


def _text(rng: np.random.Generator) -> dict[str, np.ndarray]:
    mask = np.ones((BATCH, TOKENS), np.int64)
    mask[1, 5:] = 0  # the second text is shorter
    return {"input_ids": rng.integers(5, VOCABULARY, (BATCH, TOKENS)), "attention_mask": mask}


def _sequences(rng: np.random.Generator) -> dict[str, np.ndarray]:
    return _text(rng) | {"decoder_input_ids": rng.integers(5, VOCABULARY, (BATCH, TARGETS))}


def _image(rng: np.random.Generator, side: int = VISION["image_size"]) -> dict[str, np.ndarray]:
    return {"pixel_values": rng.standard_normal((BATCH, 3, side, side)).astype(np.float32)}


def _sound(rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {"input_values": rng.standard_normal((BATCH, 100)).astype(np.float32)}


def _spectrogram(rng: np.random.Generator) -> dict[str, np.ndarray]:
    features = rng.standard_normal((BATCH, 8, 20)).astype(np.float32)
    return {"input_features": features, "decoder_input_ids": _sequences(rng)["decoder_input_ids"]}


def _both(rng: np.random.Generator) -> dict[str, np.ndarray]:
    return _text(rng) | _image(rng)


Inputs = Callable[[np.random.Generator], dict[str, np.ndarray]]

# Family: inputs, configuration, and of each pair the class (Flax's has Flax before it) and its own settings.
FAMILIES: dict[str, tuple[Inputs, dict[str, Any], dict[str, tuple[str, dict[str, Any]]]]] = {
    "Bert": (
        _text,
        ENCODER,
        {
            "bert": ("BertModel", {}),
            "bert_pretraining": ("BertForPreTraining", {}),
            "bert_mlm": ("BertForMaskedLM", {}),
            "bert_nsp": ("BertForNextSentencePrediction", {}),
            "bert_cls": ("BertForSequenceClassification", {}),
            "bert_tokens": ("BertForTokenClassification", {}),
            "bert_qa": ("BertForQuestionAnswering", {}),
            "bert_relu": ("BertModel", {"hidden_act": "relu"}),
        },
    ),
    "Roberta": (
        _text,
        ENCODER | PADDED,
        {
            "roberta": ("RobertaModel", {}),
            "roberta_mlm": ("RobertaForMaskedLM", {}),
            "roberta_cls": ("RobertaForSequenceClassification", {}),
        },
    ),
    "RobertaPreLayerNorm": (
        _text,
        ENCODER | PADDED,
        {
            "roberta_prelayernorm": ("RobertaPreLayerNormModel", {}),
            "roberta_prelayernorm_mlm": ("RobertaPreLayerNormForMaskedLM", {}),
        },
    ),
    "XLMRoberta": (_text, ENCODER | PADDED, {"xlm_roberta": ("XLMRobertaModel", {})}),
    "Albert": (
        _text,
        ENCODER | {"embedding_size": 16},
        {
            "albert": ("AlbertModel", {}),
            "albert_mlm": ("AlbertForMaskedLM", {}),
            "albert_groups": ("AlbertModel", {"num_hidden_groups": 2}),
        },
    ),
    "DistilBert": (
        _text,
        DISTIL,
        {
            "distilbert": ("DistilBertModel", {}),
            "distilbert_mlm": ("DistilBertForMaskedLM", {}),
            "distilbert_sines": ("DistilBertModel", {"sinusoidal_pos_embds": True}),
        },
    ),
    "Electra": (
        _text,
        ENCODER | {"embedding_size": 16},
        {
            "electra": ("ElectraModel", {}),
            "electra_pretraining": ("ElectraForPreTraining", {}),
            "electra_mlm": ("ElectraForMaskedLM", {}),
            "electra_cls": ("ElectraForSequenceClassification", {}),
        },
    ),
    "BigBird": (
        _text,
        ENCODER | {"attention_type": "original_full"},
        {"big_bird": ("BigBirdModel", {}), "big_bird_mlm": ("BigBirdForMaskedLM", {})},
    ),
    "RoFormer": (
        _text,
        ENCODER,
        {
            "roformer": ("RoFormerModel", {"embedding_size": 24}),
            "roformer_mlm": ("RoFormerForMaskedLM", {"embedding_size": 16}),
            "roformer_values": ("RoFormerModel", {"embedding_size": 24, "rotary_value": True}),
        },
    ),
    "GPT2": (
        _text,
        GPT2,
        {
            "gpt2": ("GPT2Model", {}),
            "gpt2_lm": ("GPT2LMHeadModel", {}),
            "gpt2_by_layer": ("GPT2Model", {"scale_attn_by_inverse_layer_idx": True}),
        },
    ),
    "GPTNeo": (
        _text,
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 24,
            "num_layers": 2,
            "num_heads": 3,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 4,
            "max_position_embeddings": 20,
            "use_cache": False,
        },
        {"gpt_neo": ("GPTNeoModel", {}), "gpt_neo_lm": ("GPTNeoForCausalLM", {})},
    ),
    "GPTJ": (
        _text,
        GPT2 | {"rotary_dim": 4},
        {"gptj": ("GPTJModel", {}), "gptj_lm": ("GPTJForCausalLM", {})},
    ),
    "Bloom": (
        _text,
        {"vocab_size": VOCABULARY, "hidden_size": 24, "n_layer": 2, "n_head": 4, "use_cache": False},
        {
            "bloom": ("BloomModel", {}),
            "bloom_3_heads": ("BloomModel", {"n_head": 3}),  # ALiBi's slopes have a case for no power of two
            "bloom_lm": ("BloomForCausalLM", {}),
        },
    ),
    "OPT": (
        _text,
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "ffn_dim": 40,
            "max_position_embeddings": 20,
            "word_embed_proj_dim": 24,
            "use_cache": False,
        },
        {
            "opt": ("OPTModel", {}),
            "opt_projection": ("OPTModel", {"word_embed_proj_dim": 16}),
            "opt_lm": ("OPTForCausalLM", {}),
        },
    ),
    "XGLM": (
        _text,
        {
            "vocab_size": VOCABULARY,
            "d_model": 24,
            "num_layers": 2,
            "attention_heads": 3,
            "ffn_dim": 40,
            "max_position_embeddings": 20,
            "use_cache": False,
        },
        {"xglm": ("XGLMModel", {}), "xglm_lm": ("XGLMForCausalLM", {})},
    ),
    "Llama": (
        _text,
        LLAMA,
        {
            "llama": ("LlamaModel", {}),
            "llama_lm": ("LlamaForCausalLM", {}),
            "llama_theta": ("LlamaModel", {"rope_theta": 500_000.0}),
            "llama_scaled": ("LlamaModel", {"rope_scaling": LLAMA3_ROPE}),
            "llama_bias": ("LlamaModel", {"attention_bias": True}),
        },
    ),
    "Mistral": (
        _text,
        LLAMA,
        {
            "mistral": ("MistralModel", {}),
            "mistral_lm": ("MistralForCausalLM", {}),
            "mistral_window": ("MistralModel", {"sliding_window": 3}),
            "mistral_no_window": ("MistralModel", {"sliding_window": None}),
            "mistral_theta": ("MistralModel", {"rope_theta": 1_000_000.0}),
        },
    ),
    "Gemma": (
        _text,
        LLAMA | {"head_dim": 6},
        {
            "gemma": ("GemmaModel", {}),
            "gemma_gelu": ("GemmaModel", {"hidden_act": "gelu"}),  # what old checkpoints say
            "gemma_lm": ("GemmaForCausalLM", {}),
        },
    ),
    "T5": (
        _sequences,
        T5,
        {
            "t5": ("T5Model", {}),
            "t5_gated": ("T5Model", {"feed_forward_proj": "gated-gelu"}),
            "t5_lm": ("T5ForConditionalGeneration", {}),
            "t5_untied": ("T5ForConditionalGeneration", {"tie_word_embeddings": False}),
        },
    ),
    "MT5": (_sequences, T5, {"mt5": ("MT5Model", {})}),
    "LongT5": (
        _sequences,
        T5 | {"local_radius": 3},
        {
            "longt5": ("LongT5Model", {"encoder_attention_type": "local"}),
            "longt5_global": (
                "LongT5Model",
                {"encoder_attention_type": "transient-global", "global_block_size": 2},
            ),
        },
    ),
    "Bart": (
        _sequences,
        SEQUENCE,
        {"bart": ("BartModel", {}), "bart_lm": ("BartForConditionalGeneration", {})},
    ),
    "MBart": (
        _sequences,
        SEQUENCE,
        {"mbart": ("MBartModel", {}), "mbart_lm": ("MBartForConditionalGeneration", {})},
    ),
    "Pegasus": (
        _sequences,
        SEQUENCE,
        {"pegasus": ("PegasusModel", {}), "pegasus_lm": ("PegasusForConditionalGeneration", {})},
    ),
    "Marian": (_sequences, SEQUENCE, {"marian": ("MarianModel", {}), "marian_lm": ("MarianMTModel", {})}),
    "Blenderbot": (_sequences, SEQUENCE, {"blenderbot": ("BlenderbotModel", {})}),
    "BlenderbotSmall": (_sequences, SEQUENCE, {"blenderbot_small": ("BlenderbotSmallModel", {})}),
    "Whisper": (
        _spectrogram,
        WHISPER,
        {"whisper": ("WhisperModel", {}), "whisper_lm": ("WhisperForConditionalGeneration", {})},
    ),
    "Wav2Vec2": (
        _sound,
        WAV2VEC2,
        {"wav2vec2": ("Wav2Vec2Model", {}), "wav2vec2_ctc": ("Wav2Vec2ForCTC", {})},
    ),
    "ViT": (
        _image,
        VISION,
        {"vit": ("ViTModel", {}), "vit_cls": ("ViTForImageClassification", {})},
    ),
    "Beit": (
        _image,
        BEIT,
        {
            "beit": ("BeitModel", {"use_relative_position_bias": True}),
            "beit_cls": ("BeitForImageClassification", {"use_shared_relative_position_bias": True}),
        },
    ),
    "Dinov2": (
        _image,
        VISION | {"mlp_ratio": 2},
        {"dinov2": ("Dinov2Model", {}), "dinov2_cls": ("Dinov2ForImageClassification", {})},
    ),
    "ResNet": (
        partial(_image, side=32),
        RESNET,
        {
            "resnet": ("ResNetModel", {"layer_type": "basic"}),
            "resnet_bottleneck": ("ResNetForImageClassification", {"layer_type": "bottleneck"}),
        },
    ),
    "RegNet": (
        partial(_image, side=32),
        RESNET | {"groups_width": 4},
        {"regnet": ("RegNetModel", {"layer_type": "y"}), "regnet_x": ("RegNetModel", {"layer_type": "x"})},
    ),
    "CLIP": (
        _both,
        {
            "text_config": ENCODER | {"num_hidden_layers": 1, "eos_token_id": 49, "hidden_act": "quick_gelu"},
            "vision_config": VISION | {"num_hidden_layers": 1},
            "projection_dim": 16,
        },
        {"clip": ("CLIPModel", {})},
    ),
    "CLIPText": (_text, ENCODER | {"eos_token_id": 49}, {"clip_text": ("CLIPTextModel", {})}),
    "CLIPVision": (_image, VISION, {"clip_vision": ("CLIPVisionModel", {})}),
}

# The shape that a Flax model is initialised with, where its own default does not fit these configurations.
FLAX_SHAPES = {"Wav2Vec2": (1, 100), "Whisper": (1, 8, 20)}


def names() -> Iterator[str]:
    """Each pair's name."""
    for _, _, models in FAMILIES.values():
        yield from models


def package(_: str) -> str:
    """The package of a pair's port."""
    return "transformers"


def flavour(_: str) -> str:
    """The library of a pair's port."""
    return "Flax Linen"


def build(name: str) -> tuple[Any, Any, dict[str, np.ndarray], None]:
    """PyTorch's model, Flax's with its parameters, and inputs; float32, in evaluation mode."""
    reference, flax_class, shape, inputs = _make(name, {})
    return reference, flax_class(reference.config, **shape), inputs, None


def outputs(name: str, changed: dict[str, Any], given: dict[str, Any]) -> tuple[dict, dict]:
    """Both models' outputs in float32; the port has the weights that transformers itself converts.

    Args:
        name: of the pair.
        changed: settings of the original.
        given: further inputs of both.
    """
    import torch

    reference, flax_class, shape, inputs = _make(name, changed)
    config = _make(name, {})[0].config if changed else reference.config
    with tempfile.TemporaryDirectory(prefix="lockstep-") as folder:
        reference.save_pretrained(folder)
        port = flax_class.from_pretrained(folder, config=config, from_pt=True, **shape)
    inputs |= given
    with torch.no_grad():
        found = reference(**{key: torch.from_numpy(value) for key, value in inputs.items()})
    return dict(found), dict(port(**inputs))


def _make(name: str, changed: dict[str, Any]) -> tuple[Any, Any, dict[str, Any], dict[str, np.ndarray]]:
    """PyTorch's model with some settings changed, Flax's class, the shape that it asks for, and inputs."""
    import torch
    import transformers  # pyright: ignore[reportMissingImports]

    _restore_clip()
    family, (inputs, shared, models) = next(item for item in FAMILIES.items() if name in item[1][2])
    model_class, own = models[name]
    config = getattr(transformers, f"{family}Config")(**shared | own | changed)
    given = inputs(np.random.default_rng(0))
    shape = FLAX_SHAPES.get(family)
    if shape is None and given.keys() == {"pixel_values"}:
        _, channels, height, width = given["pixel_values"].shape
        shape = (1, height, width, channels)
    torch.manual_seed(0)
    reference = stir(getattr(transformers, model_class)(config).eval())
    flax_class = getattr(transformers, f"Flax{model_class}")
    return reference, flax_class, {"input_shape": shape} if shape else {}, given


def stir(model: Any) -> Any:
    """Give every parameter and running statistic random numbers: zeros and ones hide differences."""
    import torch

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                parameter.add_(0.3 * noise)
            elif parameter.std() < 0.05:
                parameter.copy_(0.2 * noise)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.3 * torch.randn(buffer.shape, generator=generator))
            elif name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
    return model


def _restore_clip() -> None:
    """Let jnp.clip take the names a_min and a_max, which FlaxT5 uses and JAX has dropped."""
    import jax.numpy as jnp

    if getattr(jnp.clip, "old_names", False):
        return
    clip = jnp.clip

    def clip_by_old_names(
        arr: Any = None, min: Any = None, max: Any = None, *, a_min: Any = None, a_max: Any = None
    ) -> Any:
        return clip(arr, a_min if min is None else min, a_max if max is None else max)

    clip_by_old_names.old_names = True  # type: ignore[attr-defined]
    jnp.clip = clip_by_old_names
