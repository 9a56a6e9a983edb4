/* Stands between a process and the C library, and fails the k-th call that changes something below a path.

   Loaded with LD_PRELOAD; asleep until `shim_arm(prefix, kind, point)` is called, usually in a fresh fork.
   Counted, in their order: open with O_CREAT, write, pwrite, writev, fsync, fdatasync, rename, unlink, rmdir, mkdir,
   ftruncate, link, sendfile, copy_file_range, and close of a file that is open for writing; with their variants. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#undef open
#undef open64
#undef openat
#undef openat64

enum kind { COUNT, KILL_BEFORE, KILL_HALFWAY, FULL, BROKEN_ONCE, SHORT_WRITE };
enum need { NO_ROOM_NEEDED, ROOM_NEEDED };
/* what a wrapper has to do: the call itself, half of it, or nothing but report `errno` */
enum verdict { CALL, HALF, FAIL };

static char armed_prefix[PATH_MAX];
static int armed_kind, armed_point = -1;
static int calls, awake;

void shim_arm(const char *prefix, int kind, int point) {
  snprintf(armed_prefix, sizeof armed_prefix, "%s", prefix);
  armed_kind = kind;
  armed_point = point;
  calls = 0;
  awake = 1;
}

int shim_count(void) { return calls; }

static void die(void) { kill(getpid(), SIGKILL); }

static void *next(const char *name) { return dlsym(RTLD_NEXT, name); }

static int below(const char *path) {
  size_t length = strlen(armed_prefix);
  return strncmp(path, armed_prefix, length) == 0 && (path[length] == '/' || path[length] == 0);
}

static int fd_path(int fd, char *out) {
  char link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t length = readlink(link, out, PATH_MAX - 1);
  if (length < 0) return 0;
  out[length] = 0;
  return 1;
}

static int concerns_fd(int fd) {
  char path[PATH_MAX];
  if (!awake) return 0;
  int saved = errno, found = fd_path(fd, path) && below(path);
  errno = saved;
  return found;
}

static int concerns_path(int dirfd, const char *name) {
  char folder[PATH_MAX], path[2 * PATH_MAX];
  if (!awake || name == NULL) return 0;
  if (name[0] == '/') return below(name);
  int saved = errno, known;
  if (dirfd == AT_FDCWD) known = getcwd(folder, sizeof folder) != NULL;
  else known = fd_path(dirfd, folder);
  errno = saved;
  if (!known) return 0;
  snprintf(path, sizeof path, "%s/%s", folder, name);
  return below(path);
}

static enum verdict judge(enum need need) {
  int now = calls++;
  int here = now == armed_point, reached = armed_point >= 0 && now >= armed_point;
  if (here && armed_kind == KILL_BEFORE) die();
  if (here && armed_kind == BROKEN_ONCE) { errno = EIO; return FAIL; }
  if (reached && armed_kind == FULL && need == ROOM_NEEDED) { errno = ENOSPC; return FAIL; }
  return here && (armed_kind == KILL_HALFWAY || armed_kind == SHORT_WRITE) ? HALF : CALL;
}

static void after(enum verdict verdict) {
  if (verdict == HALF && armed_kind == KILL_HALFWAY) die();
}

/* -- files -------------------------------------------------------------------------------------------------- */

#define OPEN_BODY(dirfd, pass)                                                                \
  mode_t mode = 0;                                                                            \
  if (flags & (O_CREAT | __O_TMPFILE)) {                                                      \
    va_list rest;                                                                             \
    va_start(rest, flags);                                                                    \
    mode = va_arg(rest, mode_t);                                                              \
    va_end(rest);                                                                             \
  }                                                                                           \
  enum verdict verdict = CALL;                                                                \
  if ((flags & O_CREAT) && concerns_path(dirfd, path)) verdict = judge(ROOM_NEEDED);          \
  if (verdict == FAIL) return -1;                                                             \
  int result = pass;                                                                          \
  after(verdict);                                                                             \
  return result;

int open(const char *path, int flags, ...) {
  int (*real)(const char *, int, ...) = next("open");
  OPEN_BODY(AT_FDCWD, real(path, flags, mode))
}
int open64(const char *path, int flags, ...) {
  int (*real)(const char *, int, ...) = next("open64");
  OPEN_BODY(AT_FDCWD, real(path, flags, mode))
}
int openat(int dirfd, const char *path, int flags, ...) {
  int (*real)(int, const char *, int, ...) = next("openat");
  OPEN_BODY(dirfd, real(dirfd, path, flags, mode))
}
int openat64(int dirfd, const char *path, int flags, ...) {
  int (*real)(int, const char *, int, ...) = next("openat64");
  OPEN_BODY(dirfd, real(dirfd, path, flags, mode))
}

static size_t half_of(size_t count) { return count > 1 ? count / 2 : count; }

