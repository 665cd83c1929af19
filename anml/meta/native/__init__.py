"""The sweep's conv blocks in C++ for CPUs. Optional: where it cannot be built, `available()` says why.

Built at first use, with the machine's own instructions, into PyTorch's extension cache (TORCH_EXTENSIONS_DIR moves it);
the folder's name holds what the binary depends on, so that a home directory shared by different nodes is safe.
"""

import functools
import hashlib
import os
import platform
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch

_FOLDER = Path(__file__).parent
_SOURCES = [_FOLDER / name for name in ("module.cpp", "blocks.h", "head.h", "simd.h")]
_FLAGS = [
    "-O3",
    "-march=native",
    "-fopenmp",
    "-fvisibility=hidden",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fno-signed-zeros",
]


class Availability(NamedTuple):
    """Whether the native kernels can be used, and if not, why. True or false like its first field."""

    usable: bool
    reason: str = ""

    def __bool__(self) -> bool:
        """Say whether they can be used."""
        return self.usable


def available() -> Availability:
    """Build (once for each machine and version) and load the kernels; never raises."""
    return _load()[0]


def kernels() -> ModuleType:
    """Return the loaded extension. Raises RuntimeError where it is not available."""
    found, module = _load()
    if module is None:
        message = f"the native engine is not available here: {found.reason}"
        raise RuntimeError(message)
    return module


@functools.cache
def _load() -> tuple[Availability, ModuleType | None]:
    compiler = os.environ.get("CXX", "c++")
    if not shutil.which(compiler):
        return Availability(False, f"there is no C++ compiler ({compiler!r} not found; CXX names another)"), None
    if not shutil.which("ninja"):
        return Availability(False, "the build tool ninja is not installed"), None
    from torch.utils import cpp_extension  # Only here: it takes a second to import.

    try:
        module: Any = cpp_extension.load(
            name=_build_name(compiler), sources=[str(_SOURCES[0])], extra_cflags=_FLAGS, extra_ldflags=["-fopenmp"]
        )
    except (OSError, RuntimeError, ImportError) as error:
        return Availability(False, f"building it failed: {_first_error(str(error))}"), None
    return Availability(True), module


def _first_error(log: str) -> str:
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return next((line for line in lines if "error:" in line), lines[-1] if lines else "no message")


def _build_name(compiler: str) -> str:
    """Return a name made of everything that the binary depends on; also the build folder's."""
    version = Path(shutil.which(compiler) or compiler).resolve()
    sources = [source.read_text() for source in _SOURCES]
    facts = [*sources, str(_FLAGS), _processor(), torch.__version__, platform.python_version(), str(version)]
    return f"anml_blocks_{hashlib.sha256(chr(0).join(facts).encode()).hexdigest()[:12]}"


def _processor() -> str:
    """Return the processor's model and instruction sets: -march=native is only safe where these are the same."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return f"{platform.node()} {platform.processor()} {platform.machine()}"
    lines = info.read_text().split("\n\n")[0].splitlines()
    return "\n".join(line for line in lines if line.startswith(("model name", "flags", "cpu family", "Features")))
