"""Every file of conf/ composes, and what it names can be built."""

import re
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from ldm.command import build, plain
from ldm.diffusion.objective import Objective
from ldm.diffusion.path import CosinePath
from ldm.losses.autoencoder import AutoencoderLoss
from ldm.models.autoencoder import Autoencoder
from ldm.models.discriminator import PatchDiscriminator
from ldm.training.speed import forward_flops

CONF = Path(__file__).parents[1] / "conf"


def options(group):
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def composed(primary, *overrides):
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose(primary, [*overrides])
    return config


@pytest.mark.parametrize("name", options("objective"))
def test_objectives(name):
    Objective(**build(composed("train_diffusion", f"objective={name}").objective))


def test_flow_and_ddpm_differ_in_the_objective_only():
    flow, ddpm = (plain(composed("train_diffusion", f"objective={name}")) for name in ("flow", "ddpm"))
    assert [key for key in flow if flow[key] != ddpm[key]] == ["objective"]


@pytest.mark.parametrize("name", options("net"))
def test_nets(name):
    net = plain(composed("train_diffusion", f"net={name}").net) | {"in_channels": 4, "num_classes": 3}
    with torch.device("meta"):
        assert build(OmegaConf.create(net)).null_class == 3


@pytest.mark.parametrize("name", options("vae"))
def test_autoencoders(name):
    with torch.device("meta"):
        Autoencoder(**plain(composed("train_autoencoder", f"vae={name}").vae))


@pytest.mark.parametrize("name", options("loss"))
@pytest.mark.parametrize("regularizer", options("regularizer"))
def test_losses_and_regularizers(name, regularizer):
    overrides = (f"loss={name}", f"regularizer={regularizer}", "loss.perceptual_pretrained=false")
    config = composed("train_autoencoder", *overrides)
    loss = AutoencoderLoss(regularizer=build(config.regularizer), **plain(config.loss))
    assert loss.logvar.requires_grad == (name == "ldm")


@pytest.mark.parametrize("name", options("sampler"))
def test_samplers(name):
    sampler = build(composed("sample", f"sampler={name}").sampler)
    assert sampler["function"].func.__name__ == name
    assert sampler["stochastic"] == ("noise" in sampler["function"].func.__annotations__)


@pytest.mark.parametrize("name", options("grid"))
def test_grids(name):
    times = build(composed("sample", f"grid={name}").grid)(CosinePath(), 5, 1.0)
    assert len(times) == 6


@pytest.mark.parametrize("name", [name for name in options("path") if name != "trained"])
def test_paths_to_sample_on(name):
    c = build(composed("sample", f"path={name}").path)(torch.tensor(0.5))
    assert c.alpha > 0


@pytest.mark.parametrize("name", options("experiment"))
def test_experiments_say_their_command_and_compose(name):
    path = CONF / "experiment" / f"{name}.yaml"
    package, command = path.read_text().splitlines()[:2]
    assert package == "# @package _global_"
    _, ldm, primary, *overrides = command.split("  ")[0].split()
    assert ldm == "ldm"
    assert f"experiment={name}" in overrides
    config = composed(primary.replace("-", "_"), *overrides)
    wanted = {key: value for key, value in OmegaConf.load(path).items() if key not in ("defaults", "data")}
    assert OmegaConf.merge(config, wanted) == config  # nothing in the primary config overrides an experiment
    assert config.steps % config.every == 0
    if "net" in config:
        Objective(**build(config.objective))
        said = re.search(r"(\d+) GFLOP an image trained", path.read_text())
        if said:
            channels, side = (int(n) for n in re.search(r"latents of (\d) x (\d+) x", path.read_text()).groups())
            net = build(OmegaConf.create(plain(config.net) | {"in_channels": channels, "num_classes": 1000}))
            flops = 3 * forward_flops(net, (1, channels, side, side), (1,), None)
            assert int(said.group(1)) == pytest.approx(flops / 1e9, rel=0.01)
    if "vae" in config:
        Autoencoder(**plain(config.vae))
        PatchDiscriminator(**plain(config.discriminator))
        build(config.data)


def test_every_trainer_and_logger_composes():
    for group in ("trainer", "logger"):
        for name in options(group):
            composed("train_diffusion", f"{group}={name}")
