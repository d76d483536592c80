"""Models in diffusers' pipelines, beside our own sampling of them."""

import numpy as np
from diffusers import DiffusionPipeline

from ldm.diffusion.noise import IndexedNoise


def node(name, **options):
    return {"_target_": f"ldm.diffusion.{name}", **options}


def objective(path, parameterization, **more):
    rest = {"weighting": node("weighting.Unweighted"), "time_sampler": node("times.Uniform")}
    return {"path": path, "parameterization": parameterization, **rest, **more}


LDM = node("path.BetaTablePath", schedule="scaled_linear", num_steps=1000, beta_start=0.0015, beta_end=0.0195)
LINEAR, EDM = node("path.LinearPath"), node("path.VEPath", sigma_max=80.0)
FLOW = objective(LINEAR, "velocity")


def pipeline(folder, **options):
    pipe = DiffusionPipeline.from_pretrained(folder, custom_pipeline=str(folder), trust_remote_code=True, **options)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def noise(model, n=3):
    return IndexedNoise(0, range(n)).draw(model.latent_shape)


def assert_same(model, pipe, sampler, grid, guidance=2.0, steps=8, tolerance=1e-5, path=None):
    generator = model.generator(sampler=sampler, grid=grid, steps=steps, guidance=guidance, path=path)
    ours, record = generator.latents(range(3), model.in_turn(None, 3))
    options = {"guidance_scale": guidance, "num_inference_steps": steps, "latents": noise(model)}
    theirs = pipe(output_type="latent", **options).images
    assert (ours - theirs).norm() <= tolerance * ours.norm()
    pictures = np.stack([np.asarray(image) for image in pipe(["cat", 1, "emu"], **options).images])
    assert np.abs(model.decode(ours).permute(0, 2, 3, 1).numpy().astype(int) - pictures).max() <= 1
    return record
