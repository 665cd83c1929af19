"""Checks the machine a job finds itself on, so that a wrong one costs seconds and not a night."""

import importlib
import os
import platform
import resource
import time
from contextlib import suppress

import torch

from anml.config.profile import Device
from anml.config.training import Precision
from anml.errors import JobError


def prepare_device(profile: Device, config: Device = "auto", deterministic: bool | None = None) -> torch.device:
    """Return the device to compute on. Raises JobError when the machine does not have it.

    profile: what the cluster profile promises. config: what the experiment asks for; `cuda` means any GPU, as in torch.
    deterministic: as in the config; unset is true.
    """
    if config == "cpu" or (profile == "cpu" and config == "auto"):
        return torch.device("cpu")
    if profile == "cpu":
        message = "the config says device: cuda, the profile is for the CPU: set device: auto, or choose a cluster"
        raise JobError(message)
    if profile == "auto" and config == "auto" and not torch.cuda.is_available():
        return torch.device("cpu")
    # Only ROCm filters twice; on NVIDIA machines Slurm may set all masks alike, and CUDA heeds its own.
    problems = _build_problems(profile) + (mask_problems(dict(os.environ)) if torch.version.hip else [])
    if not problems and not torch.cuda.is_available():
        problems = ["no GPU answers. Was one asked for (sbatch: gres gpu:1)? Does `nvidia-smi` or `rocm-smi` see it?"]
    if problems:
        raise JobError("\n".join(problems))
    keep_float32()
    set_determinism(deterministic is not False)
    device = torch.device("cuda")
    try:
        torch.ones(2, device=device).sum().item()
    except RuntimeError as error:
        message = f"the GPU does not compute: {error}. Report the node, or exclude it (--exclude=NODE)."
        raise JobError(message) from error
    return device


def keep_float32() -> None:
    """Compute in float32 what is float32: by default a GPU's convolutions round their inputs to TF32 (10 bits)."""
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def set_precision(device: torch.device, precision: Precision | None) -> str:
    """Let a GPU round what trainings multiply as their config says; return what a log's line adds of it.

    TF32 is a setting of the process, bf16-mixed is left to `meta.engine.autocast`. Raises JobError where the hardware
    has none.
    """
    if precision in (None, "float32"):
        return ""
    is_nvidia = device.type == "cuda" and torch.version.hip is None
    is_new = is_nvidia and torch.cuda.get_device_capability(device) >= (8, 0)
    if (precision == "tf32" or is_nvidia) and not is_new:
        message = f"precision: {precision} needs an NVIDIA GPU of compute capability 8.0 or later (an A100 or newer)"
        message += f", and this trains on {describe_machine(device)['device']}: leave precision out"
        raise JobError(message)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    return f", precision: {precision}"


def set_determinism(wanted: bool) -> None:
    """Let this process's GPU compute the same bits each time on the same card, or whatever is fastest.

    Convolutions are what differs between two runs of the same training. `torch.use_deterministic_algorithms` would
    also sort the indices of sums that are never repeated (tests/meta/test_determinism.py), and torch keeps cuBLAS
    deterministic by a workspace of its own for each stream.
    """
    torch.backends.cudnn.deterministic = wanted
    torch.backends.cudnn.benchmark = False  # The fastest in a short trial is another one each time.
    if wanted:
        # Likewise torch.compile and its reductions; it reads this when it is first used.
        os.environ.setdefault("TORCHINDUCTOR_DETERMINISTIC", "1")


def determinism(device: torch.device) -> str:
    """Return what a log's line adds of a GPU: whether it computes the same bits each time. A CPU does."""
    return f", deterministic: {str(torch.backends.cudnn.deterministic).lower()}" if device.type == "cuda" else ""


def clock(device: torch.device) -> float:
    """Wait until the device has done all that it was given, then return the time of a clock in seconds.

    A GPU works while the host goes on: read at once, the clock would tell how long it took to hand over the work.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def describe_machine(device: torch.device) -> dict[str, str | None]:
    """Return what a job computes with: the launching machine may have another torch, or no GPU."""
    return {
        "host": platform.node(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "rocm": torch.version.hip,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
    }


def peak_memory(device: torch.device) -> str:
    """Return the most memory that this process has held so far: what the next job should ask for (sbatch: mem)."""
    unit = 1 if platform.system() == "Darwin" else 1024  # Bytes on macOS, kilobytes on Linux.
    text = f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9:.2f} GB"
    if device.type == "cuda":
        text += f", on the GPU {torch.cuda.max_memory_allocated(device) / 1e9:.2f} GB"
    return text


class GpuMeter:
    """What a GPU's driver tells beside torch, by NVIDIA's NVML. missing: why it tells nothing; empty on a CPU.

    NVML is read by the package nvidia-ml-py, which no build of torch brings. ROCm has none.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.missing = device, ""
        if device.type == "cuda":
            try:
                self.nvml = importlib.import_module("pynvml")
                self.nvml.nvmlInit()
                # Not by a number: Slurm may show a job one card of several.
                uuid = torch.cuda.get_device_properties(device).uuid
                self.handle = self.nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
                self.start = self.nvml.nvmlDeviceGetTotalEnergyConsumption(self.handle)
            except Exception as error:  # No package, no driver, or a card that cannot tell.
                self.missing = f"utilisation and energy of the GPU are not logged (pip install nvidia-ml-py): {error}"

    def read(self) -> dict[str, float]:
        """Return what a log's line adds: peak memory in GB; percent of the last second that it computed; kJ so far."""
        if self.device.type != "cuda":
            return {}
        line = {"gpu_gb": round(torch.cuda.max_memory_reserved(self.device) / 1e9, 3)}
        if not self.missing:
            with suppress(self.nvml.NVMLError):  # A training goes on without these numbers.
                energy = self.nvml.nvmlDeviceGetTotalEnergyConsumption(self.handle) - self.start
                busy = self.nvml.nvmlDeviceGetUtilizationRates(self.handle).gpu
                line |= {"gpu_percent": busy, "gpu_kilojoules": round(energy / 1e6, 3)}
        return line

    def energy(self) -> str:
        """Return what a log's last line adds: the energy since this was made, where the driver tells it."""
        used = self.read().get("gpu_kilojoules")
        return "" if used is None else f", {used:g} kJ"


def _build_problems(wanted: Device) -> list[str]:
    """Say what is wrong with the installed torch: PyTorch for ROCm also answers through torch.cuda."""
    build = "ROCm" if torch.version.hip else "CUDA" if torch.version.cuda else "CPU-only"
    needed = {"cuda": ("CUDA", "environment.yml"), "rocm": ("ROCm", "environment-rocm.yml")}
    name, environment = needed.get(wanted, (build, ""))
    if name == build:
        return []
    return [f"this profile is for {name}, but torch {torch.__version__} is a {build} build: use {environment}"]


def mask_problems(environment: dict[str, str]) -> list[str]:
    """Say whether device masks hide GPUs twice: ROCm applies HIP and CUDA masks inside what ROCR already hides."""
    masks = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL")
    twice = " ".join(name for name in masks if environment.get(name))
    if not twice or not environment.get("ROCR_VISIBLE_DEVICES"):
        return []
    return [f"ROCR_VISIBLE_DEVICES and {twice} hide GPUs twice: add `unset {twice}` to the profile's setup lines"]
