"""Decoding in parts: the same images, and never more of them at once than the bound."""

import torch

from ldm.generate import model as models
from ldm.generate.loading import load_model


def test_latents_are_decoded_a_part_at_a_time(pipeline, monkeypatch):
    model = load_model(pipeline / "runs/diffusion", device="cpu", weights="ema", autoencoder=None, trust=())
    latents = torch.randn(5, *model.latent_shape)
    whole = model.decode(latents)
    sizes = []
    model.autoencoder.decoder.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    monkeypatch.setattr(models, "PIXELS", 2 * model.resolution**2)
    assert (model.decode(latents).int() - whole.int()).abs().max() <= 1
    assert sizes == [2, 2, 1]


def test_a_large_image_is_decoded_alone():
    assert models.decoded_at_once(256) == 8
    assert models.decoded_at_once(2048) == 1
