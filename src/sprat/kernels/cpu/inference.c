/* Inference of a trained network: its convolutions, ReLUs, sums, mean and linear layer in fp32.
 *
 * The caller folds BatchNorm into the weights, which leaves a list of steps. Each computes a map
 * from earlier ones: windows (depthwise convolutions) over them, one or two matrix products over
 * the channels, the sum with an earlier map, each with its ReLU.
 *
 * Layout. Each lane of a vector (16, 8 or 4 lanes, depending on the CPU) holds another channel, so
 * a single image fills them:
 *
 *     [vector of channels][row y, margins of zeros above and below][margin, column x][LANES]
 *
 * A row's left margin is the right margin of the row above. A step processes a strip of a few rows
 * at a time: the outputs of its windows and products stay in the L1 cache, and only the finished
 * map is written.
 *
 * Plain twin: network.eval()(images). Compared by test_inference.py, TestKernels.
 *
 * Threads divide the images, and the strips of the last few images. Every value is always the same
 * sum in the same order: neither the number of threads nor the batch size changes a bit.
 */
#include <omp.h>
#include <stdint.h>
#include <string.h>

#include "vectors.h"

/* A tile of a product has PIXELS x up to GROUP vectors of sums: as many as fit in registers. */
#if LANES == 16
#define PIXELS 8
#else
#define PIXELS 4
#endif
#define GROUP 3
#define STRIP 16                        /* pixels of a strip; one row if that is longer */
#define WIDE 8                          /* pixels of a row that a window computes at once */
/* Or the compiler would load a weight again for every pixel, and loads would limit the loop. */
#if defined(__SSE2__) && (LANES == 4 || LANES == 8 && defined(__AVX__) || defined(__AVX512F__))
#define IN_REGISTER(x) __asm__("" : "+v"(x))
#else
#define IN_REGISTER(x)
#endif
#define UNROLL _Pragma("GCC unroll 16")

/* a vector anywhere among floats */
typedef float in_memory __attribute__((vector_size(VECTOR), aligned(4), may_alias));

/* One vector of channels of the map that step `map` computed, under kernel x kernel weights. */
typedef struct {
    int64_t map, vector, kernel, stride;
    const float *weights;               /* [kernel][kernel][LANES] */
} Window;

/* y = weights x + bias; x and y are whole vectors, but `inputs` may end within the last one */
typedef struct {
    int64_t inputs, outputs;            /* inputs: channels; outputs: vectors of them, 0 for none */
    const float *weights;               /* [vector of outputs][input][LANES] */
    const float *bias;
} Product;

typedef struct {
    int64_t windows_count;              /* 0: the stem, which reads 3 x 3 pixels of the image */
    const Window *windows;
    Product first, second;
    int64_t residual;                   /* the step whose map is added before the last ReLU, or -1 */
    int64_t buffer;                     /* where the map is kept */
} Step;

typedef struct {
    int64_t steps_count, margin, buffers;
    int64_t stride;                     /* of the stem */
    const Step *steps;
    Product head;                       /* applied to the means of the last map's channels */
} Network;

typedef struct {
    int64_t images, h, w;
    const float *pixels;                /* normalised */
    int64_t image_stride, channel_stride, row_stride, column_stride;
    float *logits;                      /* images x (vectors of outputs of the head) x LANES */
    float *memory;                      /* threads x memory_size() */
    int64_t threads;
} Batch;

/* Layout of a thread's memory for images of one size; sizes are in floats. */
typedef struct {
    struct map { int64_t h, w, pitch, plane, rows; } *map; /* of each step */
    int64_t buffer, strip, size;        /* sizes of a map's and a strip's memory, and in total */
    int64_t pixels;                     /* per strip */
} Layout;

int64_t lanes(void) { return LANES; }

INLINE int64_t largest(int64_t a, int64_t b) { return a > b ? a : b; }
INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE in_memory *at(float *memory) { return (in_memory *)memory; }
INLINE const in_memory *of(const float *memory) { return (const in_memory *)memory; }

