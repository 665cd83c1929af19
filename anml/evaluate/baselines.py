"""Baselines: heads that learn without a gradient, from what the output layer of a model receives.

Each takes one example after the other, in any order, and keeps only what `kept` lists. Most keep sums over the
examples (of inputs, their squares, their products), so that no example is lost and no order matters. Everything is
float64. What is not a sum (knn, logistic) keeps all examples: i.i.d. probes of a representation.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.nn.functional import normalize, one_hot

from anml.config.evaluation import EvalConfig
from anml.evaluate.learner import Logits
from anml.evaluate.prepared_run import PreparedRun


class Baseline(ABC):
    """A head for inputs float64 [n, d] of so many classes."""

    def __init__(self, classes: int, features: int, config: EvalConfig, device: torch.device) -> None:
        self.config = config
        self.counts: torch.Tensor = torch.zeros(classes, dtype=torch.float64, device=device)

    @abstractmethod
    def learn(self, inputs: torch.Tensor, labels: torch.Tensor) -> None:
        """Learn examples [n, d] with labels int64 [n]: as if they came one after the other."""

    @abstractmethod
    def logits(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return logits [n, classes]; those of classes that are not learned yet may be anything."""

    @property
    @abstractmethod
    def kept(self) -> Sequence[torch.Tensor]:
        """What is kept from one example to the next."""


class Sums(Baseline):
    """Keeps the number of examples of each class, and the sum of their inputs [classes, d]."""

    def __init__(self, classes: int, features: int, config: EvalConfig, device: torch.device) -> None:
        super().__init__(classes, features, config, device)
        self.sums = self.counts.new_zeros(classes, features)

    def learn(self, inputs: torch.Tensor, labels: torch.Tensor) -> None:
        self.counts += one_hot(labels, len(self.counts)).sum(dim=0)
        # Not index_add_: a GPU adds up the rows of a class in any order then.
        self.sums.index_put_((labels,), inputs, accumulate=True)

    @property
    def means(self) -> torch.Tensor:
        return self.sums / self.counts.clamp_min(1)[:, None]

    @property
    def kept(self) -> Sequence[torch.Tensor]:
        return self.counts, self.sums


class NearestMean(Sums):
    """`ncm`: the class with the nearest mean, Euclidean, or by the angle (`metric: cosine`)."""

    def logits(self, inputs: torch.Tensor) -> torch.Tensor:
        if self.config.metric == "cosine":
            return normalize(inputs) @ normalize(self.means).T
        return -torch.cdist(inputs, self.means).square()


