"""A whole model in diffusers: its own classes and schedulers, from the same noise, end where our samplers end."""

import json
from functools import partial

import pytest
import torch
from diffusers import DDPMScheduler, EulerDiscreteScheduler
from support.pipelines import EDM, FLOW, LDM, LINEAR, assert_same, node, noise, objective, pipeline
from support.tiny import fails
from support.whole_models import load, write_model

from ldm.diffusion.times import shifted_grid
from ldm.exchange.pipeline_folder import PipelineExport
from ldm.generate.model import LatentDiffusionModel
from ldm.images import to_x

MODELS = {  # objective; scheduler; ours: sampler and grid
    "flow": (FLOW, None, "euler", "uniform"),
    "ddpm by dpm++": (objective(LDM, "eps"), "dpmpp_2m", "dpmpp_2m", "uniform"),
    "ddpm by ddim": (objective(LDM, "eps"), "ddim", "ddim", "uniform"),
    "x0": (objective(LDM, "x0"), None, "ddim", "uniform"),
    "linear betas": (objective(LDM | {"schedule": "linear"}, "v"), "dpmpp_2m", "dpmpp_2m", "uniform"),
    "cosine betas": (objective(LDM | {"schedule": "cosine"}, "v"), "ddim", "ddim", "uniform"),
    "no signal at the end": (objective(LDM | {"zero_terminal_snr": True}, "v"), None, "ddim", "uniform"),
    "cosine path": (objective(node("path.CosinePath"), "v"), None, "ddim", "uniform"),
    "shifted cosine": (
        objective(node("path.Shifted", path=node("path.CosinePath"), shift=2.0), "v"), None, "ddim", "uniform"
    ),
    "vp": (objective(node("path.VPPath"), "eps"), "ddim", "ddim", "uniform"),
    "edm by euler": (objective(EDM, "v", unit_input=True), "euler", "euler", "karras"),
    "edm by dpm++": (objective(EDM, "v", unit_input=True), "dpmpp_2m", "dpmpp_2m", "karras"),
    "edm by heun": (objective(EDM, "v", unit_input=True), "heun", "heun", "karras"),
}  # fmt: skip
NETS = {
    "label as context": {"context_dim": 24, "label_as": "context"},
    "heads by number": {"head_channels": None, "num_heads": 4, "attention_resolutions": [1, 2]},
    "groups of any width": {"model_channels": 24, "head_channels": 12},
    "adm": {"scale_shift": True, "resblock_updown": True, "time_offset": 1.0},
    "adm, groups of any width": {"scale_shift": True, "model_channels": 24, "head_channels": 12},
}


def exported(tmp_path, objective, scheduler=None, sampling=None, **net):
    """Our model, and diffusers' pipeline of it."""
    loaded, autoencoder = load(write_model(tmp_path, objective, sampling or {}, **net))
    PipelineExport.of(loaded, autoencoder, scheduler).write(tmp_path / "out")
    return LatentDiffusionModel.of(loaded, autoencoder, torch.device("cpu")), pipeline(tmp_path / "out")


@pytest.mark.parametrize("name", MODELS)
def test_every_path_ends_where_ours_does(name, tmp_path):
    objective, scheduler, sampler, grid = MODELS[name]
    model, pipe = exported(tmp_path, objective, scheduler)
    # Heun's last step is of order 2 here, Euler's there: from sigma = 0.002, where that says little
    assert_same(model, pipe, sampler, grid, tolerance=5e-5 if sampler == "heun" else 1e-5)


@pytest.mark.parametrize("name", NETS)
def test_every_network_computes_the_same(name, tmp_path):
    model, pipe = exported(tmp_path, FLOW, **NETS[name])
    for guidance in (1.0, 2.0):
        assert_same(model, pipe, "euler", "uniform", guidance, steps=4)


def test_a_whitening_is_in_the_autoencoders_weights(tmp_path):
    model, pipe = exported(tmp_path, FLOW, whitening=[[1.3, -0.5], [-0.5, 1.1]])
    assert_same(model, pipe, "euler", "uniform", steps=4)
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    posterior = pipe.vae.encode(to_x(images)).latent_dist
    torch.testing.assert_close(posterior.mean, model.encode(images), rtol=1e-4, atol=1e-5)
    assert posterior.std.max() < 1e-6


def test_a_shifted_grid_is_the_schedulers_shift(tmp_path):
    grid = node("times.shifted_grid", _partial_=True, shift=3.0)
    model, pipe = exported(tmp_path, FLOW, sampling={"grid": grid})
    assert pipe.scheduler.config.shift == 3.0
    assert_same(model, pipe, "euler", None)


def test_a_shifted_path_is_walked_in_sigma(tmp_path):
    """diffusers' Euler takes its steps in sigma: as ours on the straight path itself, by a shifted grid."""
    path, shift = node("path.Shifted", path=LINEAR, shift=2.5), partial(shifted_grid, shift=2.5)
    model, pipe = exported(tmp_path, objective(path, "velocity"))
    assert_same(model, pipe, "euler", shift, path="linear")


def test_the_last_beta_of_a_path_that_ends_in_noise_is_one(tmp_path):
    _, pipe = exported(tmp_path, *MODELS["cosine path"][:2])
    assert pipe.scheduler.config.trained_betas[-1] == pytest.approx(1.0, abs=1e-6)


