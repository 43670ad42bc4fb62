/* Convolutions, BatchNorms, ReLUs and sums of a network in training, forward and backward.
 *
 * Layout. Each lane of a vector (16, 8 or 4 lanes, depending on the CPU) holds another image, so
 * every loop below runs over whole vectors, whatever the image side, the stride or the kernel:
 *
 *     [tile of LANES images][row y][channel pair][column x][LANES][2 channels]
 *
 * With STORE_BF16 a pair of channels is one vector of bf16; otherwise it is two vectors of fp32.
 * Arithmetic is fp32 either way, except for matrix products on CPUs that multiply bf16. Channel
 * counts are even: the caller pads an odd one with a channel of zeros.
 *
 * Memory. Only the outputs of convolutions (z, before BatchNorm) and of blocks are written to
 * memory; BatchNorm and ReLU are applied as z is read, a row at a time, and again in the backward
 * pass. BatchNorm's own backward pass is affine in g and z once the sums of g and g z over the
 * batch are known, and those are accumulated where g is computed. So the backward pass of a
 * convolution reads its input, its output and one gradient, and writes one gradient.
 *
 * Sums are computed per tile and added in the order of the tiles, so the number of threads does not
 * change a bit of the result.
 *
 * The files below form one library. Each names its plain twin, the torch code that computes the
 * same, and the test that compares both.
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
/* matrix products in bf16, two channels per word */
#if STORE_BF16 && defined(__AVX512BF16__)
#define USE_PAIRS 1
#else
#define USE_PAIRS 0
#endif

#include "step.h"

#if USE_AMX
/* The compiler does not know which memory tile instructions access: none of its own accesses may
 * move across this. */
#define FENCE __asm__ volatile("" ::: "memory");
/* Other code in this thread may rely on its own configuration of the tiles. */
#define BEGIN_TILES char config[64] __attribute__((aligned(64))); _tile_storeconfig(config); FENCE
#define END_TILES FENCE _tile_loadconfig(config);
#else
#define BEGIN_TILES
#define END_TILES
#endif

/* Whether this process may use the instructions built for; Linux grants AMX on request. */
int ready(void) {
#if USE_AMX
    return syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* XTILEDATA */) == 0;
#else
    return 1;
#endif
}

/* Images per tile. */
int lanes(void) { return LANES; }

#include "maps.h"
#include "products.c"
#include "windows.c"
#include "batchnorm.c"
#include "convolution.c"
#include "join.c"
#include "images.c"
