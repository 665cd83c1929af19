"""`launch` up to the moment of submission."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]

CONFIG = """
dataset: glyphs
train_classes: 20
epochs: 4
eval_steps: [2, 4]
model: sanml
model_args: {rln_chs: 4, num_classes: 20}
eval:
  - no-sgd: {classes: 4, runs: 2, eval_method: zero_shot}
  - olft: {classes: 4, runs: 2, lr: [0.001, 0.01]}
"""

# Ends as launch_train.py ends, and tells whether torch was loaded on the way.
WATCH_TORCH = """
import runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as end:
    code = end.code
print("torch loaded:", "torch" in sys.modules)
sys.exit(code)
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "train.yml"
    path.write_text(CONFIG)
    return path


@pytest.fixture
def launch(command, config: Path):
    """Launch the config above as project p with more arguments."""
    return lambda *arguments: command("launch", "-c", config, "--project", "p", *arguments)


def test_dry_run_shows_the_graph(launch) -> None:
    shown = launch("-n", "--cluster", "local", "--group", "g").out
    jobs = shown[shown.index("Jobs:") : shown.index("--- ")].split("\n")
    assert [line.strip() for line in jobs if line.startswith("  ")] == [
        "train-step-000002",
        "no-sgd-step-000002  <- after train-step-000002 succeeded",
        "olft-step-000002  <- after train-step-000002 succeeded",
        "train-step-000004  <- after train-step-000002 succeeded",
        "no-sgd-step-000004  <- after train-step-000004 succeeded",
        "olft-step-000004  <- after train-step-000004 succeeded",
        "report  <- after all of the above, whatever became of them",
    ]


def test_dry_run_shows_every_script(launch, experiments: Path) -> None:
    shown = launch("-n", "--cluster", "local", "--group", "g").out
    assert shown.count("#!/bin/bash") == 7
    assert f"--- {experiments}/p/g/jobs/train-step-000002/job.sh\n" in shown


def test_dry_run_shows_what_sbatch_would_get(launch) -> None:
    assert "--mem" in launch("-n", "--cluster", "dggpu", "--mem=33G").out


def test_dry_run_creates_nothing(launch, experiments: Path) -> None:
    assert launch("-n", "--cluster", "dggpu").code == 0
    assert not experiments.exists()


def test_dry_run_shows_where_a_new_group_stands(launch, experiments: Path) -> None:
    first = launch("-n", "--cluster", "local").out.splitlines()[0]
    assert first == f"Experiment folder: {experiments}/p/NEW-GROUP (not created)"


def test_two_dry_runs_show_the_same(launch) -> None:
    assert launch("-n", "--cluster", "dggpu").out == launch("-n", "--cluster", "dggpu").out


def test_a_smoke_test_for_gpus_goes_on_until_a_graph_is_captured(launch) -> None:
    assert "  olft-step-000006" in launch("-n", "--st", "--cluster", "dggpu").out


def test_a_smoke_test_plans_every_flavor_once(launch) -> None:
    shown = launch("-n", "--st", "--cluster", "local").out
    assert [shown.count(f"  {flavor}-step-000002") for flavor in ("no-sgd", "olft")] == [1, 1]


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--dry-run", "-c", "configs/train-omni-sanml.yml", "--project", "p", "--cluster", "dggpu"]],
    ids=["help", "dry-run"],
)
def test_torch_is_not_loaded_for(run: Run, experiments: Path, arguments: list[str]) -> None:
    done = run("-c", WATCH_TORCH, "launch_train.py", *arguments)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "torch loaded: False")


def test_help_names_the_clusters(command) -> None:
    shown = command("launch", "--help")
    assert (shown.code, "bdgpu, dggpu, gridengine, local" in shown.out) == (0, True)


def test_a_project_is_needed(command, config: Path) -> None:
    assert command("launch", "-c", config, "--cluster", "local") == (
        2, "", "--project is missing: it names the folder of experiments and the W&B project\n",
    )  # fmt: skip


