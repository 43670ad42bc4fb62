/* Vectors as wide as the CPU's, for every C file here.
 *
 * Plain twin: the same operators on single floats; relu is torch.relu. Compared by every test of a
 * file that includes this one, and for other widths by system/test_kernels_elsewhere.py.
 */
#ifndef SPRAT_VECTORS
#define SPRAT_VECTORS
#include <stdint.h>
#ifdef __SSE2__
#include <immintrin.h>
#endif

/* Vectors wider than the CPU's are slow: the compiler splits each operation separately. */
#ifndef LANES
#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif
#endif
#define VECTOR (4 * LANES)              /* bytes */
#define INLINE static inline __attribute__((always_inline))

typedef float vf __attribute__((vector_size(VECTOR)));
typedef int32_t vi __attribute__((vector_size(VECTOR)));
typedef uint32_t vu __attribute__((vector_size(VECTOR)));

/* Passes NaN through, as torch.relu does. */
INLINE vf relu(vf x) {
#if LANES == 16 && defined(__AVX512F__)
    return (vf)_mm512_max_ps(_mm512_setzero_ps(), (__m512)x);
#elif LANES == 8 && defined(__AVX__)
    return (vf)_mm256_max_ps(_mm256_setzero_ps(), (__m256)x);
#elif LANES == 4 && defined(__SSE2__)
    return (vf)_mm_max_ps(_mm_setzero_ps(), (__m128)x);
#else
    return (vf)((vi)x & ~(x <= 0));
#endif
}

#endif
