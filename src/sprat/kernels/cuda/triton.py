"""Convolutions, BatchNorms, ReLUs and sums in Triton, launched by `plan.py`.

Layout. A map is channels x height x width x images, so the threads of a warp hold the same pixel of
neighbouring images: every load is contiguous whatever the side, the stride or the window, and a 1x1
convolution is a plain matrix product over all pixels of all images (`length` of them below).

As in `cpu/trunk.c`, only the outputs of convolutions (z, before BatchNorm) and of blocks are
stored; BatchNorm and ReLU are applied as z is read. BatchNorm's backward pass is affine in g and z
(dz = a g + b z + c) once the sums of g and g z are known, and those are accumulated where g is
computed. Partial sums are always added in the same order: the same input gives the same bits.

Plain twin: the network itself, by torch's modules and autograd. Compared by test_kernels.py where
there is a GPU (test_on_a_gpu_output_gradients_and_statistics_in_fp32), and by benchmarks/gpu.py.
"""

# mypy: ignore-errors
# the language is Triton's, not Python's

import triton
import triton.language as tl


@triton.jit
def _window(u, weight, scale, shift, c, yo, xo, n, inside, height, width,
            images: tl.constexpr, kernel: tl.constexpr, stride: tl.constexpr,
            normed: tl.constexpr, block: tl.constexpr):  # fmt: skip
    """Return one channel's window over the pixels (yo, xo) of images n; kernel 1 leaves them
    unchanged."""
    total = tl.zeros([block], tl.float32)
    for ky in tl.static_range(kernel):
        y = yo * stride + ky - kernel // 2
        for kx in tl.static_range(kernel):
            x = xo * stride + kx - kernel // 2
            there = inside & (x >= 0) & (x < width) & (y >= 0) & (y < height)
            value = tl.load(u + ((c * height + y) * width + x) * images + n, there, 0.0)
            value = value.to(tl.float32)
            if normed:
                value = tl.where(there, tl.maximum(value * scale + shift, 0.0), 0.0)
            if kernel > 1:
                value *= tl.load(weight + ky * kernel + kx)
            total += value
    return total


@triton.jit(do_not_specialize=["height", "width", "out_height", "out_width", "share"])
def depthwise_forward(u, scale, shift, w0, w1, w2, w3, v,
                      height, width, out_height, out_width, share,
                      images: tl.constexpr, k0: tl.constexpr, k1: tl.constexpr,
                      k2: tl.constexpr, k3: tl.constexpr, stride: tl.constexpr,
                      normed: tl.constexpr, block: tl.constexpr):  # fmt: skip
    """v = windows over u, of kernel k0 for the first `share` of the channels, k1 for the next …

    Grid: channels of these windows, rows of v, blocks of a row. All maps start at the first of
    these channels.
    """
    c, yo = tl.program_id(0), tl.program_id(1)
    i = tl.program_id(2) * block + tl.arange(0, block)
    inside = i < out_width * images
    xo, n = i // images, i % images
    a, b = 1.0, 0.0
    if normed:
        a, b = tl.load(scale + c), tl.load(shift + c)
    part, at = c // share, c % share
    if part == 0:
        total = _window(u, w0 + at * k0 * k0, a, b, c, yo, xo, n, inside, height, width,
                        images, k0, stride, normed, block)  # fmt: skip
    elif part == 1:
        total = _window(u, w1 + at * k1 * k1, a, b, c, yo, xo, n, inside, height, width,
                        images, k1, stride, normed, block)  # fmt: skip
    elif part == 2:
        total = _window(u, w2 + at * k2 * k2, a, b, c, yo, xo, n, inside, height, width,
                        images, k2, stride, normed, block)  # fmt: skip
    else:
        total = _window(u, w3 + at * k3 * k3, a, b, c, yo, xo, n, inside, height, width,
                        images, k3, stride, normed, block)  # fmt: skip
    place = v + (c * out_height + yo) * out_width * images + i
    tl.store(place, total.to(v.dtype.element_ty), inside)


