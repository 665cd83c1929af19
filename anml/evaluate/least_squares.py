"""The least-squares output layer: a stable solution, for many runs at once."""

import torch


@torch.no_grad()
def solve(inputs: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return weights [..., C, d] and biases [..., C], float64, of the minimum-norm least-squares solution.

    inputs [..., n, d], targets [..., n, C]. By orthogonal factors, never by the normal equations, which square the
    condition number: QR, then the singular values of the small triangle (as LAPACK's gelsd, but on any device and for
    a batch). Without the directions in which the inputs differ by no more than their own rounding: channels that an
    InstanceNorm centres and no ReLU clips add up to a constant, and to tell that from the bias takes weights of 1e6,
    which undo the accuracy once they are float32.
    """
    design = torch.nn.functional.pad(inputs.double(), (0, 1), value=1.0)
    rounding = max(torch.finfo(inputs.dtype).eps, max(design.shape[-2:]) * torch.finfo(torch.float64).eps)
    wide = design.shape[-2] < design.shape[-1]
    q, r = torch.linalg.qr(design.mT if wide else design)
    left, values, right = torch.linalg.svd(r.mT if wide else r, full_matrices=False)
    if wide:
        right = right @ q.mT
    else:
        left = q @ left
    kept = values > rounding * values[..., :1]
    inverse = torch.where(kept, 1 / values.clamp_min(torch.finfo(torch.float64).tiny), 0.0)
    solution = right.mT @ (inverse[..., None] * (left.mT @ targets.double()))
    return solution[..., :-1, :].mT, solution[..., -1, :]
