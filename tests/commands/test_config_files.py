"""What help, completion and error messages read from conf/: as Hydra composes it, with a comment for every key."""

import inspect
import os
import subprocess
import sys

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.utils import get_object
from omegaconf import OmegaConf
from support.tiny import run_command

from ldm.commands import completion
from ldm.commands.cli import COMMANDS
from ldm.commands.config_files import BUILT_BY_NAME, CommandConfig, comments_of, conf_folder

LIGHT = "import sys; sys.argv = ['ldm', *{words}]; from ldm.commands.cli import main; main(); print(*sys.modules)"


def flat(tree, prefix=""):
    leaves = {}
    for key, value in tree.items():
        leaves |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return leaves


@pytest.mark.parametrize("command", COMMANDS)
def test_keys_and_choices_are_those_that_hydra_composes(command):
    groups = CommandConfig.of(command, []).chosen
    lines = [[], *([f"experiment={name}"] for name in CommandConfig.of(command, []).choices("experiment"))]
    lines += [["data=folder"]] if "data" in groups else []
    lines += [["sampler=dopri5", "path=ve"]] if "path" in groups else []
    for words in lines:
        with initialize_config_dir(str(conf_folder()), version_base="1.3"):
            config = compose(command.replace("-", "_"), words, return_hydra_config=True)
        composed = OmegaConf.to_container(config, resolve=False)
        hydra = composed.pop("hydra")
        read = CommandConfig.of(command, words)
        assert read.chosen == {k: v for k, v in hydra["runtime"]["choices"].items() if not k.startswith("hydra/")}
        assert {key: value for key, value in read.keys.items() if value != {}} == flat(composed)
        assert read.help == {k: v for k, v in hydra["help"].items() if k in read.help}


@pytest.mark.parametrize("file", sorted(conf_folder().glob("*.yaml")), ids=lambda file: file.stem)
def test_every_key_of_a_command_has_a_comment(file):
    text = file.read_text()
    keys = yaml.safe_load(text).keys() - {"defaults", "hydra"}
    groups = {path.name for path in conf_folder().iterdir() if path.is_dir()}
    assert keys - groups <= comments_of(text).keys()


def test_comments_are_found_where_they_stand():
    text = (
        "# of the file\nsteps: 3 # batches\n# what follows\n# in two lines\nname: 'a # b'\nguard: {clip: 1} # of both\n"
    )
    text += "nested:\n  plain: 1\n  said: [1, 2]   # a list\n"
    assert comments_of(text) == {
        "steps": "batches",
        "name": "what follows in two lines",
        "guard": "of both",
        "nested.said": "a list",
    }


@pytest.mark.parametrize("command", COMMANDS)
def test_help_says_what_it_does_its_groups_its_keys_and_an_example(command, capsys):
    run_command(command, "--help")
    text = capsys.readouterr().out
    config = CommandConfig.of(command, [])
    for part in (f"usage: ldm {command} ", config.help["header"].split("\n")[0], "Example:", config.help["footer"]):
        assert part.strip() in text
    shown = {line.split("=")[0].strip() for line in text.splitlines() if "=" in line}
    hidden = {key for key in config.keys if key.endswith(("._target_", "._partial_"))}
    assert config.keys.keys() - hidden <= shown
    assert {group for group in config.chosen if config.choices(group)} <= shown
    assert max(len(line) for line in text.splitlines() if "=" not in line) <= 120


@pytest.mark.parametrize("node", BUILT_BY_NAME)
def test_help_explains_a_node_by_what_is_built_of_it(node):
    arguments = inspect.signature(get_object(BUILT_BY_NAME[node])).parameters
    for command in COMMANDS:
        config = CommandConfig.of(command, [])
        keys = [key.removeprefix(f"{node}.") for key in config.keys if key.startswith(f"{node}.")]
        wrong = [key for key in keys if key.split(".")[0] not in arguments and not key.startswith("sampling.")]
        assert wrong == [], command


def test_help_explains_what_no_yaml_file_does(capsys):
    run_command("train-diffusion", "--help")
    text = " ".join(capsys.readouterr().out.split())
    assert "net.dropout=0.0 probability, in every residual block" in text
    assert "objective.parameterization=velocity what the network regresses: x0, eps, v or velocity" in text


