/* A network's convolutions, BatchNorms, ReLUs and sums for training, forward and backward.
 *
 * Layout. As many images as a vector has lanes (16, 8 or 4, by the processor) stand side by side in
 * them, so every loop below runs over whole vectors whatever the image side, the stride or the
 * kernel:
 *
 *     [tile of LANES images][row y][channel pair][column x][LANES][2 channels]
 *
 * With STORE_BF16 a pair of channels is one vector of bf16; otherwise it is two vectors of fp32.
 * Arithmetic is fp32 either way, except that a CPU that can takes bf16 into its matrix products.
 * Channel counts are even (the caller pads).
 *
 * What is kept. Only the outputs of the convolutions (z, before BatchNorm) and of the blocks are
 * written to memory; BatchNorm and ReLU are applied as z is read, a row at a time, and again in the
 * backward pass. BatchNorm's own backward pass is affine in g and z once the sums of g and g z over
 * the batch are known, and those are summed where g is made. So a convolution's backward pass reads
 * its input, its output and one gradient, and writes one gradient.
 *
 * Sums go tile by tile and are then added in the order of the tiles: the number of threads
 * changes no bit of the result.
 */
#define _GNU_SOURCE
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#ifdef __SSE2__
#include <immintrin.h>
#endif
#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif

/* Wider vectors than the processor's are slow: the compiler splits each operation of its own. */
#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif
#define VECTOR (4 * LANES)              /* bytes */
#define MAX_KERNEL 7
#define INLINE static inline __attribute__((always_inline))

typedef float vf __attribute__((vector_size(VECTOR)));
typedef int32_t vi __attribute__((vector_size(VECTOR)));
typedef uint32_t vu __attribute__((vector_size(VECTOR)));

#if STORE_BF16 && defined(__AMX_BF16__) && defined(__AVX512BF16__) && defined(__linux__)
#define USE_AMX 1
#else
#define USE_AMX 0
#endif
/* matrix products of bf16, two channels to a word */
#if STORE_BF16 && defined(__AVX512BF16__)
#define USE_PAIRS 1
#else
#define USE_PAIRS 0
#endif

/* BatchNorm over the channels of one convolution's output; arrays of `channels` floats. */
typedef struct {
    int64_t channels, frozen;           /* frozen: scale and shift are given, nothing is counted */
    float eps, momentum;
    const float *gamma, *beta;
    float *running_mean, *running_var;
    float *mean, *invstd;               /* of this batch */
    float *scale, *shift;               /* forward: y = scale z + shift */
    float *d_gamma, *d_beta;
    float *dz_g, *dz_z, *dz_1;          /* backward: dz = dz_g g + dz_z z + dz_1 */
} BatchNorm;

/* One channel's kernel x kernel weights in a depthwise convolution; without weights the channel is
 * left as it is. */
typedef struct {
    int64_t kernel;
    const float *weight;
    float *d_weight;
} Window;

enum { UNFOLD, DEPTHWISE, SUBSAMPLE };

/* spatial step (all k x k neighbours side by side, a depthwise convolution, or every stride-th
 * pixel), then a pointwise product, then the sums that BatchNorm needs */
typedef struct {
    int64_t kind, in_channels, out_channels;
    int64_t kernel;                     /* the largest of the windows */
    int64_t stride, in_h, in_w, out_h, out_w;
    const void *in;                     /* an activation, or z of in_bn if that is given */
    const BatchNorm *in_bn;
    const Window *windows;              /* of each input channel, to DEPTHWISE */
    const float *pointwise;             /* out x (in, or k x k x in to unfold) */
    void *z;
    BatchNorm *bn;
    /* backward */
    const void *g;                      /* gradient at bn's output */
    float *d_pointwise;
    void *g_in;                         /* gradient at the input, before its ReLU */
    const void *add;                    /* a further gradient at the input, or NULL ... */
    int64_t add_stride;                 /* ... given at every add_stride-th pixel */
    BatchNorm *sum_bn[2];               /* one or two BatchNorms that g_in is the gradient of ... */
    const void *sum_z[2];               /* ... and their inputs */
} Conv;

/* out = relu(bn(z) + rest), and its mean over the pixels if `pooled` is given */
typedef struct {
    int64_t channels, h, w;
    const void *z;
    BatchNorm *bn;
    const void *rest;                   /* an activation, z of rest_bn, or NULL */
    BatchNorm *rest_bn;
    void *out;
    float *pooled;                      /* images x channels */
    const float *d_pooled;              /* backward, for a pooled join only */
    void *g;
} Join;

#if USE_AMX
/* The compiler does not see what tile instructions read and write in memory: no access of its own
 * may move across this. */
#define FENCE __asm__ volatile("" ::: "memory");
/* Others in this thread may rely on their own configuration of the tiles. */
#define BEGIN_TILES char config[64] __attribute__((aligned(64))); _tile_storeconfig(config); FENCE
#define END_TILES FENCE _tile_loadconfig(config);
#else
#define BEGIN_TILES
#define END_TILES
#endif

/* Whether this process may use what the library was built for; Linux hands out AMX on request. */
int ready(void) {
#if USE_AMX
    return syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* XTILEDATA */) == 0;
