/* Matrix products over the channels, for a convolution and its gradients.
 *
 * Plain twin: product() is F.conv2d(x, weight) with a 1x1 weight, and, with the transposed one, the
 * gradient at its input; outer() is torch.nn.grad.conv2d_weight. Compared by test_kernels.py,
 * TestAgainstPlainTwin, and for other CPUs by system/test_kernels_elsewhere.py.
 *
 * An operand is a row of W columns of C channels in the layout of the product: pairs of channels in
 * bf16, [C / 2][W], if the CPU multiplies those; else fp32, [C][W].
 */
#if USE_PAIRS
typedef vu operand;
typedef uint32_t factor;                /* weights of two channels */
#define CHANNELS 2                      /* per operand and factor */
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
    int64_t block_m, block_k;           /* AMX: output channels, input pairs per tile */
    void *values;
} Weights;

#if USE_AMX
#include "products_amx.c"
#else
#include "products_plain.c"
#endif
