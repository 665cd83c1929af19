"""`clusters check`: what it tells of the python that jobs would run."""

from pathlib import Path

from anml.cli import setup


def test_packages_that_the_python_of_a_cluster_lacks_are_named(command, experiments, tmp_path: Path, monkeypatch):
    (tmp_path / "torch.py").write_text("class version:\n    hip = cuda = None\n")  # The real one takes seconds.
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(setup, "_requirements", lambda: {"torch": "0.1", "nothing-of-this-name": "1.0"})
    shown = command("clusters", "check", "local")
    assert (shown.code, "BAD  it lacks nothing-of-this-name, " in shown.out) == (1, True), shown.out + shown.err
