/* What runs before main on a Cortex-M without an operating system: memory as C expects it, and
 * standard output and exit through the emulator (semihosting, newlib's librdimon). */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

/* Places in memory, from mps2.ld. */
extern uint32_t stack_top[], data_load[], data_start[], data_end[], bss_start[], bss_end[];

void initialise_monitor_handles(void);
void reset(void);
int main(void);

void reset(void)
{
    const uint32_t *from = data_load;
    for (uint32_t *to = data_start; to < data_end; to++) {
        *to = *from++;
    }
    for (uint32_t *to = bss_start; to < bss_end; to++) {
        *to = 0;
    }
    initialise_monitor_handles();
    const int status = main();
    fflush(stdout);
    _Exit(status);
}

static void fault(void)
{
    _Exit(2);
}

typedef void (*handler)(void);

/* The first stack, then where to go at reset and at the faults. */
static const struct {
    uint32_t *stack;
    handler handlers[6];
} vectors __attribute__((section(".vectors"), used)) = {
    stack_top,
    {reset, fault, fault, fault, fault, fault},
};
