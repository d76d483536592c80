"""The house's rules: imports point down, each library has one door, nothing happens at import."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "ldm").rglob("*.py"))

# lower rooms first; a module may import from its own room and from lower ones
FLOORS = [
    {"files", "images", "latents", "ranks", "stop", "tiling"},
    {"diffusion", "models"},
    {"losses"},
    {"checkpoint", "data", "metrics", "generate", "exchange", "lineage"},
    {"scores", "model_scores", "bits_per_dim", "compare"},
    {"training"},
    {"command"},
    {
        "train_autoencoder",
        "cache_latents",
        "train_diffusion",
        "sample",
        "evaluate",
        "likelihood",
        "probe",
        "summarize",
        "pack",
        "convert",
        "cli",
        "__main__",
    },
]
COMMANDS = FLOORS[-1] - {"cli", "__main__"}
DOORS = {
    "hydra": {"command", "checkpoint", "probe"},
    "omegaconf": {"command", "checkpoint"} | COMMANDS,
    "lightning": {"training", "data", "ranks", "lineage"},
    "webdataset": {"data"},
    "lpips": {"losses"},
    "safetensors": {"exchange"},
    "wandb": {"lineage"},
    "sklearn": {"metrics", "data"},
    "scipy": {"diffusion", "metrics"},
    "torchdiffeq": {"diffusion"},
    "torchmetrics": {"metrics"},
    "torch_fidelity": {"metrics"},
}


def room(name: str) -> str:
    return name.split(".")[1] if "." in name else name


def imports(path: Path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module if node.module != "ldm" else f"ldm.{node.names[0].name}"


def own_room(path: Path) -> str:
    return path.relative_to(ROOT / "ldm").parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down_and_libraries_have_one_door(path):
    mine = own_room(path)
    if mine == "__init__":
        return
    floor = {name: i for i, names in enumerate(FLOORS) for name in names}
    for name in imports(path):
        library = name.split(".")[0]
        if library == "ldm" and room(name) != "__version__":
            assert floor[room(name)] <= floor[mine], f"{path.name} imports {name}, which lies above it"
            assert {mine, room(name)} != {"models", "diffusion"}, "networks and mathematics know nothing of each other"
        elif library in DOORS:
            assert mine in DOORS[library], f"{path.name} imports {library}"


def test_the_mathematics_imports_torch_only():
    for path in [*(ROOT / "ldm/diffusion").glob("*.py"), ROOT / "ldm/latents.py"]:
        libraries = {name.split(".")[0] for name in imports(path)} - set(sys.stdlib_module_names)
        allowed = {"torch", "ldm", "numpy"} | {"coupling": {"scipy"}}.get(path.stem, set())
        allowed |= {"torchdiffeq"} if path.stem in ("samplers", "likelihood") else set()
        assert libraries <= allowed, path.name


def test_importing_every_module_prints_nothing_and_touches_no_gpu():
    names = [".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for p in MODULES]
    code = f"import importlib\nfor n in {names}: importlib.import_module(n)\n"
    code += "import torch; assert not torch.cuda.is_initialized()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_ldm_help_imports_nothing_heavy():
    code = "import sys; sys.argv = ['ldm', '--help']; from ldm.cli import main; main(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.splitlines()[-1].split())
    assert "train-autoencoder" in done.stdout
    assert not loaded & {"torch", "numpy", "hydra", "lightning"}


def test_no_file_is_longer_than_300_lines():
    long = {str(p.relative_to(ROOT)): n for p in MODULES if (n := len(p.read_text().splitlines())) > 300}
    assert not long
