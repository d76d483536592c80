"""The page as its reader has it: whole, alone, and harmless whatever the runs' files say."""

from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from PIL import Image
from support.browser import browser
from support.refusals import contents
from support.tiny import fails, run_command

from ldm.commands.recipes import lineage_of
from ldm.data.formats import Manifest
from ldm.report.page import page

VOID = {"meta", "link", "img"}
ENDED_IN_PLACE = {"line", "path"}  # SVG's, <line/>


class Read(HTMLParser):
    """The tags of a page, held to be balanced, with their attributes and the text outside of styles."""

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.text = [], [], ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.open += [] if tag in VOID else [tag]

    def handle_startendtag(self, tag, attributes):
        assert tag in ENDED_IN_PLACE
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += "" if self.open[-1:] == ["style"] else data

    def of(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def html(whole):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(whole)
        return page(lineage_of(Path("runs/metrics")))


def test_the_page_needs_nothing_beside_itself(html):
    read = Read(html)
    sources = [value for _, attributes in read.tags for key, value in attributes.items() if key in ("src", "href")]
    assert all(value.startswith(("#", "data:")) for value in sources)
    assert "url(" not in html
    assert "@import" not in html
    assert read.of("script") == read.of("iframe") == []
    ids = [attributes["id"] for _, attributes in read.tags if "id" in attributes]
    assert len(set(ids)) == len(ids)
    assert {value[1:] for value in sources if value.startswith("#")} <= set(ids)


def test_every_picture_says_what_it_is(html):
    read = Read(html)
    assert len(read.of("img")) == 2 + 2 + 2  # samples, trajectory; two saves of each stage
    assert all(attributes["alt"] for attributes in read.of("img"))
    assert read.of("svg")
    assert all(attributes["aria-label"] for attributes in read.of("svg"))


def test_the_page_has_all_that_a_colleague_asks(html):
    text = " ".join(Read(html).text.split())
    for part in (
        "Fréchet distance",
        "grey 8x8 pixels",  # what it depends on
        "Reconstructions over training",
        "not recorded",
        "FLOP",
        "ldm sample sampler.steps=2 num=23 guidance=1.5 ldm evaluate classifier=svc lpips=null",
        "after 4 batches",
    ):
        assert part in text
    assert "What is missing or damaged" not in text
    row = '<th scope="row">shard_size</th><td data-label="value"><span>600</span></td>'
    assert f'{row}<td data-label="default"><span>4096</span></td>' in html  # what differs from the defaults


SPITE = "<script>document.title = 'taken'</script>"
BREAKS = "\"'></style></code><img src=x onerror=alert(1)>&amp;"


def spoil(runs):
    """Names that would be markup, wherever a file of a run may hold a name."""
    manifest = Manifest.read(runs / "latents/manifest.json").model_dump(exclude_unset=True)
    names = [SPITE, BREAKS, *manifest["class_names"][2:]]
    Manifest(**manifest | {"class_names": names}).write(runs / "latents/manifest.json")
    config = yaml.safe_load((runs / "samples/config.yaml").read_text())
    config["classes"] = [SPITE, BREAKS]
    (runs / "samples/config.yaml").write_text(yaml.safe_dump(config))
    renamed = Path("runs", "<b onclick='x'>&\"metrics")
    (runs / "metrics").rename(renamed)
    return renamed


def test_names_are_text_and_never_markup(runs, html):
    run = spoil(runs)
    spoilt = Read(page(lineage_of(run)))
    assert {tag for tag, _ in spoilt.tags} == {tag for tag, _ in Read(html).tags}
    assert all("onerror" not in attributes and "onclick" not in attributes for _, attributes in spoilt.tags)
    for text in (SPITE, BREAKS, run.name):
        assert text in spoilt.text


def test_a_damaged_picture_is_named_and_left_out(runs):
    (runs / "samples/grid.png").write_bytes((runs / "samples/grid.png").read_bytes()[:500])
    read = Read(page(lineage_of(runs / "metrics")))
    assert len(read.of("img")) == 5
    assert "runs/samples/grid.png is damaged or no picture" in read.text


def test_large_pictures_become_small(runs):
    noise = Image.effect_noise((1500, 1500), 100).convert("RGB")
    for file in (runs / "samples/grid.png", runs / "samples/trajectory.png"):
        noise.save(file)
    assert len(page(lineage_of(runs / "samples"))) < 3_000_000


def test_half_a_chain_is_a_page(runs):
    for name in ("autoencoder", "latents"):
        (runs / name / "config.yaml").unlink()
    (runs / "diffusion/metrics.csv").write_text("step,train/loss,train_by_time/x\n0,nan,1\nx\n")
    read = Read(page(lineage_of(runs / "metrics")))
    assert "What is missing or damaged" in read.text
    assert "The latent cache that runs/diffusion was made from (runs/latents) is not there." in read.text
    assert "1 of its 2 rows can't be read" in read.text


def test_the_command_writes_into_the_run(runs, capsys):
    run_command("report", "runs/metrics")
    assert capsys.readouterr().out.startswith("runs/metrics/report.html: ")
    first = (runs / "metrics/report.html").read_bytes()
    assert len(first) < 3_000_000
    run_command("report")  # of the run that make demo ends with
    assert (runs / "metrics/report.html").read_bytes() == first
    run_command("report", "source=runs/diffusion", "out=there/flow.html")
    assert Path("there/flow.html").exists()


def test_a_point_of_a_sweep_has_an_equals_sign_in_its_name(runs):
    (runs / "sweep").mkdir()
    (runs / "samples").rename(runs / "sweep/sampler=euler")
    run_command("report", "runs/sweep/sampler=euler")
    assert "&#34;run=&#39;sweep/sampler=euler&#39;&#34;" in (runs / "sweep/sampler=euler/report.html").read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["runs/nowhere"], "runs/nowhere does not exist: name a run's folder"),
        (["metrics"], "metrics does not exist: did you mean runs/metrics?"),
        (["runs"], "runs is no run: it has no config.yaml"),
        (["runs/metrics/metrics.json"], "is no folder: name a run's folder"),
        (["runs/metrics", "runs/samples"], "runs/samples is one too many: ldm report takes one run"),
        (["run=metrics"], "ldm report has no run=: there are source=, out="),
        (["sorce=runs/metrics"], "did you mean source=?"),
        (["runs/metrics", "out=runs"], "out=runs is a folder: name a file, as out=runs/report.html"),
        (["runs/metrics", "out="], "out= names nothing: write out=PATH"),
        (["runs/metrics", "--cfg", "job"], "--cfg is no flag of ldm report"),
    ],
)
def test_mistakes_are_one_line_and_change_nothing(runs, words, said):
    before = contents(Path())
    assert said in fails("report", *words)
    assert contents(Path()) == before


