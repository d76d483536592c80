"""Students in diffusers: the pipeline carries a scheduler that jumps, and what their U-Net is told further."""

import json
from functools import partial
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from support.pipelines import EDM, FLOW, LDM, LINEAR, assert_same, node, noise, objective, pipeline
from support.tiny import fails
from support.whole_models import load, write_model

from ldm.diffusion.samplers import jump
from ldm.diffusion.times import shifted_grid, uniform_grid
from ldm.exchange.pipeline_folder import PipelineExport
from ldm.generate.model import LatentDiffusionModel

MEANFLOW = objective(LINEAR, "velocity", average=True)
COSINE = objective(node("path.CosinePath"), "v")
JUMP = {"function": node("samplers.jump", _partial_=True), "steps": 2}
RENOISED = {"function": node("samplers.jump", _partial_=True, renoise=True), "steps": 2}
TOLD: dict[str, Any] = {"method": {}, "teacher": None, "teacher_path": None, "guidance": 1.0, "guidance_max": 4.0}
STUDENTS = {  # objective, sampling, student, network; our sampler, grid
    "meanflow": (MEANFLOW, JUMP, None, {"second_time": True}, jump, "uniform"),
    "meanflow by euler": (MEANFLOW, {}, None, {"second_time": True}, "euler", "uniform"),
    "meanflow, shifted": (
        MEANFLOW, JUMP | {"grid": node("times.shifted_grid", _partial_=True, shift=2.0)}, None, {"second_time": True},
        jump, partial(shifted_grid, shift=2.0),
    ),
    "consistency": (COSINE, JUMP, None, {}, jump, "uniform"),
    "consistency, told": (COSINE, JUMP, TOLD, {"takes_guidance": True}, jump, "uniform"),
    "progressive, told": (COSINE, {}, TOLD, {"takes_guidance": True}, "ddim", "uniform"),
    "both": (MEANFLOW, JUMP, TOLD, {"second_time": True, "takes_guidance": True}, jump, "uniform"),
}  # fmt: skip


def exported(tmp_path, objective, sampling, student=None, **net):
    loaded, autoencoder = load(write_model(tmp_path, objective, sampling, student, **net))
    PipelineExport.of(loaded, autoencoder, None).write(tmp_path / "out")
    return LatentDiffusionModel.of(loaded, autoencoder, torch.device("cpu")), pipeline(tmp_path / "out")


@pytest.mark.parametrize("name", STUDENTS)
@pytest.mark.parametrize("steps", [1, 4])
def test_a_student_ends_where_ours_does(name, steps, tmp_path):
    objective, sampling, student, net, sampler, grid = STUDENTS[name]
    model, pipe = exported(tmp_path, objective, sampling, student, **net)
    assert_same(model, pipe, sampler, grid, guidance=2.0, steps=steps)


@pytest.mark.parametrize(("objective", "net"), [(MEANFLOW, {"second_time": True}), (COSINE, {})])
def test_renoising_draws_from_the_generator(objective, net, tmp_path):
    model, pipe = exported(tmp_path, objective, RENOISED, **net)
    assert pipe.scheduler.config.renoise
    generator = torch.manual_seed(3)
    labels, start = model.in_turn(None, 3), noise(model)
    denoise = model.objective.denoiser(model.net, labels)
    path = model.objective.path
    with torch.no_grad():
        ours = jump(
            denoise, path, start, uniform_grid(path, 4, 1.0), renoise=True,
            noise=lambda x: torch.randn(x.shape, generator=generator),
        )  # fmt: skip
    options = {"guidance_scale": 1.0, "num_inference_steps": 4, "latents": start, "output_type": "latent"}
    theirs = pipe(generator=torch.manual_seed(3), **options).images
    assert (ours - theirs).norm() <= 1e-5 * ours.norm()
    again = pipe(generator=torch.manual_seed(4), **options).images
    assert (ours - again).norm() > 0.01 * ours.norm()


