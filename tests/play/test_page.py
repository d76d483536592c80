"""The page in a browser: sliders, buttons, pictures, wrong files; and whom the browser and the server ask."""

import os
import signal
import socket
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image
from support import processes
from support.browser import browser
from support.refusals import contents

LINE = "[...document.querySelectorAll('.line textarea')].find(x => x.offsetParent).value"
SENTENCE = "document.querySelector('.toast-body')?.innerText"


def prepare(file: Path, scratch: Path) -> None:
    """In the server's process: a file says from here on whom it connects to, and temporary files lie in a folder."""
    tempfile.tempdir = str(scratch)

    def audit(event, args):
        if event == "socket.connect" and isinstance(args[1], tuple):
            with file.open("a") as lines:
                lines.write(f"{args[1][0]}\n")

    sys.addaudithook(audit)
    with socket.socket() as call:
        call.connect_ex(("127.0.0.1", 9))  # so that the file shows that it is listened to


@pytest.fixture
def served(pipeline, tmp_path):
    """`served("model=runs/diffusion")` starts the command and gives its address and process."""
    started = []

    def start(*options):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        (tmp_path / "scratch").mkdir(exist_ok=True)
        first = partial(prepare, tmp_path / "connections.txt", tmp_path / "scratch")
        process = processes.start(pipeline, "playground", [f"port={port}", "device=cpu", *options], first=first)
        started.append(process)
        while process.is_alive():  # it listens before it loads the model
            with socket.socket() as call:
                if call.connect_ex(("127.0.0.1", port)) == 0:
                    return f"http://127.0.0.1:{port}/", process
            time.sleep(0.1)
        raise AssertionError("the playground ended at once")

    yield start
    for process in started:
        process.kill()
        process.join()


class Page:
    """What a person does with the page."""

    def __init__(self, tab, url):
        self.tab = tab
        tab.open(url)

    def go(self, name):
        """To a tab; in a narrow window it may be in the menu."""
        self.tab.wait(
            f"""(() => {{
                const named = (where) => [...document.querySelectorAll(where + ' button')]
                    .find(x => x.textContent.trim() === '{name}');
                const tab = named('.tab-container:not(.visually-hidden)');
                (tab ?? named('.overflow-dropdown')).click();
                return tab.getAttribute('aria-selected') === 'true';
            }})()"""
        )

    def press(self, name):
        self.tab.wait(
            f"""(() => {{
                [...document.querySelectorAll('button.primary')]
                    .find(x => x.offsetParent && x.textContent.trim() === '{name}').click();
                return true;
            }})()"""
        )

    def slide_to_the_left_end(self, label):
        """By the keyboard: the key Home."""
        self.tab.wait(
            f"""(() => {{
                const slider = [...document.querySelectorAll('input[type=range]')]
                    .find(x => x.offsetParent && x.getAttribute('aria-label')?.endsWith('{label}'));
                slider.focus();
                return document.activeElement === slider;
            }})()"""
        )
        for kind in ("keyDown", "keyUp"):
            self.tab.call("Input.dispatchKeyEvent", type=kind, key="Home", code="Home", windowsVirtualKeyCode=36)

    def picture(self, name):
        """Its width, once it is there."""
        return self.tab.wait(f"document.querySelector('#{name} img')?.naturalWidth")

    def said(self, name):
        return self.tab.wait(f"document.querySelector('#{name}-said')?.innerText.trim()")

    def upload(self, file):
        self.tab.wait(
            """(() => {
                document.querySelector("button[aria-label='Clear']")?.click();
                return [...document.querySelectorAll('input[type=file]')].length > 0;
            })()"""
        )
        self.tab.upload("input[type=file]", file)

    def sentence(self):
        """What an error says, which is then closed."""
        text = self.tab.wait(SENTENCE)
        self.tab.wait(f"document.querySelector('.toast-close')?.click() || !({SENTENCE})")
        return text.splitlines()[-1]

    def fits(self):
        return self.tab.run("document.documentElement.scrollWidth <= innerWidth && innerWidth")


@pytest.mark.slow
def test_a_person_plays_with_a_model(served, pipeline, tmp_path):
    before = contents(pipeline)
    url, process = served("model=runs/diffusion", "other=runs/diffusion/checkpoints/00000002.ckpt")
    with browser() as tab:
        page = Page(tab, url)
        assert "sampler.steps=1 " not in tab.wait(LINE) + " "
        page.slide_to_the_left_end("Steps")
        tab.wait(f"{LINE}.endsWith('sampler.steps=1')")
        page.press("Sample")
        assert page.picture("samples") > 100
        assert page.picture("trajectory") > 100
        assert page.said("samples").startswith("20 samples in ")
        assert page.said("trajectory") == "The first sample (0) on its way from noise"
        tab.screenshot(tmp_path / "desktop.png")
        assert page.fits() == 1280
        page.go("Interpolate")
        page.slide_to_the_left_end("Images")
        page.press("Interpolate")
        assert page.picture("interpolation") > 100
        page.go("Compare")
        page.press("Compare")
        assert page.picture("own") == page.picture("other")
        page.slide_to_the_left_end("Guidance")
        tab.resize(390, 844)
        for name in ("Compare", "Interpolate", "Reconstruct", "Sample"):
            page.go(name)
            assert page.fits() == 390
            tab.screenshot(tmp_path / f"phone-{name}.png")
        asked = {urlsplit(address).netloc for address in tab.requests if not address.startswith(("data:", "blob:"))}
        assert asked == {urlsplit(url).netloc}
        assert tab.errors == []
    assert set((tmp_path / "connections.txt").read_text().split()) == {"127.0.0.1"}
    assert len(list((tmp_path / "scratch").glob("ldm-*"))) == 1
    os.kill(process.pid, signal.SIGTERM)
    process.join()
    assert process.exitcode == 128 + signal.SIGTERM
    assert contents(pipeline) == before
    assert list((tmp_path / "scratch").glob("ldm-*")) == []


@pytest.mark.slow
def test_a_person_uploads_to_an_autoencoder(served, pipeline, tmp_path):
    rng = np.random.default_rng(0)
    picture, cut, text, huge = (tmp_path / name for name in ("a.png", "cut.png", "a.txt", "huge.png"))
    Image.fromarray(rng.integers(0, 256, (48, 60, 3), dtype=np.uint8)).save(picture)
    cut.write_bytes(picture.read_bytes()[:2000])
    text.write_text("no picture")
    Image.new("L", (16_000, 16_000)).save(huge)
    url, process = served("model=runs/autoencoder")
    with browser() as tab:
        page = Page(tab, url)
        page.upload(text)
        assert page.sentence() == "a.txt cannot be read as a picture: it is no jpg, png or webp"
        page.upload(cut)
        assert page.sentence().startswith("cut.png cannot be read as a picture: image file is truncated")
        page.upload(huge)
        assert page.sentence().startswith("huge.png cannot be read as a picture: ")
        page.upload(picture)
        assert page.picture("reconstruction") > 100
        assert page.said("reconstruction").startswith("PSNR ")
        assert tab.wait(LINE).endswith("images=a.png")
        tab.screenshot(tmp_path / "autoencoder.png")
    assert len(list((tmp_path / "scratch").glob("ldm-*"))) == 1
    os.kill(process.pid, signal.SIGINT)
    process.join()
    assert process.exitcode == 128 + signal.SIGINT
    assert list((tmp_path / "scratch").glob("ldm-*")) == []