def test_other_schedulers_of_diffusers_fit_in(tmp_path):
    """Those for tables of betas, by diffusers' own way of exchanging them; of Euler in sigma what our solver makes of
    the same ODE in many steps."""
    model, pipe = exported(tmp_path, objective(LDM, "eps"))
    exact, _ = model.generator(sampler="rk4", steps=100, guidance=1.0).latents(range(3), model.in_turn(None, 3))
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    theirs = pipe(guidance_scale=1.0, num_inference_steps=500, latents=noise(model), output_type="latent").images
    assert (theirs - exact).norm() <= 0.02 * exact.norm()
    pipe.scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
    one, same, other = (
        pipe("cat", num_inference_steps=5, generator=torch.manual_seed(seed), output_type="pt").images
        for seed in (0, 0, 1)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_flow_by_heun_is_near_to_the_ode(tmp_path):
    model, pipe = exported(tmp_path, FLOW, "heun")
    exact, _ = model.generator(sampler="rk4", steps=50, guidance=1.0).latents(range(3), model.in_turn(None, 3))
    theirs = pipe(guidance_scale=1.0, num_inference_steps=50, latents=noise(model), output_type="latent").images
    assert (theirs - exact).norm() <= 0.005 * exact.norm()


def test_a_generator_each_gives_each_image_its_own_noise(tmp_path):
    _, pipe = exported(tmp_path, FLOW)
    generators = [torch.Generator().manual_seed(seed) for seed in (4, 5)]
    both = pipe(["cat", "dog"], num_inference_steps=3, generator=generators, output_type="pt").images
    alone = pipe("dog", num_inference_steps=3, generator=torch.Generator().manual_seed(5), output_type="pt").images
    torch.testing.assert_close(both[1:], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ({"classes": ["cow"]}, "must name some of 0 ... 2 or of their names"),
        ({"classes": [3]}, "must name some of 0 ... 2"),
        ({"classes": []}, "must name some of"),
        ({"classes": [True]}, "must name some of"),
        ({"latents": torch.zeros(3, 2, 4, 4)}, r"latents are \[3, 2, 4, 4\], and should be \[3, 2, 8, 8\]"),
    ],
)
def test_what_the_pipeline_refuses(call, said, tmp_path):
    _, pipe = exported(tmp_path, FLOW)
    with pytest.raises(ValueError, match=said):
        pipe(**call)


def test_a_model_that_never_missed_its_labels_is_not_guided(tmp_path):
    _, pipe = exported(tmp_path, FLOW)
    pipe.register_to_config(guidable=False)
    with pytest.raises(ValueError, match="never trained without labels: pass guidance_scale=1"):
        pipe(guidance_scale=2.0)


@pytest.mark.parametrize(
    ("objective", "scheduler", "net", "said"),
    [
        (objective(LDM, "velocity"), None, {}, "no scheduler for parameterization=velocity on a path of betas"),
        (objective(LINEAR, "v"), None, {}, "no scheduler for parameterization=v on the straight path"),
        (objective(node("path.LinearPath", sigma_min=0.01), "velocity"), None, {}, "it has no sigma_min=0.01"),
        (objective(EDM, "v"), None, {}, "only with parameterization=v and unit_input=true"),
        (objective(node("path.Scaled", path=LINEAR, scale=0.5), "v", unit_input=True), None, {}, "unit_input"),
        (FLOW, "dpmpp_2m", {}, "scheduler=dpmpp_2m: on the straight path diffusers' pipeline has euler, heun"),
        (objective(node("path.CosinePath"), "v"), "dpmpp_2m", {}, "on a path that ends at alpha = 0"),
        (FLOW, None, {"qk_norm": True}, "no place for net.qk_norm=True"),
        (FLOW, None, {"conv_resample": False}, "no place for net.conv_resample=False"),
    ],
)
def test_what_diffusers_has_not_is_refused_by_name(objective, scheduler, net, said, tmp_path):
    loaded, autoencoder = load(write_model(tmp_path, objective, {}, **net))
    with pytest.raises(ValueError, match=said):
        PipelineExport.of(loaded, autoencoder, scheduler)


def test_the_command_and_its_mistakes(ldm, tmp_path):
    run = write_model(tmp_path, FLOW, {})
    ldm("convert", "run=out", f"model={run}", "to=diffusers")
    index = json.loads((tmp_path / "runs/out/model_index.json").read_text())
    assert index["_class_name"] == ["pipeline", "LatentDiffusionPipeline"]
    assert list((tmp_path / "runs/out").rglob("*.bin")) == []
    assert "holds results of model=" in fails("convert", "run=out", "model=elsewhere", "to=diffusers")
    assert "name it by source=" in fails("convert", f"model={run}", "what=diffusion", "to=dit")
    assert "pass model=RUN, which goes out whole, or source=" in fails("convert", "to=diffusers")
    (tmp_path / "runs/theirs").mkdir()
    (tmp_path / "runs/theirs/model_index.json").write_text("{}")
    assert "which no `ldm convert` wrote" in fails("convert", "run=theirs", f"model={run}", "to=diffusers")
    (tmp_path / "ae").rename(tmp_path / "moved")
    assert "pass autoencoder=PATH" in fails("convert", "run=gone", f"model={run}", "to=diffusers")