ssize_t write(int fd, const void *data, size_t count) {
  ssize_t (*real)(int, const void *, size_t) = next("write");
  enum verdict verdict = concerns_fd(fd) ? judge(ROOM_NEEDED) : CALL;
  if (verdict == FAIL) return -1;
  ssize_t result = real(fd, data, verdict == HALF ? half_of(count) : count);
  after(verdict);
  return result;
}

#define PWRITE(name, offset_type)                                                             \
  ssize_t name(int fd, const void *data, size_t count, offset_type offset) {                  \
    ssize_t (*real)(int, const void *, size_t, offset_type) = next(#name);                    \
    enum verdict verdict = concerns_fd(fd) ? judge(ROOM_NEEDED) : CALL;                       \
    if (verdict == FAIL) return -1;                                                           \
    ssize_t result = real(fd, data, verdict == HALF ? half_of(count) : count, offset);        \
    after(verdict);                                                                           \
    return result;                                                                            \
  }
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

ssize_t writev(int fd, const struct iovec *parts, int count) {
  ssize_t (*real)(int, const struct iovec *, int) = next("writev");
  enum verdict verdict = concerns_fd(fd) ? judge(ROOM_NEEDED) : CALL;
  if (verdict == FAIL) return -1;
  ssize_t result = real(fd, parts, verdict == HALF && count > 1 ? count / 2 : count);
  after(verdict);
  return result;
}

#define ON_FD(type, name, need, parameters, ...)                                              \
  type name parameters {                                                                      \
    type(*real) parameters = next(#name);                                                     \
    enum verdict verdict = concerns_fd(fd) ? judge(need) : CALL;                              \
    if (verdict == FAIL) return -1;                                                           \
    type result = real(__VA_ARGS__);                                                          \
    after(verdict);                                                                           \
    return result;                                                                            \
  }
ON_FD(int, fsync, ROOM_NEEDED, (int fd), fd)
ON_FD(int, fdatasync, ROOM_NEEDED, (int fd), fd)
ON_FD(int, ftruncate, ROOM_NEEDED, (int fd, off_t length), fd, length)
ON_FD(int, ftruncate64, ROOM_NEEDED, (int fd, off64_t length), fd, length)
ON_FD(ssize_t, sendfile, ROOM_NEEDED, (int fd, int from, off_t *offset, size_t count), fd, from, offset, count)
ON_FD(ssize_t, sendfile64, ROOM_NEEDED, (int fd, int from, off64_t *offset, size_t count), fd, from, offset, count)
ON_FD(ssize_t, copy_file_range, ROOM_NEEDED,
      (int from, off64_t *at, int fd, off64_t *to, size_t count, unsigned flags), from, at, fd, to, count, flags)

int close(int fd) {
  int (*real)(int) = next("close");
  if (!awake || !concerns_fd(fd)) return real(fd);
  int flags = fcntl(fd, F_GETFL);
  if (flags < 0 || (flags & O_ACCMODE) == O_RDONLY) return real(fd);
  enum verdict verdict = judge(NO_ROOM_NEEDED);
  int fault = errno, result = real(fd); /* a failed close has closed the file all the same */
  after(verdict);
  if (verdict != FAIL) return result;
  errno = fault;
  return -1;
}

/* -- names -------------------------------------------------------------------------------------------------- */

#define ON_PATH(name, need, parameters, dirfd, path, ...)                                     \
  int name parameters {                                                                       \
    int(*real) parameters = next(#name);                                                      \
    enum verdict verdict = concerns_path(dirfd, path) ? judge(need) : CALL;                   \
    if (verdict == FAIL) return -1;                                                           \
    int result = real(__VA_ARGS__);                                                           \
    after(verdict);                                                                           \
    return result;                                                                            \
  }
ON_PATH(rename, NO_ROOM_NEEDED, (const char *from, const char *to), AT_FDCWD, to, from, to)
ON_PATH(renameat, NO_ROOM_NEEDED, (int a, const char *from, int b, const char *to), b, to, a, from, b, to)
ON_PATH(renameat2, NO_ROOM_NEEDED, (int a, const char *from, int b, const char *to, unsigned flags), b, to, a, from,
        b, to, flags)
ON_PATH(link, ROOM_NEEDED, (const char *from, const char *to), AT_FDCWD, to, from, to)
ON_PATH(linkat, ROOM_NEEDED, (int a, const char *from, int b, const char *to, int flags), b, to, a, from, b, to, flags)
ON_PATH(unlink, NO_ROOM_NEEDED, (const char *path), AT_FDCWD, path, path)
ON_PATH(unlinkat, NO_ROOM_NEEDED, (int dirfd, const char *path, int flags), dirfd, path, dirfd, path, flags)
ON_PATH(rmdir, NO_ROOM_NEEDED, (const char *path), AT_FDCWD, path, path)
ON_PATH(mkdir, ROOM_NEEDED, (const char *path, mode_t mode), AT_FDCWD, path, path, mode)
ON_PATH(mkdirat, ROOM_NEEDED, (int dirfd, const char *path, mode_t mode), dirfd, path, dirfd, path, mode)
