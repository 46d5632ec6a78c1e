/* Preloaded into a process, shows it a wall clock that is off by SKEWED_CLOCK_S seconds.
 *
 * Only readings of the wall clock are changed. Whoever sleeps or waits with a time-out does so by
 * CLOCK_MONOTONIC, which a wrong wall clock leaves alone. libfaketime is not used because its
 * clock_nanosleep fails with EINVAL for Python's time.sleep. */
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static time_t skew_s;

__attribute__((constructor)) static void read_skew(void)
{
    const char *text = getenv("SKEWED_CLOCK_S");
    skew_s = text ? strtol(text, NULL, 10) : 0;
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
    int result = syscall(SYS_clock_gettime, clock, now);
    if (result == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        now->tv_sec += skew_s;
    return result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
    struct timespec exact;
    (void)zone;
    if (clock_gettime(CLOCK_REALTIME, &exact) != 0)
        return -1;
    now->tv_sec = exact.tv_sec;
    now->tv_usec = exact.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *out)
{
    struct timespec exact;
    if (clock_gettime(CLOCK_REALTIME, &exact) != 0)
        return -1;
    if (out != NULL)
        *out = exact.tv_sec;
    return exact.tv_sec;
}
