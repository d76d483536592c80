"""What a page sets: the widgets of `Settings`."""

from collections.abc import Sequence
from typing import Any

import gradio as gr

from ldm.play.studio import TRAINED, Choices, Settings

MOST, MOST_STEPS = 100, 250  # samples and steps, of the sliders


class Controls:
    """The widgets of all settings.

    choices: what there is to set
    own:     whether the class, the seed and the number are set here; elsewhere, they are the first class, the page's
             seed and 1
    """

    def __init__(self, choices: Choices, own: bool = True) -> None:
        self.choices, self.own = choices, own
        names = list(choices.class_names)
        if own:
            self.classes = gr.Dropdown(
                names, value=[], multiselect=True, label="Classes", info="None chosen: all, in turn",
                visible=len(names) > 1 and choices.labels,
            )  # fmt: skip
            self.prompt = gr.Textbox("", label="Prompt", visible=choices.text, max_lines=3)
            with gr.Row():
                self.num = gr.Slider(1, MOST, min(10 * len(names), 20), step=1, label="Samples", min_width=140)
                self.seed = gr.Number(choices.seed, precision=0, minimum=0, label="Seed", min_width=100)
        self.guidance = gr.Slider(
            0, 10, choices.guidance, step=0.1, label="Guidance",
            info="1: unguided" if choices.guided else "1: unguided. Trained with all labels (label_dropout=0): only a "
            "weaker model guides it, see More",
        )  # fmt: skip
        with gr.Row():
            self.sampler = gr.Dropdown(list(choices.samplers), value=TRAINED, label="Sampler", min_width=140)
            steps = choices.samplers[TRAINED]
            self.steps = gr.Slider(1, max(MOST_STEPS, steps), steps, step=1, label="Steps", min_width=140)
        with gr.Accordion("More", open=False):
            with gr.Row():
                self.low = gr.Slider(0, 1, 0, step=0.01, label="Guided from t =", min_width=140)
                self.high = gr.Slider(0, 1, 1, step=0.01, label="to t =", min_width=140)
            self.rescale = gr.Slider(0, 1, 0, step=0.05, label="Guidance rescale")
            with gr.Row():
                self.grid = gr.Dropdown(list(choices.grids), value=TRAINED, label="Grid of times", min_width=140)
                self.path = gr.Dropdown(list(choices.paths), value=TRAINED, label="Path", min_width=140)
            self.weak = gr.Textbox(
                "", label="Autoguidance by", placeholder="none; or a weaker model: runs/NAME, a checkpoint", max_lines=1
            )
        self.sampler.change(
            lambda name: choices.samplers[name], self.sampler, self.steps, queue=False, show_progress="hidden",
            api_visibility="private",
        )  # fmt: skip

    @property
    def widgets(self) -> list[Any]:
        """In the order that `settings` takes their values in."""
        first = [self.classes, self.prompt, self.num, self.seed] if self.own else []
        of_sampling = [self.guidance, self.sampler, self.steps, self.low, self.high, self.rescale, self.grid, self.path]
        return [*first, *of_sampling, self.weak]

    def settings(self, values: Sequence[Any]) -> Settings:
        """What the widgets' values say."""
        first = values[:-9] if self.own else ([], "", 1, self.choices.seed)
        classes, prompt, num, seed = first
        guidance, sampler, steps, low, high, rescale, grid, path, weak = values[-9:]
        return Settings(
            classes=classes, seed=seed, num=num, guidance=guidance, sampler=sampler, steps=steps,
            low=low, high=high, rescale=rescale, grid=grid, path=path, weak=(weak or "").strip(),
            prompt=" ".join((prompt or "").split()),
        )  # fmt: skip
