"""Memory that jobs need at least, and what they get: what cannot fit is refused before anything is submitted."""

from collections.abc import Sequence
from typing import Any

from anml.config.profile import ClusterProfile, Device
from anml.jobs.schedulers import scheduler_class


def memory_problems(needs: Sequence[dict[str, Any]], gpu: int, profile: ClusterProfile, device: Device) -> list[str]:
    """Return what certainly does not fit. needs, gpu: as `check-config` tells. device: as the config asks for it."""
    scheduler, problems = scheduler_class(profile.scheduler), []
    on_cpu = "cpu" in (device, profile.device) or (scheduler.runs_here and not gpu)
    for need in needs:
        # A model is made, or loaded, on the CPU. Which GPU a cluster has nobody says.
        compared = [(need["parts" if on_cpu else "weights"], scheduler.memory(profile, need["kind"]))]
        if scheduler.runs_here and not on_cpu:
            compared.append((need["parts"], (gpu, "the GPU of this machine; choose a smaller model")))
        for parts, limit in compared:
            least = sum(parts.values())
            if limit and least > limit[0]:
                listed = ", ".join(f"{part} {_gib(size)}" for part, size in parts.items() if size)
                message = f"model: {need['kind']} jobs need at least {_gib(least)} of memory ({listed}), but get "
                problems.append(f"{message}{_gib(limit[0])}: {limit[1]}{need['at']}")
    return problems


def _gib(size: float) -> str:
    return f"{size / 2**30:,.1f} GiB"
