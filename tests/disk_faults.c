/* Calls that change files under a folder: each has a number, and one of them fails, or a signal comes.
 *
 * Preloaded. arm() is called by the process itself; until then, and elsewhere, nothing is different. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static char under[PATH_MAX], kinds[256];
static int first, error, signal_, lasting, record;
static atomic_int count;

/* From call number `from` on (alone, or with all of `which` after it where `lasts` is set), calls fail with `code`;
 * where it is negative, that signal comes instead, once. `log`: a descriptor that gets a line a call, or -1. */
void arm(const char *folder, int from, int code, int lasts, const char *which, int log) {
    strncpy(under, folder, sizeof under - 1);
    snprintf(kinds, sizeof kinds, " %s ", which);
    first = from, lasting = lasts, record = log;
    error = code > 0 ? code : 0, signal_ = code < 0 ? -code : 0;
    count = 0;
}

static int fails(const char *call, const char *path) {
    if (!under[0] || !path || strncmp(path, under, strlen(under))) return 0;
    int number = atomic_fetch_add(&count, 1);
    char line[PATH_MAX + 64];
    if (record >= 0) {
        int size = snprintf(line, sizeof line, "%s %s\n", call, path);
        syscall(SYS_write, record, line, size);
    }
    snprintf(line, sizeof line, " %s ", call);
    if (number != first && !(lasting && number > first && strstr(kinds, line))) return 0;
    if (signal_) {
        kill(getpid(), signal_);
        return 0;
    }
    errno = error;
    return 1;
}

static const char *named(int file, char *path) {
    char link[64];
    int before = errno;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t size = readlink(link, path, PATH_MAX - 1);
    errno = before;
    path[size < 0 ? 0 : size] = 0;
    return path;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define OF_FILE(type, name, call, parameters, arguments)            \
    type name parameters {                                          \
        static __typeof__(&name) real;                              \
        char path[PATH_MAX];                                        \
        if (!real) real = REAL(name);                               \
        return under[0] && fails(call, named(file, path)) ? -1 : real arguments; \
    }
#define OF_PATH(name, call, path, parameters, arguments)            \
    int name parameters {                                           \
        static __typeof__(&name) real;                              \
        if (!real) real = REAL(name);                               \
        return fails(call, path) ? -1 : real arguments;             \
    }

OF_FILE(ssize_t, write, "write", (int file, const void *data, size_t size), (file, data, size))
OF_FILE(ssize_t, pwrite, "write", (int file, const void *data, size_t size, off_t at), (file, data, size, at))
OF_FILE(ssize_t, pwrite64, "write", (int file, const void *data, size_t size, off64_t at), (file, data, size, at))
OF_FILE(ssize_t, writev, "write", (int file, const struct iovec *parts, int number), (file, parts, number))
OF_FILE(ssize_t, sendfile, "write", (int file, int in, off_t *at, size_t size), (file, in, at, size))
OF_FILE(ssize_t, sendfile64, "write", (int file, int in, off64_t *at, size_t size), (file, in, at, size))
OF_FILE(int, ftruncate, "truncate", (int file, off_t size), (file, size))
OF_FILE(int, ftruncate64, "truncate", (int file, off64_t size), (file, size))
OF_FILE(int, fallocate, "allocate", (int file, int mode, off_t at, off_t size), (file, mode, at, size))
OF_FILE(int, fallocate64, "allocate", (int file, int mode, off64_t at, off64_t size), (file, mode, at, size))
OF_FILE(int, fsync, "sync", (int file), (file))
OF_FILE(int, fdatasync, "sync", (int file), (file))
OF_FILE(int, flock, "lock", (int file, int how), (file, how))
OF_PATH(rename, "rename", to, (const char *from, const char *to), (from, to))
OF_PATH(renameat, "rename", to, (int a, const char *from, int b, const char *to), (a, from, b, to))
OF_PATH(unlink, "remove", path, (const char *path), (path))
OF_PATH(rmdir, "remove", path, (const char *path), (path))
OF_PATH(mkdir, "make", path, (const char *path, mode_t mode), (path, mode))
OF_PATH(link, "link", to, (const char *from, const char *to), (from, to))
OF_PATH(linkat, "link", to, (int a, const char *from, int b, const char *to, int how), (a, from, b, to, how))

int close(int file) {
    static __typeof__(&close) real;
    char path[PATH_MAX];
    if (!real) real = REAL(close);
    int written = under[0] && (fcntl(file, F_GETFL) & O_ACCMODE) != O_RDONLY;
    int bad = written && fails("close", named(file, path));
    int why = errno, done = real(file); /* closed it is, whatever it says */
    if (bad) errno = why;
    return bad ? -1 : done;
}

int unlinkat(int folder, const char *path, int how) {
    static __typeof__(&unlinkat) real;
    char whole[2 * PATH_MAX], start[PATH_MAX];
    if (!real) real = REAL(unlinkat);
    snprintf(whole, sizeof whole, "%s/%s", folder == AT_FDCWD ? "" : named(folder, start), path);
    return under[0] && fails("remove", path[0] == '/' ? path : whole) ? -1 : real(folder, path, how);
}

#define OPEN(name, before, parameters, arguments)                              \
    int name parameters {                                                      \
        static int (*real) parameters;                                         \
        va_list more;                                                          \
        va_start(more, how);                                                   \
        mode_t mode = how & (O_CREAT | __O_TMPFILE) ? va_arg(more, mode_t) : 0; \
        va_end(more);                                                          \
        if (!real) real = (int(*) parameters)dlsym(RTLD_NEXT, #name);          \
        return how & (O_WRONLY | O_RDWR | O_CREAT) && fails("open", path) ? -1 : real arguments; \
    }
OPEN(open, , (const char *path, int how, ...), (path, how, mode))
OPEN(open64, , (const char *path, int how, ...), (path, how, mode))
OPEN(openat, , (int folder, const char *path, int how, ...), (folder, path, how, mode))
OPEN(openat64, , (int folder, const char *path, int how, ...), (folder, path, how, mode))
