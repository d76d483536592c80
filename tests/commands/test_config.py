"""Every file of conf/ composes, and what it names can be built."""

import re
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import lightning
import pytest
import torch
from omegaconf import OmegaConf
from support.config import CONF, composed, parsed

from ldm.commands.cli import COMMANDS
from ldm.commands.options import ObjectiveOptions, SamplerOptions, build
from ldm.commands.run_folder import plain
from ldm.diffusion.checks import checked_objective
from ldm.diffusion.path import CosinePath
from ldm.diffusion.sampling import Sampling
from ldm.latents import LatentStats
from ldm.losses.autoencoder_loss import AutoencoderLoss
from ldm.models.autoencoder import Autoencoder
from ldm.models.unet import UNet
from ldm.runtime.arguments import check_node
from ldm.training.contract import supplied
from ldm.training.speed import forward_flops

ROOT = Path(__file__).parents[2]


def options(group):
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


@pytest.mark.parametrize("primary", options("."))
def test_no_key_has_the_name_of_another_commands_group(primary):
    """Hydra takes NAME=VALUE for a choice in conf/NAME wherever that folder exists, whatever the command."""
    keys = OmegaConf.load(CONF / f"{primary}.yaml")
    assert not [key for key in keys if (CONF / key).is_dir() and not OmegaConf.is_dict(keys[key])]


@pytest.mark.parametrize("name", options("objective"))
def test_objectives(name):
    given = ObjectiveOptions.model_validate(plain(composed("train_diffusion", f"objective={name}").objective))
    flow = ObjectiveOptions.model_validate(plain(composed("train_diffusion", "objective=flow").objective)).card()
    objective, sampling = checked_objective(build(given.card(flow, codes=8))), Sampling(**build(given.sampling))
    times = sampling.grid(objective.path, sampling.steps, 1.0)
    if sampling.steps > 4:  # else of a student
        assert objective.path(times[:-1]).sigma[-1] < 0.3  # the last step has little detail still to come
    assert (sampling.steps > 4) == (name not in ("progressive", "reflow", "meanflow", "consistency"))


def test_flow_and_ddpm_differ_in_the_objective_only():
    flow, ddpm = (plain(composed("train_diffusion", f"objective={name}")) for name in ("flow", "ddpm"))
    assert [key for key in flow if flow[key] != ddpm[key]] == ["objective"]


@pytest.mark.parametrize("name", [name for name in options("net") if name != "teacher"])
def test_nets(name):
    net = plain(composed("train_diffusion", f"net={name}").net)
    with torch.device("meta"):
        assert build(OmegaConf.create(net | supplied(net, (4, 32, 32), 3))).null_class == 3


@pytest.mark.parametrize("name", options("ae"))
def test_autoencoders(name):
    with torch.device("meta"):
        Autoencoder(**plain(composed("train_autoencoder", f"ae={name}").autoencoder))


@pytest.mark.parametrize("name", options("loss"))
@pytest.mark.parametrize("regularizer", options("regularizer"))
def test_losses_and_regularizers(name, regularizer):
    overrides = (f"loss={name}", f"regularizer={regularizer}", "loss.perceptual_pretrained=false")
    config = composed("train_autoencoder", *overrides)
    loss = AutoencoderLoss(regularizer=build(config.regularizer), **plain(config.loss))
    assert loss.logvar.requires_grad == (name == "ldm")


@pytest.mark.parametrize("name", options("sampler"))
def test_samplers(name):
    sampler = SamplerOptions.model_validate(plain(composed("sample", f"sampler={name}").sampler))
    if name == "trained":
        assert (sampler.function, sampler.steps) == (None, None)
    else:
        assert build(sampler.function).func.__name__ == name


@pytest.mark.parametrize("name", [name for name in options("grid") if name != "trained"])
def test_grids(name):
    losses = ["grid.losses=[1.0,1.5,1.75,2.0,2.25]"] * (name == "planned")
    assert len(build(check_node(plain(composed("sample", f"grid={name}", *losses).grid)))(CosinePath(), 5, 1.0)) == 6


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
    trained = composed("train_diffusion", *config.train) if primary == "distill" else config
    assert trained.steps % trained.every == 0
    parsed(primary, *overrides)


STAND_INS = ("latents_of", "examples_of", "check_network")
NEED_MORE = re.findall(r"\w+", "convert distill estimate infill pack reconstruct report upscale")  # what they read


@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in NEED_MORE])
def test_the_defaults_are_options(command):
    assert parsed(command).seed == 0


@pytest.mark.parametrize("f", ["f8", "f4"])
def test_the_commands_around_imagenet_compose(f):
    text = (CONF / f"experiment/imagenet256_{f}.yaml").read_text().replace("\\\n#", "")
    commands = [line.split() for line in re.findall(r"^#   ((?:ldm|sbatch) .*)", text, re.MULTILINE)]
    names = []
    for first, *rest in commands:
        overrides = [word for word in rest if "=" in word and not word.startswith("--")]
        (name,) = [rest[0]] if first == "ldm" else [Path(word).stem for word in rest if word.endswith(".sbatch")]
        composed(name.replace("-", "_"), *overrides)
        names.append(name)
    assert names == ["convert", "cache_latents", "train_diffusion", "sample", "evaluate"]


