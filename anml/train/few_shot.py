"""Meta-training of an encoder by a head that learns without a gradient: `prototypes`, `gemcl`.

An episode's head learns a few examples of some classes as an evaluation's does (evaluate/baselines.py), and the loss is
the cross-entropy of its logits for other examples of these classes: prototypical networks (Snell et al. 2017, arXiv
1703.05175, algorithm 1), GeMCL (Banayeeanzade et al. 2021, algorithm 1; its prior is a setting here). The episode has
no order, as the head has none. The output layer is not trained.
"""

import torch
from torch.nn.functional import cross_entropy

from anml.config.evaluation import EvalConfig
from anml.config.protocols import PROTOCOLS
from anml.config.training import FewShot, TrainConfig
from anml.data.class_images import ClassImages
from anml.data.episodes import draw_few_shot
from anml.evaluate.baselines import Baseline
from anml.meta.engine import EpisodeOutcome, accuracy, autocast
from anml.meta.outer_step import OuterStep
from anml.models.meta_model import MetaModel
from anml.native import available
from anml.native.blocks import with_native_blocks


def make_head(config: TrainConfig, classes: int, features: torch.Tensor) -> Baseline:
    """Return the head of a config's method, class means if it has none, for features such as these [n, d]."""
    few = config.few_shot or FewShot()
    kind = PROTOCOLS[config.method.head or "ncm"].load_baseline()
    return kind(classes, features.shape[1], EvalConfig(**few.head_options), features.device)


class FewShotUpdater:
    """One step is one episode."""

    def __init__(self, config: TrainConfig, model: MetaModel, data: ClassImages) -> None:
        self.config, self.data, self.few = config, data, config.few_shot or FewShot()
        self.outer = OuterStep(config, model, config.seed)
        self.optimizer = self.outer.optimizer
        use_kernels = config.engine in ("auto", "native") and config.precision != "bf16-mixed"
        native = with_native_blocks(model) if use_kernels else None
        # In this order: the kernels are only built for a model that can use them.
        self.encoder = native if native and available("train") else model
        self.is_native = self.encoder is native

    @property
    def note(self) -> str:
        blocks = ", native blocks" if self.is_native else ""
        return f"{self.config.train_method}: {self.few.ways} classes of {self.few.shots} examples an episode{blocks}"

    def step(self, index: int) -> EpisodeOutcome:
        self.outer.set_lr(index)
        outcome = self.run(draw_few_shot(self.data, self.config, index))
        self.outer.finish(outcome.gradients)
        return outcome

    def run(self, images: torch.Tensor) -> EpisodeOutcome:
        """Return loss, accuracy and gradients of an episode's images [ways, shots + queries, C, H, W]."""
        ways, count = images.shape[:2]
        with autocast(self.config.precision, images.device):
            encoded = self.encoder(images.flatten(0, 1), part="encode")
        features = encoded.view(ways, count, -1).double()
        labels = torch.arange(ways, device=images.device)
        support, queries = features[:, : self.few.shots], features[:, self.few.shots :]
        head = make_head(self.config, ways, encoded)
        head.learn(support.flatten(0, 1), labels.repeat_interleave(support.shape[1]))
        logits, labels = head.logits(queries.flatten(0, 1)), labels.repeat_interleave(queries.shape[1])
        loss = cross_entropy(self.few.temperature * logits, labels)
        parameters = dict(self.outer.model.named_parameters())
        # The output layer has no part in the loss.
        gradients = torch.autograd.grad(loss, list(parameters.values()), materialize_grads=True)
        outcome = loss.detach().to(self.outer.model.head.weight.dtype), accuracy(logits, labels)
        return EpisodeOutcome(*outcome, dict(zip(parameters, gradients, strict=True)))
