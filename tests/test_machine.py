"""A job on the wrong machine fails in seconds and says what to do."""

from pathlib import Path

import pytest
import torch

from anml.errors import JobError
from anml.jobs.job import check_folder
from anml.machine import keep_float32, mask_problems, peak_memory, prepare_device


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


@pytest.mark.parametrize("mask", ["CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL"])
def test_two_device_masks_are_refused_with_the_line_that_mends_it(mask: str) -> None:
    (problem,) = mask_problems({"ROCR_VISIBLE_DEVICES": "1", mask: "1"})
    assert f"unset {mask}" in problem


def test_one_device_mask_is_fine() -> None:
    assert mask_problems({"CUDA_VISIBLE_DEVICES": "1"}) == mask_problems({"ROCR_VISIBLE_DEVICES": "1"}) == []


def test_full_disk_is_refused(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="GB of disk left"):
        check_folder(tmp_path, min_free_gb=1e9)


def test_peak_memory_is_that_of_this_process():
    words = peak_memory(torch.device("cpu")).split()
    assert words[:2] == ["peak", "memory"]
    before = float(words[2])
    assert 0.05 < before < 50
    held = torch.ones(300_000_000, dtype=torch.uint8)
    assert float(peak_memory(torch.device("cpu")).split()[2]) >= before
    assert held.sum() == 300_000_000
