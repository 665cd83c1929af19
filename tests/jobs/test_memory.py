"""What certainly does not fit into the memory of its job is refused before anything is submitted, and nothing else."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from anml.cli.check_config import find_problems, memory_needs
from anml.cli.main import main
from anml.config.load import load_train_config
from anml.config.profile import ClusterProfile
from anml.config.training import TrainConfig
from anml.config.yaml import source_of
from anml.errors import ConfigError
from anml.jobs.memory import memory_problems
from anml.jobs.schedulers import scheduler_class

GIB = 2**30


def load(**changes: Any) -> TrainConfig:
    keys = {"dataset": "glyphs", "model": "sanml", "epochs": 2, "num_batches": 4}
    return load_train_config(source_of(keys | changes, "config")).config


def profile(scheduler: str = "slurm", escalate: Sequence[str] = (), device: str = "cpu", **options: object):
    given = {"sbatch": {"all": options}, "escalate": {"mem": escalate}, "device": device}
    return ClusterProfile(name="here", scheduler=scheduler, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("asked", "gets"),
    [
        (profile(mem="16G"), 16),
        (profile(mem=4096), 4),
        (profile(mem="16G", escalate=("32G", "64G")), 64),
        # Two threads of a core are handed out together.
        (profile(**{"mem-per-cpu": "2G", "cpus-per-task": 4}), 16),
        (profile(**{"mem-per-gpu": "8G", "gres": "gpu:1"}), 8),
        (profile(mem=0), None),
        (profile(mem="all there is"), None),
        (profile(**{"mem-per-cpu": "2G", "exclusive": True}), None),
        (profile(partition="big"), None),
        (profile("gridengine", l="h_vmem=1G"), None),
    ],
)
def test_a_job_gets_what_its_options_say(asked: ClusterProfile, gets: int | None) -> None:
    memory = scheduler_class(asked.scheduler).memory(asked, "train")
    assert (memory and memory[0]) == (gets and gets * GIB)


@pytest.mark.parametrize(
    ("asked", "gpu", "refused"),
    [
        (profile(mem="3G"), 0, 3),
        (profile(mem="4G"), 0, None),
        # On a GPU of a cluster, of which nothing is known, only the weights are surely in the job's memory.
        (profile(mem="2G", device="auto"), 0, None),
        (profile(mem="1000M", device="cuda"), 0, 1),
        (profile("local", device="auto"), 3 * GIB, 3),
        (profile("local", device="auto"), 4 * GIB, None),
    ],
)
def test_a_need_is_compared_with_the_memory_that_it_is_in(asked: ClusterProfile, gpu: int, refused: int | None) -> None:
    parts = {"weights": GIB, "gradients": GIB, "moments of Adam": 2 * GIB}
    need = {"kind": "train", "weights": {"weights": GIB}, "parts": parts, "at": " (of the training with width 9)"}
    problems = memory_problems([need], gpu, asked, "auto")
    assert len(problems) == (refused is not None)
    for problem in problems:
        assert f"get {refused}.0 GiB" in problem
        assert problem.endswith("(of the training with width 9)")


def test_a_model_of_the_users_own_that_needs_values_is_counted_too(tmp_path: Path) -> None:
    net = "from anml.models.anml import Sanml, SanmlArgs\n\n\nclass Net(Sanml):\n"
    net += "    def __init__(self, args: SanmlArgs, image_shape: tuple[int, int, int]) -> None:\n"
    net += "        super().__init__(args, image_shape)\n        self.sum = float(self.fc.weight.detach().sum())\n"
    (tmp_path / "net.py").write_text(net)
    args = {"rln_chs": 8, "num_classes": 2000}  # A small model would not be tried on `meta`.
    own: dict[str, Any] = {"model": f"{tmp_path}/net.py:Net", "model_args": args, "train_method": "prototypes"}
    parts = [next(memory_needs(load(**changes)))["parts"] for changes in (own, own | {"model": "sanml"})]
    assert parts[0] == parts[1]
    assert parts[0]["weights"] > 0


def test_a_model_that_cannot_fit_is_told_beside_other_mistakes() -> None:
    config = load(model_args={"rln_chs": 100000}, data_path="/nowhere", dataset="mini-imagenet")
    assert len(find_problems(config)) == 1
    assert next(memory_needs(config))["weights"]["weights"] > 1000 * GIB


@pytest.mark.slow
def test_a_point_that_cannot_fit_is_refused_by_its_name_before_anything_is_created(
    experiments: Path, tmp_path: Path
) -> None:
    config = tmp_path / "train.yml"
    config.write_text(json.dumps({"dataset": "glyphs", "model": "anml", "epochs": 2, "num_batches": 4}))
    launch = ["launch", "-c", str(config), "--project", "p", "--cluster", "local", "--set", "device=cpu"]
    with pytest.raises(ConfigError) as refused:
        main([*launch, "--vary", "model_args.rln_chs=8,100000"])
    [problem] = refused.value.problems
    # 181.8 billion weights, their gradients and moments, and the 180 billion of convolutions at each of four steps.
    assert f"{config}:1: model: train jobs need at least 5,391.4 GiB of memory" in problem
    assert problem.endswith("(of the training with rln_chs 100000)")
    assert not experiments.exists()
