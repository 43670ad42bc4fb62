/* End of a block: sum, ReLU and, for the last block, the mean over the pixels.
 *
 * Plain twin: out = torch.relu(bn(z) + rest) and out.mean(dim=(2, 3)), and its gradient. Compared
 * by test_kernels.py, TestAgainstPlainTwin.
 */
void join_forward(const Join *join, int64_t tiles, int threads) {
    int64_t channels = join->channels, w = join->w;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t tile = 0; tile < tiles; tile++) {
        for (int64_t y = 0; y < join->h; y++) {
            const char *z = row_of(join->z, tile, y, join->h, channels, w);
            const char *rest = row_of(join->rest, tile, y, join->h, channels, w);
            char *out = row_of(join->out, tile, y, join->h, channels, w);
            for (int64_t ch = 0; ch < channels; ch += 2) {
                const BatchNorm *bn = join->bn, *rest_bn = join->rest_bn;
                vf a0 = splat(bn->scale[ch]), a1 = splat(bn->scale[ch + 1]);
                vf b0 = splat(bn->shift[ch]), b1 = splat(bn->shift[ch + 1]);
                vf r0 = splat(!!join->rest), r1 = r0, mean0 = {}, mean1 = {};
                if (rest_bn) {
                    r0 = splat(rest_bn->scale[ch]);
                    r1 = splat(rest_bn->scale[ch + 1]);
                    b0 += splat(rest_bn->shift[ch]);
                    b1 += splat(rest_bn->shift[ch + 1]);
                }
                for (int64_t x = 0; x < w; x++, z += PAIR, rest += PAIR, out += PAIR) {
                    vf y0, y1, z0, z1;
                    load2(z, &z0, &z1);
                    y0 = z0 * a0 + b0;
                    y1 = z1 * a1 + b1;
                    if (join->rest) {
                        load2(rest, &z0, &z1);
                        y0 += z0 * r0;
                        y1 += z1 * r1;
                    }
                    y0 = relu(y0);
                    y1 = relu(y1);
                    store2(out, y0, y1);
                    mean0 += y0;
                    mean1 += y1;
                }
                if (!join->pooled) continue;
                for (int lane = 0; lane < LANES; lane++) {
                    float *pooled = join->pooled + (tile * LANES + lane) * channels + ch;
                    pooled[0] = (y ? pooled[0] : 0) + mean0[lane] / (join->h * w);
                    pooled[1] = (y ? pooled[1] : 0) + mean1[lane] / (join->h * w);
                }
            }
        }
    }
}

/* For a pooled join: the gradient before its ReLU, and the sums for its BatchNorms. */
void join_backward(const Join *join, int64_t tiles, int threads) {
    int64_t channels = join->channels, w = join->w;
    double *sums = allocate(tiles * 3 * channels * sizeof(double));
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t tile = 0; tile < tiles; tile++) {
        for (int64_t ch = 0; ch < channels; ch += 2) {
            vf d0, d1, g0 = {}, g1 = {}, gz0 = {}, gz1 = {}, gr0 = {}, gr1 = {};
            for (int lane = 0; lane < LANES; lane++) {
                const float *d = join->d_pooled + (tile * LANES + lane) * channels + ch;
                d0[lane] = d[0] / (join->h * w);
                d1[lane] = d[1] / (join->h * w);
            }
            for (int64_t y = 0; y < join->h; y++) {
                int64_t at = ch / 2 * w * PAIR;
                const char *z = row_of(join->z, tile, y, join->h, channels, w) + at;
                const char *out = row_of(join->out, tile, y, join->h, channels, w) + at;
                const char *rest = row_of(join->rest, tile, y, join->h, channels, w) + at;
                char *g = row_of(join->g, tile, y, join->h, channels, w) + at;
                for (int64_t x = 0; x < w; x++) {
                    vf a, b, e, o;
                    load2(out + x * PAIR, &a, &b);
                    e = where_positive(a, d0);
                    o = where_positive(b, d1);
                    store2(g + x * PAIR, e, o);
                    g0 += e;
                    g1 += o;
                    load2(z + x * PAIR, &a, &b);
                    gz0 += e * a;
                    gz1 += o * b;
                    if (join->rest_bn) {
                        load2(rest + x * PAIR, &a, &b);
                        gr0 += e * a;
                        gr1 += o * b;
                    }
                }
            }
            double *s = sums + tile * 3 * channels + ch;
            s[0] = total(g0);
            s[1] = total(g1);
            s[channels] = total(gz0);
            s[channels + 1] = total(gz1);
            s[2 * channels] = total(gr0);
            s[2 * channels + 1] = total(gr1);
        }
    }
    double n = (double)tiles * LANES * join->h * w;
    bn_backward(join->bn, sums, sums + channels, tiles, 3 * channels, n);
    if (join->rest_bn)
        bn_backward(join->rest_bn, sums, sums + 2 * channels, tiles, 3 * channels, n);
    free(sums);
}
