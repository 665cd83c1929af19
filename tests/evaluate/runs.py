"""Runs as tests of evaluation prepare them, one at a time."""

import torch

from anml.config.evaluation import EvalConfig
from anml.data.class_images import ClassImages
from anml.evaluate.prepared_run import PreparedRun, RunPreparer, Shape
from anml.models.meta_model import MetaModel


def prepare_run(
    model: MetaModel, config: EvalConfig, data: ClassImages, shape: Shape, run: int, dtype: torch.dtype = torch.float32
) -> PreparedRun:
    return RunPreparer(model, config, data, dtype).make(shape, [run])[0]


def ignore(done: float) -> None:
    """Report progress to nobody."""