static void lay_out(const Network *n, int64_t h, int64_t w, Layout *l) {
    int64_t vectors = n->head.outputs, reach = 1;
    l->buffer = l->pixels = 0;
    h = (h - 1) / n->stride + 1;
    w = (w - 1) / n->stride + 1;
    for (int64_t i = 0; i < n->steps_count; i++) {
        const Step *s = &n->steps[i];
        const Window *window = s->windows;
        if (s->windows_count) {
            h = (l->map[window->map].h - 1) / window->stride + 1;
            w = (l->map[window->map].w - 1) / window->stride + 1;
            reach = largest(reach, window->stride);
        }
        l->map[i].h = h;
        l->map[i].w = w;
        l->map[i].pitch = (w + n->margin) * LANES;
        l->map[i].plane = (h + 2 * n->margin) * l->map[i].pitch + n->margin * LANES;
        l->map[i].rows = least(h, (STRIP + w - 1) / w);
        int64_t outputs = s->second.outputs ? s->second.outputs : s->first.outputs;
        l->buffer = largest(l->buffer, outputs * l->map[i].plane);
        l->pixels = largest(l->pixels, l->map[i].rows * w);
        vectors = largest(vectors, (s->first.inputs + LANES - 1) / LANES);
        vectors = largest(vectors, largest(s->first.outputs, s->second.outputs));
    }
    l->buffer += reach * WIDE * LANES;  /* tiles may read past the end of a row */
    l->pixels += WIDE;                  /* and write past the end of a strip */
    l->strip = vectors * l->pixels * LANES;
    l->size = n->buffers * l->buffer + 3 * l->strip;
}

/* Floats that a thread needs for images of h x w pixels. */
int64_t memory_size(const Network *n, int64_t h, int64_t w) {
    struct map maps[n->steps_count];
    Layout layout = {maps};
    lay_out(n, h, w, &layout);
    return layout.size;
}

/* `count` pixels of a row under one vector's window; may compute some beyond them */
INLINE void window_tile(const int count, const int64_t stride, int64_t kernel, int64_t pitch,
                        const float *in, const float *weights, float *out) {
    vf sum[WIDE];
    UNROLL for (int p = 0; p < count; p++) sum[p] = (vf){};
    for (int64_t dy = 0; dy < kernel; dy++, in += pitch)
        for (int64_t dx = 0; dx < kernel; dx++, weights += LANES) {
            vf weight = *of(weights);
            UNROLL for (int p = 0; p < count; p++)
                sum[p] += weight * *of(in + (p * stride + dx) * LANES);
        }
    UNROLL for (int p = 0; p < count; p++) *at(out + p * LANES) = sum[p];
}

INLINE void window_row(const int64_t stride, int64_t w, int64_t kernel, int64_t pitch,
                       const float *in, const float *weights, float *out) {
    for (int64_t x = 0; x < w; x += WIDE) {
        const float *from = in + x * stride * LANES;
        if (w - x > WIDE / 2)
            window_tile(WIDE, stride, kernel, pitch, from, weights, out + x * LANES);
        else
            window_tile(WIDE / 2, stride, kernel, pitch, from, weights, out + x * LANES);
    }
}

/* The strip under every window of a step: [vector][pixel][LANES]. */
static void run_windows(const Network *n, const Step *s, const Layout *l, const float *maps,
                        int64_t w, int64_t y0, int64_t y1, float *out) {
    for (const Window *k = s->windows; k < s->windows + s->windows_count; k++) {
        int64_t pitch = l->map[k->map].pitch, before = n->margin - k->kernel / 2;
        const float *plane = maps + n->steps[k->map].buffer * l->buffer;
        plane += k->vector * l->map[k->map].plane;
        for (int64_t y = y0; y < y1; y++) {
            const float *in = plane + (y * k->stride + before) * pitch + before * LANES;
            float *row = out + (y - y0) * w * LANES;
            if (k->stride == 1)
                window_row(1, w, k->kernel, pitch, in, k->weights, row);
            else
                window_row(k->stride, w, k->kernel, pitch, in, k->weights, row);
        }
        out += l->pixels * LANES;
    }
}

/* A strip of an image: the 3 x 3 neighbours of every stride-th pixel in each channel, as `inputs`
 * channels. */