def test_a_config_that_is_not_there_is_told_with_those_that_are(command, config: Path) -> None:
    shown = command("launch", "-c", config.parent / "tarin.yml", "--project", "p")
    assert shown.code == 2
    assert f"no file {config.parent / 'tarin.yml'}; did you mean {config}?" in shown.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tiem=1"], "--tiem: neither an option of this command nor of sbatch; did you mean --time?"),
        (["--inner-lr=0.05"], "--inner-lr: is a key of the config: --set inner_lr=0.05"),
        (["--prject=x"], "--prject: neither an option of this command nor of sbatch; did you mean --project?"),
        (["--set", "inner_lrr=1"], "--set: inner_lrr: unknown key; did you mean 'inner_lr'?"),
        (
            ["--set", "precision=tf32", "--cluster", "bdgpu"],
            "precision: tf32 needs NVIDIA GPUs; the profile bdgpu is for rocm",
        ),
        (["--seed", "3", "--set", "seeds=[1, 2]"], "--seed 3: this config trains several; use --set seeds=[3]"),
        (["--project", "a/b"], "--project 'a/b': it names a folder: it may not start with `.` or `-`, nor contain `/`"),
        (["--group", ".g"], "--group '.g': it names a folder: it may not start with `.` or `-`, nor contain `/`"),
        (["--group", "g" * 300], f"--group {'g' * 20}...: is too long for a folder's name; take at most 200"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_wrong_option_is_explained(launch, arguments: list[str], message: str) -> None:
    assert launch("-n", "--cluster", "dggpu", *arguments) == (2, "", f"{message}\n")


def test_an_unknown_cluster_is_told_with_the_nearest(launch) -> None:
    shown = launch("-n", "--cluster", "dgpu")
    assert (shown.code, "did you mean 'dggpu'?" in shown.err) == (2, True)


def test_every_problem_of_files_and_options_comes_at_once(launch, config: Path) -> None:
    config.write_text(CONFIG.replace("epochs: 4", "epochs: x").replace("runs: 2, lr", "rns: 2, lr"))
    shown = launch("-n", "--cluster", "dggpu", "--tiem=1", "--set", "bad")
    assert shown.err.splitlines() == [
        "4 problems:",
        "--set bad: write it as key=value, for instance --set inner_lr=0.05",
        f'{config}:4: epochs: must be a whole number, found "x"',
        f"{config}:10: eval.olft.rns: unknown key; did you mean 'runs'?",
        "--tiem: neither an option of this command nor of sbatch; did you mean --time?",
    ]


def test_a_wrong_config_leaves_nothing_behind(launch, experiments: Path) -> None:
    assert launch("--cluster", "local", "--set", "epochs=0").code == 2
    assert not experiments.exists()


def test_names_that_the_model_does_not_have_are_found_with_their_line(launch, config: Path, experiments: Path) -> None:
    config.write_text(f"{CONFIG}inner_params: [rnl]\noutput_layer: pn\n")
    shown = launch("--cluster", "local")
    assert [line.split(": this model")[0].split(";")[0] for line in shown.err.splitlines()] == [
        "2 problems:",
        f"{config}:11: inner_params: no parameter is called 'rnl'",
        f"{config}:12: output_layer: 'pn' is not this model's output layer",
    ]
    assert not experiments.exists()


def test_a_group_with_another_config_is_left_alone(launch, experiments: Path) -> None:
    folder = experiments / "p" / "g"
    folder.mkdir(parents=True)
    (folder / "config.yml").write_text("dataset: omniglot\n")
    shown = launch("--cluster", "local", "--group", "g")
    assert shown.code == 2
    assert "--group g: this group exists with another config, so it is left alone:" in shown.err
    assert [path.name for path in folder.iterdir()] == ["config.yml"]


def test_a_folder_that_cannot_be_made_is_an_error_in_words(launch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    shown = launch("--cluster", "local", "--experiments-dir", tmp_path / "file")
    assert shown.code == 2
    assert "is not a folder that you may write to; choose another with --experiments-dir" in shown.err


def test_vary_on_the_command_line_is_that_of_a_config(launch) -> None:
    dry = ("-n", "--cluster", "local", "--vary")
    shown = launch(*dry, "inner_params=[rln,fc],fc", "--vary", "model_args.rln_chs=4,8").out
    varied = [
        line.split("train-step-000002-")[1] for line in shown.splitlines() if line.startswith("  train-step-000002-")
    ]
    assert varied == [f"inner-params-{names}-rln-chs-{width}" for names in ("rln-fc", "fc") for width in (4, 8)]
    wrong = launch(*dry, "outer_lr")
    assert (wrong.code, "key=value,value" in wrong.err) == (2, True)
