"""Run a notebook's code cells and keep what they print and draw in the file, as "Run all" in Jupyter does.

    python docs/examples/run_notebook.py docs/examples/paths_2d.ipynb

It needs no Jupyter: the cells run one after another in one namespace, and every figure that a cell leaves open is
stored below it as a PNG of 32 colours. The tests run the cells by the same function.
"""

import base64
import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any

import matplotlib
from PIL import Image

Cell = dict[str, Any]


def run(notebook: dict[str, Any]) -> dict[str, Any]:
    """Run the code cells of a notebook's JSON in order, in place: their outputs are replaced. Returns the names that
    the cells have defined.

    Raises:
        Exception: whatever a cell raises.
    """
    names: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate((cell for cell in notebook["cells"] if cell["cell_type"] == "code"), start=1):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)  # noqa: S102
        cell["execution_count"] = number
        cell["outputs"] = [*text_output(printed.getvalue()), *figure_outputs()]
    return names


def text_output(text: str) -> list[Cell]:
    """What a cell has printed, as its output; nothing if it has printed nothing."""
    return [{"output_type": "stream", "name": "stdout", "text": text.splitlines(keepends=True)}] if text else []


def figure_outputs() -> list[Cell]:
    """The open figures as PNG outputs; closes them."""
    from matplotlib import pyplot as plt

    outputs = []
    for number in plt.get_fignums():
        drawn, small = io.BytesIO(), io.BytesIO()
        plt.figure(number).savefig(drawn, format="png", dpi=72)
        Image.open(drawn).convert("RGB").quantize(32).save(small, format="png", optimize=True)
        data = {"image/png": base64.b64encode(small.getvalue()).decode(), "text/plain": ["<Figure>"]}
        outputs.append({"output_type": "display_data", "data": data, "metadata": {}})
    plt.close("all")
    return outputs


if __name__ == "__main__":
    matplotlib.use("Agg")
    path = Path(sys.argv[1])
    content = json.loads(path.read_text())
    run(content)
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
