/* A convolution, forward and backward: spatial step, product over channels, sums for BatchNorm.
 *
 * Plain twin: z = pointwise(windows(relu(in_bn(x)))) of torch modules, and z.backward(g) through
 * the BatchNorm after it. Compared by test_kernels.py, TestAgainstPlainTwin: every gradient.
 */
static int64_t chunk_rows(const Conv *c) { /* output rows per chunk: 32 columns or more */
    int64_t rows = (32 + c->out_w - 1) / c->out_w;
    return rows < c->out_h ? rows : c->out_h;
}

static int64_t spatial_channels(const Conv *c) {
    return c->kind == UNFOLD ? c->kernel * c->kernel * c->in_channels : c->in_channels;
}

static Ring input_ring(const Conv *c, int64_t rows) {
    int64_t slots = (rows - 1) * c->stride + c->kernel;
    return new_ring(0, slots, c->in_channels, c->in_w, c->kernel / 2, c->in_h);
}

/* Reads the input rows that output row `y` needs into the ring; returns the next one to read. */
static int64_t fill(const Conv *c, int64_t tile, Ring *u, int64_t next, int64_t y) {
    int64_t end = y * c->stride + c->kernel - c->kernel / 2;
    for (; next < end && next < c->in_h; next++)
        activate(c, tile, next, ring_row(u, next), u->pitch);
    return next;
}

static void forward_tile(const Conv *c, int64_t tile, const Weights *weights, double *sums) {
    int64_t cv = spatial_channels(c), co = c->out_channels, w = c->out_w;
    Ring u = input_ring(c, 1);
    operand *v = take(1, OPERAND_VECTORS(cv, w) * sizeof(operand));
    vf *out = take(2, co * w * sizeof(vf));
    vf *sum = take(3, 2 * co * sizeof(vf)), *square = sum + co;
    memset(sum, 0, 2 * co * sizeof(vf));
    int64_t next = 0;
    for (int64_t y = 0; y < c->out_h; y++) {
        next = fill(c, tile, &u, next, y);
        spatial(c, &u, y, v);
        product(v, w, weights, out, w);
        char *z = row_of(c->z, tile, y, c->out_h, co, w);
        for (int64_t ch = 0; ch < co; ch += 2) {
            const vf *even = out + ch * w, *odd = even + w;
            vf s0 = {}, s1 = {}, q0 = {}, q1 = {};
            for (int64_t x = 0; x < w; x++, z += PAIR) {
                s0 += even[x];
                s1 += odd[x];
                q0 += even[x] * even[x];
                q1 += odd[x] * odd[x];
                store2(z, even[x], odd[x]);
            }
            sum[ch] += s0;
            sum[ch + 1] += s1;
            square[ch] += q0;
            square[ch + 1] += q1;
        }
    }
    for (int64_t i = 0; i < 2 * co; i++) sums[i] = total(sum[i]);
}

void conv_forward(const Conv *c, int64_t tiles, int threads) {
    int64_t co = c->out_channels;
    int64_t cv = spatial_channels(c);
    double *sums = allocate(tiles * 2 * co * sizeof(double));
    Weights weights = pack_weights(c->pointwise, co, cv, cv, 1);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t tile = 0; tile < tiles; tile++) {
        BEGIN_TILES
        forward_tile(c, tile, &weights, sums + tile * 2 * co);
        END_TILES
    }
    if (!c->bn->frozen)
        bn_forward(c->bn, sums, sums + co, tiles, 2 * co,
                   (double)tiles * LANES * c->out_h * c->out_w);
    free(weights.values);
    free(sums);
}

