/* Fails the n-th system call on a path below a folder; preloaded into the processes of the campaign.
 *
 * fault_arm(root, kinds, at, number, sticky): the calls of `kinds` are counted, and the one with the number `at`
 * (from 1) fails with errno `number`; with `sticky` all later ones too. fault_count(kind): the calls of a kind.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <sys/file.h>
#include <unistd.h>

enum { READ = 1, CREATE = 2, WRITE = 4, FLUSH = 8, NAME = 16, REMOVE = 32, MODE = 64, LOCK = 128 };

static char root[PATH_MAX];
static int kinds, number, sticky;
static long at, count, counts[256];

void fault_arm(const char *folder, int which, long moment, int error, int stays) {
    strncpy(root, folder, sizeof root - 1);
    kinds = which; at = moment; number = error; sticky = stays; count = 0;
    if (strlen(folder) > 1) memset(counts, 0, sizeof counts);
}

long fault_count(int kind) { return counts[kind]; }

static int fails(int kind, const char *path) {
    if (!*root || !path || strncmp(path, root, strlen(root))) return 0;
    counts[kind]++;
    if (!(kinds & kind)) return 0;
    count++;
    if (count != at && !(sticky && at && count > at)) return 0;
    errno = number;
    return 1;
}

static const char *path_of(int fd, char *buffer) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, buffer, PATH_MAX - 1);
    if (length < 0) return NULL;
    buffer[length] = 0;
    return buffer;
}

static int fails_at(int kind, int folder, const char *path) {
    char buffer[PATH_MAX], whole[2 * PATH_MAX];
    if (!*root || path[0] == '/' || folder == AT_FDCWD) return fails(kind, path);
    if (!path_of(folder, buffer)) return 0;
    snprintf(whole, sizeof whole, "%s/%s", buffer, path);
    return fails(kind, whole);
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define BY_FD(type, kind, name, declared, given) \
    type name declared { char b[PATH_MAX]; return *root && fails(kind, path_of(fd, b)) ? -1 : NEXT(name) given; }
#define BY_PATH(kind, name, declared, given) \
    int name declared { return fails(kind, path) ? -1 : NEXT(name) given; }
#define BY_FOLDER(kind, name, declared, given) \
    int name declared { return fails_at(kind, fd, path) ? -1 : NEXT(name) given; }

static int kind_of(int flags) { return flags & (O_CREAT | O_WRONLY | O_RDWR) ? CREATE : READ; }

#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        va_list list; va_start(list, flags); mode_t mode = flags & O_CREAT ? va_arg(list, mode_t) : 0; va_end(list); \
        return fails(kind_of(flags), path) ? -1 : NEXT(name)(path, flags, mode); }
#define OPENAT(name) \
    int name(int fd, const char *path, int flags, ...) { \
        va_list list; va_start(list, flags); mode_t mode = flags & O_CREAT ? va_arg(list, mode_t) : 0; va_end(list); \
        return fails_at(kind_of(flags), fd, path) ? -1 : NEXT(name)(fd, path, flags, mode); }
OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)

BY_FD(ssize_t, WRITE, write, (int fd, const void *data, size_t size), (fd, data, size))
BY_FD(ssize_t, WRITE, pwrite64, (int fd, const void *data, size_t size, off64_t start), (fd, data, size, start))
BY_FD(ssize_t, WRITE, writev, (int fd, const struct iovec *parts, int number_of), (fd, parts, number_of))
BY_FD(ssize_t, READ, read, (int fd, void *data, size_t size), (fd, data, size))
BY_FD(int, FLUSH, fsync, (int fd), (fd))
BY_FD(int, FLUSH, fdatasync, (int fd), (fd))
BY_FD(int, LOCK, flock, (int fd, int operation), (fd, operation))
BY_FD(int, MODE, fchmod, (int fd, mode_t mode), (fd, mode))
BY_PATH(MODE, chmod, (const char *path, mode_t mode), (path, mode))
BY_FOLDER(MODE, fchmodat, (int fd, const char *path, mode_t mode, int flags), (fd, path, mode, flags))
BY_PATH(NAME, mkdir, (const char *path, mode_t mode), (path, mode))
BY_PATH(NAME, rename, (const char *path, const char *target), (path, target))
BY_FOLDER(NAME, renameat, (int fd, const char *path, int other, const char *target), (fd, path, other, target))
BY_PATH(NAME, link, (const char *path, const char *target), (path, target))
BY_FOLDER(NAME, linkat, (int fd, const char *path, int other, const char *target, int flags), (fd, path, other, target, flags))
BY_PATH(REMOVE, unlink, (const char *path), (path))
BY_PATH(REMOVE, rmdir, (const char *path), (path))
BY_FOLDER(REMOVE, unlinkat, (int fd, const char *path, int flags), (fd, path, flags))
