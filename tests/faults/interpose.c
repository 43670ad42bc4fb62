/* Count the calls of the C library that touch files: at the Nth event the process kills itself, or
 * from the Nth write on it finds the disk full. Preloaded (LD_PRELOAD), and idle until the process
 * calls `fault_arm`.
 *
 * An event is a call before which the process can be killed: opening for writing, writing to a
 * regular file, renames, removals, folders, flushes, locks and permissions. Of consecutive writes
 * to one file, the 1st, 2nd, 4th, 8th … are events. A write at which the process is killed is torn:
 * half of its bytes are written first. Python, PyTorch's C++ and safetensors' Rust all make these
 * calls.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { IDLE, COUNT, KILL, FULL };

static atomic_int mode = IDLE;
static atomic_long events, writes, at;
static int last_fd = -1; /* of the last write, if no other event came since */
static long in_a_row;

void fault_arm(int new_mode, long number) {
    events = writes = 0;
    at = number;
    mode = new_mode;
}

long fault_events(void) { return events; }
long fault_writes(void) { return writes; }

static void die(const char *call, const char *what) {
    char line[512];
    int n = snprintf(line, sizeof line, "killed at event %ld: %s %s\n", at, call, what);
    syscall(SYS_write, 2, line, n < (int)sizeof line ? n : (int)sizeof line - 1);
    syscall(SYS_kill, syscall(SYS_getpid), SIGKILL);
}

/* Count an event other than a write; if it is the Nth, die before it happens. */
static void event(const char *call, const char *what) {
    last_fd = -1;
    if (mode != IDLE && ++events == at && mode == KILL) die(call, what ? what : "");
}

static int is_file(int fd) {
    struct stat stat;
    return fd > 2 && fstat(fd, &stat) == 0 && S_ISREG(stat.st_mode);
}

/* Return how many of `size` bytes to write: all; half of them, if the process is to die after this
 * write (`*kills`) or the disk becomes full; or -1 with ENOSPC, if the disk is already full. */
static ssize_t allowed(int fd, size_t size, int *kills) {
    *kills = 0;
    if (mode == IDLE || !is_file(fd)) return size;
    long number = ++writes;
    in_a_row = fd == last_fd ? in_a_row + 1 : 1;
    last_fd = fd;
    int counts = (in_a_row & (in_a_row - 1)) == 0;
    if (counts && ++events == at && mode == KILL) {
        *kills = 1;
        return size / 2;
    }
    if (mode != FULL || number < at) return size;
    if (number == at && size > 1) return size / 2;
    errno = ENOSPC;
    return -1;
}

#define NEXT(name) \
    static typeof(&name) next; \
    if (!next) next = (typeof(&name))dlsym(RTLD_NEXT, #name)

#define WRITES(name, position_declared, position)                             \
    ssize_t name(int fd, const void *buffer, size_t size position_declared) { \
        NEXT(name);                                                           \
        int kills;                                                            \
        ssize_t most = allowed(fd, size, &kills);                             \
        if (most < 0) return -1;                                              \
        ssize_t written = next(fd, buffer, most position);                    \
        if (kills) die(#name, "");                                            \
        return written;                                                       \
    }
#define NOTHING
#define COMMA ,
WRITES(write, NOTHING, NOTHING)
WRITES(pwrite, COMMA off_t offset, COMMA offset)
WRITES(pwrite64, COMMA off64_t offset, COMMA offset)

ssize_t writev(int fd, const struct iovec *parts, int count) {
    NEXT(writev);
    size_t size = 0;
    for (int i = 0; i < count; i++) size += parts[i].iov_len;
    int kills;
    ssize_t most = allowed(fd, size, &kills);
    if (most < 0) return -1;
    if ((size_t)most == size) return next(fd, parts, count);
    size_t torn = parts[0].iov_len < (size_t)most ? parts[0].iov_len : (size_t)most;
    ssize_t written = syscall(SYS_write, fd, parts[0].iov_base, torn);
    if (kills) die("writev", "");
    return written;
}

static int opens_to_write(int flags, const char *path) {
    return (flags & (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC)) && strncmp(path, "/dev/", 5) &&
           strncmp(path, "/proc/", 6);
}

#define OPENS(name, declared, passed)                                       \
    int name(declared const char *path, int flags, ...) {                   \
        NEXT(name);                                                         \
        va_list more;                                                       \
        va_start(more, flags);                                              \
        mode_t rights = flags & O_CREAT || (flags & O_TMPFILE) == O_TMPFILE ? va_arg(more, mode_t) : 0; \
        va_end(more);                                                       \
        if (opens_to_write(flags, path)) event(#name, path);                        \
        return next(passed path, flags, rights);                            \
    }
OPENS(open, NOTHING, NOTHING)
OPENS(open64, NOTHING, NOTHING)
OPENS(openat, int folder COMMA, folder COMMA)
OPENS(openat64, int folder COMMA, folder COMMA)

#define FOPENS(name)                                                        \
    FILE *name(const char *path, const char *how) {                         \
        NEXT(name);                                                         \
        if (opens_to_write(strpbrk(how, "wa+") ? O_WRONLY : 0, path)) event(#name, path); \
        return next(path, how);                                             \
    }
FOPENS(fopen)
FOPENS(fopen64)

#define CALL(name, declared, passed, what)    \
    int name declared {                       \
        NEXT(name);                           \
        event(#name, what);                   \
        return next passed;                   \
    }
CALL(rename, (const char *from, const char *to), (from, to), to)
CALL(renameat, (int a, const char *from, int b, const char *to), (a, from, b, to), to)
CALL(link, (const char *from, const char *to), (from, to), to)
CALL(linkat, (int a, const char *from, int b, const char *to, int flags), (a, from, b, to, flags), to)
CALL(symlink, (const char *from, const char *to), (from, to), to)
CALL(unlink, (const char *path), (path), path)
CALL(unlinkat, (int folder, const char *path, int flags), (folder, path, flags), path)
CALL(mkdir, (const char *path, mode_t rights), (path, rights), path)
CALL(rmdir, (const char *path), (path), path)
CALL(chmod, (const char *path, mode_t rights), (path, rights), path)
CALL(fchmod, (int fd, mode_t rights), (fd, rights), "")
CALL(fsync, (int fd), (fd), "")
CALL(fdatasync, (int fd), (fd), "")
CALL(ftruncate, (int fd, off_t size), (fd, size), "")
CALL(ftruncate64, (int fd, off64_t size), (fd, size), "")
CALL(flock, (int fd, int how), (fd, how), "")