/* Completes a row of g_in: adds the other gradient, masks by ReLU, sums for the BatchNorms. */
static void finish_row(const Conv *c, int64_t tile, int64_t y, const Ring *u, const Ring *d,
                       vf *even, vf *odd, vf *sums) {
    int64_t ci = c->in_channels, w = c->in_w;
    char *g_in = row_of(c->g_in, tile, y, c->in_h, ci, w);
    const char *z0 = row_of(c->sum_z[0], tile, y, c->in_h, ci, w), *z1 = NULL, *add = NULL;
    int64_t step = c->add_stride;
    if (c->add && y % step == 0) {
        int64_t add_h = (c->in_h + step - 1) / step, add_w = (w + step - 1) / step;
        add = row_of(c->add, tile, y / step, add_h, ci, add_w);
    }
    if (c->sum_bn[1]) z1 = row_of(c->sum_z[1], tile, y, c->in_h, ci, w);
    for (int64_t ch = 0; ch < ci; ch += 2) {
        depthwise_input_gradient(c, d, y, ch, even);
        depthwise_input_gradient(c, d, y, ch + 1, odd);
        if (add)
            for (int64_t x = 0; x < w; x += step, add += PAIR) {
                vf a0, a1;
                load2(add, &a0, &a1);
                even[x] += a0;
                odd[x] += a1;
            }
        const vf *u0 = ring_row(u, y) + ch * u->pitch, *u1 = u0 + u->pitch;
        vf *s = sums + ch;
        vf g0 = s[0], g1 = s[1], gz0 = s[ci], gz1 = s[ci + 1];
        for (int64_t x = 0; x < w; x++, g_in += PAIR, z0 += PAIR) {
            vf a, b;
            even[x] = where_positive(u0[x], even[x]);
            odd[x] = where_positive(u1[x], odd[x]);
            load2(z0, &a, &b);
            g0 += even[x];
            g1 += odd[x];
            gz0 += even[x] * a;
            gz1 += odd[x] * b;
            store2(g_in, even[x], odd[x]);
        }
        s[0] = g0;
        s[1] = g1;
        s[ci] = gz0;
        s[ci + 1] = gz1;
        if (z1) {
            gz0 = s[2 * ci];
            gz1 = s[2 * ci + 1];
            for (int64_t x = 0; x < w; x++, z1 += PAIR) {
                vf a, b;
                load2(z1, &a, &b);
                gz0 += even[x] * a;
                gz1 += odd[x] * b;
            }
            s[2 * ci] = gz0;
            s[2 * ci + 1] = gz1;
        }
    }
}

/* Row y of dz, the gradient at the output of the pointwise product. */
static void dz_row(const Conv *c, int64_t tile, int64_t y, operand *out) {
    int64_t w = c->out_w;
    const char *g = row_of(c->g, tile, y, c->out_h, c->out_channels, w);
    const char *z = row_of(c->z, tile, y, c->out_h, c->out_channels, w);
    const BatchNorm *bn = c->bn;
    for (int64_t ch = 0; ch < c->out_channels; ch += 2) {
        vf a0 = splat(bn->dz_g[ch]), a1 = splat(bn->dz_g[ch + 1]);
        vf b0 = splat(bn->dz_z[ch]), b1 = splat(bn->dz_z[ch + 1]);
        vf c0 = splat(bn->dz_1[ch]), c1 = splat(bn->dz_1[ch + 1]);
        for (int64_t x = 0; x < w; x++, g += PAIR, z += PAIR) {
            vf g0, g1, z0, z1;
            load2(g, &g0, &g1);
            load2(z, &z0, &z1);
            put2(out, w, ch / 2, x, g0 * a0 + (z0 * b0 + c0), g1 * a1 + (z1 * b1 + c1));
        }
    }
}

