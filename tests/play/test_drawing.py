"""What the page's buttons make, and what it does with an uploaded file, without a page."""

import math
import re
import socket

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.data.picture_files import center_of
from ldm.data.sources import Folder
from ldm.play import drawing
from ldm.play.serving import Ended, address_of, listening


class Halves:
    """A model that keeps every other value of an image's rows: what it loses is known."""

    def encode(self, images):
        return images[..., ::2].float()

    def decode(self, latents):
        return latents.repeat_interleave(2, -1).to(torch.uint8)


def test_a_reconstruction_is_scored_against_its_image():
    image = torch.randint(0, 256, (3, 16, 16), dtype=torch.uint8)
    made = drawing.reconstruction(Halves(), image)
    error = (image.double() - image[..., ::2].repeat_interleave(2, -1).double()).square().mean()
    said = re.match(r"PSNR (\d+\.\d\d) dB; 3 x 16 x 16 numbers as 3 x 16 x 8, 2 times fewer", made.said)
    assert float(said[1]) == pytest.approx(10 * math.log10(255**2 / error), abs=0.006)


def test_the_difference_is_the_difference():
    image = torch.zeros(3, 16, 16, dtype=torch.uint8)
    image[:, 4, 5] = 40  # an odd column: lost
    pixels = drawing.reconstruction(Halves(), image).pixels
    assert sorted(pixels[:, -480:, -40:].unique().tolist())[0] == 0
    assert (pixels == 160).any()  # four times as much
    assert (pixels == 40).any()


def test_an_upload_is_prepared_as_the_training_images_are(tmp_path):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (40, 70, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    source = Folder(root=str(tmp_path), resolution=16, resize=20)
    with Image.open(tmp_path / "a.png") as image:
        wanted = source.center_view(image.convert("RGB"))
    assert torch.equal(center_of(tmp_path / "a.png", 16, 20), wanted)


def test_a_port_in_use_is_said_and_none_is_the_next_free_one():
    with listening("127.0.0.1", None) as first, listening("127.0.0.1", None) as second:
        ports = [bound.getsockname()[1] for bound in (first, second)]
        assert 7860 <= ports[0] < ports[1]
        assert address_of(first) == f"http://127.0.0.1:{ports[0]}"
        with (
            pytest.raises(ValueError, match=f"port={ports[0]} is in use on 127.0.0.1: pass another port="),
            listening("127.0.0.1", ports[0]),
        ):
            pass
    with socket.create_server(("127.0.0.1", ports[0])):  # given back
        pass


def test_an_address_that_is_not_ours_is_said():
    with pytest.raises(ValueError, match=r"host=192\.0\.2\.1 is no address of this machine"), listening("192.0.2.1", 1):
        pass


def test_what_is_being_drawn_is_given_up_at_the_end():
    ended, layer = Ended(), torch.nn.Linear(2, 2)
    layer.register_forward_pre_hook(ended.check)
    layer(torch.zeros(1, 2))
    ended.set()
    with pytest.raises(InterruptedError):
        layer(torch.zeros(1, 2))