TOO_WIDE = """[...document.querySelectorAll('main *')]
  .filter((element) => element.getBoundingClientRect().right > innerWidth)
  .map((element) => element.outerHTML.slice(0, 80))"""
CONTRAST = """(() => {
  const parts = (color) => color.match(/[\\d.]+/g).map(Number)
  const light = (color) => {
    const linear = (c) => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4
    const [r, g, b] = parts(color).map((c) => linear(c / 255))
    return 0.2126 * r + 0.7152 * g + 0.0722 * b
  }
  const behind = (element) => {
    for (; element; element = element.parentElement) {
      const color = getComputedStyle(element).backgroundColor
      if (parts(color)[3] !== 0) return color
    }
    return 'rgb(255, 255, 255)'
  }
  let worst = 21, of = ''
  for (const element of document.querySelectorAll('body *')) {
    if (![...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim())) continue
    const style = getComputedStyle(element), svg = element instanceof SVGElement
    const color = svg ? style.fill : style.color
    if (!color.startsWith('rgb')) continue
    const pair = [light(color), light(behind(element))].sort((a, b) => b - a)
    const ratio = (pair[0] + 0.05) / (pair[1] + 0.05)
    if (ratio < worst) [worst, of] = [ratio, element.outerHTML.slice(0, 100)]
  }
  return [worst, of]
})()"""


@pytest.mark.slow
@pytest.mark.parametrize("spoilt", [False, True])
def test_the_page_in_a_browser(runs, tmp_path, spoilt):
    """From disk, at the width of a phone and of a desk, light and dark: nothing is asked for, nothing complains,
    nothing is wider than the window, all pictures are shown, and texts stand out as WCAG 2 wants (4.5 : 1)."""
    run = spoil(runs) if spoilt else runs / "metrics"
    run_command("report", str(run))
    file = run / "report.html"
    papers = {}
    with browser() as tab:
        for width, height in ((390, 844), (1280, 900)):
            for scheme in ("light", "dark"):
                tab.open(file.resolve().as_uri(), width, height, scheme)
                tab.wait("document.readyState === 'complete'")
                assert tab.run("document.title") == f"runs/{run.name}: report"
                assert tab.requests == [file.resolve().as_uri()]
                assert tab.complaints == []
                tab.run("document.querySelectorAll('details').forEach((each) => { each.open = true })")
                assert tab.run("document.documentElement.scrollWidth") <= width
                assert tab.run(TOO_WIDE) == []
                sizes = tab.run("[...document.images].map((image) => image.complete && image.naturalWidth)")
                assert len(sizes) == 6
                assert all(sizes)
                worst, of = tab.run(CONTRAST)
                assert worst >= 4.5, of
                papers[scheme] = tab.run("getComputedStyle(document.body).backgroundColor")
                tab.screenshot(tmp_path / f"{width}-{scheme}.png")
    assert papers["light"] != papers["dark"]
