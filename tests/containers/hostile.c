/* A program that tries to do harm, one way for each first argument. It says what it managed to do. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

static char block[1 << 20];

/* Every address family with every kind of socket: which can be had at all; and where they lead. */
static void network(void) {
  int kinds[] = {SOCK_STREAM, SOCK_DGRAM, SOCK_RAW, SOCK_SEQPACKET, SOCK_RDM};
  for (int family = 0; family < 64; family++)
    for (int kind = 0; kind < 5; kind++) {
      int fd = socket(family, kinds[kind], 0);
      if (fd >= 0) printf("socket %d %d\n", family, kinds[kind]);
      if (fd >= 0) close(fd);
    }
  struct sockaddr_in away = {.sin_family = AF_INET, .sin_port = htons(9)};
  inet_pton(AF_INET, "192.0.2.1", &away.sin_addr);
  int tcp = socket(AF_INET, SOCK_STREAM, 0), udp = socket(AF_INET, SOCK_DGRAM, 0);
  int there = !connect(tcp, (void *)&away, sizeof away);
  printf("tcp %s\n", there ? "leads out" : strerrorname_np(errno));
  there = sendto(udp, "x", 1, 0, (void *)&away, sizeof away) == 1;
  printf("udp %s\n", there ? "leads out" : strerrorname_np(errno));
  struct sockaddr_un engine = {.sun_family = AF_UNIX, .sun_path = "/var/run/docker.sock"};
  int local = socket(AF_UNIX, SOCK_STREAM, 0);
  printf("engine %s\n", !connect(local, (void *)&engine, sizeof engine) ? "answers" : strerrorname_np(errno));
}

static void fork_bomb(void) {
  for (;;) fork();
}

static void memory(void) {
  for (;;) {
    char *more = mmap(0, sizeof block, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (more != MAP_FAILED) memset(more, 1, sizeof block);
  }
}

/* Shared memory that no file name shows. */
static void memfd(void) {
  signal(SIGXFSZ, SIG_IGN);
  for (;;) for (int fd = memfd_create("m", 0); write(fd, block, sizeof block) > 0;);
}

static void socket_file(void) {
  struct sockaddr_un here = {.sun_family = AF_UNIX, .sun_path = "/output/x"};
  if (bind(socket(AF_UNIX, SOCK_STREAM, 0), (void *)&here, sizeof here)) exit(1);
}

/* Fills files of 64 MiB one after the other, as fast as it can. */
static void disk(const char *folder, int hidden) {
  signal(SIGXFSZ, SIG_IGN);
  for (int n = 0;; n++) {
    char name[99];
    snprintf(name, sizeof name, "%s/%d", folder, n);
    int fd = open(name, O_CREAT | O_WRONLY, 0600);
    if (hidden) unlink(name);
    for (int k = 0; k < 64; k++) if (write(fd, block, sizeof block) < 0) break;
    if (!hidden) close(fd);
  }
}

static void files(const char *folder) {
  for (int n = 0;; n++) {
    char name[99];
    snprintf(name, sizeof name, "%s/%d", folder, n);
    close(open(name, O_CREAT | O_WRONLY, 0600));
  }
}

static void folders(const char *folder) {
  for (int n = 0;; n++) {
    char name[99];
    snprintf(name, sizeof name, "%s/%d", folder, n);
    mkdir(name, 0700);
  }
}

static void print(long megabytes) {
  memset(block, 'x', sizeof block);
  dprintf(1, "begin");
  for (long n = 0; n != megabytes; n++) for (size_t at = 0; at < sizeof block;) {
    ssize_t put = write(1, block + at, sizeof block - at);
    if (put > 0) at += put;
  }
  dprintf(1, "end");
}

/* Children of children in sessions of their own, deaf to every signal that can be ignored. */
static void deathless(void) {
  for (int sig = 1; sig < 65; sig++) signal(sig, SIG_IGN);
  for (int n = 0; n < 3; n++) if (!fork()) { setsid(); if (!fork()) setpgid(0, 0); }
  int ready = open("/run/progress", O_CREAT | O_WRONLY, 0600);
  if (ready >= 0) dprintf(ready, "0.5");
  for (;;) pause();
}

static void tricks(void) {
  printf("hard link %s\n", link("/input/secret", "/output/secret") ? strerrorname_np(errno) : "made");
  printf("device %s\n", mknod("/output/sda", S_IFBLK | 0600, makedev(8, 0)) ? strerrorname_np(errno) : "made");
  printf("dots %s\n", mkdir("/output/..", 0700) ? strerrorname_np(errno) : "made");
  printf("setuid %s\n", setuid(0) ? strerrorname_np(errno) : "done");
  printf("chroot %s\n", chroot("/tmp") ? strerrorname_np(errno) : "done");
  int self = open("/proc/1/root/etc/shadow", O_RDONLY);
  printf("shadow %s\n", self < 0 ? strerrorname_np(errno) : "read");
}

int main(int argc, char **argv) {
  const char *how = argc > 1 ? argv[1] : "", *where = argc > 2 ? argv[2] : "/output";
  setvbuf(stdout, 0, _IOLBF, 0);
  if (!strcmp(how, "network")) network();
  else if (!strcmp(how, "fork")) fork_bomb();
  else if (!strcmp(how, "memory")) memory();
  else if (!strcmp(how, "memory-in-child")) { if (!fork()) memory(); wait(0); }
  else if (!strcmp(how, "memfd")) memfd();
  else if (!strcmp(how, "disk")) disk(where, 0);
  else if (!strcmp(how, "hidden")) disk(where, 1);
  else if (!strcmp(how, "files")) files(where);
  else if (!strcmp(how, "folders")) folders(where);
  else if (!strcmp(how, "print")) print(atol(where));
  else if (!strcmp(how, "deathless")) deathless();
  else if (!strcmp(how, "tricks")) tricks();
  else if (!strcmp(how, "socket")) socket_file();
  else printf("uid %d euid %d\n", getuid(), geteuid());
  return 0;
}
