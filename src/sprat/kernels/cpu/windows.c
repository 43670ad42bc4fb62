/* Spatial steps: depthwise windows, their gradients, and the stem's neighbours side by side.
 *
 * Plain twin: a depthwise convolution is F.conv2d(x, weight, stride=s, padding=k // 2, groups=C) of
 * each share of the channels, its gradients are torch.nn.grad.conv2d_weight and conv2d_input; the
 * stem's unfolding is F.unfold(x, 3, padding=1). Compared by test_kernels.py, TestAgainstPlainTwin
 * and TestAnyNetworkOfKnownBlocks.
 *
 * The rows of a tile are fp32, [C][pad + W + pad], in a ring buffer of the rows still needed.
 */
typedef struct {
    vf *rows;
    const vf *zeros;                    /* a row outside the image */
    int64_t slots, channels, pitch, pad, h;
} Ring;

static Ring new_ring(int slot, int64_t slots, int64_t channels, int64_t w, int64_t pad,
                     int64_t h) {
    int64_t pitch = w + 2 * pad, row = channels * pitch;
    vf *rows = take(slot, (slots + 1) * row * sizeof(vf)), *zeros = rows + slots * row;
    for (vf *line = rows; line < zeros; line += pitch)
        for (int64_t x = 0; x < pad; x++) line[x] = line[pad + w + x] = (vf){};
    memset(zeros, 0, row * sizeof(vf));
    return (Ring){rows, zeros, slots, channels, pitch, pad, h};
}

/* Column 0 of channel 0 of row y. */
INLINE vf *ring_row(const Ring *ring, int64_t y) {
    vf *row = (vf *)ring->zeros;
    if (y >= 0 && y < ring->h)
        row = ring->rows + (y % ring->slots) * ring->channels * ring->pitch;
    return row + ring->pad;
}

/* Row y of the input: BatchNorm and ReLU of z, or an activation as it is. */
static void activate(const Conv *c, int64_t tile, int64_t y, vf *row, int64_t pitch) {
    const char *in = row_of(c->in, tile, y, c->in_h, c->in_channels, c->in_w);
    for (int64_t ch = 0; ch < c->in_channels; ch += 2) {
        vf *even = row + ch * pitch, *odd = even + pitch;
        if (c->in_bn) {
            vf a0 = splat(c->in_bn->scale[ch]), a1 = splat(c->in_bn->scale[ch + 1]);
            vf b0 = splat(c->in_bn->shift[ch]), b1 = splat(c->in_bn->shift[ch + 1]);
            for (int64_t x = 0; x < c->in_w; x++, in += PAIR) {
                vf z0, z1;
                load2(in, &z0, &z1);
                even[x] = relu(z0 * a0 + b0);
                odd[x] = relu(z1 * a1 + b1);
            }
        } else {
            for (int64_t x = 0; x < c->in_w; x++, in += PAIR) load2(in, &even[x], &odd[x]);
        }
    }
}

/* Rows under a window over row y of one channel, each from the window's first column. */
INLINE void window_rows(const Ring *ring, int64_t y, int64_t ch, int64_t k, const vf **rows) {
    for (int64_t ky = 0; ky < k; ky++)
        rows[ky] = ring_row(ring, y + ky - k / 2) - k / 2 + ch * ring->pitch;
}

#define WINDOW_BLOCK(X)                                                                           \
    {                                                                                             \
        vf sum[X] = {};                                                                           \
        for (int64_t ky = 0; ky < k; ky++)                                                        \
            for (int64_t kx = 0; kx < k; kx++)                                                    \
                for (int i = 0; i < X; i++)                                                       \
                    sum[i] += rows[ky][(x + i) * stride + kx] * w[ky * k + kx];                   \
        for (int i = 0; i < X; i++) out[x + i] = sum[i];                                          \
    }

/* out[x] = sum over the k x k neighbours of column x stride */
INLINE void correlate(const vf *const *rows, const float *w, int64_t k, int64_t stride,
                      int64_t columns, vf *out) {
    int64_t x = 0;
    for (; x + 4 <= columns; x += 4) WINDOW_BLOCK(4)
    for (; x < columns; x++) WINDOW_BLOCK(1)
}

/* DO with kernel and stride as compile-time constants for the usual ones. */
#define FOR_WINDOW(k, s, DO)                                                                      \
    if (k == 3 && s == 1) DO(3, 1);                                                               \
    else if (k == 3 && s == 2) DO(3, 2);                                                          \
    else if (k == 5 && s == 1) DO(5, 1);                                                          \
    else if (k == 7 && s == 1) DO(7, 1);                                                          \
    else DO(k, s);

/* Row y of a depthwise convolution, one channel. */
static void depthwise_row(const Conv *c, const Ring *u, int64_t y, int64_t ch, vf *out) {
    const Window *window = &c->windows[ch];
    const vf *rows[MAX_KERNEL];
    int64_t k = window->kernel, s = c->stride;
    window_rows(u, y * s, ch, k, rows);
    if (!window->weight) {
        for (int64_t x = 0; x < c->out_w; x++) out[x] = rows[0][x * s];
        return;
    }
#define FORWARD(K, S) correlate(rows, window->weight, K, S, c->out_w, out)
    FOR_WINDOW(k, s, FORWARD)
}

