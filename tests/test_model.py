"""A trained network, loaded as a person does it, in both frameworks."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch

import jax_impl.model
import torch_impl.model
from recipe.checkpoint import load_checkpoint
from recipe.console import UserError
from recipe.data import MEAN, STD
from recipe.networks import get_network
from recipe.recipes import get_recipe
from tests.helpers import make_trainer


def torch_logits(path, images):
    with torch.no_grad():
        return torch_impl.model.load_model(path)(torch.from_numpy(images[:, None])).numpy()


def flax_logits(path, images):
    return np.asarray(jax_impl.model.load_model(path)(jnp.asarray(images[..., None])))


def test_a_loaded_model_is_the_trained_one(framework, real_runs, digits):
    path = real_runs[framework].checkpoint
    images = ((digits.val_images / 255 - MEAN) / STD).astype(np.float32)
    logits = torch_logits(path, images)
    np.testing.assert_allclose(flax_logits(str(path.parent), images), logits, rtol=0, atol=1e-5)
    network, recipe = get_network("net9954"), get_recipe("net9954", "tuned")
    trainer = make_trainer(framework, network, recipe, digits, "float32")
    trainer.load(load_checkpoint(path).tensors)
    np.testing.assert_allclose(trainer.predict(), logits, rtol=0, atol=1e-5)
    accuracy = (logits.argmax(1) == digits.val_labels).mean()
    assert accuracy == load_checkpoint(path).metrics[-1].val_accuracy
    assert np.abs(logits).max() > 0.1


@pytest.mark.parametrize("package", [torch_impl.model, jax_impl.model])
def test_a_wrong_path_is_a_user_error(package, tmp_path):
    for path in (tmp_path, str(tmp_path / "none")):
        with pytest.raises(UserError, match="there is no checkpoint"):
            package.load_model(path)
    (tmp_path / "checkpoint.safetensors").write_text("text")
    with pytest.raises(UserError, match=r"checkpoint\.safetensors is no"):
        package.load_model(str(tmp_path))
