"""Ordinary i.i.d. pre-training, the baseline of meta-training: shuffled batches, any torch optimizer by name."""

from bisect import bisect_right

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from anml.config.training import TrainConfig
from anml.data.class_images import ClassImages
from anml.data.episodes import biased_batch, shuffled_batch
from anml.meta.engine import EpisodeOutcome, accuracy, autocast
from anml.meta.outer_step import lobotomize, make_schedule
from anml.models.meta_model import MetaModel, find_not_finite, select_names
from anml.optim import make_by_name
from anml.rng import torch_generator


class BatchUpdater:
    """One step is one batch. With `lobo_rate`, `lobo_size` output rows are re-drawn every `lobo_rate` epochs.

    `lobo_scale` says how large the new weights are: see `lobotomize`. `lobo_biased_steps` steps on batches biased to
    the classes of these rows may come next, before the batches of the epoch.
    """

    note = "i.i.d. batches"

    def __init__(self, config: TrainConfig, model: MetaModel, data: ClassImages) -> None:
        self.config, self.model, self.data, self.seed = config, model, data, config.seed
        self.biased = set(select_names(model, config.lobo_biased_params or ("all",)))
        self.optimizer = make_optimizer(config, model)
        self.base_lrs = [group["lr"] for group in self.optimizer.param_groups]

    def step(self, index: int) -> EpisodeOutcome:
        config = self.config
        epoch = bisect_right(range(config.epochs), index, key=config.first_step) - 1
        position = index - config.first_step(epoch)
        rows, generator = self._rows(epoch)
        if position == 0:
            self._set_lrs(epoch)
            if rows:
                lobotomize(self.model.head, rows, generator, config.lobo_scale or "all_rows")
        biased = config.lobo_biased_steps or 0 if rows else 0
        if position < biased:
            images, labels = biased_batch(self.data, config, rows, index)
        else:
            step = epoch * config.steps_per_epoch + position - biased
            images, labels = shuffled_batch(self.data, config.batch_size, self.seed, step, augment=config.augment)
        with autocast(config.precision, images.device):
            logits = self.model(images)
            loss = cross_entropy(logits, labels)
        self.optimizer.zero_grad()
        loss.backward()
        for name, parameter in self.model.named_parameters():
            if position < biased and name not in self.biased:
                parameter.grad = None  # The optimizer passes over it.
        if config.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), config.max_grad_norm)
        if config.on_divergence == "skip":
            gradients = {name: p.grad for name, p in self.model.named_parameters() if p.grad is not None}
            if find_not_finite(gradients):
                return EpisodeOutcome(loss.detach(), accuracy(logits.detach(), labels), {})
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

    def _rows(self, epoch: int) -> tuple[tuple[int, ...], torch.Generator]:
        """Return the output rows re-drawn before an epoch ("zapping", Frati et al. 2023), and what draws them."""
        generator = torch_generator(self.seed, "zap", epoch)
        if not self.config.is_zapping(epoch):
            return (), generator
        rows = torch.randperm(self.model.head.out_features, generator=generator)[: self.config.lobo_size]
        return tuple(rows.tolist()), generator


def make_optimizer(config: TrainConfig, model: nn.Module) -> torch.optim.Optimizer:
    """Return the optimizer that a config names. Raises ConfigError."""
    arguments, base = {"lr": config.lr, **config.optimizer_args}, torch.optim.Optimizer
    return make_by_name(torch.optim, base, "optimizer", config.optimizer, model.parameters(), arguments)
