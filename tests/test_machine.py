"""A job on the wrong machine fails in seconds and says what to do."""

import contextlib
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import anml.evaluate.by_hand
import anml.evaluate.job
import anml.train.job
from anml.cli.main import main
from anml.errors import JobError
from anml.jobs.job import check_folder
from anml.machine import GpuMeter, determinism, keep_float32, mask_problems, peak_memory, prepare_device, set_precision


def test_cpu_is_always_there() -> None:
    assert prepare_device("cpu") == torch.device("cpu")


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch is a CUDA build")
def test_cuda_profile_with_another_torch_names_the_environment_to_use() -> None:
    with pytest.raises(JobError, match=r"environment\.yml"):
        prepare_device("cuda")


@pytest.mark.skipif(torch.version.hip is not None, reason="this torch is a ROCm build")
def test_rocm_profile_with_another_torch_names_the_environment_to_use() -> None:
    with pytest.raises(JobError, match=r"environment-rocm\.yml"):
        prepare_device("rocm")


def test_float32_stays_float32_on_a_gpu() -> None:
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    keep_float32()
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32


@pytest.fixture
def cudnn(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The settings of this process, which are as before after a test."""
    for name, value in (("deterministic", False), ("benchmark", True)):
        monkeypatch.setattr(torch.backends.cudnn, name, value)
    monkeypatch.setenv("TORCHINDUCTOR_DETERMINISTIC", "")  # So that it is put back.
    monkeypatch.delenv("TORCHINDUCTOR_DETERMINISTIC")
    return torch.backends.cudnn


@pytest.mark.parametrize(("asked", "expected"), [(None, True), (True, True), (False, False)])
def test_a_gpu_is_deterministic_unless_the_config_says_otherwise(cudnn, monkeypatch, asked, expected) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with contextlib.suppress(AssertionError, JobError):  # Of a machine that has none after all.
        prepare_device("auto", "cuda", asked)
    assert cudnn.deterministic == expected
    assert not cudnn.benchmark
    assert os.environ.get("TORCHINDUCTOR_DETERMINISTIC") == ("1" if expected else None)
    assert determinism(torch.device("cuda")) == f", deterministic: {'true' if expected else 'false'}"


@pytest.mark.parametrize("precision", [None, "float32", "bf16-mixed"])
def test_a_cpu_trains_in_every_precision_but_tf32(precision: Any) -> None:
    said = set_precision(torch.device("cpu"), precision)
    assert said == (", precision: bf16-mixed" if precision == "bf16-mixed" else "")
    with pytest.raises(JobError, match="tf32 needs an NVIDIA GPU"):
        set_precision(torch.device("cpu"), "tf32")


def test_tf32_is_allowed_on_a_gpu_that_has_it_and_only_if_asked_for(cudnn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.version, "hip", None)
    try:
        assert set_precision(torch.device("cuda"), "tf32") == ", precision: tf32"
        assert (cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == (True, True)
    finally:
        keep_float32()


def test_a_log_has_nothing_to_say_of_a_cpu() -> None:
    assert determinism(torch.device("cpu")) == ""


def test_a_gpu_without_nvml_is_told_and_logs_its_memory_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    meter = GpuMeter(torch.device("cpu"))
    assert (meter.read(), meter.missing, meter.energy()) == ({}, "", "")
    monkeypatch.setitem(sys.modules, "pynvml", None)
    meter = GpuMeter(torch.device("cuda"))
    assert "pip install nvidia-ml-py" in meter.missing
    assert (set(meter.read()), meter.energy()) == ({"gpu_gb"}, "")


@pytest.mark.skipif(not torch.cuda.is_available() or torch.version.hip is not None, reason="no GPU of NVIDIA's")
def test_a_gpu_tells_how_busy_it_is_and_its_energy() -> None:
    pytest.importorskip("pynvml")
    meter = GpuMeter(torch.device("cuda"))
    read = meter.read()
    assert meter.missing == ""
    assert 0 <= read["gpu_percent"] <= 100
    assert read["gpu_kilojoules"] >= 0
    assert meter.energy().endswith(" kJ")


SMALL = {
    "dataset": "glyphs", "model": "sanml", "model_args": {"rln_chs": 3}, "num_batches": 2, "remember_size": 4,
    "epochs": 1, "engine": "fast", "device": "cpu",
}  # fmt: skip
FLAVOR = {"classes": 2, "runs": 1, "lr": 0.01, "eval_freq": 0}


@pytest.mark.slow
def test_every_job_passes_on_what_its_config_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool | None] = []

    def spy(*arguments: Any) -> torch.device:
        asked.append(arguments[2])
        return prepare_device(*arguments)

    for module in (anml.train.job, anml.evaluate.job, anml.evaluate.by_hand):
        monkeypatch.setattr(module, "prepare_device", spy)
    flavors = {"as-training": FLAVOR, "its-own": FLAVOR | {"deterministic": True}}
    path, by_hand = tmp_path / "config.yml", tmp_path / "eval.yml"
    path.write_text(yaml.safe_dump(SMALL | {"deterministic": False, "eval": flavors}))
    by_hand.write_text(yaml.safe_dump(FLAVOR | {"deterministic": False}))
    assert main(["train", "--run-dir", str(tmp_path)]) == 0
    for flavor in flavors:
        assert main(["evaluate", "--run-dir", str(tmp_path), "--flavor", flavor, "--step", "1"]) == 0
    assert main(["evaluate", "-c", str(by_hand), "-m", str(tmp_path / "checkpoints/step-000001")]) == 0
    assert asked == [False, False, True, False]


@pytest.mark.parametrize("mask", ["CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL"])
def test_two_device_masks_are_refused_with_the_line_that_mends_it(mask: str) -> None:
    (problem,) = mask_problems({"ROCR_VISIBLE_DEVICES": "1", mask: "1"})
    assert f"unset {mask}" in problem


def test_one_device_mask_is_fine() -> None:
    assert mask_problems({"CUDA_VISIBLE_DEVICES": "1"}) == mask_problems({"ROCR_VISIBLE_DEVICES": "1"}) == []


def test_full_disk_is_refused(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="GB of disk left"):
        check_folder(tmp_path, min_free_gb=1e9)


@pytest.mark.slow
def test_peak_memory_is_that_of_this_process():
    words = peak_memory(torch.device("cpu")).split()
    assert words[:2] == ["peak", "memory"]
    before = float(words[2])
    assert 0.05 < before < 50
    held = torch.ones(300_000_000, dtype=torch.uint8)
    assert float(peak_memory(torch.device("cpu")).split()[2]) >= before
    assert held.sum() == 300_000_000
