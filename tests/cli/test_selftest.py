"""`selftest`: it passes here, it fails where something is wrong, and it runs as a job of a cluster."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch

from anml import optim, selftest
from anml.meta import ENGINES
from anml.meta.fast import FastEngine

CPU = torch.device("cpu")


def test_a_cluster_runs_it_as_a_job_where_every_check_passes_or_says_why_it_is_left_out(
    command, experiments: Path
) -> None:
    shown = command("clusters", "check", "local", "--run", "--quick")
    assert shown.code == 0, shown.out + shown.err
    [file] = experiments.glob("selftest/*/selftest.json")
    found = json.loads(file.read_text())
    assert found["failed"] == []
    assert {"torch", "device", "cuda", "rocm"} <= set(found["machine"])
    passed = {check["check"] for check in found["checks"] if check["ok"]}
    assert passed >= {
        "anml, engine fast: gradients", "sanml, engine sweep: gradients", "oml, engine fast: gradients",
        "evaluation, engine lanes: all learns", "anml trained twice", "anml stopped and resumed",
        "two anml trained together", "anml: speed against the reference",
    }  # fmt: skip
    assert "all checks passed" in shown.out
    assert torch.cuda.is_available() or "left out: graphs need a GPU" in shown.out


def only(monkeypatch: pytest.MonkeyPatch, name: str, check: selftest.Check) -> None:
    monkeypatch.setattr(selftest, "_checks", lambda *_: [(name, check)])


def test_a_wrong_engine_fails(command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(FastEngine):
        def run(self, episode):
            outcome = super().run(episode)
            return outcome._replace(gradients={name: g * (1 + 1e-6) for name, g in outcome.gradients.items()})

    monkeypatch.setitem(ENGINES, "fast", Wrong)
    only(monkeypatch, "oml, engine fast", partial(selftest._gradients_are_exact, "oml", "fast", CPU))
    shown = command("selftest", "--device", "cpu", "--json", str(tmp_path / "selftest.json"))
    assert (shown.code, "FAIL  oml, engine fast" in shown.out) == (1, True)
    assert "selftest failed: oml, engine fast" in shown.err
    assert json.loads((tmp_path / "selftest.json").read_text())["failed"] == ["oml, engine fast"]


def test_an_engine_that_breaks_fails_and_the_others_go_on(command, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> selftest.Finding:
        message = "no kernel image is available\nand more"
        raise RuntimeError(message)

    fine = selftest.Finding(True, "fine")
    monkeypatch.setattr(selftest, "_checks", lambda *_: [("broken", broken), ("next", lambda: fine)])
    shown = command("selftest", "--device", "cpu")
    assert shown.code == 1
    assert "RuntimeError: no kernel image is available\npass  next" in shown.out


def test_a_resumed_training_that_forgets_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = selftest._Trainer(CPU, tmp_path, quick=True)
    assert trainer.repeats("oml").ok
    monkeypatch.setattr(optim.Adam, "load_state_dict", lambda self, state: None)
    assert trainer.resumes("oml").ok is False


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [(["--device", "gpu"], 2, "invalid choice"), (["--json", "."], 2, "is a folder"),
     pytest.param(["--device", "cuda"], 1, "no GPU answers",
                  marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"))],
)  # fmt: skip
def test_what_it_cannot_do_is_told(command, words: list[str], code: int, told: str) -> None:
    shown = command("selftest", *words)
    assert (shown.code, told in shown.err) == (code, True), shown.err
