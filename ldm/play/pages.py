"""The page: its tabs, and what happens when a button is pressed. Beside controls.py, gradio's one door."""

import html
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import fastapi
import gradio as gr
import numpy as np
from torch import Tensor

from ldm.data.decoding import MOST_BYTES
from ldm.data.picture_files import center_of
from ldm.generate.autoencoding import AutoencoderModel
from ldm.generate.model import LatentDiffusionModel
from ldm.play import drawing
from ldm.play.controls import Controls
from ldm.play.studio import Settings, Studio

Said = Callable[[Exception], str]  # an exception in one line, for whoever sits at the page
Tab = Callable[[Said], None]

SANS = ("system-ui", "sans-serif")  # fonts that a machine has: those that gradio's themes name may be fetched
MONO = ("ui-monospace", "Menlo", "Consolas", "monospace")
KEPT = 3600  # seconds after which uploads and pictures are deleted
CSS = """
.gradio-container, .gradio-container .main, .gradio-container .tabs, .gradio-container .tab-wrapper { min-width: 0 }
.gradio-container { width: 100%; max-width: 1180px !important; margin: 0 auto; }
.gradio-container .main, .gradio-container .tabs, .gradio-container .tabitem { width: 100% }
.gradio-container .main { padding: 16px !important; }
@media (max-width: 480px) {
    .gradio-container .main { padding: 8px !important; }
    .gradio-container .tab-container button { padding: 0 8px !important; }
}
.line textarea { font-family: ui-monospace, Menlo, Consolas, monospace; font-size: 13px; }
.frame .icon-button-wrapper { opacity: 0; }
.frame:hover .icon-button-wrapper, .frame:focus-within .icon-button-wrapper { opacity: 1; }
footer { display: none !important; }
"""  # tabs that do not fit go into a menu, and buttons that would cover a picture show beneath the pointer


def app_of(title: str, tabs: Mapping[str, Tab], said: Said) -> fastapi.FastAPI:
    """The application that serves a page of these tabs."""
    with gr.Blocks(analytics_enabled=False, title=title, fill_width=True, delete_cache=(KEPT, KEPT)) as blocks:
        gr.Markdown(f"## {html.escape(title)}")
        with gr.Tabs():
            for name, tab in tabs.items():
                with gr.Tab(name):
                    tab(said)
    app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    theme = gr.themes.Default(font=SANS, font_mono=MONO, primary_hue="blue", neutral_hue="slate")
    return gr.mount_gradio_app(
        app, blocks, "/", theme=theme, head=f"<style>{CSS}</style>",  # css= would leave its rules for phones out
        footer_links=[], run_history=False, max_file_size=MOST_BYTES, ssr_mode=False, mcp_server=False,
        enable_monitoring=False, pwa=False,
    )  # fmt: skip


# tabs


def sample_tab(studio: Studio, said: Said) -> None:
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            controls = Controls(studio.choices)
            button = gr.Button("Sample", variant="primary")
        with gr.Column(scale=3, min_width=300):
            grid, way = Frame("samples"), Frame("trajectory")
            line = _line("The same on the command line")

    def sample(*values: Any) -> list[Any]:
        plan = studio.plan(controls.settings(values))
        return [*shown(drawing.samples(plan)), *shown(drawing.trajectory(plan))]

    _on(button.click, sample, controls.widgets, [*grid.parts, *way.parts], said)
    _show_lines(controls.widgets, lambda *values: studio.line(controls.settings(values)), line)


def reconstruct_tab(
    model: LatentDiffusionModel | AutoencoderModel,
    sides: tuple[int, int | None],
    line_of: Callable[[str], str],
    said: Said,
) -> None:
    """sides: of the image, and of the picture before it is cropped; line_of: the command, by the picture's name."""
    resolution, resize = sides
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            gr.Markdown(f"A jpg, png or webp picture. Its centre is taken, at {resolution} x {resolution} pixels.")
            upload = gr.File(label="Picture", height=160)
        with gr.Column(scale=3, min_width=300):
            frame = Frame("reconstruction")
            line = _line("On the command line, but for the picture's folder")

    def reconstruct(file: str | None) -> list[Any]:
        if file is None:
            return [None, ""]
        try:
            image = center_of(Path(file), resolution, resize)
        except ValueError as error:
            raise ValueError(f"{Path(file).name} cannot be read as a picture: {error}") from None
        return shown(drawing.reconstruction(model, image))

    _on(upload.change, reconstruct, [upload], frame.parts, said)
    _show_lines([upload], lambda file: line_of(Path(file).name if file else ""), line)


