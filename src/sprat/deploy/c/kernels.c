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
/* sum * multiplier / 2^shift, rounded once, halves up. (A right shift of a negative number keeps
 * its sign with all common compilers; C leaves that to the implementation.) */
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
/*** area ***/
/* The part of a window that is not padding, in rows and columns of the window. The window's first
 * row and column are at y, x of the map. */
typedef struct {
    int32_t top, bottom, left, right, y, x;
} area;

static int32_t first_inside(int32_t start, int32_t dilation)
{
    return start < 0 ? (dilation - 1 - start) / dilation : 0;
}

static int32_t last_inside(int32_t start, int32_t dilation, int32_t taps, int32_t size)
{
    const int32_t end = start < size ? (size - 1 - start) / dilation + 1 : 0;
    return end < taps ? end : taps;
}

static area covered(window over, map in, int32_t row, int32_t column)
{
    const int32_t y = row * over.row_stride - over.top, x = column * over.column_stride - over.left;
    const area inside = {
        .top = first_inside(y, over.row_dilation),
        .bottom = last_inside(y, over.row_dilation, over.height, in.height),
        .left = first_inside(x, over.column_dilation),
        .right = last_inside(x, over.column_dilation, over.width, in.width),
        .y = y,
        .x = x,
    };
    return inside;
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
/* A convolution of the image. `zeros` contains the mean of each channel. */
static void image_conv(const conv_layer *l, const uint8_t *image, const int32_t *zeros, int8_t *out)
{
    const int32_t depth = l->in.channels / l->groups, wide = l->out.channels / l->groups;
    for (int32_t row = 0; row < l->out.height; row++) {
        for (int32_t column = 0; column < l->out.width; column++) {
            const area taps = covered(l->over, l->in, row, column);
            int8_t *made = out + (row * l->out.width + column) * l->out.pitch;
            for (int32_t o = 0; o < l->out.channels; o++) {
                const int32_t first = o / wide * depth;
                int32_t sum = l->biases[o];
                for (int32_t i = taps.top; i < taps.bottom; i++) {
                    for (int32_t j = taps.left; j < taps.right; j++) {
                        const int8_t *weight =
                            l->weights + ((o * l->over.height + i) * l->over.width + j) * depth;
                        const int32_t at = first * CHANNEL_STEP +
                                           (taps.y + i * l->over.row_dilation) * ROW_STEP +
                                           (taps.x + j * l->over.column_dilation) * PIXEL_STEP;
                        for (int32_t c = 0; c < depth; c++) {
                            sum += (image[at + c * CHANNEL_STEP] - zeros[first + c]) * weight[c];
                        }
                    }
                }
                made[o] = clamped(rescale(sum, l->multipliers[o], l->shifts[o]), &l->to);
            }
        }
    }
}
/*** conv ***/
/* One output channel of one pixel. */
static void conv_one(const conv_layer *l, const int8_t *in, const area *taps, int32_t o,
                     int8_t *made)
{
    const int32_t depth = l->in.channels / l->groups, zero = l->zero;
    int32_t sum = l->biases[o];
    for (int32_t i = taps->top; i < taps->bottom; i++) {
        for (int32_t j = taps->left; j < taps->right; j++) {
            const int32_t y = taps->y + i * l->over.row_dilation;
            const int32_t x = taps->x + j * l->over.column_dilation;
            const int8_t *pixel = in + (y * l->in.width + x) * l->in.pitch;
            const int8_t *weight =
                l->weights + ((o * l->over.height + i) * l->over.width + j) * depth;
            for (int32_t c = 0; c < depth; c++) {
                sum += (pixel[c] - zero) * weight[c];
            }
        }
    }
    made[o] = clamped(rescale(sum, l->multipliers[o], l->shifts[o]), &l->to);
}

/* Four output channels of one pixel, reading each input once. */
static void conv_four(const conv_layer *l, const int8_t *in, const area *taps, int32_t o,
                      int8_t *made)
{
    const int32_t depth = l->in.channels / l->groups, zero = l->zero;
    const int32_t size = l->over.height * l->over.width * depth; /* weights of one */
    const int32_t *biases = l->biases + o;
    int32_t sums[4] = {biases[0], biases[1], biases[2], biases[3]};
    for (int32_t i = taps->top; i < taps->bottom; i++) {
        for (int32_t j = taps->left; j < taps->right; j++) {
            const int32_t y = taps->y + i * l->over.row_dilation;
            const int32_t x = taps->x + j * l->over.column_dilation;
            const int8_t *pixel = in + (y * l->in.width + x) * l->in.pitch;
            const int8_t *weight = l->weights + o * size + (i * l->over.width + j) * depth;
            for (int32_t c = 0; c < depth; c++) {
                const int32_t value = pixel[c] - zero;
                sums[0] += value * weight[c];
                sums[1] += value * weight[size + c];
                sums[2] += value * weight[2 * size + c];
                sums[3] += value * weight[3 * size + c];
            }
        }
    }
    for (int32_t k = 0; k < 4; k++) {
        made[o + k] = clamped(rescale(sums[k], l->multipliers[o + k], l->shifts[o + k]), &l->to);
    }
}

/* A convolution, in groups of channels; a linear layer is one whose window is the whole map. */
static void conv(const conv_layer *l, const int8_t *in, int8_t *out)
{
    const int32_t depth = l->in.channels / l->groups, wide = l->out.channels / l->groups;
    for (int32_t row = 0; row < l->out.height; row++) {
        for (int32_t column = 0; column < l->out.width; column++) {
            const area taps = covered(l->over, l->in, row, column);
            int8_t *made = out + (row * l->out.width + column) * l->out.pitch;
            for (int32_t group = 0; group < l->groups; group++) {
                const int8_t *first = in + group * depth;
                const int32_t end = (group + 1) * wide;
                int32_t o = group * wide;
                for (; o + 4 <= end; o += 4) {
                    conv_four(l, first, &taps, o, made);
                }
                for (; o < end; o++) {
                    conv_one(l, first, &taps, o, made);
                }
            }
        }
    }
}
/*** depthwise ***/
/* A convolution of each channel by itself. */
static void depthwise(const conv_layer *l, const int8_t *in, int8_t *out)
{
    const int32_t channels = l->out.channels, zero = l->zero;
    const int32_t step = l->over.column_dilation * l->in.pitch;
    for (int32_t row = 0; row < l->out.height; row++) {
        for (int32_t column = 0; column < l->out.width; column++) {
            const area taps = covered(l->over, l->in, row, column);
            int8_t *made = out + (row * l->out.width + column) * l->out.pitch;
            for (int32_t c = 0; c < channels; c++) {
                int32_t sum = l->biases[c];
                for (int32_t i = taps.top; i < taps.bottom; i++) {
                    const int32_t y = taps.y + i * l->over.row_dilation;
                    const int32_t x = taps.x + taps.left * l->over.column_dilation;
                    const int8_t *pixel = in + (y * l->in.width + x) * l->in.pitch + c;
                    const int8_t *weight = l->weights + i * l->over.width * channels + c;
                    for (int32_t j = taps.left; j < taps.right; j++) {
                        sum += (pixel[(j - taps.left) * step] - zero) * weight[j * channels];
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
/* The sum of two maps, both rescaled to one scale first. */
static void add(const add_layer *l, const int8_t *a, const int8_t *b, int8_t *out)
{
    for (int32_t pixel = 0; pixel < l->out.height * l->out.width; pixel++) {
        for (int32_t c = 0; c < l->out.channels; c++) {
            const int32_t left = a[pixel * l->a.pitch + c] - l->zero_a;
            const int32_t right = b[pixel * l->b.pitch + c] - l->zero_b;
            const int64_t sum = rescale(left * ADD_FACTOR, l->multipliers[0], l->shifts[0]) +
                                rescale(right * ADD_FACTOR, l->multipliers[1], l->shifts[1]);
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
/* The mean of each window, whose size is part of the multiplier; padding counts as zeros. */
static void average_pool(const pool_layer *l, const int8_t *in, int8_t *out)
{
    for (int32_t row = 0; row < l->out.height; row++) {
        for (int32_t column = 0; column < l->out.width; column++) {
            const area taps = covered(l->over, l->in, row, column);
            int8_t *made = out + (row * l->out.width + column) * l->out.pitch;
            for (int32_t c = 0; c < l->out.channels; c++) {
                int32_t sum = 0;
                for (int32_t i = taps.top; i < taps.bottom; i++) {
                    for (int32_t j = taps.left; j < taps.right; j++) {
                        const int32_t pixel = (taps.y + i) * l->in.width + taps.x + j;
                        sum += in[pixel * l->in.pitch + c] - l->zero;
                    }
                }
                made[c] = clamped(rescale(sum, l->multiplier, l->shift), &l->to);
            }
        }
    }
}
/*** max_pool ***/
/* The largest value of each window; for a window of one pixel, a copy. */
static void max_pool(const pool_layer *l, const int8_t *in, int8_t *out)
{
    for (int32_t row = 0; row < l->out.height; row++) {
        for (int32_t column = 0; column < l->out.width; column++) {
            const area taps = covered(l->over, l->in, row, column);
            int8_t *made = out + (row * l->out.width + column) * l->out.pitch;
            for (int32_t c = 0; c < l->out.channels; c++) {
                int32_t most = INT8_MIN;
                for (int32_t i = taps.top; i < taps.bottom; i++) {
                    for (int32_t j = taps.left; j < taps.right; j++) {
                        const int32_t y = taps.y + i * l->over.row_dilation;
                        const int32_t x = taps.x + j * l->over.column_dilation;
                        const int32_t value = in[(y * l->in.width + x) * l->in.pitch + c];
                        most = value > most ? value : most;
                    }
                }
                made[c] = clamped(rescale(most - l->zero, l->multiplier, l->shift), &l->to);
            }
        }
    }
}
/*** gather ***/
/* Some channels and pixels of a map, with zeros between and around them. `channels` contains the
 * input channel of each output channel, -1 for zeros. */
static void gather(const pool_layer *l, const int16_t *channels, const int8_t *in, int8_t *out)
{
    for (int32_t row = 0; row < l->out.height; row++) {
        for (int32_t column = 0; column < l->out.width; column++) {
            const area taps = covered(l->over, l->in, row, column);
            const int inside = taps.top < taps.bottom && taps.left < taps.right;
            const int8_t *pixel = in + (inside ? taps.y * l->in.width + taps.x : 0) * l->in.pitch;
            int8_t *made = out + (row * l->out.width + column) * l->out.pitch;
            for (int32_t c = 0; c < l->out.channels; c++) {
                const int32_t value = inside && channels[c] >= 0 ? pixel[channels[c]] - l->zero : 0;
                made[c] = clamped(rescale(value, l->multiplier, l->shift), &l->to);
            }
        }
    }
}
