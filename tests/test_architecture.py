"""The house's rules: imports point down from floor to floor, each library has one door, nothing happens at import."""

import ast
import importlib
import inspect
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "ldm").rglob("*.py"))

# lower rooms first: a room imports from lower floors alone, never from one beside it
FLOORS = [
    {"runtime"},
    {"condition", "latents", "images", "card", "weights"},
    {"models", "diffusion", "conditioning", "sharded_checkpoint"},
    {"checkpoint", "losses", "metrics"},
    {"generate", "data", "exchange"},
    {"evaluation", "training", "play"},
    {"report"},
    {"commands"},
    {"__init__", "__main__"},
]
FLOOR = {room: i for i, rooms in enumerate(FLOORS) for room in rooms}
DOORS = {
    "hydra": {"commands"},
    "omegaconf": {"commands"},
    "lightning": {"training", "runtime"},
    "jinja2": {"report"},
    "webdataset": {"data"},
    "lpips": {"losses"},
    "safetensors": {"exchange"},
    "diffusers": {"exchange"},
    "huggingface_hub": {"runtime"},
    "transformers": {"conditioning"},
    "fsspec": {"runtime"},
    "wandb": {"runtime"},
    "sklearn": {"metrics", "data"},
    "scipy": {"diffusion", "metrics"},
    "torchdiffeq": {"diffusion"},
    "torchmetrics": {"metrics"},
    "torch_fidelity": {"metrics"},
    "gradio": {"play"},
    "fastapi": {"play"},
    "uvicorn": {"play"},
}


def imported_names(node: ast.AST):
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module:
        yield from [node.module] if node.module != "ldm" else (f"ldm.{alias.name}" for alias in node.names)


def imports(path: Path):
    for node in ast.walk(ast.parse(path.read_text())):
        yield from imported_names(node)


def room_of(path: Path) -> str:
    return path.relative_to(ROOT / "ldm").parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down_and_libraries_have_one_door(path):
    mine = room_of(path)
    for name in imports(path):
        library, *inside = name.split(".")
        if library == "ldm" and inside != ["__version__"]:
            room = inside[0]
            assert room == mine or FLOOR[room] < FLOOR[mine], f"{path.name} imports {name}, which does not lie below it"
        elif library in DOORS:
            assert mine in DOORS[library], f"{path.name} imports {library}"


def test_no_two_rooms_have_a_file_of_the_same_name():
    names = Counter(path.name for path in MODULES)
    assert {name for name, count in names.items() if count > 1} <= {"__init__.py"}


def test_no_test_file_imports_another():
    """What several test files need is in tests/support."""
    for path in (ROOT / "tests").rglob("*.py"):
        modules = [part for name in imports(path) for part in name.split(".")]
        assert not [part for part in modules if part.startswith("test_") or part == "conftest"], path


def test_the_mathematics_imports_torch_only():
    for path in [*(ROOT / "ldm/diffusion").glob("*.py"), ROOT / "ldm/latents.py"]:
        libraries = {name.split(".")[0] for name in imports(path)} - set(sys.stdlib_module_names)
        allowed = {"torch", "ldm", "numpy"} | {"coupling": {"scipy"}}.get(path.stem, set())
        allowed |= {"torchdiffeq"} if path.stem in ("samplers", "log_likelihood", "continuous_flow") else set()
        assert libraries <= allowed, path.name