@triton.jit
def _spread(d, weight, c, y, x, n, inside, out_height, out_width,
            images: tl.constexpr, kernel: tl.constexpr, stride: tl.constexpr,
            block: tl.constexpr):  # fmt: skip
    """Return the gradient that the windows propagate to the pixels (y, x) of images n."""
    total = tl.zeros([block], tl.float32)
    for ky in tl.static_range(kernel):
        sy = y + kernel // 2 - ky
        yo = sy // stride
        for kx in tl.static_range(kernel):
            sx = x + kernel // 2 - kx
            xo = sx // stride
            there = inside & (sy >= 0) & (yo < out_height) & (sx >= 0) & (xo < out_width)
            if stride > 1:
                there = there & (sy % stride == 0) & (sx % stride == 0)
            value = tl.load(d + ((c * out_height + yo) * out_width + xo) * images + n, there, 0.0)
            value = value.to(tl.float32)
            if kernel > 1:
                value *= tl.load(weight + ky * kernel + kx)
            total += value
    return total


@triton.jit(do_not_specialize=["height", "width", "out_height", "out_width", "share", "channels"])
def depthwise_backward_input(d, w0, w1, w2, w3, u, scale, shift, add, z0, z1, g, sums,
                             height, width, out_height, out_width, share, channels,
                             images: tl.constexpr, k0: tl.constexpr, k1: tl.constexpr,
                             k2: tl.constexpr, k3: tl.constexpr, stride: tl.constexpr,
                             normed: tl.constexpr, added: tl.constexpr, add_stride: tl.constexpr,
                             second: tl.constexpr, block: tl.constexpr):  # fmt: skip
    """g = the gradient at the input u before its ReLU, from d, the gradient at the windows' output,
    and `add`, another gradient at every add_stride-th pixel of u; partial sums of g, g z0 and, if
    `second`, g z1.

    Grid: channels of these windows, rows of u, blocks of a row. All maps and `sums` start at the
    first of these channels. sums: 3 x channels x programs per channel.
    """
    c, y = tl.program_id(0), tl.program_id(1)
    i = tl.program_id(2) * block + tl.arange(0, block)
    inside = i < width * images
    x, n = i // images, i % images
    part, at = c // share, c % share
    if part == 0:
        total = _spread(d, w0 + at * k0 * k0, c, y, x, n, inside, out_height, out_width,
                        images, k0, stride, block)  # fmt: skip
    elif part == 1:
        total = _spread(d, w1 + at * k1 * k1, c, y, x, n, inside, out_height, out_width,
                        images, k1, stride, block)  # fmt: skip
    elif part == 2:
        total = _spread(d, w2 + at * k2 * k2, c, y, x, n, inside, out_height, out_width,
                        images, k2, stride, block)  # fmt: skip
    else:
        total = _spread(d, w3 + at * k3 * k3, c, y, x, n, inside, out_height, out_width,
                        images, k3, stride, block)  # fmt: skip
    if added:
        there, ya, xa = inside, y, x
        add_height, add_width = height, width
        if add_stride > 1:
            there = inside & (y % add_stride == 0) & (x % add_stride == 0)
            ya, xa = y // add_stride, x // add_stride
            add_height = (height + add_stride - 1) // add_stride
            add_width = (width + add_stride - 1) // add_stride
        total += tl.load(
            add + ((c * add_height + ya) * add_width + xa) * images + n, there, 0.0
        ).to(tl.float32)
    at = (c * height + y) * width * images + i
    value = tl.load(u + at, inside, 0.0).to(tl.float32)
    if normed:
        value = value * tl.load(scale + c) + tl.load(shift + c)
    total = tl.where(value > 0, total, 0.0)
    tl.store(g + at, total.to(g.dtype.element_ty), inside)
    programs = tl.num_programs(1) * tl.num_programs(2)
    to = sums + c * programs + y * tl.num_programs(2) + tl.program_id(2)
    tl.store(to, tl.sum(total, 0))
    tl.store(to + channels * programs, tl.sum(total * tl.load(z0 + at, inside, 0.0), 0))
    if second:
        tl.store(to + 2 * channels * programs, tl.sum(total * tl.load(z1 + at, inside, 0.0), 0))


