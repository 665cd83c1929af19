"""Ordinary i.i.d. pre-training, the baseline of meta-training: shuffled batches, any torch optimizer by name."""

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from anml.config.training import TrainConfig
from anml.data.class_images import ClassImages
from anml.data.episodes import shuffled_batch
from anml.meta.engine import EpisodeOutcome, accuracy
from anml.meta.step import lobotomize, make_by_name, make_schedule
from anml.models.meta_model import MetaModel
from anml.rng import torch_generator


class BatchUpdater:
    """One step is one batch. With `lobo_rate`, `lobo_size` output rows are re-drawn every `lobo_rate` epochs.

    `lobo_scale` says how large the new weights are: see `lobotomize`.
    """

    note = "i.i.d. batches"

    def __init__(self, config: TrainConfig, model: MetaModel, data: ClassImages) -> None:
        self.config, self.model, self.data, self.seed = config, model, data, config.seed
        self.steps_per_epoch = -(-data.num_classes * data.examples_per_class // config.batch_size)
        self.optimizer = make_optimizer(config, model)
        self.base_lrs = [group["lr"] for group in self.optimizer.param_groups]

    def step(self, index: int) -> EpisodeOutcome:
        epoch, position = divmod(index, self.steps_per_epoch)
        if position == 0:
            self._set_lrs(epoch)
            self._zap(epoch)
        config = self.config
        images, labels = shuffled_batch(self.data, config.batch_size, self.seed, index, augment=config.augment)
        logits = self.model(images)
        loss = cross_entropy(logits, labels)
        self.optimizer.zero_grad()
        loss.backward()
        if config.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), config.max_grad_norm)
        self.optimizer.step()
        return EpisodeOutcome(loss.detach(), accuracy(logits.detach(), labels), {})

    def _set_lrs(self, epoch: int) -> None:
        """Set the learning rates of an epoch by replaying the schedule: nothing of it needs to be saved."""
        if self.config.lr_scheduler is None:
            return
        dummy = torch.optim.SGD([{"params": [torch.zeros(1)], "lr": lr} for lr in self.base_lrs], lr=0.1)
        scheduler = make_schedule(self.config, dummy)
        for _ in range(epoch):
            dummy.step()
            scheduler.step()
        for group, planned in zip(self.optimizer.param_groups, dummy.param_groups, strict=True):
            group["lr"] = planned["lr"]

    def _zap(self, epoch: int) -> None:
        """Re-draw random output rows ("zapping", Frati et al. 2023)."""
        period, size = self.config.lobo_rate, self.config.lobo_size
        if period and size and epoch and epoch % period == 0:
            generator = torch_generator(self.seed, "zap", epoch)
            rows = torch.randperm(self.model.head.out_features, generator=generator)[:size]
            lobotomize(self.model.head, tuple(rows.tolist()), generator, self.config.lobo_scale or "all_rows")


def make_optimizer(config: TrainConfig, model: MetaModel) -> torch.optim.Optimizer:
    """Return the optimizer that a config names. Raises ConfigError."""
    arguments, base = {"lr": config.lr, **config.optimizer_args}, torch.optim.Optimizer
    return make_by_name(torch.optim, base, "optimizer", config.optimizer, model.parameters(), arguments)
