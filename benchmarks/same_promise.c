/* What it takes to keep our promise, put beneath a program that does not: a file that was written
 * is made durable when it is closed, and its folder after it. Loaded with LD_PRELOAD. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int (*plain_fclose)(FILE *);

static void make_durable(int descriptor)
{
    struct stat status;
    char link[64], path[PATH_MAX];
    int flags = fcntl(descriptor, F_GETFL);
    if (flags < 0 || (flags & O_ACCMODE) == O_RDONLY)
        return;
    if (fstat(descriptor, &status) < 0 || !S_ISREG(status.st_mode))
        return;
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length <= 0 || path[0] != '/')
        return;
    path[length] = '\0';
    if (fsync(descriptor) < 0)
        abort();
    int folder = open(dirname(path), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (folder < 0 || fsync(folder) < 0)
        abort();
    close(folder);
}

int fclose(FILE *stream)
{
    if (!plain_fclose)
        plain_fclose = (int (*)(FILE *))dlsym(RTLD_NEXT, "fclose");
    if (stream && fflush(stream) == 0)
        make_durable(fileno(stream));
    return plain_fclose(stream);
}