static void backward_tile(const Conv *c, int64_t tile, const Weights *transposed,
                          float *d_pointwise, float *d_windows, double *sums) {
    int64_t ci = c->in_channels, cv = spatial_channels(c), co = c->out_channels;
    int64_t w = c->out_w, k = c->kernel, s = c->stride, pad = k / 2;
    int64_t rows = chunk_rows(c), kk = k * k;
    Ring u = input_ring(c, rows), d = {};
    operand *v = take(1, rows * OPERAND_VECTORS(cv, w) * sizeof(operand));
    operand *dz = take(2, rows * OPERAND_VECTORS(co, w) * sizeof(operand));
    vf *sum = take(3, 3 * ci * sizeof(vf)), *dw = take(4, ci * kk * sizeof(vf));
    vf *even = take(9, 2 * c->in_w * sizeof(vf)), *odd = even + c->in_w;
    memset(sum, 0, 3 * ci * sizeof(vf));
    memset(dw, 0, ci * kk * sizeof(vf));
    memset(d_pointwise, 0, co * cv * sizeof(float));
    int64_t d_pad = c->kind == DEPTHWISE ? pad : 0;
    if (c->kind != UNFOLD) d = new_ring(8, rows + k, ci, w, d_pad, c->out_h);

    int64_t next = 0, done = 0;
    for (int64_t y0 = 0; y0 < c->out_h; y0 += rows) {
        int64_t y1 = y0 + rows < c->out_h ? y0 + rows : c->out_h;
        next = fill(c, tile, &u, next, y1 - 1);
        for (int64_t y = y0; y < y1; y++) {
            operand *dz_y = dz + (y - y0) * OPERAND_VECTORS(co, w);
            spatial(c, &u, y, v + (y - y0) * OPERAND_VECTORS(cv, w));
            dz_row(c, tile, y, dz_y);
            if (c->kind != UNFOLD) product(dz_y, w, transposed, ring_row(&d, y), d.pitch);
        }
        outer(dz, v, y1 - y0, w, co, cv, d_pointwise);
        if (c->kind == DEPTHWISE) {
            for (int64_t ch = 0; ch < ci; ch++)
                depthwise_weight_gradient(c, &d, &u, ch, y0, y1, dw + ch * kk);
            int64_t end = y1 == c->out_h ? c->in_h : s * y1 - pad;
            for (; done < end; done++) finish_row(c, tile, done, &u, &d, even, odd, sum);
        } else if (c->kind == SUBSAMPLE) {
            for (int64_t y = y0; y < y1; y++) {
                char *g_in = row_of(c->g_in, tile, y, c->out_h, ci, w);
                for (int64_t ch = 0; ch < ci; ch += 2) {
                    const vf *row = ring_row(&d, y) + ch * d.pitch;
                    for (int64_t x = 0; x < w; x++, g_in += PAIR)
                        store2(g_in, row[x], row[d.pitch + x]);
                }
            }
        }
    }
    for (int64_t i = 0; i < ci * kk; i++) d_windows[i] = reduce(dw[i]);
    for (int64_t i = 0; i < 3 * ci; i++) sums[i] = total(sum[i]);
}

static void add_up(float *into, const float *parts, int64_t tiles, int64_t stride, int64_t n) {
    memcpy(into, parts, n * sizeof(float));
    for (int64_t tile = 1; tile < tiles; tile++)
        for (int64_t i = 0; i < n; i++) into[i] += parts[tile * stride + i];
}

void conv_backward(const Conv *c, int64_t tiles, int threads) {
    int64_t ci = c->in_channels, cv = spatial_channels(c), co = c->out_channels;
    int64_t kk = c->kernel * c->kernel, weights = co * cv + ci * kk;
    double *sums = allocate(tiles * 3 * ci * sizeof(double));
    float *parts = allocate(tiles * weights * sizeof(float));
    Weights transposed = pack_weights(c->pointwise, cv, co, 1, cv);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t tile = 0; tile < tiles; tile++) {
        float *part = parts + tile * weights;
        BEGIN_TILES
        backward_tile(c, tile, &transposed, part, part + co * cv, sums + tile * 3 * ci);
        END_TILES
    }
    add_up(c->d_pointwise, parts, tiles, weights, co * cv);
    for (int64_t ch = 0; ch < ci && c->kind == DEPTHWISE; ch++) {
        const Window *window = &c->windows[ch];
        const float *part = parts + co * cv + ch * kk;
        if (window->weight)
            add_up(window->d_weight, part, tiles, weights, window->kernel * window->kernel);
    }
    for (int i = 0; i < 2; i++)
        if (c->sum_bn[i])
            bn_backward(c->sum_bn[i], sums, sums + (i + 1) * ci, tiles, 3 * ci,
                        (double)tiles * LANES * c->in_h * c->in_w);
    free(sums);
    free(parts);
    free(transposed.values);
}