class BayesianGaussian(Sums):
    """`gemcl`: a Gaussian per class and feature, with a Normal-Gamma posterior (GeMCL, Banayeeanzade et al. 2021).

    Means have a flat prior, precisions Gamma(`prior_alpha`, `prior_beta`); formulas: Murphy 2007, "Conjugate Bayesian
    analysis of the Gaussian distribution", section 3. The authors' code divides by alpha - 1 for the variance, here it
    is the posterior's mode; and leaves out the (n + 1) / n of the predictive's scale. They meta-train with a fixed
    prior (100, 1000), then fit it to the variances of the training classes by maximum likelihood; here beta is by
    default alpha times the variance within classes, so that the scale of features plays no part.
    """

    def __init__(self, classes: int, features: int, config: EvalConfig, device: torch.device) -> None:
        super().__init__(classes, features, config, device)
        self.squares = torch.zeros_like(self.sums)

    def learn(self, inputs: torch.Tensor, labels: torch.Tensor) -> None:
        super().learn(inputs, labels)
        self.squares.index_put_((labels,), inputs.square(), accumulate=True)

    def posterior(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the Gamma's alpha [classes, 1] and beta [classes, d] of the precisions."""
        scatter = (self.squares - self.sums * self.means).clamp_min(0)
        within = scatter.sum() / self.sums.shape[1] / self.counts.sum()
        alpha = self.config.prior_alpha or 10.0
        # Where no class varies, any width will do.
        beta = self.config.prior_beta or alpha * torch.where(within > 0, within, 1.0)
        return alpha + self.counts[:, None] / 2, beta + scatter / 2

    def logits(self, inputs: torch.Tensor) -> torch.Tensor:
        alpha, beta = self.posterior()
        if self.config.posterior == "map":
            variance, means = beta / (alpha - 0.5), self.means
            norms = (means.square() / variance + (2 * torch.pi * variance).log()).sum(dim=1)
            return inputs @ (means / variance).T - (inputs.square() @ (1 / variance).T + norms) / 2
        scale = 2 * beta * (1 + 1 / self.counts[:, None])
        constant = torch.lgamma(alpha + 0.5) - torch.lgamma(alpha) - (torch.pi * scale).log() / 2
        logits = constant.sum(dim=1).repeat(len(inputs), 1)
        for label in self.counts.nonzero()[:, 0].tolist():  # All classes at once would take their product in memory.
            distances = (inputs - self.means[label]).square_().div_(scale[label]).log1p_().sum(dim=1)
            logits[:, label] -= (alpha[label] + 0.5) * distances
        return logits

    @property
    def kept(self) -> Sequence[torch.Tensor]:
        return self.counts, self.sums, self.squares


class Products(Sums):
    """Also keeps the sum of the outer products of inputs [d, d]."""

    def __init__(self, classes: int, features: int, config: EvalConfig, device: torch.device) -> None:
        super().__init__(classes, features, config, device)
        self.products = self.counts.new_zeros(features, features)

    def learn(self, inputs: torch.Tensor, labels: torch.Tensor) -> None:
        super().learn(inputs, labels)
        self.products.addmm_(inputs.T, inputs)

    @property
    def kept(self) -> Sequence[torch.Tensor]:
        return self.counts, self.sums, self.products


class StreamingLda(Products):
    """`slda`: Gaussians with a mean per class and one covariance S, no class likelier than another before it is seen.

    Hayes & Kanan 2020, "Lifelong machine learning with deep streaming linear discriminant analysis", section 3. S is
    the covariance within classes of all examples so far: theirs depends on the order, as it takes deviations from the
    mean at the time. `shrinkage` s: (1 - s) S + s trace(S) / d, as scikit-learn has it, whatever the scale.
    """

    def logits(self, inputs: torch.Tensor) -> torch.Tensor:
        means, shrinkage = self.means, self.config.shrinkage or 0.1
        within = (self.products - means.T @ self.sums) / self.counts.sum()
        scale = float(within.trace()) / len(within) or 1.0
        shrunk = (1 - shrinkage) * within
        shrunk.diagonal().add_(shrinkage * scale)
        weights = torch.linalg.solve(shrunk, means.T)
        return inputs @ weights - (means.T * weights).sum(dim=0) / 2


class RecursiveLeastSquares(Products):
    """`rls`: least squares for one-hot targets with a penalty (`l2`) and an intercept without one: ridge regression.

    Recursive least squares has this solution after every example. The sums that it is made of are kept instead, and
    solved when scored, so that no rounding adds up.
    """

    def logits(self, inputs: torch.Tensor) -> torch.Tensor:
        shares, mean = self.counts / self.counts.sum(), self.sums.sum(dim=0) / self.counts.sum()
        centred = self.products - torch.outer(mean, self.sums.sum(dim=0))
        centred.diagonal().add_(self.config.l2 or 1.0)
        weights = torch.linalg.solve(centred, (self.sums - torch.outer(self.counts, mean)).T)
        return (inputs - mean) @ weights + shares


class Probe(Baseline):
    """Keeps all examples: what an i.i.d. learner makes of a representation."""

    def __init__(self, classes: int, features: int, config: EvalConfig, device: torch.device) -> None:
        super().__init__(classes, features, config, device)
        self.inputs, self.labels = list[torch.Tensor](), list[torch.Tensor]()

    def learn(self, inputs: torch.Tensor, labels: torch.Tensor) -> None:
        self.counts += one_hot(labels, len(self.counts)).sum(dim=0)
        self.inputs.append(inputs)
        self.labels.append(labels)

    @property
    def kept(self) -> Sequence[torch.Tensor]:
        return *self.inputs, *self.labels


class NearestNeighbours(Probe):
    """`knn`: the share of each class among the nearest `neighbours` (1) examples."""

    def logits(self, inputs: torch.Tensor) -> torch.Tensor:
        examples, labels = torch.cat(self.inputs), torch.cat(self.labels)
        if self.config.metric == "cosine":
            inputs, examples = normalize(inputs), normalize(examples)
        count = min(self.config.neighbours or 1, len(examples))
        # Not all at once: distances of 12,000 x 9,000 take 900 MB.
        nearest = [torch.cdist(part, examples).topk(count, largest=False).indices for part in inputs.split(512)]
        return one_hot(labels[torch.cat(nearest)], len(self.counts)).sum(dim=1).double() / count


class Logistic(Probe):
    """`logistic`: scikit-learn's multinomial logistic regression with a penalty of `l2` / 2 on squared weights."""

    fitted: tuple[int, torch.Tensor, torch.Tensor] | None = None

    def logits(self, inputs: torch.Tensor) -> torch.Tensor:
        if self.fitted is None or self.fitted[0] != len(self.inputs):
            self.fitted = (len(self.inputs), *self._fit())
        _, weights, biases = self.fitted
        return inputs @ weights.T + biases

    def _fit(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return weights [classes, d] and biases [classes]; of a class alone, zeros."""
        weights, biases = (
            self.counts.new_zeros(len(self.counts), self.inputs[0].shape[1]),
            torch.zeros_like(self.counts),
        )
        if (learned := self.counts.nonzero()[:, 0]).numel() > 1:
            from sklearn.linear_model import LogisticRegression  # It takes a second to import.

            regression = LogisticRegression(C=1 / (self.config.l2 or 1.0), max_iter=1000, tol=1e-6)
            regression.fit(torch.cat(self.inputs).cpu(), torch.cat(self.labels).cpu())
            # Of two classes it keeps the difference of their rows.
            rows = (regression.coef_, regression.intercept_)
            if len(learned) == 2:
                rows = tuple(np.concatenate([-row / 2, row / 2]) for row in rows)
            weights[learned], biases[learned] = (torch.as_tensor(row).to(weights) for row in rows)
        return weights, biases


def hellinger(features: torch.Tensor) -> torch.Tensor:
    """Return square roots, with their sign, of features [n, d], scaled to length 1.

    A Euclidean distance is then sqrt(2) times the Hellinger distance of the features, each taken as a distribution:
    large ones count for less. Arandjelovic & Zisserman 2012, "Three things everyone should know to improve object
    retrieval", section 3.
    """
    return normalize(features.sign() * features.abs().sqrt())


class BaselineLearner:
    """The baseline heads of prepared runs, each learning the examples of its run."""

    def __init__(self, prepared_runs: Sequence[PreparedRun], config: EvalConfig, kind: type[Baseline]) -> None:
        self.prepared_runs, self.config = prepared_runs, config
        first = prepared_runs[0].train_inputs
        classes, features = prepared_runs[0].shape.classes, first.shape[1]
        self.heads = [kind(classes, features, config, first.device) for _ in prepared_runs]

    def learn_each(self, first: int, last: int) -> None:
        for head, prepared in zip(self.heads, self.prepared_runs, strict=True):
            head.learn(self._inputs(prepared.train_inputs[first:last]), prepared.train_labels[first:last])

    def logits(self) -> Iterator[Logits]:
        for head, prepared in zip(self.heads, self.prepared_runs, strict=True):
            # A class that is not learned yet is never chosen.
            train, test = (
                head.logits(self._inputs(inputs)).masked_fill(head.counts == 0, -torch.inf)
                for inputs in (prepared.train_inputs, prepared.test_inputs)
            )
            yield train, test

    def _inputs(self, features: torch.Tensor) -> torch.Tensor:
        """Return what the heads see of features [n, d], float64."""
        return hellinger(features.double()) if self.config.feature_map else features.double()
