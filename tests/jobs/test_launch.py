"""The user's own code is frozen with the package: a launched experiment never sees later edits."""

import subprocess
import sys
from pathlib import Path

from anml.config.evaluation import EvalConfig
from anml.config.profile import ClusterProfile
from anml.config.training import TrainConfig
from anml.jobs.launch import copy_code, references


def test_a_users_files_and_packages_are_frozen(tmp_path: Path, monkeypatch) -> None:
    file, package = tmp_path / "my_net.py", tmp_path / "my_package" / "__init__.py"
    package.parent.mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    for source in (file, package):
        source.write_text("VERSION = 'as launched'\n")
    used = [f"{file}:VERSION", "my_package:VERSION"]
    copy_code(tmp_path / "code", used)
    for source in (file, package):
        source.write_text("VERSION = 'edited'\n")
    script = f"from anml.plugins import load_object; print([load_object(name) for name in {used}])"
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path / "code", capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("['as launched', 'as launched']\n", "")


def test_every_key_that_may_name_a_users_code_is_looked_at() -> None:
    flavors = {name: EvalConfig.model_construct(eval_method=f"{name}:p", dataset=f"{name}:d") for name in ("a", "b")}
    config = TrainConfig.model_construct(
        model="classifier", model_args={"encoder": "e.py:E", "classifier": "linear-classifier", "note": "x:y"},
        dataset="d.py:D", train_method="t.py:T", eval=flavors,
    )  # fmt: skip
    profile = ClusterProfile(name="c", scheduler="s.py:S")
    names = ["e.py:E", "d.py:D", "t.py:T", "a:p", "b:p", "a:d", "b:d", "s.py:S"]
    assert sorted(references(config, profile)) == sorted(names)