def test_importing_every_module_prints_nothing_and_touches_no_gpu():
    modules = [path for path in MODULES if path.parent != ROOT / "ldm/exchange/carried"]  # copied, for use elsewhere
    names = [".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for p in modules]
    code = f"import importlib\nfor n in {names}: importlib.import_module(n)\n"
    code += "import torch; assert not torch.cuda.is_initialized()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_ldm_help_imports_nothing_heavy():
    code = "import sys; sys.argv = ['ldm', '--help']; from ldm.commands.cli import main; main(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.splitlines()[-1].split())
    assert "train-autoencoder" in done.stdout
    assert not loaded & {"torch", "numpy", "hydra", "lightning"}


def imported_at_once(path: Path, seen: set[Path]) -> set[str]:
    """The libraries that importing a module of ldm imports: what its functions import later does not count."""
    seen.add(path)
    libraries: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        for name in imported_names(node):
            file = ROOT / Path(*name.split(".")).with_suffix(".py")
            if name.split(".")[0] != "ldm":
                libraries.add(name.split(".")[0])
            elif file.exists() and file not in seen:
                libraries |= imported_at_once(file, seen)
    return libraries


@pytest.mark.parametrize(
    "command", ["playground", "sample", "cache_latents", "evaluate", "likelihood", "convert", "pack", "summarize"]
)
def test_commands_that_do_not_train_do_not_wait_for_lightning(command):
    """It takes more than half of the time until a command begins."""
    assert not imported_at_once(ROOT / f"ldm/commands/{command}.py", set()) & {"lightning", "wandb"}


def test_no_file_is_longer_than_300_lines():
    files = [file for folder in ("ldm", "tests", "jobs") for file in sorted((ROOT / folder).rglob("*.py"))]
    long = {str(p.relative_to(ROOT)): n for p in files if (n := len(p.read_text().splitlines())) > 300}
    assert not long


# what may touch a library's private names, and which; all that is private to Lightning lies in one file
PRIVATE = {
    "training/ema.py": {"_foreach_lerp_"},  # torch's
    "training/power_averages.py": {"_foreach_lerp_"},
    "losses/adversarial.py": {"_foreach_add_"},
    "training/speed.py": {"_subclasses"},  # torch's fake tensors
    "training/step_memory.py": {"_subclasses", "_python_dispatch", "_local_scalar_dense"},  # and its modes
    "runtime/loggers.py": {"_log_artifact"},  # wandb's
    "exchange/carried/pipeline.py": {"_execution_device"},  # diffusers'
    "commands/hydra_errors.py": {"_internal"},  # Hydra's parser of flags
}
DOCUMENTED = {
    "lightning",
    "lightning.pytorch.callbacks",
    "lightning.pytorch.loggers",
    "lightning.pytorch.strategies",
    "lightning.pytorch.plugins",
    "lightning.pytorch.plugins.environments",
    "lightning.fabric.plugins.environments",
    "lightning.fabric.plugins.io",
}
LOOPS = {"fit_loop", "epoch_loop", "val_loop", "epoch_progress", "batch_progress", "precision_plugin"}
IN_ONE_FILE = [path for path in MODULES if path.name != "lightning_internals.py"]


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


@pytest.mark.parametrize("path", IN_ONE_FILE, ids=lambda p: str(p.relative_to(ROOT)))
def test_what_is_private_to_lightning_lies_in_one_file(path):
    nodes = list(ast.walk(ast.parse(path.read_text())))
    imported = set(imports(path))
    assert {name for name in imported if name.split(".")[0] == "lightning"} <= DOCUMENTED
    attributes = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    assert not attributes & LOOPS
    used = {name for name in attributes | {part for n in imported for part in n.split(".")} if is_private(name)}
    functions = {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
    functions |= {
        node.target.id for node in nodes if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    assigned = {
        node.attr
        for node in nodes
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
    }
    used -= {"_asdict", "_fields", "_replace"}  # documented, of named tuples
    assert used - functions - assigned == PRIVATE.get(str(path.relative_to(ROOT / "ldm")), set())


def test_no_class_of_ours_shares_a_private_name_with_the_lightning_class_below_it():
    for path in IN_ONE_FILE:
        if any(name.split(".")[0] == "lightning" for name in imports(path)):
            module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
            for name, ours in inspect.getmembers(module, inspect.isclass):
                bases = [base for base in ours.__mro__ if base.__module__.startswith("lightning.")]
                if ours.__module__ == module.__name__ and bases:
                    lightnings = set().union(
                        *(re.findall(r"\bself\.(_\w+)", inspect.getsource(base)) for base in bases)
                    )
                    assert not lightnings & set(re.findall(r"\bself\.(_\w+)", inspect.getsource(ours))), name
