"""conf/sampler, conf/grid and conf/path show every option, at the value that the function itself has."""

import inspect
from pathlib import Path

import pytest
from hydra.utils import get_object
from omegaconf import OmegaConf

CONF = Path(__file__).parents[2] / "conf"
FILES = [file for group in ("sampler", "grid", "path") for file in sorted((CONF / group).glob("*.yaml"))]
IN_CODE = {"noise", "known", "churn_range", "churn_noise"}  # what is no option, or an expert's


@pytest.mark.parametrize("file", FILES, ids=lambda f: f"{f.parent.name}/{f.stem}")
def test_a_file_repeats_the_defaults_of_what_it_names(file):
    node = OmegaConf.to_container(OmegaConf.load(file)) or {}
    node = (node.get("function") if "function" in node else node) or {}
    given = {name: value for name, value in node.items() if name not in ("_target_", "_partial_")}
    parameters = inspect.signature(get_object(node["_target_"])).parameters.values() if node else ()
    own = [p for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in IN_CODE]
    defaults = {p.name: p.default for p in own if p.default is not p.empty}
    assert given.keys() == {p.name for p in own}
    assert {name: given[name] for name in defaults} == defaults
