/* pack_weights, product and outer with AMX tiles of 16 x 16 sums of bf16 products.
 *
 * Plain twin: products_plain.c. Compared by system/test_kernels_elsewhere.py (-mno-amx-bf16), if
 * the CPU has AMX.
 */
/* Tiles: 0 to 3 for sums, 4 for the left factor, 5 to 7 for right factors. */
static void configure_tiles(int64_t m, int64_t k, int64_t n) {
    struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } config __attribute__((aligned(64))) = {.palette = 1};
    for (int tile = 0; tile < 8; tile++) {
        config.rows[tile] = tile < 5 ? m : k;
        config.row_bytes[tile] = 4 * (tile == 4 ? k : n);
    }
    __asm__ volatile("" ::"r"(&config) : "memory");
    _tile_loadconfig(&config);
}

static int64_t tile_size(int64_t n) { /* largest divisor that fits a tile: no remainders */
    int64_t size = LANES;
    while (n % size) size--;
    return size;
}

/* bf16, tile by tile: [out / m][in / 2 / k][m][k][2] */
static Weights pack_weights(const float *w, int64_t out, int64_t in, int64_t row, int64_t column) {
    Weights packed = {out, in, tile_size(out), tile_size(in / 2), allocate(out * in * 2)};
    uint16_t *to = packed.values;
    for (int64_t i = 0; i < out; i += packed.block_m)
        for (int64_t j = 0; j < in; j += 2 * packed.block_k)
            for (int64_t k = i; k < i + packed.block_m; k++)
                for (int64_t l = j; l < j + 2 * packed.block_k; l++)
                    *to++ = to_bf16(w[k * row + l * column]);
    return packed;
}

/* DO(tile of the sum, tile of the right factor) for up to four columns; tiles must be constants. */
#define FOR_COLUMNS(n, DO)                                                                        \
    DO(0, 5)                                                                                      \
    if (n > 1) { DO(1, 6) }                                                                       \
    if (n > 2) { DO(2, 7) }                                                                       \
    if (n > 3) { DO(3, 5) }

/* out[co][x] = sum over ci of weight[co][ci] in[ci][x]; rows of out are `pitch` vectors apart */
static void product(const operand *in, int64_t w, const Weights *weight, vf *out, int64_t pitch) {
    int64_t m = weight->block_m, k = weight->block_k, steps = weight->in_channels / 2 / k;
    configure_tiles(m, k, LANES);
    FENCE
    for (int64_t co = 0; co < weight->out_channels; co += m) {
        const char *left = (const char *)weight->values + co * weight->in_channels * 2;
        for (int64_t x = 0; x < w; x += 4) {
            int64_t n = w - x;
#define CLEAR(sum, tile) _tile_zero(sum);
            FOR_COLUMNS(n, CLEAR)
            for (int64_t step = 0; step < steps; step++) {
                const operand *right = in + step * k * w + x;
                _tile_loadd(4, left + step * m * k * 4, k * 4);
#define MULTIPLY(sum, tile) _tile_loadd(tile, right + sum, w * 64); _tile_dpbf16ps(sum, 4, tile);
                FOR_COLUMNS(n, MULTIPLY)
            }
#define STORE(sum, tile) _tile_stored(sum, out + co * pitch + x + sum, pitch * 64);
            FOR_COLUMNS(n, STORE)
        }
    }
    FENCE
}

