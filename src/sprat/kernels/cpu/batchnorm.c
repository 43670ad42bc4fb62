/* BatchNorm, forward and backward: from sums to the coefficients that readers of its input apply.
 *
 * Plain twin: F.batch_norm(z, running_mean, running_var, gamma, beta, training=True, ...) and its
 * gradient, written as dz = dz_g g + dz_z z + dz_1. Compared by test_kernels.py,
 * TestAgainstPlainTwin, including running statistics.
 *
 * There is one sum per tile, as doubles `stride` apart.
 */
static void add_tiles(const double *sums, int64_t tiles, int64_t stride, int64_t i, double *sum) {
    *sum = 0;
    for (int64_t tile = 0; tile < tiles; tile++) *sum += sums[tile * stride + i];
}

static void bn_forward(BatchNorm *bn, const double *sums, const double *sums_zz, int64_t tiles,
                       int64_t stride, double n) {
    for (int64_t ch = 0; ch < bn->channels; ch++) {
        double s, ss;
        add_tiles(sums, tiles, stride, ch, &s);
        add_tiles(sums_zz, tiles, stride, ch, &ss);
        double mean = s / n, var = ss / n - mean * mean;
        if (var < 0) var = 0;
        double invstd = 1 / sqrt(var + bn->eps);
        bn->mean[ch] = mean;
        bn->invstd[ch] = invstd;
        bn->scale[ch] = bn->gamma[ch] * invstd;
        bn->shift[ch] = bn->beta[ch] - mean * bn->gamma[ch] * invstd;
        bn->running_mean[ch] += bn->momentum * (mean - bn->running_mean[ch]);
        bn->running_var[ch] += bn->momentum * (var * n / (n - 1) - bn->running_var[ch]);
    }
}

static void bn_backward(BatchNorm *bn, const double *sums, const double *sums_gz, int64_t tiles,
                        int64_t stride, double n) {
    for (int64_t ch = 0; ch < bn->channels; ch++) {
        double g, gz;
        add_tiles(sums, tiles, stride, ch, &g);
        add_tiles(sums_gz, tiles, stride, ch, &gz);
        double invstd = bn->invstd[ch], mean = bn->mean[ch];
        double d_gamma = invstd * (gz - mean * g);
        double a = bn->gamma[ch] * invstd;
        bn->d_gamma[ch] = d_gamma;
        bn->d_beta[ch] = g;
        bn->dz_g[ch] = a;
        bn->dz_z[ch] = -a * invstd * d_gamma / n;
        bn->dz_1[ch] = a * (mean * invstd * d_gamma - g) / n;
    }
}
