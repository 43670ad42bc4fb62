/* pack_weights, product and outer with vectors of fp32, or of pairs of bf16.
 *
 * Plain twin: `weight @ x`, and `d @ x.T` for outer. Compared by test_kernels.py,
 * TestAgainstPlainTwin, and for other CPUs by system/test_kernels_elsewhere.py.
 */
#if USE_PAIRS
#define PACKED uint16_t
#define PACK(x) to_bf16(x)
INLINE vf add_product(vf sum, vu a, vu b) {
    return (vf)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
}
INLINE vu spread_factor(uint32_t x) { return x - (vu){}; }
#else
#define PACKED float
#define PACK(x) (x)
INLINE vf add_product(vf sum, vf a, vf b) { return sum + a * b; }
INLINE vf spread_factor(float x) { return splat(x); }
#endif

/* Sums held at once, rows x columns, limited by the number of registers. */
#if defined(__AVX512F__) || defined(__aarch64__)
#define BLOCK_ROWS 4
#define BLOCK_COLUMNS 4
#else
#define BLOCK_ROWS 6
#define BLOCK_COLUMNS 2
#endif

/* Channels in the next block, of those left (an even number): ends in 4 + 4 rather than 6 + 2. */
INLINE int64_t block_rows(int64_t left) {
    if (BLOCK_ROWS == 6 && left >= 6 && left != 8) return 6;
    return left >= 4 ? 4 : 2;
}

/* [out][in] */
static Weights pack_weights(const float *w, int64_t out, int64_t in, int64_t row, int64_t column) {
    Weights packed = {out, in, 0, 0, allocate(out * in * sizeof(PACKED))};
    for (int64_t i = 0; i < out; i++)
        for (int64_t j = 0; j < in; j++)
            ((PACKED *)packed.values)[i * in + j] = PACK(w[i * row + j * column]);
    return packed;
}

#define PRODUCT_BLOCK(CO, X)                                                                      \
    {                                                                                             \
        vf sum[CO][X] = {};                                                                       \
        for (int64_t step = 0; step < steps; step++)                                              \
            for (int i = 0; i < X; i++) {                                                         \
                operand value = in[step * w + x + i];                                             \
                for (int j = 0; j < CO; j++)                                                      \
                    sum[j][i] = add_product(sum[j][i], value,                                     \
                                            spread_factor(weight[(co + j) * steps + step]));      \
            }                                                                                     \
        for (int j = 0; j < CO; j++)                                                              \
            for (int i = 0; i < X; i++) out[(co + j) * pitch + x + i] = sum[j][i];                \
    }

/* out[co][x] = sum over ci of weight[co][ci] in[ci][x]; rows of out are `pitch` vectors apart */
static void product(const operand *in, int64_t w, const Weights *weights, vf *out, int64_t pitch) {
    int64_t out_channels = weights->out_channels, steps = weights->in_channels / CHANNELS;
    const factor *weight = weights->values;
    for (int64_t co = 0, rows; co < out_channels; co += rows) {
        int64_t x = 0;
        rows = block_rows(out_channels - co);
#define PRODUCT_ROWS(CO)                                                                          \
    {                                                                                             \
        for (; x + BLOCK_COLUMNS <= w; x += BLOCK_COLUMNS) PRODUCT_BLOCK(CO, BLOCK_COLUMNS)       \
        for (; x < w; x++) PRODUCT_BLOCK(CO, 1)                                                   \
    }
        if (rows == 6) PRODUCT_ROWS(6)
        else if (rows == 4) PRODUCT_ROWS(4)
        else PRODUCT_ROWS(2)
    }
}

#define OUTER_BLOCK(CO, CI)                                                                       \
    {                                                                                             \
        vf acc[CO][CI] = {};                                                                      \
        for (int64_t y = 0; y < rows; y++) {                                                      \
            const operand *a = d + y * out_channels * w + co * w;                                 \
            const operand *b = in + y * in_channels * w + ci * w;                                 \
            for (int64_t x = 0; x < w; x++)                                                       \
                for (int j = 0; j < CO; j++)                                                      \
                    for (int i = 0; i < CI; i++)                                                  \
                        acc[j][i] = add_product(acc[j][i], a[j * w + x], b[i * w + x]);           \
        }                                                                                         \
        for (int j = 0; j < CO; j++)                                                              \
            for (int i = 0; i < CI; i++)                                                          \
                sum[(co + j) * in_channels + ci + i] += reduce(acc[j][i]);                        \
    }

#if USE_PAIRS
/* The sum below runs over columns, so those are paired: [rows][C / 2][W] to [rows][C][W / 2]. */
static operand *columns_in_pairs(const operand *in, int64_t rows, int64_t w, int64_t channels,
                                 int slot) {
    int64_t half = (w + 1) / 2;
    operand *paired = take(slot, rows * channels * half * sizeof(operand)), *to = paired;
    for (int64_t pair = 0; pair < rows * channels / 2; pair++, in += w, to += 2 * half)
        for (int64_t x = 0; x < w; x += 2) {
            vu here = in[x], there = x + 1 < w ? in[x + 1] : (vu){};
            to[x / 2] = (here & 0xffffu) | (there << 16);
            to[half + x / 2] = (here >> 16) | (there & 0xffff0000u);
        }
    return paired;
}
#endif

/* sum[co][ci] += sum over rows, columns and images of d[co][x] in[ci][x] */
static void outer(const operand *d, const operand *in, int64_t rows, int64_t w,
                  int64_t out_channels, int64_t in_channels, float *sum) {
#if USE_PAIRS
    d = columns_in_pairs(d, rows, w, out_channels, 6);
    in = columns_in_pairs(in, rows, w, in_channels, 7);
    w = (w + 1) / 2;
#endif
    for (int64_t co = 0, count; co < out_channels; co += count) {
        int64_t ci = 0;
        count = block_rows(out_channels - co);
#define OUTER_ROWS(CO)                                                                            \
    {                                                                                             \
        for (; ci + BLOCK_COLUMNS <= in_channels; ci += BLOCK_COLUMNS)                            \
            OUTER_BLOCK(CO, BLOCK_COLUMNS)                                                        \
        for (; ci < in_channels; ci += 2) OUTER_BLOCK(CO, 2)                                      \
    }
        if (count == 6) OUTER_ROWS(6)
        else if (count == 4) OUTER_ROWS(4)
        else OUTER_ROWS(2)
    }
}