def interpolate_tab(studio: Studio, said: Said) -> None:
    names, seed = list(studio.choices.class_names), studio.choices.seed
    many = len(names) > 1
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            ends = []
            for end, name, number in (("From", names[0], seed), ("To", names[-1], seed if many else seed + 1)):
                with gr.Row():
                    ends += [
                        gr.Dropdown(names, value=name, label=f"{end} class", min_width=140, visible=many),
                        gr.Number(number, precision=0, minimum=0, label=f"{end} seed", min_width=100),
                    ]
            frames = gr.Slider(2, 20, 8, step=1, label="Images")
            controls = Controls(studio.choices, own=False)
            button = gr.Button("Interpolate", variant="primary")
        with gr.Column(scale=3, min_width=300):
            frame = Frame("interpolation")
            line = _line("The way on the command line, or its two ends", lines=5)

    def settings_of(name: str, number: int, values: Sequence[Any]) -> Settings:
        return replace(controls.settings(values), classes=[name] if many else [], seed=number)

    def interpolate(a: str, seed_a: int, b: str, seed_b: int, count: int, *values: Any) -> list[Any]:
        plan, _ = (studio.plan(settings_of(*end, values)) for end in ((a, seed_a), (b, seed_b)))
        return shown(drawing.between(plan, seed_b, b, count))

    def lines(a: str, seed_a: int, b: str, seed_b: int, count: int, *values: Any) -> str:
        first = settings_of(a, seed_a, values)
        if (a == b and seed_b == seed_a + 1) or (a != b and seed_b == seed_a):  # as `ldm sample` does by itself
            classes = list(dict.fromkeys([a, b])) if many else []
            return studio.line(replace(first, classes=classes, num=max(1, len(classes)), frames=count))
        return f"{studio.line(first)}\n{studio.line(settings_of(b, seed_b, values), mark='-last')}"

    _on(button.click, interpolate, [*ends, frames, *controls.widgets], frame.parts, said)
    _show_lines([*ends, frames, *controls.widgets], lines, line)


def compare_tab(studio: Studio, model: str, other: str, said: Said) -> None:
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            named = gr.Textbox(other, label="Other model", placeholder="runs/NAME or a checkpoint", max_lines=1)
            controls = Controls(studio.choices)
            button = gr.Button("Compare", variant="primary")
        with gr.Column(scale=4, min_width=300), gr.Row():
            columns = []
            for title, which in ((model, "own"), ("Other model", "other")):
                with gr.Column(min_width=240):
                    gr.Markdown(f"**{html.escape(title)}**")
                    columns.append((Frame(which), _line("On the command line")))

    def compare(path: str, *values: Any) -> list[Any]:
        if not path.strip():
            raise ValueError("name the other model: a run folder, as runs/NAME, or a checkpoint")
        settings = controls.settings(values)
        plans = [studio.plan(settings), studio.plan(settings, path.strip())]  # both, before either is drawn
        return [part for plan in plans for part in shown(drawing.samples(plan))]

    def both_lines(path: str, *values: Any) -> list[str]:
        settings = controls.settings(values)
        return [studio.line(settings), studio.line(settings, path.strip(), mark="-other") if path.strip() else ""]

    _on(button.click, compare, [named, *controls.widgets], [p for frame, _ in columns for p in frame.parts], said)
    _show_lines([named, *controls.widgets], both_lines, [line for _, line in columns])


# parts of tabs


class Frame:
    """Where a picture appears, and below it what is said of it. name: in the page's HTML, for its tests."""

    def __init__(self, name: str) -> None:
        image = gr.Image(
            format="png",
            interactive=False,
            show_label=False,
            elem_id=name,
            elem_classes="frame",
            buttons=["download", "fullscreen"],
        )
        self.parts = [image, gr.Markdown(elem_id=f"{name}-said")]


def shown(picture: drawing.Picture) -> list[Any]:
    """For the parts of a frame."""
    return [_array(picture.pixels), picture.said]


def _array(pixels: Tensor) -> np.ndarray:
    return pixels.permute(1, 2, 0).cpu().numpy()


def _line(label: str, lines: int = 2) -> gr.Textbox:
    return gr.Textbox(label=label, lines=lines, interactive=False, buttons=["copy"], elem_classes="line")


def _on(event: Callable[..., Any], act: Callable[..., list[Any]], inputs: list[Any], outputs: list[Any], said: Said):
    """Have an event call `act`, one of all such at a time: they share the model, and the machine."""

    def acting(*values: Any) -> list[Any]:
        try:
            return act(*values)
        except Exception as error:
            raise gr.Error(html.escape(said(error)), duration=20, print_exception=False) from None

    event(acting, inputs, outputs, concurrency_id="model", concurrency_limit=1, api_visibility="private")


def _show_lines(inputs: list[Any], lines: Callable[..., Any], outputs: Any) -> None:
    """Keep command lines as the widgets stand."""
    gr.on(
        None, lines, inputs, outputs, queue=False, show_progress="hidden", trigger_mode="always_last",
        api_visibility="private",
    )  # fmt: skip
