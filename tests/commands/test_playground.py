"""The playground's words and its page: what it shows is what the `ldm sample` line beside it makes."""

import shlex
import socket
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from PIL import Image
from support.config import CONF
from support.refusals import contents
from support.tiny import fails, inside

from ldm.commands import playground
from ldm.commands.playground_studio import CommandStudio, ModelKeys, words_of
from ldm.commands.refusal import scratch_folder
from ldm.data.picture_files import center_of
from ldm.play import drawing, pages
from ldm.play.serving import Ended
from ldm.play.studio import Settings

KEYS = ModelKeys(
    run="play", model="runs/diffusion", autoencoder=None, weights="ema", trust=[], batch_size=250, device="cpu"
)
PLAIN = Settings(
    classes=[], seed=3, num=5, guidance=2, sampler="trained", steps=2, low=0, high=1, rescale=0, grid="trained",
    path="trained",
)  # fmt: skip
OTHERS = {
    "as it starts": {},
    "classes by name": {"classes": ["7", "2"], "guidance": 1, "num": 3},
    "noise on the way": {"sampler": "ddpm", "steps": 3, "guidance": 1.5},
    "another path": {"sampler": "dpmpp_2m", "steps": 4, "path": "cosine", "grid": "shifted"},
    "guided at some times": {"low": 0.25, "high": 0.75, "rescale": 0.5, "steps": 4},
    "guided by a weaker model": {"weak": "runs/diffusion/checkpoints/00000002.ckpt", "steps": 4},
}


@pytest.fixture
def studio(pipeline, ldm):
    inside(pipeline, ldm)
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield CommandStudio(KEYS, 0, Ended())


@pytest.mark.parametrize("changes", OTHERS.values(), ids=OTHERS)
def test_the_line_repeats_the_samples(studio, ldm, changes):
    settings = replace(PLAIN, **changes)
    plan = studio.plan(settings)
    images, _ = drawing.drawn(plan)
    program, command, *words = shlex.split(studio.line(settings))
    assert program == "ldm"
    ldm(command, *words, "overwrite=true")
    with np.load("runs/play/samples.npz") as arrays:
        assert arrays["arr_1"].tolist() == plan.told.turn(range(len(plan.rows))).label.tolist()
        off = arrays["arr_0"].astype(int) - images.permute(0, 2, 3, 1).numpy()
    assert np.abs(off).max() <= 1


def test_the_line_leaves_out_what_nobody_has_set(studio):
    line = studio.line(replace(PLAIN, guidance=1.5))
    assert line == "ldm sample run=play model=runs/diffusion device=cpu num=5 seed=3 guidance=1.5 sampler.steps=2"


@pytest.mark.parametrize(
    "names", [["cat", "a dog"], ["7", "it's"], ['"', "\\", 'a\\"b', "c\\\\"], ["a,b", "[x]", "null", "true", "1e3"]]
)
def test_any_name_of_a_class_survives_the_command_line(names):
    words = shlex.split(" ".join(map(shlex.quote, words_of(replace(PLAIN, classes=names)))))
    parsed = OverridesParser.create().parse_overrides(words)
    assert next(each.value() for each in parsed if each.key_or_group == "classes") == names


