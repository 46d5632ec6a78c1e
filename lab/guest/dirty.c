/* dirty RATE_MIB_S SIZE_MIB: rewrite SIZE_MIB of memory at RATE_MIB_S, until killed.
 *
 * Each page gets a new value per round, so no compression or zero-page test makes it cheap to
 * migrate. A rate of 0 means as fast as the CPU can.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

enum { PAGE = 4096, PAGES_PER_MIB = 256, SLICES_PER_S = 50 };

static void sleep_until(struct timespec *next)
{
    next->tv_nsec += 1000000000L / SLICES_PER_S;
    if (next->tv_nsec >= 1000000000L) {
        next->tv_nsec -= 1000000000L;
        next->tv_sec++;
    }
    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, next, NULL);
}

int main(int argc, char **argv)
{
    if (argc != 3) {
        fprintf(stderr, "usage: dirty RATE_MIB_S SIZE_MIB\n");
        return 2;
    }
    size_t rate = strtoul(argv[1], NULL, 10), pages = strtoul(argv[2], NULL, 10) * PAGES_PER_MIB;
    char *memory = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (pages == 0 || memory == MAP_FAILED) {
        perror("dirty: cannot get SIZE_MIB of memory");
        return 1;
    }
    size_t slice = rate ? rate * PAGES_PER_MIB / SLICES_PER_S + 1 : pages;
    struct timespec next;
    clock_gettime(CLOCK_MONOTONIC, &next);
    uint64_t value = 0;
    for (size_t page = 0;; ) {
        for (size_t i = 0; i < slice; i++) {
            *(volatile uint64_t *)(memory + page * PAGE) = ++value;
            page = (page + 1) % pages;
        }
        if (rate)
            sleep_until(&next);
    }
}
