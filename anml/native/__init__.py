"""Kernels in C++ for CPUs. They are optional: where they cannot be built, `available` says why.

They are built at first use with the machine's own instructions, into PyTorch's folder for extensions
(TORCH_EXTENSIONS_DIR moves it). A folder's name holds what the binary depends on, so a home directory that different
nodes share is safe. The folder appears in one piece: jobs that start at once, or are killed while they build, leave
nothing that others would wait for.
"""

import functools
import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Literal, NamedTuple

import torch

_FOLDER = Path(__file__).parent
# The first is compiled, it includes the others.
_SOURCES = {
    "train": ("train.cpp", "blocks.h", "head.h", "simd.h"),
    "evaluate": ("evaluate.cpp", "adam.h", "simd.h"),
}
_FLAGS = ["-O3", "-march=native", "-fopenmp", "-fvisibility=hidden"]
_FLAGS += ["-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros"]

Extension = Literal["train", "evaluate"]


class Availability(NamedTuple):
    """Whether the native kernels can be used, and if not, why. True or false like its first field."""

    usable: bool
    reason: str = ""

    def __bool__(self) -> bool:
        return self.usable


def available(extension: Extension) -> Availability:
    """Load an extension, built now if this kind of machine has not done it yet; never raises."""
    return _load(extension)[0]


def kernels(extension: Extension) -> ModuleType:
    """Return a loaded extension. Raises RuntimeError where it is not available."""
    availability, module = _load(extension)
    if module is None:
        message = f"the native kernels are not available here: {availability.reason}"
        raise RuntimeError(message)
    return module


@functools.cache
def _load(extension: Extension) -> tuple[Availability, ModuleType | None]:
    name = _build_name(extension)
    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or Path.home() / ".cache" / "torch_extensions")
    library = root / name / f"{name}.so"
    try:
        if not library.exists():
            _build(extension, name, library.parent)
        return Availability(True), _import(name, library)
    except (OSError, RuntimeError, ImportError, subprocess.SubprocessError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["no message"]
        return Availability(False, next((line for line in lines if "error:" in line), lines[-1])), None


def _build(extension: Extension, name: str, folder: Path) -> None:
    compiler = os.environ.get("CXX", "c++")
    for tool, hint in ((compiler, "a C++ compiler; CXX names another"), ("ninja", "the build tool")):
        if not shutil.which(tool):
            message = f"{tool!r} is not installed ({hint})"
            raise RuntimeError(message)
    from torch.utils import cpp_extension  # Only here: it takes a second to import.

    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{name}-") as temporary:
        cpp_extension.load(
            name=name,
            sources=[str(_FOLDER / _SOURCES[extension][0])],
            extra_cflags=_FLAGS,
            extra_ldflags=["-fopenmp"],
            build_directory=temporary,
        )
        finished = Path(temporary) / "finished"
        finished.mkdir()
        (Path(temporary) / f"{name}.so").rename(finished / f"{name}.so")
        try:
            finished.rename(folder)
        except OSError:
            if not folder.exists():  # Otherwise another process was faster, with the same result.
                raise


def _import(name: str, library: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, library)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _build_name(extension: Extension) -> str:
    """Return a name made of everything that the binary depends on; also the build folder's."""
    sources = [(_FOLDER / name).read_text() for name in _SOURCES[extension]]
    facts = [*sources, str(_FLAGS), _processor(), torch.__version__, platform.python_version()]
    return f"anml_{extension}_{hashlib.sha256(chr(0).join(facts).encode()).hexdigest()[:12]}"


def _processor() -> str:
    """Return the processor's model and instruction sets: -march=native is only safe where these are the same."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return f"{platform.node()} {platform.processor()} {platform.machine()}"
    lines = info.read_text().split("\n\n")[0].splitlines()
    return "\n".join(line for line in lines if line.startswith(("model name", "flags", "cpu family", "Features")))
