/* Maps in memory, and operations on their vectors.
 *
 * Plain twin: a tensor of B x channels x h x w, which trunk.c lays out for vectors; packing to bf16
 * is tensor.to(torch.bfloat16). Compared by test_kernels.py, TestAgainstPlainTwin.
 */
#define PAIR (STORE_BF16 ? VECTOR : 2 * VECTOR) /* bytes of one pair of channels of a tile */

/* x - 0 is x, which the compiler can drop; x + 0 is not, for x = -0 */
INLINE vf splat(float x) { return x - (vf){}; }

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

/* fp32 to bf16, rounded to nearest even, two channels side by side */
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

/* Scratch memory of the calling thread: buffer `slot`, a little longer than `bytes`. */
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