/* transposes 16 rows of 16 words */
static void transpose(const vu *in, vu *out) {
    __m512i a[16], b[16];
    for (int i = 0; i < 8; i++) {
        a[2 * i] = _mm512_unpacklo_epi32((__m512i)in[2 * i], (__m512i)in[2 * i + 1]);
        a[2 * i + 1] = _mm512_unpackhi_epi32((__m512i)in[2 * i], (__m512i)in[2 * i + 1]);
    }
    for (int i = 0; i < 4; i++) {
        b[4 * i] = _mm512_unpacklo_epi64(a[4 * i], a[4 * i + 2]);
        b[4 * i + 1] = _mm512_unpackhi_epi64(a[4 * i], a[4 * i + 2]);
        b[4 * i + 2] = _mm512_unpacklo_epi64(a[4 * i + 1], a[4 * i + 3]);
        b[4 * i + 3] = _mm512_unpackhi_epi64(a[4 * i + 1], a[4 * i + 3]);
    }
    for (int i = 0; i < 4; i++) { /* b[4 r + i]: columns i, i + 4, ... of rows 4 r to 4 r + 3 */
        __m512i low = _mm512_shuffle_i32x4(b[i], b[4 + i], 0x88);
        __m512i low2 = _mm512_shuffle_i32x4(b[8 + i], b[12 + i], 0x88);
        __m512i high = _mm512_shuffle_i32x4(b[i], b[4 + i], 0xdd);
        __m512i high2 = _mm512_shuffle_i32x4(b[8 + i], b[12 + i], 0xdd);
        out[i] = (vu)_mm512_shuffle_i32x4(low, low2, 0x88);
        out[8 + i] = (vu)_mm512_shuffle_i32x4(low, low2, 0xdd);
        out[4 + i] = (vu)_mm512_shuffle_i32x4(high, high2, 0x88);
        out[12 + i] = (vu)_mm512_shuffle_i32x4(high, high2, 0xdd);
    }
}

/* The sum below runs over columns and images. AMX adds in pairs, here columns x and x + 1 of an
 * image: [C][16 images][2 columns]. */
INLINE void pair_columns(const operand *row, int64_t w, int64_t channels, int64_t x, vu *out) {
    for (int64_t pair = 0; pair < channels / 2; pair++) {
        vu here = row[pair * w + x], there = x + 1 < w ? row[pair * w + x + 1] : (vu){};
        out[2 * pair] = (here & 0xffffu) | (there << 16);
        out[2 * pair + 1] = (here >> 16) | (there & 0xffff0000u);
    }
}

/* sum[co][ci] += sum over rows, columns and images of d[co][x] in[ci][x] */
static void outer(const operand *d, const operand *in, int64_t rows, int64_t w,
                  int64_t out_channels, int64_t in_channels, float *sum) {
    int64_t m = tile_size(out_channels), n = tile_size(in_channels), blocks = in_channels / n;
    int64_t steps = rows * ((w + 1) / 2), step = 0;
    vu *left = take(6, steps * out_channels * sizeof(vu));
    vu *right = take(7, steps * blocks * LANES * sizeof(vu));
    vu *paired = take(5, (in_channels + LANES) * sizeof(vu));
    for (int64_t y = 0; y < rows; y++)
        for (int64_t x = 0; x < w; x += 2, step++) {
            pair_columns(d + y * OPERAND_VECTORS(out_channels, w), w, out_channels, x,
                         left + step * out_channels);
            pair_columns(in + y * OPERAND_VECTORS(in_channels, w), w, in_channels, x, paired);
            for (int64_t block = 0; block < blocks; block++)
                transpose(paired + block * n, right + (step * blocks + block) * LANES);
        }
    configure_tiles(m, LANES, n);
    FENCE
    for (int64_t co = 0; co < out_channels; co += m)
        for (int64_t block = 0; block < blocks; block += 4) {
            int64_t count = blocks - block;
            float *into = sum + co * in_channels + block * n;
#define LOAD_SUM(sum, tile) _tile_loadd(sum, into + sum * n, in_channels * 4);
            FOR_COLUMNS(count, LOAD_SUM)
            for (step = 0; step < steps; step++) {
                const vu *factor = right + (step * blocks + block) * LANES;
                _tile_loadd(4, left + step * out_channels + co, 64);
#define ADD(sum, tile) _tile_loadd(tile, factor + sum * LANES, 64); _tile_dpbf16ps(sum, 4, tile);
                FOR_COLUMNS(count, ADD)
            }
#define STORE_SUM(sum, tile) _tile_stored(sum, into + sum * n, in_channels * 4);
            FOR_COLUMNS(count, STORE_SUM)
        }
    FENCE
}
