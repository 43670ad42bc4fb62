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
 * Channel counts are even: the caller pads an odd one with a channel of zeros.
 *
 * What is kept. Only the outputs of the convolutions (z, before BatchNorm) and of the blocks are
 * written to memory; BatchNorm and ReLU are applied as z is read, a row at a time, and again in the
 * backward pass. BatchNorm's own backward pass is affine in g and z once the sums of g and g z over
 * the batch are known, and those are summed where g is made. So a convolution's backward pass reads
 * its input, its output and one gradient, and writes one gradient.
 *
 * Sums go tile by tile and are then added in the order of the tiles: the number of threads
 * changes no bit of the result.
 *
 * The files below are one library. Each names its plain twin: what torch computes the same with, and
 * the test that compares both.
 *
 * Plain twin: the network itself, by torch's modules and autograd. Compared by test_kernels.py,
 * TestAgainstPlainTwin and TestAnyNetworkOfKnownBlocks.
 */
#define _GNU_SOURCE
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "vectors.h"

#define MAX_KERNEL 7

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

#include "step.h"

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

#include "maps.h"
#include "products.c"
#include "windows.c"
#include "batchnorm.c"
#include "convolution.c"
#include "join.c"
#include "images.c"
