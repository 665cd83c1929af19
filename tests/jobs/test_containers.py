"""The command that runs python in a container, by runtime and device."""

import os
import subprocess
from pathlib import Path

import pytest

from anml.config.profile import ClusterProfile, Container, Device
from anml.jobs.containers import container_command, python_lines

REPOSITORY = Path(__file__).resolve().parents[2]


def profile(device: Device = "cpu", **container) -> ClusterProfile:
    return ClusterProfile(name="c", scheduler="slurm", device=device, container=Container(image="a b.sif", **container))


@pytest.mark.parametrize(("device", "flag"), [("cuda", " --nv "), ("rocm", " --rocm "), ("cpu", " ")])
@pytest.mark.parametrize("runtime", ["apptainer", "singularity"])
def test_a_container_gets_the_gpus_of_the_device(runtime, device: Device, flag: str) -> None:
    command = container_command(
        profile(device, runtime=runtime, binds=["/data:/d:ro"]), ["python", "x"], Path("/e/p g")
    )
    assert command.startswith(f"{runtime} exec{flag}--bind '/e/p g' --bind /data:/d:ro ")
    assert command.endswith(" 'a b.sif' python x")


def test_pyxis_gets_image_and_mounts_by_srun() -> None:
    command = container_command(profile(runtime="pyxis", binds=["/data:/d:ro", "/scratch"]), ["python"], Path("/e"))
    line, environment = f"set -- {command}; printf '%s\\n' \"$@\"", os.environ | {"ANML_CACHE": "/cache"}
    words = subprocess.run(["bash", "-c", line], env=environment, capture_output=True, text=True).stdout.splitlines()
    mounts = "--container-mounts=/e:/e,/data:/d:ro,/scratch:/scratch,/cache:/cache"
    assert {"srun", "--container-image=a b.sif", mounts, f"--container-workdir={os.getcwd()}"} <= set(words)


def test_without_a_container_python_takes_the_place_of_the_shell() -> None:
    plain = ClusterProfile(name="c", scheduler="slurm", python="/opt/python")
    assert python_lines(plain, ["x"], Path("/e")) == ["exec /opt/python x"]


@pytest.mark.parametrize("name", ["anml.def", "Dockerfile"])
def test_images_are_built_from_the_pins(name: str) -> None:
    text = (REPOSITORY / "slurm" / "containers" / name).read_text()
    assert "python:3.11-" in text
    installs = [line for line in text.splitlines() if "pip install" in line]
    assert [line.rpartition(" ")[2] for line in installs] == ["/opt/anml/requirements.txt"]
    assert "requirements.txt /opt/anml/requirements.txt" in text