def test_the_choices_are_those_of_conf(studio):
    choices = studio.choices
    assert set(choices.samplers) == {path.stem for path in (CONF / "sampler").glob("*.yaml")} - {"ardm"}
    assert (next(iter(choices.samplers)), choices.samplers["ddpm"], choices.samplers["rk4"]) == ("trained", 250, 12)
    assert set(choices.paths) == {path.stem for path in (CONF / "path").glob("*.yaml")}
    assert set(choices.grids) == {path.stem for path in (CONF / "grid").glob("*.yaml")} - {"planned"}
    assert list(choices.class_names) == list("0123456789")
    assert (choices.guidance, choices.guided) == (2.0, True)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"guidance": 1, "rescale": 0.5}, "guidance=1 is unguided, so that guidance_rescale=0.5 would do nothing"),
        ({"grid": "uniform", "path": "ve", "steps": 20}, "sampler and path do not fit"),
        ({"low": 0.8, "high": 0.2}, "guidance_interval=[0.8, 0.2] must be two times"),
        ({"weak": "runs/none"}, "runs/none holds no checkpoint"),
        ({"weak": "runs/diffusion", "guidance": 1}, "guidance=1 is unguided, so that weak=runs/diffusion would do"),
        ({"seed": None}, "seed=null must be a whole number"),
        ({"classes": ["cat"]}, "of their names: 0, 1, 2"),
        ({"sampler": "magic"}, "sampler=magic is no choice of ldm sample"),
    ],
)
def test_what_does_not_fit_is_said_in_the_command_s_words(studio, changes, said):
    with pytest.raises(ValueError) as info:
        studio.plan(replace(PLAIN, **changes))
    line = playground.said_of(info.value)
    assert said in line
    assert "\n" not in line


def test_another_model_is_read_again_when_it_has_been_trained_on(studio, pipeline):
    mine, other = studio.plan(PLAIN), studio.plan(PLAIN, "./runs/diffusion")
    assert (drawing.drawn(mine)[0].int() - drawing.drawn(other)[0].int()).abs().max() <= 1
    assert studio.stages("./runs/diffusion") is studio.stages("./runs/diffusion")
    newest = max((pipeline / "runs/diffusion/checkpoints").glob("[0-9]*.ckpt"))
    later = newest.with_name("99999999.ckpt")
    before = studio.stages("./runs/diffusion")
    later.hardlink_to(newest)
    try:
        assert studio.stages("./runs/diffusion") is not before
    finally:
        later.unlink()
    with pytest.raises(ValueError, match="runs/none holds no checkpoint"):
        studio.plan(PLAIN, "runs/none")


def test_the_line_repeats_the_reconstruction(studio, pipeline, ldm, tmp_path, monkeypatch):
    """The tab is caught on its way to the page, so that its own picture can be compared with the command's."""
    monkeypatch.setattr(pages, "reconstruct_tab", lambda model, sides, line, said: (model, sides, line))
    picture = tmp_path / "a picture.png"
    pixels = np.random.default_rng(0).integers(0, 256, (50, 61, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(picture)
    own = studio.own
    for resolution in (own.model.resolution, 2 * own.model.resolution):
        tab = playground.reconstructing("play", own.autoencoder, own.model, resolution)
        model, sides, line = tab(playground.said_of)
        image = center_of(picture, *sides)
        wanted = torch.cat([image, model.decode(model.encode(image[None]))[0]], dim=2)
        _, command, *words = shlex.split(line(str(picture)))
        ldm(command, *words, "overwrite=true", "device=cpu")
        made = np.asarray(Image.open("runs/play-pairs/pairs/a picture.png")).astype(int)
        assert np.abs(made - wanted.permute(1, 2, 0).numpy()).max() <= 1
    assert line("").endswith(f"resolution={resolution} images=PICTURE")


def test_faults_of_ours_are_not_the_user_s(caplog):
    assert playground.said_of(KeyError("x")).startswith("a fault of ldm, of which the terminal says more: KeyError")
    assert "a fault of ldm" in caplog.text


def test_refusals_leave_nothing(ldm, pipeline, monkeypatch):
    inside(pipeline, ldm)
    before = contents(Path("."))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"port={port} is in use on 127.0.0.1" in fails("playground", f"port={port}")
    assert "runs/none holds no checkpoint" in fails("playground", "model=runs/none")
    assert "ldm playground cannot be swept: leave -m out" in fails("playground", "-m", "weights=ema,raw")
    assert "weights= is for diffusion models" in fails("playground", "model=runs/autoencoder", "weights=raw")
    monkeypatch.setattr(playground, "find_spec", lambda name: None)
    assert fails("playground").endswith("pip install 'ldm[play]'")
    assert contents(Path(".")) == before
    assert not Path("runs/playground").exists()
    assert not Path(scratch_folder()).exists()