def test_an_export_can_be_saved_again_and_its_scheduler_exchanged(tmp_path):
    model, pipe = exported(tmp_path, MEANFLOW, JUMP, TOLD, second_time=True, takes_guidance=True)
    pipe.save_pretrained(tmp_path / "again")
    for name in ("scheduler/jump_scheduler.py", "further/further_embeddings.py", "pipeline.py"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
    again = pipeline(tmp_path / "again")
    assert_same(model, again, jump, "uniform", guidance=3.0, steps=2)
    again.scheduler = FlowMatchEulerDiscreteScheduler()
    again.register_to_config(clock="sigma")
    assert_same(model, again, "euler", "uniform", guidance=3.0, steps=2)


def test_parts_of_a_pipeline_can_be_shared_and_cast(tmp_path):
    model, pipe = exported(tmp_path, MEANFLOW, JUMP, TOLD, second_time=True, takes_guidance=True)
    shared = type(pipe)(**pipe.components, id2label=pipe.config.id2label, guidance_range=pipe.config.guidance_range)
    shared.set_progress_bar_config(disable=True)
    for each in (pipe, shared):
        assert_same(model, each, jump, "uniform", guidance=3.0, steps=2)
    exact = pipe(latents=noise(model), output_type="latent").images
    pipe.unet.to(torch.bfloat16)
    assert (pipe(latents=noise(model), output_type="latent").images - exact).norm() <= 0.05 * exact.norm()


def test_a_student_is_asked_at_the_times_that_it_knows(tmp_path):
    """Multiples of 1 / N: a table that we make for diffusers has a multiple of N timesteps; another may not."""
    taught = TOLD | {"method": {"steps": 3}, "guidance_max": None}
    model, pipe = exported(tmp_path / "cosine", COSINE, {"steps": 3}, taught)
    assert pipe.scheduler.config.num_train_timesteps == 999
    assert_same(model, pipe, "ddim", "uniform", guidance=1.0, steps=3)
    loaded, autoencoder = load(write_model(tmp_path, objective(LDM, "eps"), {}, taught))
    with pytest.raises(ValueError, match="its table of 1000 timesteps is no multiple of 3"):
        PipelineExport.of(loaded, autoencoder, None)


def test_guidance_that_a_student_has_not_learned_is_refused(tmp_path):
    _, pipe = exported(tmp_path, COSINE, JUMP, TOLD, takes_guidance=True)
    with pytest.raises(ValueError, match=r"guidance_scale=5 must lie in \[1, 4\], which it has learned"):
        pipe(guidance_scale=5.0)


@pytest.mark.parametrize(
    ("objective", "sampling", "scheduler", "said"),
    [
        (FLOW, JUMP, None, "jumps by average velocities on the straight path .* or by v on the cosine path alone"),
        (objective(EDM, "v", unit_input=True), JUMP, None, "alone: pass scheduler="),
        (FLOW, {}, "jump", "alone: pass scheduler="),
        (
            COSINE, JUMP | {"grid": node("times.log_snr_grid", _partial_=True)}, None,
            "jumps along grid=uniform or shifted, not log_snr_grid",
        ),
    ],
)  # fmt: skip
def test_other_jumps_are_refused_by_name(objective, sampling, scheduler, said, tmp_path):
    loaded, autoencoder = load(write_model(tmp_path, objective, sampling))
    with pytest.raises(ValueError, match=said):
        PipelineExport.of(loaded, autoencoder, scheduler)


def test_the_command(ldm, tmp_path):
    run = write_model(tmp_path, MEANFLOW, JUMP, None, second_time=True)
    ldm("convert", "run=out", f"model={run}", "to=diffusers")
    index = json.loads((tmp_path / "runs/out/model_index.json").read_text())
    assert index["scheduler"] == ["jump_scheduler", "JumpScheduler"]
    assert "jump_scheduler.py" in (tmp_path / "runs/out/README.md").read_text()
    said = fails("convert", "run=unet", f"source={run}", "what=diffusion", "to=diffusers")
    assert "no place for this U-Net's second_time: export the whole model, by model=RUN" in said
