"""Any option that the sbatch at hand has can be given, listed by simple_slurm or not."""

import pytest

from tests.slurm.bench import TINY, Bench

pytestmark = pytest.mark.slurm
ONE_JOB = TINY | {"epochs": 1, "eval_steps": [1], "eval": {}}


def test_sbatch_decides_which_options_there_are(bench: Bench) -> None:
    """`--tasks-per-node` is none of simple_slurm's list; sbatch refuses a bare value behind an optional one."""
    options = ["--tasks-per-node=1", "--nice", "5", "--mem-per-cpu", "300M", "--gpus=1", "--hold"]
    launched = bench.launch(*options, config=ONE_JOB)
    assert launched.returncode == 0, launched.stderr
    job = bench.slurm("scontrol", "show", "job", bench.id_of("train-step-000001"))
    assert all(text in job for text in ("Nice=5", "MinMemoryCPU=300M", "TresPerJob=gres:gpu:1", "NtasksPerN:B:S:C=1:"))
    assert "TresPerNode" not in job


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--tiem=1", "--tiem: neither an option of this command nor of sbatch; did you mean --time?"),
        ("--tasks-per-node=many", "many"),
    ],
)
def test_what_sbatch_refuses_leaves_nothing_behind(bench: Bench, option: str, words: str) -> None:
    launched = bench.launch(option, config=ONE_JOB)
    assert (launched.returncode, words in launched.stderr, bench.root().exists()) == (2, True, False), launched.stderr
