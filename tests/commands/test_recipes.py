"""A run's command line, found again from its config.yaml: Hydra composes the same config from it."""

import shlex

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from support.tiny import AS_TRAINED, CPU, TINY_DIFFUSION

from ldm.commands.config_files import conf_folder
from ldm.commands.recipes import recipe_of
from ldm.runtime.files import flat

SWEPT = ["optimizer._target_=torch.optim.SGD", "~optimizer.betas", "~optimizer.fused", "+optimizer.momentum=0.9"]
LINES = [
    ("train-autoencoder", AS_TRAINED),
    ("train-autoencoder", ["experiment=kl_f8", "data.root='photos of <mine> & \"yours\"'", "steps=4e5"]),
    ("train-autoencoder", SWEPT),
    ("train-autoencoder", ["data=folder", "data.root='a=b'", "regularizer=none", "loss.disc_augment=[color,cutout]"]),
    ("train-diffusion", [*TINY_DIFFUSION, *CPU]),
    ("train-diffusion", ["objective=ddpm", "net=small", "trainer=gpu", "grid=leading", "run=a/b"]),
    ("train-diffusion", ["experiment=imagenet256_f8", "optimizer.lr=1e-5", "objective.path._target_=mine.Path"]),
    ("sample", ["sampler=heun", "sampler.steps=3", "path=vp", "classes=[cat,'New York',5,'null']", "guidance=1"]),
    ("sample", ["classes=3", "weak='runs/it\\'s'", "sampler=dpmpp_2m", "grid=karras", "logger=tensorboard"]),
    ("evaluate", ["features=inception", "+scores.redness._target_=mine.Redness", "neighbours.precision_recall=7"]),
    ("evaluate", ["samples=null", "autoencoder=runs/ae", "data=shards", "data.urls='a-{000..003}.tar'"]),
    ("cache-latents", ["slice=3/8", "data=folder", "data.root='C:\\photos\\\\'"]),
    ("likelihood", ["likelihood.divergence=exact", "likelihood.steps=20"]),
    ("probe", ["experiment=mnist_cpu", "probe.samples=['num=10','guidance=1']"]),
]


def composed(command, words):
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        return compose(command.replace("-", "_"), [*words])


def written(config, command, run):
    """As `write_config` writes it; an interpolation of Hydra's own, which is no config here, by a value."""
    run.mkdir(parents=True)
    text = OmegaConf.to_yaml(config).replace("${hydra:runtime.output_dir}", str(run))
    resolved = OmegaConf.to_container(OmegaConf.create(text), resolve=True, throw_on_missing=False)
    (run / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create({**resolved, "command": command})))
    return resolved


@pytest.mark.parametrize(("command", "words"), LINES, ids=lambda value: str(value)[:60])
def test_the_line_makes_the_config_again(tmp_path, command, words):
    config = composed(command, words)
    run = tmp_path / "runs" / config.run
    recorded = written(config, command.replace("-", "_"), run)
    recipe = recipe_of(run)
    first, name, *again = shlex.split(recipe.line)
    assert (first, name, tuple(again)) == ("ldm", command, recipe.words)
    once_more = OmegaConf.to_yaml(composed(command, again)).replace("${hydra:runtime.output_dir}", str(run))
    assert OmegaConf.to_container(OmegaConf.create(once_more), resolve=True) == recorded
    assert len(again) <= len(words) + 1  # no detour: a choice of a group is found, not spelt out


def test_groups_and_keys_that_differ_are_told_with_their_defaults(tmp_path):
    run = tmp_path / "runs/flow"
    written(composed("train-diffusion", ["run=flow", "net=small", "steps=960"]), "train_diffusion", run)
    recipe = recipe_of(run)
    assert recipe.words == ("net=small", "run=flow", "steps=960")
    changed = {change.key: (change.value, change.default) for change in recipe.changed}
    assert changed["net"] == ("small", "digits")
    assert changed["steps"] == (960, 480)
    assert flat(recipe.config)["steps"] == 960


def test_a_folder_that_moved_is_named_where_it_lies(tmp_path):
    run = tmp_path / "runs/sweep/sampler=euler"
    written(composed("sample", ["run=sweep", "sampler=euler"]), "sample", run)
    assert "run='sweep/sampler=euler'" in recipe_of(run).words


def test_a_key_that_came_later_is_left_alone(tmp_path):
    run = tmp_path / "runs/samples"
    written(composed("sample", ["~guidance_rescale", "num=7"]), "sample", run)
    assert recipe_of(run).line == "ldm sample num=7"


@pytest.mark.parametrize("text", ["", "a: [", "command: 3\n", "command: fly\n"])
def test_what_is_no_config_is_one_line(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"config.yaml (is damaged|was written by ldm fly)") as info:
        recipe_of(tmp_path)
    assert "\n" not in str(info.value)
