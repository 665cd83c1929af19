"""Parts that users bring: a config may say `./my_net.py:MyNet` or `package.module:MyNet` in place of a known name.

The tables of built-in parts hold references of the same kind, so that a name costs no import until it is used.
"""

import hashlib
import importlib
import importlib.util
import site
import sys
import sysconfig
import traceback
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from anml.errors import ConfigError

# The folder that holds this package: the repository, or the frozen code of an experiment.
CODE = Path(__file__).resolve().parent.parent
# Where the frozen code keeps the files that its config refers to.
USER_CODE = "user_code"
# Parts of the package that cannot change what an evaluation measures.
OTHER_CODE = ("api.py", "__main__.py", "cli", "jobs", "report", "selftest.py", "tracking", "train")


def is_reference(name: str) -> bool:
    """Say whether a name refers to a user's own code."""
    return ":" in name


def find_part(kind: str, name: str, known: Mapping[str, str]) -> Any:
    """Return the object that a name in a config means.

    kind: what it is, for messages ("model"). known: references of the built-in parts by name. Raises ConfigError.
    """
    if name not in known and not is_reference(name):
        message = f"{name!r} is no {kind}; known: {', '.join(known)}; or your own: ./FILE.py:NAME or MODULE:NAME"
        raise ConfigError(message)
    return load_object(known.get(name, name))


def load_object(reference: str) -> Any:
    """Return the object that `FILE.py:NAME` or `MODULE:NAME` refers to. Raises ConfigError naming what is missing."""
    origin, _, name = reference.rpartition(":")
    if not origin or not name.isidentifier():
        message = f"{reference!r}: write it as ./FILE.py:NAME or MODULE:NAME"
        raise ConfigError(message)
    module = _module(origin)
    if not hasattr(module, name):
        defined = [key for key, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
        message = f"{origin}: defines no {name}" + (f"; it defines: {', '.join(defined)}" if defined else "")
        raise ConfigError(message)
    return getattr(module, name)


def frozen_or_given(file: Path) -> Path:
    """Return the copy of a user's file beside the running code, if there is one (in a job), else the file itself."""
    frozen = CODE / USER_CODE / file.name
    return frozen if frozen.is_file() else file.expanduser()


def copy_sources(references: Iterable[str]) -> dict[str, Path]:
    """Return what must be copied beside frozen code for references to work there: paths by their name below the code.

    Installed packages are left out: they are part of the environment, not of the experiment. Raises ConfigError.
    """
    copies: dict[str, Path] = {}
    for reference in references:
        origin = reference.rpartition(":")[0]
        if origin.endswith(".py"):
            name, source = f"{USER_CODE}/{Path(origin).name}", frozen_or_given(Path(origin)).resolve()
        else:
            load_object(reference)
            top = sys.modules[origin.partition(".")[0]]
            source = Path([*getattr(top, "__path__", ()), top.__file__][0]).resolve()
            if any(source.is_relative_to(folder) for folder in _installed()):
                continue
            name = source.name
        if copies.setdefault(name, source) != source:
            message = f"{source} and {copies[name]} have the same name; rename one of them"
            raise ConfigError(message)
    return copies


def code_that_measures(code: Path = CODE) -> list[Path]:
    """Return the files of this package, or of a copy of it, that may change what an evaluation measures."""
    package = code / "anml"
    files = (file for suffix in ("py", "cpp", "h") for file in package.rglob(f"*.{suffix}"))
    return sorted(file for file in files if file.relative_to(package).parts[0] not in OTHER_CODE)


@cache
def code_checksum(code: Path = CODE) -> str:
    """Return what results call the code that measured them: of `code_that_measures`, and of a user's frozen files."""
    checksum = hashlib.sha256()
    for file in [*code_that_measures(code), *sorted((code / USER_CODE).rglob("*.py"))]:
        checksum.update(f"{file.relative_to(code).as_posix()} ".encode() + file.read_bytes())
    return checksum.hexdigest()[:12]


def _installed() -> list[str]:
    """Return the folders whose code belongs to the environment."""
    libraries = [sysconfig.get_path(kind) for kind in ("purelib", "platlib", "stdlib")]
    return [str(CODE / "anml"), *libraries, *site.getsitepackages(), site.getusersitepackages()]


def _module(origin: str) -> ModuleType:
    file = frozen_or_given(Path(origin)) if origin.endswith(".py") else None
    if file is not None and not file.is_file():
        message = f"{file}: there is no such file"
        raise ConfigError(message)
    try:
        return importlib.import_module(origin) if file is None else _file_module(file)
    except Exception as error:  # Whatever a user's module raises is the user's to mend.
        if isinstance(error, ModuleNotFoundError) and error.name and f"{origin}.".startswith(f"{error.name}."):
            message = f"{origin}: no module {error.name} can be imported; is its folder in PYTHONPATH?"
            raise ConfigError(message) from None
        at = traceback.extract_tb(error.__traceback__)[-1]
        message = f"{origin}: importing it failed: {type(error).__name__}: {error} (line {at.lineno} of {at.filename})"
        raise ConfigError(message) from error


@cache
def _file_module(file: Path) -> ModuleType:
    name = f"anml_user_{file.stem}_{hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)  # Classes are found by their module's name.
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
