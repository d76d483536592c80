"""Models of a hub: from its cache, by its id; and what is said where there is neither."""

import huggingface_hub
import pytest
from huggingface_hub import constants
from support.foreign import SHAPE
from support.tiny import fails

from ldm.checkpoint import load_autoencoder
from ldm.exchange.autoencoder_weights import export_diffusers
from ldm.weights import weights_fingerprint

REVISION = 40 * "a"


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """A machine without network, whose hub cache lies in the folder that is returned."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.mark.parametrize("part", ["", "vae"])
def test_an_id_is_read_from_the_hubs_cache(part, ldm, offline, autoencoder):
    repository = offline / "models--someone--sd-vae"
    folder = repository / "snapshots" / REVISION
    export_diffusers(autoencoder, SHAPE, {"scaling_factor": 0.18215}, folder / part, 32)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(REVISION)
    ldm("convert", "run=sd", "source=someone/sd-vae")
    loaded = load_autoencoder("runs/sd")
    assert loaded.fingerprint == weights_fingerprint(autoencoder)
    assert loaded.card["imported_from"] == "someone/sd-vae"
    assert loaded.card["scaling"] == {"scaling_factor": 0.18215}


def test_without_network_it_says_which_file_to_put_where(ldm, offline, tmp_path):
    line = fails("convert", "run=sd", "source=stabilityai/sd-vae-ft-mse")
    assert "source=stabilityai/sd-vae-ft-mse is neither a file here nor to be had from the hub" in line
    assert line.endswith(
        "put its config.json and diffusion_pytorch_model.safetensors into a folder, and pass source=FOLDER"
    )
    assert not (tmp_path / "runs").exists()


def test_only_what_is_read_is_fetched(ldm, monkeypatch):
    asked = {}

    def snapshot_download(source, allow_patterns):
        asked[source] = allow_patterns
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert "ConnectionError: no route" in fails("convert", "source=a/b")
    assert not [pattern for pattern in asked["a/b"] if pattern.endswith(".bin") or "fp16" in pattern]


def test_a_path_is_no_id(ldm):
    assert "weights/vae.safetensors does not exist" in fails("convert", "source=weights/vae.safetensors")
