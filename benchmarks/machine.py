"""The facts of a machine that timings depend on."""

import importlib.util
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch


def machine() -> dict[str, Any]:
    """Return the facts that timings depend on."""
    return {
        "processor": processor(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "load_average_before": os.getloadavg(),  # Other work on the machine: ratios suffer less than times.
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    } | card()


def card() -> dict[str, Any]:
    """Return the facts of a GPU, or nothing where there is none."""
    if not torch.cuda.is_available():
        return {}
    properties = torch.cuda.get_device_properties(0)
    return {
        "card": properties.name,
        "card_gb": round(properties.total_memory / 2**30, 1),
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "triton": version("triton") if importlib.util.find_spec("triton") else None,
        "deterministic": torch.backends.cudnn.deterministic,
    }


def processor() -> str:
    """Return the processor's name, where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