def test_ldms_recipe_is_ldms():
    """As CompVis' autoencoder_kl_32x32x4.yaml, main.py and ldm/models/autoencoder.py have it."""
    config = composed("train_autoencoder", "experiment=ldm_kl_f8", "data.root=x")
    assert (config.ema_decay, config.data.flip, config.loss.learn_logvar, config.init) == (0, False, False, None)
    assert config.lr_per_image * config.batch_size == pytest.approx(2 * 12 * 4.5e-6)  # accumulated x images x base rate
    for optimizer in (config.optimizer, config.disc_optimizer):
        assert (optimizer._target_, optimizer.betas) == ("torch.optim.Adam", [0.5, 0.9])
    assert (
        (config.schedule.warmup, config.schedule.decay)
        == (0, "constant")
        == (
            config.disc_schedule.warmup,
            config.disc_schedule.decay,
        )
    )
    loss = config.loss
    assert (loss.disc_start, loss.disc_weight, loss.perceptual_weight, loss.reduction) == (50001, 0.5, 1.0, "sum")
    assert (config.regularizer.weight, config.trainer.precision) == (1e-6, "32-true")
    for guard in (config.guard, config.disc_guard):
        assert guard.clip is guard.spike is None
    assert (loss.r1, loss.lecam, loss.disc_augment, config.health.rollbacks) == (0, 0, [], 0)


def test_adam_that_steps_on_zeros_is_off_by_as_much_as_the_recipe_says():
    said = (CONF / "experiment/ldm_kl_f8.yaml").read_text().replace("\n# ", " ")
    most, share, after = re.search(r"up to ([\d.]+) times, and within (\d+) % of the rate after (\d+);", said).groups()
    weight = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))
    adam = torch.optim.Adam([weight], lr=1.0, betas=(0.5, 0.9))
    places = [0.0]
    for gradient in [0.0] * 300 + [1.0] * 60:
        weight.grad = torch.full_like(weight, gradient)
        adam.step()
        places.append(weight.item())
    steps = [a - b for a, b in pairwise(places[300:])]  # of 1 where the moments are unbiased
    assert max(steps) == pytest.approx(float(most), abs=0.05)
    assert steps[int(after) - 2] > 1 + float(share) / 100 > steps[int(after) - 1]


def test_every_trainer_and_logger_composes():
    for group in ("trainer", "logger"):
        for name in options(group):
            composed("train_diffusion", f"{group}={name}")


IMAGENET, HELD_OUT = 1_281_167, 50_000
BF16, TF32 = 989e12, 495e12  # an H100's dense peaks


def srun(monkeypatch, nodes, tasks):
    """The environment of rank 0 of a job of so many nodes and tasks a node."""
    job = {"JOB_ID": 1, "STEP_ID": 0, "JOB_NAME": "ldm", "NNODES": nodes, "NTASKS": nodes * tasks}
    rank = {"NTASKS_PER_NODE": tasks, "PROCID": 0, "LOCALID": 0, "NODEID": 0}
    for key, value in (job | rank).items():
        monkeypatch.setenv(f"SLURM_{key}", str(value))


@pytest.fixture
def imagenet(ldm, monkeypatch):
    """f -> what the command of imagenet256_f8 or _f4 hands to Lightning: on the meta device, without a cache."""
    fits, init = [], UNet.__init__

    def init_on_meta(self, **options):
        with torch.device("meta"):
            init(self, **options)

    monkeypatch.setattr(UNet, "__init__", init_on_meta)
    monkeypatch.setattr(lightning.Trainer, "fit", lambda *args, **_: fits.append(args))
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)  # put back: trainer.benchmark sets it

    def start(f):
        shape = plain(composed("train_autoencoder", f"ae=kl_{f}").autoencoder)
        with torch.device("meta"):
            autoencoder = Autoencoder(**shape)
        channels, side = shape["latent_channels"], 256 // autoencoder.downsample_factor
        (folder := Path("latents")).mkdir(exist_ok=True)
        (folder / "manifest.json").write_text("{}")
        cache = SimpleNamespace(
            folder=folder,
            **{"autoencoder": "0123", "stats_card": {}, "preprocessing": {}, "pairs": None, "codes": None},
            stats=LatentStats(torch.zeros(channels), torch.ones(channels)),
            class_names=[f"n{i:08d}" for i in range(1000)],
            latent_shape=(channels, side, side),
            kept=lambda: None,
        )
        loaded = SimpleNamespace(model=autoencoder, fingerprint="0123", path=Path("autoencoder.ckpt"))
        made = (cache, loaded), SimpleNamespace(names=lambda _: []), None  # the last checks values, which meta has not
        for name, each in zip(STAND_INS, made, strict=True):
            monkeypatch.setattr(f"ldm.commands.train_diffusion.{name}", lambda *_, each=each: each)
        ldm("train-diffusion", f"experiment=imagenet256_{f}", "trainer.accelerator=cpu", "optimizer.fused=false")
        trainer, module, data = fits.pop()
        module.trainer = trainer
        module.configure_optimizers()
        return trainer, module, data, autoencoder

    return start


