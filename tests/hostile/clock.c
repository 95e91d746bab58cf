/* Preloaded into a program. Adds to its wall clock the seconds that a test has written into two files in the folder
 * CLOCK_DIR: one for all programs and one for this process. The monotonic clock stays as it is, as it does when someone
 * sets a host's time. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

static volatile long long *of_all, *of_this;
static int (*real)(clockid_t, struct timespec *);

static volatile long long *shared(const char *dir, const char *name) {
  char path[4096];
  snprintf(path, sizeof path, "%s/%s", dir, name);
  int file = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  if (file < 0 || ftruncate(file, sizeof(long long)) != 0)
    return NULL;
  void *seconds = mmap(NULL, sizeof(long long), PROT_READ, MAP_SHARED, file, 0);
  close(file);
  return seconds == MAP_FAILED ? NULL : seconds;
}

__attribute__((constructor)) static void begin(void) {
  const char *dir = getenv("CLOCK_DIR");
  char name[32];
  if (!dir)
    return;
  snprintf(name, sizeof name, "%d", (int)getpid());
  of_all = shared(dir, "all");
  of_this = shared(dir, name);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
  if (!real)
    real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
  int result = real(clock, now);
  if (result == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
    now->tv_sec += (of_all ? *of_all : 0) + (of_this ? *of_this : 0);
  return result;
}
