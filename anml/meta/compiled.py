"""The engine `compiled`: the episode's program (program.py) under torch.compile, on any device."""

import importlib.util
import os
import shutil

import torch

from anml.data.episodes import Episode
from anml.meta.engine import EpisodeOutcome
from anml.meta.fast import FastEngine
from anml.meta.guarded import Guarded
from anml.meta.program import EpisodeProgram, run_one, unsupported
from anml.models.meta_model import MetaModel


class CompiledEngine:
    """Compiles at its first episode, which takes a minute; without a compiler it is the fast engine, and says so."""

    name = "compiled"

    def __init__(self, model: MetaModel, inner_names: list[str], inner_lr: float) -> None:
        reason = unsupported(model)
        if reason:
            message = f"the compiled engine cannot run this model: {reason}; use the fast engine"
            raise ValueError(message)
        fast, missing = FastEngine(model, inner_names, inner_lr), missing_compiler(next(model.parameters()).device)
        program = EpisodeProgram(model, inner_names, inner_lr, compiled=True)
        self.guarded = Guarded(
            None if missing else lambda episodes: [run_one(program, model, episode) for episode in episodes],
            lambda episodes: [fast.run(episode) for episode in episodes],
            f"not compiled: {missing}" if missing else "",
        )

    @property
    def note(self) -> str:
        """What became of compiling, where it did not go well."""
        return self.guarded.note

    def run(self, episode: Episode) -> EpisodeOutcome:
        """Return loss, accuracy and gradients of one episode."""
        return self.guarded.run([episode])[0]


def missing_compiler(device: torch.device) -> str:
    """Say which compiler torch.compile would miss on this device, or return an empty string."""
    if device.type == "cuda":
        return "" if importlib.util.find_spec("triton") else "triton is not installed"
    compiler = os.environ.get("CXX", "g++")
    return "" if shutil.which(compiler) else f"{compiler!r} is not installed (a C++ compiler; CXX names another)"
