/* A disk that answers late, for a process that runs with this library in LD_PRELOAD.

   While the file $SLOW_DISK_WHILE exists, each write to and each flush of a file below the folder $SLOW_DISK does not
   come back. It does as soon as that file is gone, and then does what it was asked to. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static int on_slow_disk(int fd)
{
    const char *folder = getenv("SLOW_DISK");
    char link[64], path[PATH_MAX];
    if (folder == NULL)
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0)
        return 0;
    path[length] = '\0';
    return strncmp(path, folder, strlen(folder)) == 0;
}

static void wait_for_disk(int fd)
{
    const char *gate = getenv("SLOW_DISK_WHILE");
    if (gate == NULL || access(gate, F_OK) != 0 || !on_slow_disk(fd))
        return;
    while (access(gate, F_OK) == 0)
        usleep(5000);
}

#define LATE(result, name, parameters, arguments)                              \
    result name parameters                                                     \
    {                                                                          \
        static result (*real) parameters;                                      \
        if (real == NULL)                                                      \
            real = (result (*) parameters)dlsym(RTLD_NEXT, #name);             \
        wait_for_disk(fd);                                                     \
        return real arguments;                                                 \
    }

LATE(ssize_t, write, (int fd, const void *data, size_t size), (fd, data, size))
LATE(ssize_t, pwrite, (int fd, const void *data, size_t size, off_t at), (fd, data, size, at))
LATE(ssize_t, pwrite64, (int fd, const void *data, size_t size, off64_t at), (fd, data, size, at))
LATE(int, fsync, (int fd), (fd))
LATE(int, fdatasync, (int fd), (fd))
LATE(int, ftruncate64, (int fd, off64_t size), (fd, size))