#else
    return 1;
#endif
}

/* Images to a tile. */
int lanes(void) { return LANES; }

/* ---- vectors ---------------------------------------------------------------------------- */

#define PAIR (STORE_BF16 ? VECTOR : 2 * VECTOR) /* bytes of one pair of channels of a tile */

/* x - 0 is x; x + 0 is not for x = -0, and costs an addition */
INLINE vf splat(float x) { return x - (vf){}; }

/* Lets through what is not a number, as torch does. */
INLINE vf relu(vf x) {
#ifdef __AVX512F__
    return (vf)_mm512_max_ps(_mm512_setzero_ps(), (__m512)x);
#elif defined(__AVX__)
    return (vf)_mm256_max_ps(_mm256_setzero_ps(), (__m256)x);
#elif defined(__SSE2__)
    return (vf)_mm_max_ps(_mm_setzero_ps(), (__m128)x);
#else
    return (vf)((vi)x & ~(x <= 0));
#endif
}

INLINE vf where_positive(vf condition, vf x) { return (vf)((vi)x & (condition > 0)); }

INLINE double total(vf x) {
    double sum = 0;
    for (int lane = 0; lane < LANES; lane++) sum += x[lane];
    return sum;
}

INLINE float reduce(vf x) {
#ifdef __AVX512F__
    return _mm512_reduce_add_ps((__m512)x);
#elif defined(__AVX__)
    __m128 four = _mm_add_ps(_mm256_castps256_ps128((__m256)x), _mm256_extractf128_ps((__m256)x, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
#else
    float sum = 0;
    for (int lane = 0; lane < LANES; lane++) sum += x[lane];
    return sum;
#endif
}

INLINE void unpack(vu pair, vf *even, vf *odd) {
    *even = (vf)(pair << 16);
    *odd = (vf)(pair & 0xffff0000u);
}

/* fp32 to bf16, to nearest even, two channels side by side */
INLINE vu pack(vf even, vf odd) {
#ifdef __AVX512BF16__
    static const uint16_t interleave[32] = {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23,
        8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    __m512i both = (__m512i)_mm512_cvtne2ps_pbh((__m512)odd, (__m512)even);
    return (vu)_mm512_permutexvar_epi16(_mm512_loadu_si512(interleave), both);
#else
    vu e = (vu)even, o = (vu)odd;
    e += 0x7fffu + ((e >> 16) & 1u);
    o += 0x7fffu + ((o >> 16) & 1u);
    return (e >> 16) | (o & 0xffff0000u);
#endif
}

INLINE void load2(const void *p, vf *even, vf *odd) {
#if STORE_BF16
    unpack(*(const vu *)p, even, odd);
#else
    *even = ((const vf *)p)[0];
    *odd = ((const vf *)p)[1];
#endif
}

INLINE void store2(void *p, vf even, vf odd) {
#if STORE_BF16
    *(vu *)p = pack(even, odd);
#else
    ((vf *)p)[0] = even;
    ((vf *)p)[1] = odd;
#endif
}

/* Start of a row of a stored map. */
INLINE char *row_of(const void *map, int64_t tile, int64_t y, int64_t h, int64_t channels,
                    int64_t w) {
    return (char *)map + ((tile * h + y) * (channels / 2) * w) * PAIR;
}

static void *allocate(size_t bytes) {
    bytes = (bytes + 4095) & ~(size_t)4095;
    void *memory = aligned_alloc(4096, bytes);
    if (!memory) {
        fprintf(stderr, "sprat: no memory for %zu bytes of scratch\n", bytes);
        abort();
    }
    return memory;
}

/* Scratch memory of one thread: buffer `slot`, at least `bytes` long and a little more. */
static void *take(int slot, size_t bytes) {
    static _Thread_local struct { void *at; size_t size; } held[12];
    bytes += 4 * sizeof(vf);
    if (held[slot].size < bytes) {
        free(held[slot].at);
        held[slot].at = allocate(bytes);
        held[slot].size = bytes;
    }
    return held[slot].at;
}

/* ---- matrix products ---------------------------------------------------------------------
 * An operand is a row of W columns of C channels, ready for the product below it: pairs of
 * channels in bf16, [C / 2][W], where the processor multiplies those; else fp32, [C][W].
 */
#if USE_PAIRS
typedef vu operand;
typedef uint32_t factor;                /* weights of two channels */
#define CHANNELS 2                      /* to an operand and a factor */
INLINE void put2(operand *p, int64_t w, int64_t pair, int64_t x, vf even, vf odd) {
    p[pair * w + x] = pack(even, odd);
}

INLINE uint16_t to_bf16(float x) {
    union { float f; uint32_t bits; } value = {x};
    return (value.bits + 0x7fffu + ((value.bits >> 16) & 1u)) >> 16;
}
#else
typedef vf operand;
typedef float factor;
#define CHANNELS 1
INLINE void put2(operand *p, int64_t w, int64_t pair, int64_t x, vf even, vf odd) {
    p[2 * pair * w + x] = even;
    p[(2 * pair + 1) * w + x] = odd;
}
#endif
#define OPERAND_VECTORS(channels, w) ((channels) / CHANNELS * (w))

typedef struct {
    int64_t out_channels, in_channels;
    int64_t block_m, block_k;           /* of AMX: channels out, pairs of channels in, to a tile */
    void *values;
} Weights;

#if USE_AMX
/* Tiles: 0 to 3 sums, 4 the left factor, 5 to 7 right factors. */
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

static int64_t tile_size(int64_t n) { /* the largest divisor that fits a tile: no remainders */
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

/* DO(sum's tile, right factor's tile) for up to four columns; tiles are named at compile time. */
#define FOR_COLUMNS(n, DO)                                                                        \
    DO(0, 5)                                                                                      \
    if (n > 1) { DO(1, 6) }                                                                       \
    if (n > 2) { DO(2, 7) }                                                                       \
    if (n > 3) { DO(3, 5) }

/* out[co][x] = sum over ci of weight[co][ci] in[ci][x]; rows of out lie `pitch` vectors apart */
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

/* 16 rows of 16 words, turned */
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

/* The sum below runs over columns and images; AMX takes it in pairs, here the columns x, x + 1 of
 * an image: [C][16 images][2 columns]. */
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
#else

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

/* Sums that are kept at once, rows x columns, by the number of registers. */
#if defined(__AVX512F__) || defined(__aarch64__)
#define BLOCK_ROWS 4
#define BLOCK_COLUMNS 4
#else
#define BLOCK_ROWS 6
#define BLOCK_COLUMNS 2
#endif

/* How many of the channels that are left (an even number) the next block takes: no two of them at
 * the end if four and four do. */
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

/* out[co][x] = sum over ci of weight[co][ci] in[ci][x]; rows of out lie `pitch` vectors apart */
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
/* The sum below runs over columns, so those go in pairs: [rows][C][W / 2], from [rows][C / 2][W]. */
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
#endif

/* ---- spatial steps ------------------------------------------------------------------------
 * Inside a tile rows are kept as fp32, [C][pad + W + pad], in a ring of the rows still needed.
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

/* Row y of the input as the network sees it: BatchNorm and ReLU of z, or an activation. */
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

/* The rows that a window over row y of one channel sees, from the column that it sees first. */
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

/* DO with the kernel and the stride known at compile time, where they are usual. */
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

/* The gradient of one channel's window; as many sums at a time as registers hold. */
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

/* Each value of d goes back to where a convolution of stride s took it from. */
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
    float turned[MAX_KERNEL * MAX_KERNEL]; /* the same window, turned by half a turn */
    window_rows(d, y, ch, k, rows);
    for (int64_t i = 0; i < k * k; i++) turned[i] = w[k * k - 1 - i];
#define TURNED(K, S) correlate(rows, turned, K, S, c->in_w, out)
    FOR_WINDOW(k, s, TURNED)
}

/* ---- BatchNorm ----------------------------------------------------------------------------
 * Per-tile sums arrive as [tiles][2][channels] doubles.
 */
static void add_tiles(const double *sums, int64_t tiles, int64_t stride, int64_t i, double *sum) {
    *sum = 0;
    for (int64_t tile = 0; tile < tiles; tile++) *sum += sums[tile * stride + i];
}

static void bn_forward(BatchNorm *bn, const double *sums, int64_t tiles, double n) {
    for (int64_t ch = 0; ch < bn->channels; ch++) {
        double s, ss;
        add_tiles(sums, tiles, 2 * bn->channels, ch, &s);
        add_tiles(sums, tiles, 2 * bn->channels, bn->channels + ch, &ss);
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

/* ---- convolutions and joins ---------------------------------------------------------------- */

static int64_t chunk_rows(const Conv *c) { /* output rows worked on at once: 32 columns or more */
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

/* Reads input rows into the ring up to what output row `y` needs; returns the next to read. */
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
        bn_forward(c->bn, sums, tiles, (double)tiles * LANES * c->out_h * c->out_w);
    free(weights.values);
    free(sums);
}

/* One finished row of g_in: adds what else arrives, passes ReLU, sums for the BatchNorms. */
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

/* Row y of dz, the gradient at the pointwise product's output. */
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

/* fp32 images B x C x H x W, `strides` values apart, into the layout above; channels beyond
 * `channels` are zero. */
void pack_images(const float *images, const int64_t *strides, int64_t channels, int64_t h,
                 int64_t w, int64_t padded, void *out, int64_t tiles, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t tile = 0; tile < tiles; tile++)
        for (int64_t y = 0; y < h; y++) {
            char *row = row_of(out, tile, y, h, padded, w);
            const float *from = images + tile * LANES * strides[0] + y * strides[2];
            for (int64_t ch = 0; ch < padded; ch += 2)
                for (int64_t x = 0; x < w; x++, row += PAIR) {
                    vf value[2] = {};
                    for (int i = 0; i < 2 && ch + i < channels; i++)
                        for (int lane = 0; lane < LANES; lane++)
                            value[i][lane] = from[lane * strides[0] + (ch + i) * strides[1] +
                                                  x * strides[3]];
                    store2(row, value[0], value[1]);
                }
        }
}
