/* Arguments of a training step: the structures that plan.py declares, field by field.
 *
 * Plain twin: the structures of plan.py. Compared by test_kernels.py, TestAgainstPlainTwin: a field
 * out of place gives wrong results.
 */
/* BatchNorm over the channels of one convolution's output; arrays of `channels` floats. If that is
 * odd, mean to shift and dz_g to dz_1 have one more 0, for the channel that pads the maps. */
typedef struct {
    int64_t channels, frozen;           /* frozen: scale and shift are given, no statistics */
    float eps, momentum;
    const float *gamma, *beta;
    float *running_mean, *running_var;
    float *mean, *invstd;               /* of this batch */
    float *scale, *shift;               /* forward: y = scale z + shift */
    float *d_gamma, *d_beta;
    float *dz_g, *dz_z, *dz_1;          /* backward: dz = dz_g g + dz_z z + dz_1 */
} BatchNorm;

/* One channel's kernel x kernel weights in a depthwise convolution; without weights the channel
 * stays unchanged. */
typedef struct {
    int64_t kernel;
    const float *weight;
    float *d_weight;
} Window;

enum { UNFOLD, DEPTHWISE, SUBSAMPLE };

/* Spatial step (all k x k neighbours side by side, a depthwise convolution, or every stride-th
 * pixel), then a pointwise product, then the sums that BatchNorm needs. */
typedef struct {
    int64_t kind, in_channels, out_channels;
    int64_t kernel;                     /* the largest of the windows */
    int64_t stride, in_h, in_w, out_h, out_w;
    const void *in;                     /* an activation, or z of in_bn if that is given */
    const BatchNorm *in_bn;
    const Window *windows;              /* of each input channel, for DEPTHWISE */
    const float *pointwise;             /* out x (in, or k x k x in for UNFOLD) */
    void *z;
    BatchNorm *bn;
    /* backward */
    const void *g;                      /* gradient at bn's output */
    float *d_pointwise;
    void *g_in;                         /* gradient at the input, before its ReLU */
    const void *add;                    /* another gradient at the input, or NULL ... */
    int64_t add_stride;                 /* ... given at every add_stride-th pixel */
    BatchNorm *sum_bn[2];               /* one or two BatchNorms with the gradient g_in */
    const void *sum_z[2];               /* their inputs */
} Conv;

/* out = relu(bn(z) + rest), and its mean over the pixels if `pooled` is given. */
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
