"""What lies between two convolutions, as Triton kernels for NVIDIA and AMD GPUs: one for each pass over a block.

The mathematics is that of conv_blocks.py. A row is one channel of one image; a program does ROWS of them. It reads the
convolution's output, [channels, images, positions], and writes what the next convolution reads: its columns (im2col),
[channels * taps, images, positions], so that every convolution and both its gradients are plain matrix products. In
the other direction it adds up the gradients of all columns that an output was copied to (col2im). After the last block
there is a convolution of one tap, whose columns are the features, [images, channels, positions].

Programs only read what an earlier kernel wrote, and no two of them add to the same number: the same bits each time.

HEIGHT, WIDTH: of the convolution's output; POOL: edge of a window, 1 for none; KERNEL, STRIDE, PAD: of the next
convolution; BLOCK, WINDOWS: powers of two that hold all positions, all windows. `affine`: [2, channels], the norm's
scale and shift. `stats`: [2, channels, images], mean and inv_std. `picks`: the position that each window lets through,
-1 where the ReLU lets nothing through.
"""

# Kernels call each other as Triton reads them; to Python such a call is an error.
# pyright: reportGeneralTypeIssues=false

from typing import Any

import triton
import triton.language as tl


@triton.jit
def normalise(
    conv, stats, picks, outputs, affine, channels, images, EPS: tl.constexpr,
    WINDOWS: tl.constexpr,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, POOL: tl.constexpr, KERNEL: tl.constexpr, STRIDE: tl.constexpr,
    PAD: tl.constexpr, IS_LAST: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
) -> None:  # fmt: skip
    """Norm, ReLU and pooling; keep mean, inv_std and picks."""
    row, is_row, channel = _rows(channels, images, ROWS)
    scale = tl.load(affine + channel, mask=is_row, other=0.0)[:, None]
    shift = tl.load(affine + channels + channel, mask=is_row, other=0.0)[:, None]
    at = tl.arange(0, BLOCK)
    inside = is_row[:, None] & (at < HEIGHT * WIDTH)[None, :]
    start = conv + row[:, None] * (HEIGHT * WIDTH)
    values = tl.load(start + at[None, :], mask=inside, other=0.0)
    mean = tl.sum(values, 1) / (HEIGHT * WIDTH)
    centred = tl.where(inside, values - mean[:, None], 0.0)
    inv_std = 1 / tl.sqrt(tl.sum(centred * centred, 1) / (HEIGHT * WIDTH) + EPS)
    tl.store(stats + row, mean, mask=is_row)
    tl.store(stats + channels * images + row, inv_std, mask=is_row)

    y, x, picks_at, is_window = _windows(row, is_row, WINDOWS, HEIGHT, WIDTH, POOL)
    # The first of equals, as everywhere in PyTorch.
    pick = tl.zeros((ROWS, WINDOWS), dtype=tl.int32) + (y * POOL * WIDTH + x * POOL)[None, :]
    best = tl.load(start + pick, mask=is_window, other=0.0)
    best = (best - mean[:, None]) * inv_std[:, None] * scale + shift
    for inner in tl.static_range(1, POOL * POOL):
        position = ((y * POOL + inner // POOL) * WIDTH + x * POOL + inner % POOL)[None, :]
        value = tl.load(start + position, mask=is_window, other=0.0)
        value = (value - mean[:, None]) * inv_std[:, None] * scale + shift
        pick = tl.where(value > best, position, pick)
        best = tl.where(value > best, value, best)
    tl.store(picks + picks_at, tl.where(best > 0, pick, -1), mask=is_window)
    # Not "best > 0 else 0": what is not a number stays so.
    best = tl.where(best <= 0, 0.0, best)
    for tap in tl.static_range(KERNEL * KERNEL):
        to, is_read = _column(
            row, channel, channels, images, y, x, tap, HEIGHT, WIDTH, POOL, KERNEL, STRIDE, PAD, IS_LAST
        )
        tl.store(outputs + to, best, mask=is_window & is_read)


@triton.jit
def vjp(
    conv, stats, picks, grad_outputs, grad_norm, grad_conv, affine, changed,
    channels, images, FACTOR: tl.constexpr, IS_ADDED: tl.constexpr,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, POOL: tl.constexpr, KERNEL: tl.constexpr, STRIDE: tl.constexpr,
    PAD: tl.constexpr, IS_LAST: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
) -> None:  # fmt: skip
    """Write the gradients at norm and convolution, and FACTOR times that of `affine` (see `_change`)."""
    row, is_row, channel = _rows(channels, images, ROWS)
    scale = tl.load(affine + channel, mask=is_row, other=0.0)
    at = tl.arange(0, BLOCK)[None, :]
    inside = is_row[:, None] & (at < HEIGHT * WIDTH)
    dense = row[:, None] * (HEIGHT * WIDTH) + at
    mean, inv_std = tl.load(stats + row, mask=is_row), tl.load(stats + channels * images + row, mask=is_row)
    normed = _normed(conv + dense, inside, mean, inv_std)
    grad = _gradient_at(
        grad_outputs, picks, row, is_row, channel, channels, images,
        HEIGHT, WIDTH, POOL, KERNEL, STRIDE, PAD, IS_LAST, BLOCK,
    )  # fmt: skip
    grad_shift, grad_scale = tl.sum(grad, 1), tl.sum(grad * normed, 1)
    projected = grad - (grad_shift[:, None] + normed * grad_scale[:, None]) / (HEIGHT * WIDTH)
    tl.store(grad_norm + dense, grad, mask=inside)
    tl.store(grad_conv + dense, (inv_std * scale)[:, None] * projected, mask=inside)
    _change(changed, row, is_row, channels * images, FACTOR * grad_scale, FACTOR * grad_shift, IS_ADDED)


@triton.jit
def jvp(
    conv, stats, picks, conv_tangent, outputs, affine, direction,
    channels, images, WINDOWS: tl.constexpr,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, POOL: tl.constexpr, KERNEL: tl.constexpr, STRIDE: tl.constexpr,
    PAD: tl.constexpr, IS_LAST: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
) -> None:  # fmt: skip
    """Write the outputs' tangents, given the convolution's and the `direction` [2, channels] of `affine`."""
    row, is_row, channel = _rows(channels, images, ROWS)
    scale = tl.load(affine + channel, mask=is_row, other=0.0)[:, None]
    scale_dot = tl.load(direction + channel, mask=is_row, other=0.0)[:, None]
    shift_dot = tl.load(direction + channels + channel, mask=is_row, other=0.0)[:, None]
    at = tl.arange(0, BLOCK)[None, :]
    inside = is_row[:, None] & (at < HEIGHT * WIDTH)
    start = row[:, None] * (HEIGHT * WIDTH)
    mean, inv_std = tl.load(stats + row, mask=is_row), tl.load(stats + channels * images + row, mask=is_row)
    normed = _normed(conv + start + at, inside, mean, inv_std)
    tangent = tl.load(conv_tangent + start + at, mask=inside, other=0.0)
    tangent_mean, s = _mean(tangent, HEIGHT, WIDTH), _mean(tangent * normed, HEIGHT, WIDTH)

    y, x, picks_at, is_window = _windows(row, is_row, WINDOWS, HEIGHT, WIDTH, POOL)
    pick = tl.load(picks + picks_at, mask=is_window, other=-1)
    normed = _normed(conv + start + pick, pick >= 0, mean, inv_std)
    tangent = tl.load(conv_tangent + start + pick, mask=pick >= 0, other=0.0)
    normed_dot = inv_std[:, None] * (tangent - tangent_mean - normed * s)
    change = tl.where(pick >= 0, scale_dot * normed + scale * normed_dot + shift_dot, 0.0)
    for tap in tl.static_range(KERNEL * KERNEL):
        to, is_read = _column(
            row, channel, channels, images, y, x, tap, HEIGHT, WIDTH, POOL, KERNEL, STRIDE, PAD, IS_LAST
        )
        tl.store(outputs + to, change, mask=is_window & is_read)


@triton.jit
def vjp_tangent(
    conv, stats, picks, conv_tangent, grad_norm, grad_conv, grad_outputs_tangent,
    grad_conv_tangent, affine, direction, changed, channels, images,
    FACTOR: tl.constexpr, IS_ADDED: tl.constexpr,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, POOL: tl.constexpr, KERNEL: tl.constexpr, STRIDE: tl.constexpr,
    PAD: tl.constexpr, IS_LAST: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
) -> None:  # fmt: skip
    """Write the tangent of `grad_conv`, and FACTOR times that of the gradient of `affine` (see `_change`)."""
    row, is_row, channel = _rows(channels, images, ROWS)
    scale = tl.load(affine + channel, mask=is_row, other=0.0)[:, None]
    scale_dot = tl.load(direction + channel, mask=is_row, other=0.0)[:, None]
    at = tl.arange(0, BLOCK)[None, :]
    inside = is_row[:, None] & (at < HEIGHT * WIDTH)
    dense = row[:, None] * (HEIGHT * WIDTH) + at
    mean, inv_std = tl.load(stats + row, mask=is_row), tl.load(stats + channels * images + row, mask=is_row)
    normed = _normed(conv + dense, inside, mean, inv_std)
    tangent = tl.load(conv_tangent + dense, mask=inside, other=0.0)
    s = _mean(tangent * normed, HEIGHT, WIDTH)
    normed_dot = inv_std[:, None] * tl.where(inside, tangent - _mean(tangent, HEIGHT, WIDTH) - normed * s, 0.0)
    grad = tl.load(grad_norm + dense, mask=inside, other=0.0)
    grad_dot = _gradient_at(
        grad_outputs_tangent, picks, row, is_row, channel, channels, images,
        HEIGHT, WIDTH, POOL, KERNEL, STRIDE, PAD, IS_LAST, BLOCK,
    )  # fmt: skip
    q, q_dot = scale * grad, scale_dot * grad + scale * grad_dot
    projected = q_dot - _mean(q_dot, HEIGHT, WIDTH) - normed_dot * _mean(q * normed, HEIGHT, WIDTH)
    projected -= normed * _mean(q_dot * normed + q * normed_dot, HEIGHT, WIDTH)
    projected -= s * tl.load(grad_conv + dense, mask=inside, other=0.0)
    tl.store(grad_conv_tangent + dense, inv_std[:, None] * projected, mask=inside)
    grad_scale_dot, grad_shift_dot = tl.sum(grad_dot * normed + grad * normed_dot, 1), tl.sum(grad_dot, 1)
    _change(changed, row, is_row, channels * images, FACTOR * grad_scale_dot, FACTOR * grad_shift_dot, IS_ADDED)


@triton.jit
def _rows(channels, images, ROWS: tl.constexpr) -> Any:
    """Return the rows of this program, which of them there are, and their channels."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    return row, row < channels * images, row // images


@triton.jit
def _mean(values, HEIGHT: tl.constexpr, WIDTH: tl.constexpr) -> Any:
    return (tl.sum(values, 1) / (HEIGHT * WIDTH))[:, None]


@triton.jit
def _normed(conv, wanted, mean, inv_std) -> Any:
    """Return n where wanted, else 0."""
    return tl.where(wanted, (tl.load(conv, mask=wanted, other=0.0) - mean[:, None]) * inv_std[:, None], 0.0)


@triton.jit
def _windows(
    row,
    is_row,
    WINDOWS: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    POOL: tl.constexpr,
) -> Any:
    """Return all windows' y and x, and for all rows where in `picks` they are and which there are."""
    window = tl.arange(0, WINDOWS)
    count: tl.constexpr = (HEIGHT // POOL) * (WIDTH // POOL)
    is_window = is_row[:, None] & (window < count)[None, :]
    return window // (WIDTH // POOL), window % (WIDTH // POOL), row[:, None] * count + window[None, :], is_window


@triton.jit
def _column(
    row, channel, channels, images, y, x, tap: tl.constexpr,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, POOL: tl.constexpr, KERNEL: tl.constexpr, STRIDE: tl.constexpr,
    PAD: tl.constexpr, IS_LAST: tl.constexpr,
) -> Any:  # fmt: skip
    """Return which column reads windows (y, x) of some rows by a tap of the next convolution, and whether any does."""
    height: tl.constexpr = (HEIGHT // POOL + 2 * PAD - KERNEL) // STRIDE + 1
    width: tl.constexpr = (WIDTH // POOL + 2 * PAD - KERNEL) // STRIDE + 1
    # As many strides more as make no dividend negative.
    y, x = y + (PAD - tap // KERNEL + KERNEL * STRIDE), x + (PAD - tap % KERNEL + KERNEL * STRIDE)
    is_read = (y % STRIDE == 0) & (x % STRIDE == 0)
    y, x = y // STRIDE - KERNEL, x // STRIDE - KERNEL
    is_read = is_read & (y >= 0) & (y < height) & (x >= 0) & (x < width)
    image = row - channel * images
    if IS_LAST:
        first = image * channels + channel
    else:
        first = (channel * (KERNEL * KERNEL) + tap) * images + image
    return first[:, None] * (height * width) + (y * width + x)[None, :], is_read[None, :]


@triton.jit
def _gradient_at(
    grad_outputs, picks, row, is_row, channel, channels, images,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, POOL: tl.constexpr, KERNEL: tl.constexpr, STRIDE: tl.constexpr,
    PAD: tl.constexpr, IS_LAST: tl.constexpr, BLOCK: tl.constexpr,
) -> Any:  # fmt: skip
    """Return the gradient after the norm at all positions: where a window picked one, the sum of what read it."""
    at = tl.arange(0, BLOCK)
    y, x = at // WIDTH // POOL, at % WIDTH // POOL
    is_window = (y < HEIGHT // POOL) & (x < WIDTH // POOL)
    window = row[:, None] * ((HEIGHT // POOL) * (WIDTH // POOL)) + (y * (WIDTH // POOL) + x)[None, :]
    picked = tl.load(picks + window, mask=is_row[:, None] & is_window[None, :], other=-1) == at[None, :]
    grad = tl.zeros(picked.shape, dtype=grad_outputs.dtype.element_ty)
    for tap in tl.static_range(KERNEL * KERNEL):
        of, is_read = _column(
            row, channel, channels, images, y, x, tap, HEIGHT, WIDTH, POOL, KERNEL, STRIDE, PAD, IS_LAST
        )
        grad += tl.load(grad_outputs + of, mask=picked & is_read, other=0.0)
    return grad


@triton.jit
def _change(
    changed, row, is_row, rows, scale, shift, IS_ADDED: tl.constexpr
) -> None:  # fmt: skip
    """Add to `changed` [2, channels], of a single image; or write each row's part [2, channels, images].

    `changed` may be what the kernel has read: no other program reads these rows, and a sum over them comes between.
    """
    if IS_ADDED:
        scale += tl.load(changed + row, mask=is_row, other=0.0)
        shift += tl.load(changed + rows + row, mask=is_row, other=0.0)
    tl.store(changed + row, scale, mask=is_row)
    tl.store(changed + rows + row, shift, mask=is_row)