@pytest.mark.parametrize("f", ["f8", "f4"])
def test_imagenet_as_a_lab_would_run_it(imagenet, monkeypatch, f):
    text = " ".join(line.lstrip("# ") for line in (CONF / f"experiment/imagenet256_{f}.yaml").read_text().splitlines())
    script = " ".join(re.findall(r"^#SBATCH (.*)", (ROOT / "jobs/train_diffusion.sbatch").read_text(), re.MULTILINE))

    def said(pattern, where=text):
        return [float(number.replace(",", "")) for number in re.search(pattern, where).groups()]

    # the header's line, with what the script says where the line says nothing
    line = re.search(rf"sbatch ((?:--\S+ )*)jobs/train_diffusion.sbatch experiment=imagenet256_{f} ", text).group(1)
    (nodes,) = said(r"--nodes=(\d+)", f"{line} {script}")
    (tasks,) = said(r"--ntasks-per-node=(\d+)", script)
    assert [nodes, tasks] == said(r"(\d+) nodes? of (\d+) H100")
    srun(monkeypatch, int(nodes), int(tasks))
    trainer, module, data, autoencoder = imagenet(f)

    ranks, steps = trainer.world_size, module.schedules["lr"].steps
    assert ranks == nodes * tasks
    assert [module.global_batch, steps] == said(r"global batch ([\d,]+), ([\d,]+) batches")
    assert trainer.max_epochs * trainer.limit_train_batches == steps
    assert trainer.precision == "bf16-mixed"
    assert data.batch.size == module.batch_size
    assert module.rates == [1e-4]
    assert module.schedules["lr"](steps) == 1
    assert module.net.out[2].weight.is_contiguous(memory_format=torch.channels_last)
    called = {type(callback).__name__: callback for callback in trainer.callbacks}
    assert {"EMA", "Compiled", "Saves"} <= called.keys()
    generator = called["SampleGrid"].generator
    steps_of_sampling = generator.sampling.steps

    # the cost follows from one assumption, which docs/scale.md and the jobs share
    (share,) = said(r"a GPU does (\d+) % of its peak")
    assert said(r"A GPU does (\d+) % of its dense peak", (ROOT / "docs/scale.md").read_text()) == [share]
    for name in ("train_diffusion", "train_autoencoder", "cache_latents", "sample"):
        head = " ".join((ROOT / f"jobs/{name}.sbatch").read_text().replace("\n#", "").split())
        assert f"if a GPU does {share:.0f} % of its peak (assumed, not measured: docs/scale.md)" in head
    near = lambda value: pytest.approx(value, rel=0.02)  # noqa: E731
    images, flops = steps * module.global_batch, module.flops_per_image()
    assert said(r"(\d+) M images, (\d+) epochs") == near([images / 1e6, images / IMAGENET])
    rate = share / 100 * BF16 / flops
    assert said(r"(\d+) GFLOP an image trained \(counted\), (\d+) images/s a GPU") == near([flops / 1e9, rate])
    assert said(r"([\d.]+) hours, (\d+) GPU-hours\.") == near([images / rate / 3600 / n for n in (ranks, 1)])
    shape = module.card["latent_shape"]
    assert said(r"latents of (\d) x (\d+) x (\d+)") == list(shape)
    views, numbers = 2 * (IMAGENET + HELD_OUT), 2 * shape[0] * shape[1] * shape[2]
    encoding = forward_flops(autoencoder.encoder, torch.empty(1, 3, 256, 256)) / (share / 100 * TF32) / 3600
    assert said(r"Latents: ([\d.]+) GPU-hours, (\d+) GB") == near([views * encoding, views * numbers * 2 / 1e9])
    passes = 2 * 2 * steps_of_sampling  # heun's evaluations, guided
    sampling = passes * flops / 3 + forward_flops(autoencoder.decoder, torch.empty(1, *shape))
    assert said(r"50,000 samples: ([\d.]+) GPU-hours") == near([50_000 * sampling / (share / 100 * TF32) / 3600])


def test_imagenet_on_other_numbers_of_ranks_is_refused(imagenet, monkeypatch):
    def refused(f):
        with pytest.raises(SystemExit) as info:
            imagenet(f)
        return str(info.value.code)

    assert "trainer.num_nodes=8: start the command on each of them" in refused("f4")
    srun(monkeypatch, nodes=1, tasks=8)
    assert "trainer.num_nodes=8, but srun started 1" in refused("f4")
    srun(monkeypatch, nodes=2, tasks=8)
    assert "trainer.num_nodes=1, but srun started 2" in refused("f8")
    srun(monkeypatch, nodes=1, tasks=4)
    assert "trainer.devices=8, but srun started 4" in refused("f8")
