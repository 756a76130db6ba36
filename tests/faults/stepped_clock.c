/* A wall clock that can be stepped, for one process: LD_PRELOAD this, with $CLOCK_FILE naming a file of 8 bytes.
 *
 * The file holds a double: by how many seconds the wall clock is wrong from now on. It is mapped, so that a write to it
 * is a step at once, in every thread, as clock_settime() would be. What waits until a moment of the wall clock waits for
 * that moment of the stepped clock. The monotonic clock is left alone, as the kernel leaves it.
 */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>

#define SLICE_S 0.02 /* a step during a wait is noticed so soon */
#define IS_WALL_S 1000000000 /* a condition does not say by which clock its deadline is; no machine runs for 30 years */

static const volatile double *step;
static int (*real_gettime)(clockid_t, struct timespec *);
static int (*real_cond)(pthread_cond_t *, pthread_mutex_t *, const struct timespec *);
static int (*real_cond_clock)(pthread_cond_t *, pthread_mutex_t *, clockid_t, const struct timespec *);
static int (*real_sem)(sem_t *, const struct timespec *);
static int (*real_sem_clock)(sem_t *, clockid_t, const struct timespec *);
static int (*real_nanosleep)(clockid_t, int, const struct timespec *, struct timespec *);

static void find(void)
{
    if (real_gettime)
        return;
    real_cond = dlvsym(RTLD_NEXT, "pthread_cond_timedwait", "GLIBC_2.3.2");
    if (!real_cond)
        real_cond = dlsym(RTLD_NEXT, "pthread_cond_timedwait");
    real_cond_clock = dlsym(RTLD_NEXT, "pthread_cond_clockwait");
    real_sem = dlsym(RTLD_NEXT, "sem_timedwait");
    real_sem_clock = dlsym(RTLD_NEXT, "sem_clockwait");
    real_nanosleep = dlsym(RTLD_NEXT, "clock_nanosleep");
    real_gettime = dlsym(RTLD_NEXT, "clock_gettime");
}

__attribute__((constructor)) static void map(void)
{
    find();
    const char *path = getenv("CLOCK_FILE");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0)
        return;
    void *mapped = mmap(NULL, sizeof(double), PROT_READ, MAP_SHARED, file, 0);
    if (mapped != MAP_FAILED)
        step = mapped;
}

static double seconds(const struct timespec *at) { return at->tv_sec + at->tv_nsec * 1e-9; }

static struct timespec later(struct timespec at, double by_s)
{
    double whole = floor(by_s);
    at.tv_sec += (time_t)whole;
    at.tv_nsec += (long)((by_s - whole) * 1e9);
    if (at.tv_nsec >= 1000000000) {
        at.tv_nsec -= 1000000000;
        at.tv_sec++;
    }
    return at;
}

static struct timespec real_now(void)
{
    struct timespec now;
    real_gettime(CLOCK_REALTIME, &now);
    return now;
}

/* The kernel's time until which to wait now; 0 when the stepped clock has reached `until`. */
static int slice(const struct timespec *until, struct timespec *end)
{
    struct timespec now = real_now();
    double left = seconds(until) - seconds(&now) - (step ? *step : 0.0);
    if (left <= 0)
        return 0;
    *end = later(now, left < SLICE_S ? left : SLICE_S);
    return 1;
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
    find();
    int result = real_gettime(clock, now);
    if (!result && step && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        *now = later(*now, *step);
    return result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
    struct timespec at;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &at);
    now->tv_sec = at.tv_sec;
    now->tv_usec = at.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *now)
{
    struct timespec at;
    clock_gettime(CLOCK_REALTIME, &at);
    if (now)
        *now = at.tv_sec;
    return at.tv_sec;
}

int pthread_cond_timedwait(pthread_cond_t *condition, pthread_mutex_t *mutex, const struct timespec *until)
{
    find();
    if (until->tv_sec < IS_WALL_S)
        return real_cond(condition, mutex, until);
    struct timespec end;
    int result = ETIMEDOUT;
    while (result == ETIMEDOUT && slice(until, &end))
        result = real_cond(condition, mutex, &end);
    return result;
}

int pthread_cond_clockwait(pthread_cond_t *condition, pthread_mutex_t *mutex, clockid_t clock, const struct timespec *until)
{
    find();
    if (clock != CLOCK_REALTIME)
        return real_cond_clock(condition, mutex, clock, until);
    struct timespec end;
    int result = ETIMEDOUT;
    while (result == ETIMEDOUT && slice(until, &end))
        result = real_cond_clock(condition, mutex, clock, &end);
    return result;
}

int sem_timedwait(sem_t *restrict semaphore, const struct timespec *restrict until)
{
    find();
    struct timespec end;
    int result = -1;
    errno = ETIMEDOUT;
    while (result && errno == ETIMEDOUT && slice(until, &end))
        result = real_sem(semaphore, &end);
    return result;
}

int sem_clockwait(sem_t *restrict semaphore, clockid_t clock, const struct timespec *restrict until)
{
    find();
    return clock == CLOCK_REALTIME ? sem_timedwait(semaphore, until) : real_sem_clock(semaphore, clock, until);
}

int clock_nanosleep(clockid_t clock, int flags, const struct timespec *request, struct timespec *left)
{
    find();
    if (clock != CLOCK_REALTIME || !(flags & TIMER_ABSTIME))
        return real_nanosleep(clock, flags, request, left);
    struct timespec end;
    int result = 0;
    while (!result && slice(request, &end))
        result = real_nanosleep(clock, flags, &end, left);
    return result;
}