/* Row y of the spatial step, from the activations in the ring. */
static void spatial(const Conv *c, const Ring *u, int64_t y, operand *out) {
    int64_t k = c->kernel, w = c->out_w, s = c->stride;
    if (c->kind == DEPTHWISE) {
#if USE_PAIRS
        vf *even = take(10, 2 * w * sizeof(vf)), *odd = even + w;
        for (int64_t ch = 0; ch < c->in_channels; ch += 2) {
            depthwise_row(c, u, y, ch, even);
            depthwise_row(c, u, y, ch + 1, odd);
            for (int64_t x = 0; x < w; x++) put2(out, w, ch / 2, x, even[x], odd[x]);
        }
#else
        for (int64_t ch = 0; ch < c->in_channels; ch++) depthwise_row(c, u, y, ch, out + ch * w);
#endif
        return;
    }
    const vf *row;
    int64_t pair = 0;
    for (int64_t ky = 0; ky < k; ky++)
        for (int64_t kx = 0; kx < k; kx++) {
            row = ring_row(u, y * s + ky - u->pad) + kx - u->pad;
            for (int64_t ch = 0; ch < c->in_channels; ch += 2, pair++)
                for (int64_t x = 0; x < w; x++)
                    put2(out, w, pair, x, row[ch * u->pitch + x * s],
                         row[(ch + 1) * u->pitch + x * s]);
        }
}

/* sums[k][k], in its rows ky0 to ky1, += sum over rows y0 to y1, columns and images of d and its
 * neighbours in u, one channel */
INLINE void correlate_gradient(const Ring *d, const Ring *u, int64_t ch, int64_t y0, int64_t y1,
                               int64_t columns, int64_t k, int64_t s, int64_t ky0, int64_t ky1,
                               vf *sums) {
    vf sum[MAX_KERNEL * MAX_KERNEL];
    for (int64_t i = ky0 * k; i < ky1 * k; i++) sum[i] = sums[i];
    for (int64_t y = y0; y < y1; y++) {
        const vf *grad = ring_row(d, y) + ch * d->pitch, *rows[MAX_KERNEL];
        window_rows(u, y * s, ch, k, rows);
        for (int64_t x = 0; x < columns; x++)
            for (int64_t ky = ky0; ky < ky1; ky++)
                for (int64_t kx = 0; kx < k; kx++)
                    sum[ky * k + kx] += grad[x] * rows[ky][x * s + kx];
    }
    for (int64_t i = ky0 * k; i < ky1 * k; i++) sums[i] = sum[i];
}

/* Gradient of one channel's window, with as many sums at a time as fit in registers. */
static void depthwise_weight_gradient(const Conv *c, const Ring *d, const Ring *u, int64_t ch,
                                      int64_t y0, int64_t y1, vf *sums) {
    int64_t k = c->windows[ch].kernel, s = c->stride, w = c->out_w;
    if (!c->windows[ch].weight) return;
    if (k == 3 && s == 1) correlate_gradient(d, u, ch, y0, y1, w, 3, 1, 0, 3, sums);
    else if (k == 3 && s == 2) correlate_gradient(d, u, ch, y0, y1, w, 3, 2, 0, 3, sums);
    else
        for (int64_t ky = 0; ky < k; ky++) {
#define ROW_GRADIENT(K, S) correlate_gradient(d, u, ch, y0, y1, w, K, S, ky, ky + 1, sums)
            FOR_WINDOW(k, s, ROW_GRADIENT)
        }
}

/* Adds each value of d, weighted, to the inputs that a convolution of stride s computed it from. */
INLINE void spread(const Ring *d, int64_t ch, int64_t y, const float *w, int64_t k, int64_t s,
                   int64_t d_columns, int64_t columns, vf *out) {
    int64_t pad = k / 2;
    for (int64_t x = 0; x < columns; x++) out[x] = (vf){};
    for (int64_t ky = (y + pad) % s; ky < k && ky <= y + pad; ky += s) {
        const vf *row = ring_row(d, (y + pad - ky) / s) + ch * d->pitch;
        for (int64_t kx = 0; kx < k; kx++)
            for (int64_t x = 0; x < d_columns; x++) {
                int64_t to = x * s + kx - pad;
                if (to >= 0 && to < columns) out[to] += row[x] * w[ky * k + kx];
            }
    }
}

/* Row y of the gradient at the input of a depthwise convolution, one channel. */
static void depthwise_input_gradient(const Conv *c, const Ring *d, int64_t y, int64_t ch,
                                     vf *out) {
    const Window *window = &c->windows[ch];
    const float one = 1, *w = window->weight ? window->weight : &one;
    int64_t k = window->kernel, s = c->stride;
    if (s > 1) {
#define SPREAD(K, S) spread(d, ch, y, w, K, S, c->out_w, c->in_w, out)
        FOR_WINDOW(k, s, SPREAD)
        return;
    }
    const vf *rows[MAX_KERNEL];
    float turned[MAX_KERNEL * MAX_KERNEL]; /* the same window, rotated by 180 degrees */
    window_rows(d, y, ch, k, rows);
    for (int64_t i = 0; i < k * k; i++) turned[i] = w[k * k - 1 - i];
#define TURNED(K, S) correlate(rows, turned, K, S, c->in_w, out)
    FOR_WINDOW(k, s, TURNED)
}
