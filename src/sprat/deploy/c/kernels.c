/*** types ***/
/* A map in the arena: values of one channel after another, pixel by pixel, row by row. The channels
 * of a map may be some of those of a larger one: `pitch` is the number of values from one pixel to
 * the next. A quantised value q stands for scale * (q - zero). */
typedef struct {
    int32_t height, width, channels, pitch;
} map;

typedef struct {
    int32_t height, width, row_stride, column_stride, top, left, row_dilation, column_dilation;
} window;

/* From a sum to a value of the output. */
typedef struct {
    int32_t zero, low, high;
} range;
/*** rescale ***/
/* sum * multiplier / 2^shift, rounded once, halves up. (Shifting a negative number to the right
 * keeps its sign with every compiler that we know of; C leaves that to it.) */
static int64_t rescale(int32_t sum, int32_t multiplier, int32_t shift)
{
    return ((int64_t)sum * multiplier + ((int64_t)1 << (shift - 1))) >> shift;
}

static int8_t clamped(int64_t value, const range *to)
{
    value += to->zero;
    if (value < to->low) {
        value = to->low;
    }
    if (value > to->high) {
        value = to->high;
    }
    return (int8_t)value;
}
/*** conv_layer ***/
typedef struct {
    map in, out;
    window over;
    range to;
    int32_t zero, groups;
    const int8_t *weights; /* out x rows x columns x in / groups; depthwise: rows x columns x out */
    const int32_t *biases, *multipliers;
    const uint8_t *shifts;
} conv_layer;
/*** image_conv ***/
/* A convolution of the image. `zeros` holds the mean of each of its channels. */
static void image_conv(const conv_layer *l, const uint8_t *image, const int32_t *zeros, int8_t *out)
{
    const int32_t depth = l->in.channels / l->groups, wide = l->out.channels / l->groups;
    for (int32_t row = 0; row < l->out.height; row++) {
        for (int32_t column = 0; column < l->out.width; column++) {
            int8_t *made = out + (row * l->out.width + column) * l->out.pitch;
            for (int32_t o = 0; o < l->out.channels; o++) {
                const int8_t *weight = l->weights + o * l->over.height * l->over.width * depth;
                const int32_t first = o / wide * depth;
                int32_t sum = l->biases[o];
                for (int32_t i = 0; i < l->over.height; i++) {
                    const int32_t y =
                        row * l->over.row_stride - l->over.top + i * l->over.row_dilation;
                    for (int32_t j = 0; j < l->over.width; j++, weight += depth) {
                        const int32_t x = column * l->over.column_stride - l->over.left +
                                          j * l->over.column_dilation;
                        if (y < 0 || y >= l->in.height || x < 0 || x >= l->in.width) {
                            continue;
                        }
                        for (int32_t c = 0; c < depth; c++) {
                            const int32_t at =
                                (first + c) * CHANNEL_STEP + y * ROW_STEP + x * PIXEL_STEP;
                            sum += (image[at] - zeros[first + c]) * weight[c];
                        }
                    }
                }
                made[o] = clamped(rescale(sum, l->multipliers[o], l->shifts[o]), &l->to);
            }
        }
    }
}
/*** conv ***/
/* A convolution, in groups of channels; a linear layer is one whose window is the whole map. */
static void conv(const conv_layer *l, const int8_t *in, int8_t *out)
{
    const int32_t depth = l->in.channels / l->groups, wide = l->out.channels / l->groups;
    for (int32_t row = 0; row < l->out.height; row++) {
        for (int32_t column = 0; column < l->out.width; column++) {
            int8_t *made = out + (row * l->out.width + column) * l->out.pitch;
            for (int32_t o = 0; o < l->out.channels; o++) {
                const int8_t *weight = l->weights + o * l->over.height * l->over.width * depth;
                const int8_t *first = in + o / wide * depth;
                int32_t sum = l->biases[o];
                for (int32_t i = 0; i < l->over.height; i++) {
                    const int32_t y =
                        row * l->over.row_stride - l->over.top + i * l->over.row_dilation;
                    for (int32_t j = 0; j < l->over.width; j++, weight += depth) {
                        const int32_t x = column * l->over.column_stride - l->over.left +
                                          j * l->over.column_dilation;
                        if (y < 0 || y >= l->in.height || x < 0 || x >= l->in.width) {
                            continue; /* padding is zero */
                        }
                        const int8_t *pixel = first + (y * l->in.width + x) * l->in.pitch;
                        for (int32_t c = 0; c < depth; c++) {
                            sum += (pixel[c] - l->zero) * weight[c];
                        }
                    }
                }
                made[o] = clamped(rescale(sum, l->multipliers[o], l->shifts[o]), &l->to);
            }
        }
    }
}
/*** depthwise ***/
/* A convolution of each channel by itself. */
static void depthwise(const conv_layer *l, const int8_t *in, int8_t *out)
{
    for (int32_t row = 0; row < l->out.height; row++) {
        for (int32_t column = 0; column < l->out.width; column++) {
            int8_t *made = out + (row * l->out.width + column) * l->out.pitch;
            const int32_t top = row * l->over.row_stride - l->over.top;
            const int32_t left = column * l->over.column_stride - l->over.left;
            for (int32_t c = 0; c < l->out.channels; c++) {
                int32_t sum = l->biases[c];
                for (int32_t i = 0; i < l->over.height; i++) {
                    const int32_t y = top + i * l->over.row_dilation;
                    for (int32_t j = 0; j < l->over.width; j++) {
                        const int32_t x = left + j * l->over.column_dilation;
                        if (y < 0 || y >= l->in.height || x < 0 || x >= l->in.width) {
                            continue; /* padding is zero */
                        }
                        sum += (in[(y * l->in.width + x) * l->in.pitch + c] - l->zero) *
                               l->weights[(i * l->over.width + j) * l->out.channels + c];
                    }
                }
                made[c] = clamped(rescale(sum, l->multipliers[c], l->shifts[c]), &l->to);
            }
        }
    }
}
/*** add_layer ***/
typedef struct {
    map a, b, out;
    range to;
    int32_t zero_a, zero_b;
    int32_t multipliers[3]; /* of a, of b, of their sum */
    int32_t shifts[3];
} add_layer;
/*** add ***/
/* The sum of two maps, both brought to one scale first. */
static void add(const add_layer *l, const int8_t *a, const int8_t *b, int8_t *out)
{
    for (int32_t pixel = 0; pixel < l->out.height * l->out.width; pixel++) {
        for (int32_t c = 0; c < l->out.channels; c++) {
            const int32_t left = (a[pixel * l->a.pitch + c] - l->zero_a) * ((int32_t)1 << ADD_SHIFT);
            const int32_t right = (b[pixel * l->b.pitch + c] - l->zero_b) * ((int32_t)1 << ADD_SHIFT);
            const int64_t sum = rescale(left, l->multipliers[0], l->shifts[0]) +
                                rescale(right, l->multipliers[1], l->shifts[1]);
            out[pixel * l->out.pitch + c] =
                clamped(rescale((int32_t)sum, l->multipliers[2], l->shifts[2]), &l->to);
        }
    }
}
/*** pool_layer ***/
typedef struct {
    map in, out;
    window over;
    range to;
    int32_t zero, multiplier, shift;
} pool_layer;
/*** average_pool ***/
/* The mean of each window, its size being part of the multiplier; padding counts as zeros. */
static void average_pool(const pool_layer *l, const int8_t *in, int8_t *out)
{
    for (int32_t row = 0; row < l->out.height; row++) {
        for (int32_t column = 0; column < l->out.width; column++) {
            int8_t *made = out + (row * l->out.width + column) * l->out.pitch;
            const int32_t top = row * l->over.row_stride - l->over.top;
            const int32_t left = column * l->over.column_stride - l->over.left;
            for (int32_t c = 0; c < l->out.channels; c++) {
                int32_t sum = 0;
                for (int32_t y = top; y < top + l->over.height; y++) {
                    for (int32_t x = left; x < left + l->over.width; x++) {
                        if (y >= 0 && y < l->in.height && x >= 0 && x < l->in.width) {
                            sum += in[(y * l->in.width + x) * l->in.pitch + c] - l->zero;
                        }
                    }
                }
                made[c] = clamped(rescale(sum, l->multiplier, l->shift), &l->to);
            }
        }
    }
}
/*** max_pool ***/
/* The largest value of each window; of a window of one pixel, a copy. */
static void max_pool(const pool_layer *l, const int8_t *in, int8_t *out)
{
    for (int32_t row = 0; row < l->out.height; row++) {
        for (int32_t column = 0; column < l->out.width; column++) {
            int8_t *made = out + (row * l->out.width + column) * l->out.pitch;
            const int32_t top = row * l->over.row_stride - l->over.top;
            const int32_t left = column * l->over.column_stride - l->over.left;
            for (int32_t c = 0; c < l->out.channels; c++) {
                int32_t most = INT8_MIN;
                for (int32_t i = 0; i < l->over.height; i++) {
                    for (int32_t j = 0; j < l->over.width; j++) {
                        const int32_t y = top + i * l->over.row_dilation;
                        const int32_t x = left + j * l->over.column_dilation;
                        if (y < 0 || y >= l->in.height || x < 0 || x >= l->in.width) {
                            continue;
                        }
                        const int32_t value = in[(y * l->in.width + x) * l->in.pitch + c];
                        most = value > most ? value : most;
                    }
                }
                made[c] = clamped(rescale(most - l->zero, l->multiplier, l->shift), &l->to);
            }
        }
    }
}
