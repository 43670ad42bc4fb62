/* Conversion of the network's input to the kernels' layout.
 *
 * Plain twin: images.permute(...) of any strides. Compared by test_kernels.py,
 * TestTrunk.test_images_in_any_memory_format.
 */
/* From fp32 images B x C x H x W with these strides (in values); channels from `channels` on are
 * zero. */
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