@triton.jit(do_not_specialize=["height", "width", "out_height", "out_width", "share"])
def depthwise_backward_weight(d, u, scale, shift, parts, height, width, out_height, out_width,
                              share,
                              images: tl.constexpr, kernel: tl.constexpr, columns: tl.constexpr,
                              stride: tl.constexpr, normed: tl.constexpr, splits: tl.constexpr,
                              block: tl.constexpr):  # fmt: skip
    """Partial sums of the gradient of one row of a window's weights.

    Grid: channels of the share, rows of the window, splits. d and u start at the share's first
    channel; columns is kernel, rounded up to a power of two. parts: splits x share x kernel².
    """
    c, ky, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    kx = tl.arange(0, columns)[:, None]
    total = tl.zeros([columns, block], tl.float32)
    a, b = 1.0, 0.0
    if normed:
        a, b = tl.load(scale + c), tl.load(shift + c)
    row_blocks = tl.cdiv(out_width * images, block)
    for item in range(split, out_height * row_blocks, splits):
        yo = item // row_blocks
        i = (item % row_blocks) * block + tl.arange(0, block)
        inside = i < out_width * images
        grad = tl.load(d + (c * out_height + yo) * out_width * images + i, inside, 0.0)
        y = yo * stride + ky - kernel // 2
        x = (i // images)[None, :] * stride + kx - kernel // 2
        there = inside[None, :] & (x >= 0) & (x < width) & (y >= 0) & (y < height) & (kx < kernel)
        value = tl.load(
            u + ((c * height + y) * width + x) * images + (i % images)[None, :], there, 0.0
        ).to(tl.float32)
        if normed:
            value = tl.where(there, tl.maximum(value * a + b, 0.0), 0.0)
        total += grad.to(tl.float32)[None, :] * value
    to = parts + ((split * share + c) * kernel + ky) * kernel + tl.arange(0, columns)
    tl.store(to, tl.sum(total, 1), tl.arange(0, columns) < kernel)


@triton.jit
def _weights(weight, row, column, rows, columns, row_stride, column_stride):
    """Load a block of a matrix of weights, 0 outside the matrix."""
    there = (row[:, None] < rows) & (column[None, :] < columns)
    return tl.load(weight + row[:, None] * row_stride + column[None, :] * column_stride, there, 0.0)


@triton.jit
def _active(v, scale, shift, ci, at, channels, length, normed: tl.constexpr):
    """Load channels ci and pixels `at` of v, or of relu(scale v + shift)."""
    there = (ci[:, None] < channels) & (at[None, :] < length)
    value = tl.load(v + ci[:, None] * length + at[None, :], there, 0.0)
    if normed:
        a = tl.load(scale + ci, ci < channels, 0.0)[:, None]
        b = tl.load(shift + ci, ci < channels, 0.0)[:, None]
        active = tl.maximum(value.to(tl.float32) * a + b, 0.0)
        value = tl.where(there, active, 0.0).to(v.dtype.element_ty)
    return value


@triton.jit(do_not_specialize=["in_channels", "out_channels"])
def pointwise_forward(v, scale, shift, weight, z, sums, length, in_channels, out_channels,
                      normed: tl.constexpr, precision: tl.constexpr, whole: tl.constexpr,
                      block_out: tl.constexpr, block_in: tl.constexpr,
                      block: tl.constexpr):  # fmt: skip
    """z = weight v, or weight relu(scale v + shift); partial sums of z and of z².

    Grid: programs, blocks of output channels. whole: block_in covers all input channels.
    sums: 2 x out_channels x programs.
    """
    program, programs = tl.program_id(0), tl.num_programs(0)
    co = tl.program_id(1) * block_out + tl.arange(0, block_out)
    sum1 = tl.zeros([block_out], tl.float32)
    sum2 = tl.zeros([block_out], tl.float32)
    dtype: tl.constexpr = v.dtype.element_ty
    if whole:
        ci = tl.arange(0, block_in)
        factor = _weights(weight, co, ci, out_channels, in_channels, in_channels, 1).to(dtype)
    for start in range(program * block, length, programs * block):
        at = start + tl.arange(0, block)
        total = tl.zeros([block_out, block], tl.float32)
        if whole:
            value = _active(v, scale, shift, ci, at, in_channels, length, normed)
            total = tl.dot(factor, value, total, input_precision=precision)
        else:
            for first in range(0, in_channels, block_in):
                part = first + tl.arange(0, block_in)
                value = _active(v, scale, shift, part, at, in_channels, length, normed)
                some = _weights(weight, co, part, out_channels, in_channels, in_channels, 1)
                total = tl.dot(some.to(dtype), value, total, input_precision=precision)
        there = (co[:, None] < out_channels) & (at[None, :] < length)
        tl.store(z + co[:, None] * length + at[None, :], total.to(z.dtype.element_ty), there)
        sum1 += tl.sum(total, 1)
        sum2 += tl.sum(total * total, 1)
    to = sums + co * programs + program
    tl.store(to, sum1, co < out_channels)
    tl.store(to + out_channels * programs, sum2, co < out_channels)


@triton.jit
def _dz(g, z, dz, co, at, out_channels, length):
    """Return the gradient at a convolution's output, for channels co and pixels `at`."""
    there = (co[:, None] < out_channels) & (at[None, :] < length)
    place = co[:, None] * length + at[None, :]
    grad = tl.load(g + place, there, 0.0).to(tl.float32)
    value = tl.load(z + place, there, 0.0).to(tl.float32)
    kept = co < out_channels
    a = tl.load(dz + co, kept, 0.0)[:, None]
    b = tl.load(dz + out_channels + co, kept, 0.0)[:, None]
    c = tl.load(dz + 2 * out_channels + co, kept, 0.0)[:, None]
    return tl.where(there, grad * a + (value * b + c), 0.0).to(g.dtype.element_ty)


@triton.jit(do_not_specialize=["in_channels", "out_channels"])
def pointwise_backward_input(g, z, dz, weight, d, u, scale, shift, sums,
                             length, in_channels, out_channels,
                             normed: tl.constexpr, precision: tl.constexpr, whole: tl.constexpr,
                             block_out: tl.constexpr, block_in: tl.constexpr,
                             block: tl.constexpr):  # fmt: skip
    """d = weightᵀ dz; if `normed`, only where relu(scale u + shift) let u pass, with partial sums
    of d and d u.

    Grid: programs, blocks of input channels. whole: block_out covers all output channels.
    sums: 2 x in_channels x programs.
    """
    program, programs = tl.program_id(0), tl.num_programs(0)
    ci = tl.program_id(1) * block_in + tl.arange(0, block_in)
    sum1 = tl.zeros([block_in], tl.float32)
    sum2 = tl.zeros([block_in], tl.float32)
    dtype: tl.constexpr = g.dtype.element_ty
    if whole:
        co = tl.arange(0, block_out)
        factor = _weights(weight, ci, co, in_channels, out_channels, 1, in_channels).to(dtype)
    for start in range(program * block, length, programs * block):
        at = start + tl.arange(0, block)
        total = tl.zeros([block_in, block], tl.float32)
        if whole:
            grad = _dz(g, z, dz, co, at, out_channels, length)
            total = tl.dot(factor, grad, total, input_precision=precision)
        else:
            for first in range(0, out_channels, block_out):
                part = first + tl.arange(0, block_out)
                some = _weights(weight, ci, part, in_channels, out_channels, 1, in_channels)
                grad = _dz(g, z, dz, part, at, out_channels, length)
                total = tl.dot(some.to(dtype), grad, total, input_precision=precision)
        there = (ci[:, None] < in_channels) & (at[None, :] < length)
        place = ci[:, None] * length + at[None, :]
        if normed:
            value = tl.load(u + place, there, 0.0).to(tl.float32)
            a = tl.load(scale + ci, ci < in_channels, 0.0)[:, None]
            b = tl.load(shift + ci, ci < in_channels, 0.0)[:, None]
            total = tl.where(value * a + b > 0, total, 0.0)
            sum1 += tl.sum(total, 1)
            sum2 += tl.sum(total * value, 1)
        tl.store(d + place, total.to(d.dtype.element_ty), there)
    if normed:
        to = sums + ci * programs + program
        tl.store(to, sum1, ci < in_channels)
        tl.store(to + in_channels * programs, sum2, ci < in_channels)


@triton.jit(do_not_specialize=["in_channels", "out_channels"])
def pointwise_backward_weight(g, z, dz, v, scale, shift, parts, length, in_channels, out_channels,
                              normed: tl.constexpr, precision: tl.constexpr,
                              block_out: tl.constexpr, block_in: tl.constexpr,
                              block: tl.constexpr):  # fmt: skip
    """Partial sums of dz vᵀ, or of dz relu(scale v + shift)ᵀ.

    Grid: splits, blocks of output channels, blocks of input channels.
    parts: splits x out_channels x in_channels.
    """
    split, splits = tl.program_id(0), tl.num_programs(0)
    co = tl.program_id(1) * block_out + tl.arange(0, block_out)
    ci = tl.program_id(2) * block_in + tl.arange(0, block_in)
    total = tl.zeros([block_out, block_in], tl.float32)
    for start in range(split * block, length, splits * block):
        at = start + tl.arange(0, block)
        grad = _dz(g, z, dz, co, at, out_channels, length)
        value = _active(v, scale, shift, ci, at, in_channels, length, normed)
        total = tl.dot(grad, tl.trans(value), total, input_precision=precision)
    to = parts + (split * out_channels + co[:, None]) * in_channels + ci[None, :]
    tl.store(to, total, (co[:, None] < out_channels) & (ci[None, :] < in_channels))


@triton.jit(do_not_specialize=["channels", "programs"])
def batchnorm_forward(sums, weight, bias, running_mean, running_var, statistics,
                      channels, programs, count, momentum, eps, block: tl.constexpr):  # fmt: skip
    """Turn the sums of z and z² into scale, shift, mean, 1 / deviation (rows of `statistics`), and
    update the running statistics. Grid: channels."""
    c = tl.program_id(0)
    i = tl.arange(0, block)
    sum1 = tl.sum(tl.load(sums + c * programs + i, i < programs, 0.0).to(tl.float64), 0)
    sum2 = tl.load(sums + (channels + c) * programs + i, i < programs, 0.0).to(tl.float64)
    mean = sum1 / count
    var = tl.maximum(tl.sum(sum2, 0) / count - mean * mean, 0.0)
    unbiased = (var * count / (count - 1)).to(tl.float32)
    mean, var = mean.to(tl.float32), var.to(tl.float32)
    invstd = 1 / tl.sqrt(var + eps)
    scale = tl.load(weight + c) * invstd
    tl.store(statistics + c, scale)
    tl.store(statistics + channels + c, tl.load(bias + c) - mean * scale)
    tl.store(statistics + 2 * channels + c, mean)
    tl.store(statistics + 3 * channels + c, invstd)
    before = tl.load(running_mean + c)
    tl.store(running_mean + c, before + momentum * (mean - before))
    before = tl.load(running_var + c)
    tl.store(running_var + c, before + momentum * (unbiased - before))


@triton.jit(do_not_specialize=["row", "channels", "programs"])
def batchnorm_backward(sums, row, weight, statistics, dz, d_weight, d_bias,
                       channels, programs, count, block: tl.constexpr):  # fmt: skip
    """Turn the sums of g (row 0) and g z (row `row`) into dz's a, b and c, and the gradients of
    weight and bias. Grid: channels."""
    c = tl.program_id(0)
    i = tl.arange(0, block)
    g = tl.sum(tl.load(sums + c * programs + i, i < programs, 0.0).to(tl.float64), 0)
    gz = tl.load(sums + (row * channels + c) * programs + i, i < programs, 0.0).to(tl.float64)
    mean = tl.load(statistics + 2 * channels + c).to(tl.float64)
    invstd = tl.load(statistics + 3 * channels + c).to(tl.float64)
    d_gamma = invstd * (tl.sum(gz, 0) - mean * g)
    a = tl.load(weight + c) * invstd
    tl.store(dz + c, a.to(tl.float32))
    tl.store(dz + channels + c, (-a * invstd * d_gamma / count).to(tl.float32))
    tl.store(dz + 2 * channels + c, (a * (mean * invstd * d_gamma - g) / count).to(tl.float32))
    tl.store(d_weight + c, d_gamma.to(tl.float32))
    tl.store(d_bias + c, g.to(tl.float32))


@triton.jit(do_not_specialize=["channels", "plane"])
def join_forward(z, statistics, rest, rest_statistics, out, channels, plane,
                 joined: tl.constexpr, normed: tl.constexpr, block: tl.constexpr):  # fmt: skip
    """out = relu(bn(z)), plus rest if `joined`, or plus bn(rest) if `normed` too.

    Grid: channels, blocks of a channel.
    """
    c = tl.program_id(0)
    i = tl.program_id(1) * block + tl.arange(0, block)
    inside, at = i < plane, c * plane + i
    value = tl.load(z + at, inside, 0.0).to(tl.float32)
    value = value * tl.load(statistics + c) + tl.load(statistics + channels + c)
    if joined:
        other = tl.load(rest + at, inside, 0.0).to(tl.float32)
        if normed:
            other = other * tl.load(rest_statistics + c)
            other += tl.load(rest_statistics + channels + c)
        value += other
    tl.store(out + at, tl.maximum(value, 0.0).to(out.dtype.element_ty), inside)


@triton.jit(do_not_specialize=["channels", "plane", "pixels"])
def join_backward(d_pooled, out, z, rest, g, sums, channels, plane, pixels,
                  images: tl.constexpr, normed: tl.constexpr, block: tl.constexpr):  # fmt: skip
    """g = the gradient before the last ReLU, from d_pooled, the gradient at the mean over the
    pixels (channels x images); partial sums of g, g z and, if `normed`, g rest.

    Grid: channels, blocks of a channel. sums: 3 x channels x blocks.
    """
    c, program, programs = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    i = program * block + tl.arange(0, block)
    inside, at = i < plane, c * plane + i
    grad = tl.load(d_pooled + c * images + i % images, inside, 0.0) / pixels
    grad = tl.where(tl.load(out + at, inside, 0.0) > 0, grad, 0.0)
    tl.store(g + at, grad.to(g.dtype.element_ty), inside)
    to = sums + c * programs + program
    tl.store(to, tl.sum(grad, 0))
    tl.store(to + channels * programs, tl.sum(grad * tl.load(z + at, inside, 0.0), 0))
    if normed:
        tl.store(to + 2 * channels * programs, tl.sum(grad * tl.load(rest + at, inside, 0.0), 0))


@triton.jit(do_not_specialize=["length"])
def add_parts(parts, offsets, strides, counts, out, length,
              block_parts: tl.constexpr, block: tl.constexpr):  # fmt: skip
    """out[i] = the sum of counts[i] partial sums, strides[i] apart, from offsets[i]. Grid:
    blocks."""
    i = tl.program_id(0) * block + tl.arange(0, block)
    inside = i < length
    offset, stride = tl.load(offsets + i, inside, 0), tl.load(strides + i, inside, 0)
    count = tl.load(counts + i, inside, 0)
    total = tl.zeros([block_parts, block], tl.float32)
    for first in range(0, tl.max(count, 0), block_parts):
        part = first + tl.arange(0, block_parts)[:, None]
        total += tl.load(parts + offset[None, :] + part * stride[None, :], part < count[None, :], 0)
    tl.store(out + i, tl.sum(total, 0), inside)