static void unfold(const Batch *b, const Layout *l, int64_t inputs, int64_t stride, int64_t image,
                   int64_t y0, int64_t y1, float *out) {
    for (int64_t k = 0; k < inputs; k++) {
        int64_t dy = k % 9 / 3 - 1, dx = k % 3 - 1, w = l->map[0].w;
        const float *channel = b->pixels + image * b->image_stride + k / 9 * b->channel_stride;
        float *to = out + k / LANES * l->pixels * LANES + k % LANES;
        for (int64_t line = y0; line < y1; line++) {
            int64_t y = line * stride + dy, x = dx;
            const float *row = channel + y * b->row_stride;
            int inside = y >= 0 && y < b->h;
            for (int64_t i = 0; i < w; i++, x += stride, to += LANES)
                *to = inside && x >= 0 && x < b->w ? row[x * b->column_stride] : 0;
        }
    }
}

/* PIXELS pixels of `count` vectors of outputs */
INLINE void product_tile(const int count, const Product *product, int64_t vector, int64_t pitch,
                         int rectify, const float *in, float *out) {
    int64_t inputs = product->inputs, row = inputs * LANES;
    const float *weights = product->weights + vector * row;
    vf sum[PIXELS][GROUP];
    UNROLL for (int v = 0; v < count; v++)
        UNROLL for (int p = 0; p < PIXELS; p++) sum[p][v] = *of(product->bias + (vector + v) * LANES);
    for (int64_t k = 0; k < inputs; k += LANES, in += pitch) {
        int64_t many = least(LANES, inputs - k);
        for (int64_t lane = 0; lane < many; lane++, weights += LANES) {
            vf weight[GROUP];
            UNROLL for (int v = 0; v < count; v++) weight[v] = *of(weights + v * row);
            UNROLL for (int v = 0; v < count; v++) IN_REGISTER(weight[v]);
            UNROLL for (int p = 0; p < PIXELS; p++)
                UNROLL for (int v = 0; v < count; v++)
                    sum[p][v] += in[p * LANES + lane] * weight[v];
        }
    }
    UNROLL for (int v = 0; v < count; v++)
        UNROLL for (int p = 0; p < PIXELS; p++)
            *at(out + v * pitch + p * LANES) = rectify ? relu(sum[p][v]) : sum[p][v];
}

/* A product over a strip, [vector][pixel][LANES] with `pitch` floats per vector. */
static void multiply(const Product *product, int64_t pixels, int64_t pitch, int rectify,
                     const float *in, float *out) {
    for (int64_t v = 0, count; v < product->outputs; v += count) {
        int64_t left = product->outputs - v;
        count = left == GROUP + 1 ? 2 : least(left, GROUP); /* one vector alone would be slow */
        for (int64_t p = 0; p < pixels; p += PIXELS) {
            const float *from = in + p * LANES;
            float *to = out + v * pitch + p * LANES;
            if (count == 3)
                product_tile(3, product, v, pitch, rectify, from, to);
            else if (count == 2)
                product_tile(2, product, v, pitch, rectify, from, to);
            else
                product_tile(1, product, v, pitch, rectify, from, to);
        }
    }
}

static void zero(float *from, int64_t floats) { memset(from, 0, floats * sizeof(float)); }

/* Adds the residual's map to a strip, applies ReLU and writes it to its map, with the margins next
 * to it. */
static void finish(const Network *n, const Step *s, const Layout *l, float *maps, int64_t vectors,
                   int64_t y0, int64_t y1, const float *strip) {
    int64_t step = s - n->steps, w = l->map[step].w, h = l->map[step].h;
    int64_t pitch = l->map[step].pitch, margin = n->margin;
    for (int64_t v = 0; v < vectors; v++, strip += l->pixels * LANES) {
        float *plane = maps + s->buffer * l->buffer + v * l->map[step].plane;
        const float *residual = NULL;
        if (s->residual >= 0)
            residual = maps + n->steps[s->residual].buffer * l->buffer + v * l->map[step].plane;
        if (y0 == 0) zero(plane, margin * pitch);
        if (y1 == h) zero(plane + (margin + h) * pitch, margin * pitch + margin * LANES);
        for (int64_t y = y0; y < y1; y++) {
            int64_t row = (margin + y) * pitch;
            const float *from = strip + (y - y0) * w * LANES;
            zero(plane + row, margin * LANES);
            row += margin * LANES;
            for (int64_t x = 0; x < w * LANES; x += LANES) {
                vf sum = *of(from + x);
                if (residual) sum += *of(residual + row + x);
                *at(plane + row + x) = relu(sum);
            }
        }
    }
}

