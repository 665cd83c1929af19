"""`config show` and `config diff`."""

from pathlib import Path

from anml.config.load import dump_config, load_train_config
from tests.report.conftest import SMALL, start_experiment

FILE = """\
<<: !include base.yml
inner_lr: 0.05
eval.olft.lr: ${inner_lr}
"""


def write(folder: Path) -> Path:
    (folder / "base.yml").write_text(SMALL)
    (folder / "train.yml").write_text(FILE)
    return folder / "train.yml"


def test_a_config_is_shown_resolved_with_the_origin_of_each_value(command, tmp_path: Path) -> None:
    path = write(tmp_path)
    done = command("config", "show", path, "--set", "seed=7")
    assert (done.code, done.err) == (0, "")
    lines = {line.split(":")[0]: line for line in done.out.splitlines()}
    origins = {key: lines[key].rpartition("# ")[2] for key in ("inner_lr", "epochs", "seed", "outer_lr")}
    base = path.with_name("base.yml")
    assert origins == {"inner_lr": f"{path}:2", "epochs": f"{base}:5", "seed": "--set", "outer_lr": "default"}
    assert f"    lr: [0.05]                            # {path}:3" in done.out.splitlines()
    # What is shown is a config, of the same experiment.
    (tmp_path / "shown.yml").write_text(done.out)
    shown, meant = (load_train_config(file, ["seed=7"]).config for file in (tmp_path / "shown.yml", path))
    assert dump_config(shown) == dump_config(meant)


def test_an_evaluation_and_an_experiment_are_shown_too(command, experiments: Path) -> None:
    start_experiment(experiments / "p" / "g", SMALL)
    assert "# " in command("config", "show", "eval-omni-anml.yml").out
    assert f"# {experiments / 'p' / 'g' / 'config.yml'}:" in command("config", "show", "p/g").out


def test_a_difference_names_the_key_both_values_and_their_origins(command, experiments: Path, tmp_path: Path) -> None:
    path = write(tmp_path)
    start_experiment(experiments / "p" / "g", SMALL)
    done = command("config", "diff", "p/g", path)
    config = experiments / "p" / "g" / "config.yml"
    assert done.code == 0
    lines = done.out.splitlines()
    assert [line for line in lines if not line.startswith(" ")] == ["inner_lr", "eval.olft.lr"]
    assert [line.split() for line in lines[1:3]] == [["0.1", f"{config}:12"], ["0.05", f"{path}:2"]]
    assert command("config", "diff", path, path).out == "No differences.\n"


def test_wrong_arguments_are_told(command, experiments: Path) -> None:
    missing = command("config", "show", "nothing/here")
    assert (missing.code, "nothing/here" in missing.err) == (2, True)
    one = command("config", "diff", "quickstart.yml")
    assert (one.code, "takes 2" in one.err) == (2, True)