def test_help_of_a_choice_shows_its_keys_with_their_comments(capsys):
    run_command("train-autoencoder", "data=folder", "--help")
    said = next(line for line in capsys.readouterr().out.splitlines() if "data.crop=" in line)
    assert "data.crop=center" in said
    assert "or random (in training)" in said


def test_help_lists_the_experiments_of_its_command_alone(capsys):
    run_command("train-diffusion", "--help")
    line = next(line for line in capsys.readouterr().out.splitlines() if "experiment=null" in line)
    assert "imagenet256_f8" in line
    assert "kl_f8" not in line


@pytest.mark.parametrize("words", [["sample", "--help"], ["--complete", "ldm sample sampler="]])
def test_help_and_completion_import_nothing_heavy(words):
    done = subprocess.run([sys.executable, "-c", LIGHT.format(words=words)], capture_output=True, text=True, check=True)
    *said, modules = done.stdout.splitlines()
    assert "dpmpp_2m" in " ".join(said)
    assert not {"torch", "numpy", "hydra", "lightning", "pydantic"} & set(modules.split())


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("ldm tr", ["train-autoencoder", "train-diffusion"]),
        ("ldm train-diffusion obj", ["objective=", "objective."]),
        ("ldm train-diffusion net.ch", ["net.channel_mult=", "net.checkpoint="]),
        ("ldm train-diffusion net.checkpoint=", ["net.checkpoint=true", "net.checkpoint=false"]),
        ("ldm train-diffusion -m objective=flow,dd", ["objective=flow,ddpm", "objective=flow,ddpm_p2"]),
        ("ldm train-autoencoder data=folder data.ro", ["data.root="]),
        ("ldm train-autoencoder data.ro", []),
        ("ldm sample ~sampler", ["~sampler=", "~sampler."]),
        ("ldm cache-latents 'autoencoder=my p", []),  # an open quote
        ("ldm nothing x", []),
    ],
)
def test_candidates_of_a_line(line, wanted):
    assert completion.candidates(line, list(COMMANDS)) == wanted


def test_paths_are_completed_where_a_value_is_wanted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/flow").mkdir(parents=True)
    (tmp_path / "runs/flat.npz").touch()
    found = completion.candidates("ldm evaluate samples=runs/fl", list(COMMANDS))
    assert found == ["samples=runs/flat.npz", "samples=runs/flow/"]
    assert completion.candidates("ldm evaluate samples=", list(COMMANDS)) == ["samples=runs/"]


def completed_by_bash(line):
    """COMPREPLY, as bash fills it: its variables are set, and the function that `complete` registered is called."""
    script = f"""
        PATH={sys.exec_prefix}/bin:$PATH
        ldm() {{ {sys.executable} -m ldm "$@"; }}
        eval "$(ldm --completion bash)"
        COMP_LINE={line!r} COMP_POINT={len(line)} COMP_WORDS=(ldm) COMP_CWORD=1
        $(complete -p ldm | sed 's/.*-F \\([^ ]*\\) ldm/\\1/')
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_bash_completes_by_the_script():
    assert completed_by_bash("ldm train-d") == ["train-diffusion "]
    assert completed_by_bash("ldm train-diffusion obj") == ["objective=", "objective."]
    assert completed_by_bash("ldm train-diffusion objective=flow_v") == ["flow_vp "]  # bash's word begins after the =


def test_scripts_are_for_shells_that_are_known(capsys):
    for shell in completion.SCRIPTS:
        assert "ldm" in completion.script(shell)
    with pytest.raises(SystemExit, match="one of bash, zsh, fish"):
        run_command("--completion", "csh")


@pytest.mark.parametrize("words", [["sample", "--help"], ["sample", "--cfg", "job"], ["--help"]])
def test_a_reader_that_has_seen_enough_is_no_error(words):
    reader, writer = os.pipe()
    os.close(reader)
    line = [sys.executable, "-m", "ldm", *words]
    with os.fdopen(writer, "w") as closed:
        done = subprocess.run(line, stdout=closed, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