/* One strip of one step; `strips` is memory for intermediate results. */
static void run_strip(const Network *n, const Step *s, const Layout *l, const Batch *b,
                      int64_t image, int64_t strip, float *maps, float *strips) {
    int64_t step = s - n->steps, w = l->map[step].w, pitch = l->pixels * LANES;
    int64_t y0 = strip * l->map[step].rows, y1 = least(y0 + l->map[step].rows, l->map[step].h);
    int64_t pixels = (y1 - y0) * w;
    float *in = strips, *middle = in + l->strip, *out = middle + l->strip;
    if (s->windows_count)
        run_windows(n, s, l, maps, w, y0, y1, in);
    else
        unfold(b, l, s->first.inputs, n->stride, image, y0, y1, in);
    multiply(&s->first, pixels, pitch, s->second.outputs > 0, in, middle);
    if (s->second.outputs) {
        multiply(&s->second, pixels, pitch, 0, middle, out);
        finish(n, s, l, maps, s->second.outputs, y0, y1, out);
    } else
        finish(n, s, l, maps, s->first.outputs, y0, y1, middle);
}

/* The linear layer, applied to the means of the last map. */
static void conclude(const Network *n, const Layout *l, const float *maps, float *strips,
                     float *logits) {
    int64_t last = n->steps_count - 1, h = l->map[last].h, w = l->map[last].w;
    int64_t pitch = l->map[last].pitch, vectors = (n->head.inputs + LANES - 1) / LANES;
    const float *map = maps + n->steps[last].buffer * l->buffer;
    float *out = strips + l->strip;
    for (int64_t v = 0; v < vectors; v++) {
        const float *plane = map + v * l->map[last].plane;
        vf total = {};
        for (int64_t y = 0; y < h; y++) {
            const float *row = plane + (n->margin + y) * pitch + n->margin * LANES;
            vf sum = {};
            for (int64_t x = 0; x < w; x++) sum += *of(row + x * LANES);
            total += sum;
        }
        *at(strips + v * l->pixels * LANES) = total / (float)(h * w);
    }
    multiply(&n->head, 1, l->pixels * LANES, 0, strips, out);
    for (int64_t v = 0; v < n->head.outputs; v++)
        memcpy(logits + v * LANES, out + v * l->pixels * LANES, LANES * sizeof(float));
}

void answer(const Network *n, const Batch *b) {
    struct map maps[n->steps_count];
    Layout layout = {maps};
    const Layout *l = &layout;
    lay_out(n, b->h, b->w, &layout);
    int64_t whole = b->images - b->images % b->threads; /* images computed by one thread each */
    int64_t floats = n->head.outputs * LANES;
#pragma omp parallel num_threads(b->threads)
    {
        float *own = b->memory + omp_get_thread_num() * l->size;
        float *strips = own + n->buffers * l->buffer;
        if (whole) {
#pragma omp for schedule(dynamic)
            for (int64_t image = 0; image < whole; image++) {
                for (int64_t step = 0; step < n->steps_count; step++)
                    for (int64_t i = 0; i * l->map[step].rows < l->map[step].h; i++)
                        run_strip(n, &n->steps[step], l, b, image, i, own, strips);
                conclude(n, l, own, strips, b->logits + image * floats);
            }
        }
        for (int64_t image = whole; image < b->images; image++) { /* each by all threads */
            for (int64_t step = 0; step < n->steps_count; step++) {
                int64_t count = (l->map[step].h + l->map[step].rows - 1) / l->map[step].rows;
#pragma omp for schedule(static)
                for (int64_t i = 0; i < count; i++)
                    run_strip(n, &n->steps[step], l, b, image, i, b->memory, strips);
            }
#pragma omp single
            conclude(n, l, b->memory, strips, b->logits + image * floats);
        }
    }
}
