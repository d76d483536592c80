"""The command that a run's last line names: Hydra reads from it what the run itself was given."""

from types import SimpleNamespace

import pytest
from support.config import CONF, composed

from ldm.commands import next_step

FOLDER = {
    "_target_": "ldm.data.sources.Folder",
    "root": "my photos/it's",
    "val_root": None,
    "val_fraction": 0.05,
    "resolution": 256,
    "resize": 384,
    "crop": "random",
    "flip": False,
    "on_error": "error",
}


@pytest.fixture
def chosen(monkeypatch):
    def choose(data):
        source = SimpleNamespace(path=str(CONF), schema="file", provider="main")
        config = SimpleNamespace(runtime=SimpleNamespace(choices={"data": data}, config_sources=[source]))
        monkeypatch.setattr(next_step.HydraConfig, "get", lambda: config)

    return choose


def test_the_next_command_reads_the_same_images_without_random_crops(chosen):
    chosen("folder")
    words = next_step.data_overrides(FOLDER)
    assert words[0] == "data=folder"
    assert len(words) == 5  # root, resolution, resize and flip: the rest is the group's own
    assert dict(composed("cache_latents", *words).data) == FOLDER | {"crop": "center"}


def test_the_digits_need_no_words(chosen):
    chosen("digits")
    assert next_step.data_overrides({"_target_": "ldm.data.sources.Digits", "resolution": 32}) == []


def test_the_line_can_be_copied_into_a_shell(chosen, capsys):
    chosen("folder")
    next_step.say_next("cache-latents", "autoencoder=runs/ae", "data.root='my photos'")
    assert (
        capsys.readouterr().out == """next: ldm cache-latents autoencoder=runs/ae 'data.root='"'"'my photos'"'"''\n"""
    )
