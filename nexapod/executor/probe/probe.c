/* The probe: a program that tries to break out of a sandbox, and says how far it came.
 *
 *     probe NAME [ARGUMENTS]        (wasm: the first word after the program's name)
 *
 * Each NAME is one attempt. What was found is one JSON object, printed as one line and written to
 * /output/result.json; an attempt that is stopped says nothing more. It does no harm where it succeeds: files that it
 * could make are removed again, nothing is sent to another machine, every bomb has an end.
 *
 * Built by build.py for Linux (musl, static) and for WASI preview 1. It judges nothing: promises.py does.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#ifdef __wasi__
#include <wasi/api.h>
#else
#include <arpa/inet.h>
#include <linux/perf_event.h>
#include <net/if.h>
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#endif

#define MIB (1 << 20)
#define MARK "nexapod-probe"
extern char **environ;

/* --- one JSON object, in a buffer of fixed size ------------------------------------------------------------------ */

static char out[1 << 16];
static size_t used;

static void raw(const char *text) {
    size_t length = strlen(text);
    if (used + length < sizeof out - 8) { /* what does not fit is cut: the reader then sees no JSON, and says so */
        memcpy(out + used, text, length);
        used += length;
    }
}

static void quoted(const char *text) {
    static const char hex[] = "0123456789abcdef";
    raw("\"");
    for (; *text; text++) {
        unsigned char c = (unsigned char)*text;
        char plain[2] = {(char)c, 0}, escaped[7] = {'\\', 'u', '0', '0', hex[c >> 4], hex[c & 15], 0};
        raw(c < 32 || c > 126 || c == '"' || c == '\\' ? escaped : plain);
    }
    raw("\"");
}

static void comma(void) {
    if (used && !strchr("{[:", out[used - 1])) raw(",");
}

static void key(const char *name) {
    comma();
    quoted(name);
    raw(":");
}

static void item(const char *text) {
    comma();
    quoted(text);
}

static void number(long long value) {
    char digits[24], *at = digits + sizeof digits - 1;
    unsigned long long rest = value < 0 ? -(unsigned long long)value : (unsigned long long)value;
    *at = 0;
    do *--at = (char)('0' + rest % 10);
    while (rest /= 10);
    if (value < 0) *--at = '-';
    comma();
    raw(at);
}

static void open_list(const char *name) {
    key(name);
    raw("[");
}

static void close_list(void) { raw("]"); }

static void put(const char *name, long long value) {
    key(name);
    number(value);
}

static void write_all(int fd, const char *bytes, size_t size) {
    while (size) {
        ssize_t done = write(fd, bytes, size);
        if (done <= 0) return;
        bytes += done;
        size -= (size_t)done;
    }
}

static void finish(int print) {
    raw("}\n");
    if (print) write_all(1, out, used);
    int fd = open("/output/result.json", O_WRONLY | O_CREAT | O_TRUNC, 0644);
    if (fd >= 0) {
        write_all(fd, out, used);
        close(fd);
    }
}

static void join(char *path, size_t size, const char *folder, const char *name) {
    size_t length = strlen(folder);
    if (length + strlen(name) + 2 > size) {
        path[0] = 0;
        return;
    }
    strcpy(path, folder);
    if (!length || path[length - 1] != '/') strcat(path, "/");
    strcat(path, name);
}

static int touch(const char *path) {
    int fd = open(path, O_WRONLY | O_CREAT, 0644);
    if (fd >= 0) close(fd);
    return fd >= 0;
}

static int opens(const char *path, int flags) {
    int fd = open(path, flags | O_NONBLOCK);
    if (fd >= 0) close(fd);
    return fd >= 0;
}

/* Engines cover files with /dev/null, which anyone may write to. */
static int is_null_device(const char *path) {
    struct stat node, null;
    return !stat(path, &node) && !stat("/dev/null", &null) && S_ISCHR(node.st_mode) && node.st_rdev == null.st_rdev;
}

/* A new file in a folder, removed at once. What is no folder is opened for writing instead. */
static void try_to_write(const char *place) {
    char path[512];
    join(path, sizeof path, place, MARK);
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL, 0600);
    if (fd >= 0) {
        close(fd);
        unlink(path);
        item(place);
    } else if (errno == ENOTDIR && !is_null_device(place) && opens(place, O_WRONLY)) {
        item(place);
    }
}

/* What came in must stay as it was. */
static void deface_input(void) {
    const char *file = "/input/in.txt", *moved = "/input/moved.txt", *inside = "/input/linked", *out = "/output/linked";
    open_list("defaced");
    if (opens(file, O_WRONLY)) item("open");
    if (opens(file, O_WRONLY | O_TRUNC)) item("truncate");
    if (link(file, inside) == 0 && unlink(inside) == 0) item("link");
    if (link(file, out) == 0 && unlink(out) == 0) item("link out");
    if (rename(file, moved) == 0) item("rename");
    if (unlink(file) == 0 || unlink(moved) == 0) item("unlink");
    close_list();
}

/* --- bombs, the same in both worlds --------------------------------------------------------------------------- */

static char block[64 << 10];

/* Whoever is over a limit is ended while it runs: so it must not be over before it can be seen. */
static void linger(long seconds) {
#ifdef __wasi__ /* its clock is not this world's */
    for (volatile long long turns = 0; turns < seconds * 400000000LL; turns++) {
    }
#else
    sleep((unsigned)seconds);
#endif
}

static int fill_memory(long mib_max) {
    long grown = 0;
    for (; grown < mib_max; grown++) {
        char *more = malloc(MIB);
        if (!more) break;
        for (long at = 0; at < MIB; at += 1024) ((volatile char *)more)[at] = (char)(at + grown + 1);
    }
    put("grown_mib", grown);
    finish(1);
    return grown < mib_max;
}

/* File after file, since one may be bounded by itself. Ends at the first that takes nothing. */
static int fill_disk(long mib_max, long seconds) {
    long long written = 0;
    char path[] = "/output/big-00", *digits = path + sizeof path - 3;
    memset(block, 'x', sizeof block);
    for (int file = 0; file < 100 && written < (long long)mib_max * MIB; file++) {
        digits[0] = (char)('0' + file / 10);
        digits[1] = (char)('0' + file % 10);
        int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644);
        ssize_t done = 0, here = 0;
        while (fd >= 0 && written < (long long)mib_max * MIB && (done = write(fd, block, sizeof block)) > 0) {
            written += done;
            here += done;
        }
        if (fd >= 0) close(fd);
        if (!here) break;
    }
    linger(seconds);
    put("written", written);
    finish(1);
    return 0;
}

static int make_files(long files_max, long seconds) {
    long made = 0;
    char path[64];
    for (; made < files_max; made++) {
        char digits[16], *at = digits + sizeof digits - 1;
        long rest = made;
        *at = 0;
        do *--at = (char)('0' + rest % 10);
        while (rest /= 10);
        join(path, sizeof path, "/output", at);
        if (!touch(path)) break;
    }
    linger(seconds);
    put("made", made);
    finish(1);
    return 0;
}

static int flood_log(long mib_max) {
    static const char line[] = "\x1b[2Jthe probe prints a line that would clear a terminal \xff\n";
    write_all(1, "the first line\n", 15);
    size_t size = 0;
    while (size + sizeof line < sizeof block) {
        memcpy(block + size, line, sizeof line - 1);
        size += sizeof line - 1;
    }
    for (long long sent = 0; sent < (long long)mib_max * MIB; sent += (long long)size)
        write_all(1 + (int)(sent & 1), block, size);
    write_all(1, "the last line\n", 14);
    put("printed", (long long)mib_max * MIB);
    finish(0);
    return 0;
}

static int spin(void) {
    touch("/output/ready");
    for (volatile unsigned long turns = 0;; turns++) {
    }
}

/* Outputs that lead elsewhere, or cannot be named: whoever collects them must not follow. */
static int make_tricks(void) {
    open_list("made");
    if (symlink("/etc/passwd", "/output/absolute") == 0) item("absolute link");
    if (symlink("../../../../../../../../etc/passwd", "/output/relative") == 0) item("relative link");
    if (symlink(".", "/output/loop") == 0) item("loop");
    if (touch("/output/line\nbreak")) item("line break in a name");
#ifndef __wasi__
    if (mkfifo("/output/fifo", 0600) == 0) item("fifo");
#endif
    close_list();
    finish(1);
    return 0;
}

/* What the task sees of the machine it runs on: its clocks, its randomness, its environment. */
static int look_around(void) {
    static const clockid_t clocks[] = {CLOCK_REALTIME, CLOCK_MONOTONIC};
    unsigned char random[16];
    struct timespec now;
    open_list("clocks_ns");
    for (int reading = 0; reading < 4; reading++) {
        clock_gettime(clocks[reading & 1], &now);
        number((long long)now.tv_sec * 1000000000 + now.tv_nsec);
    }
    close_list();
    open_list("random");
    if (getentropy(random, sizeof random) == 0)
        for (size_t at = 0; at < sizeof random; at++) number(random[at]);
    close_list();
    open_list("environment");
    for (char **variable = environ; variable && *variable; variable++) {
        (*variable)[strcspn(*variable, "=")] = 0; /* a value may be a secret */
        item(*variable);
    }
    close_list();
    finish(1);
    return 0;
}

#ifdef __wasi__
/* --- what there is to try in WASI ------------------------------------------------------------------------------ */

static int try_network(void) {
    long tried = 0;
    open_list("opened");
    for (int fd = 0; fd < 64; fd++, tried++) {
        __wasi_fd_t connection;
        if (__wasi_sock_accept(fd, 0, &connection) == 0) number(fd);
    }
    close_list();
    put("tried", tried);
    finish(1);
    return 0;
}

/* The call itself: libc would look for a granted folder that holds the path, and ask for nothing else. */
static int opens_below(__wasi_fd_t folder, const char *path, int writing) {
    __wasi_fd_t fd;
    __wasi_oflags_t how = writing ? __WASI_OFLAGS_CREAT : 0;
    __wasi_rights_t rights = writing ? __WASI_RIGHTS_FD_WRITE : __WASI_RIGHTS_FD_READ;
    int failed = __wasi_path_open(folder, __WASI_LOOKUPFLAGS_SYMLINK_FOLLOW, path, how, rights, 0, 0, &fd);
    return !failed && __wasi_fd_close(fd) == 0;
}

static int try_outside(void) {
    static const char *const places[] = {
        "/", "/etc", "/usr", "/tmp", "/root", "/proc/self", "/dev", "..", "/output/..", "/output/../..",
        "/output/../../../../../../../../tmp", "/run/../..", "/input", "/output", "/checkpoint", "/run",
    };
    static const char *const targets[] = {"/etc/passwd", "../../../../../../../../../../etc/passwd", "..", "/"};
    static const char *const paths[] = {
        "..", "../..", "/etc/passwd", "../../../../../../../../../../etc/passwd", "a/../../..", "./../",
    };
    long tried = 0;
    open_list("written");
    for (size_t place = 0; place < sizeof places / sizeof *places; place++, tried++) try_to_write(places[place]);
    close_list();
    open_list("reached");
    for (int fd = 0; fd < 64; fd++)
        for (size_t path = 0; path < sizeof paths / sizeof *paths; path++, tried++)
            if (opens_below(fd, paths[path], 0)) item(paths[path]);
    for (int fd = 3; fd < 16; fd++)
        if (opens_below(fd, "../" MARK, 1)) item("../" MARK);
    for (size_t target = 0; target < sizeof targets / sizeof *targets; target++, tried++) {
        char through[64];
        const char *name = "/output/way-out";
        if (symlink(targets[target], name)) continue;
        join(through, sizeof through, name, "etc/passwd");
        if (opens(name, O_RDONLY) || opens(through, O_RDONLY)) item(targets[target]);
        unlink(name);
    }
    close_list();
    deface_input();
    put("tried", tried);
    finish(1);
    return 0;
}

static int try_here(const char *name, long argument) {
    (void)argument;
    if (!strcmp(name, "net")) return try_network();
    if (!strcmp(name, "write-outside")) return try_outside();
    if (!strcmp(name, "stubborn")) return spin();
    return -1;
}
#else
/* --- what there is to try in Linux ------------------------------------------------------------------------------ */

static void list_interfaces(void) {
    char text[4096];
    int fd = open("/proc/net/dev", O_RDONLY), any = socket(AF_INET, SOCK_DGRAM, 0);
    ssize_t size = fd >= 0 ? read(fd, text, sizeof text - 1) : 0;
    text[size > 0 ? size : 0] = 0;
    open_list("interfaces");
    for (char *line = strtok(text, "\n"); line; line = strtok(0, "\n")) {
        char *end = strchr(line, ':');
        struct ifreq interface = {0};
        if (!end) continue;
        *end = 0;
        while (*line == ' ') line++;
        strncpy(interface.ifr_name, line, sizeof interface.ifr_name - 1);
        /* The kernel puts tunnels that lead nowhere into every namespace: only what is up counts. */
        if (strcmp(line, "lo") && (ioctl(any, SIOCGIFFLAGS, &interface) || interface.ifr_flags & IFF_UP)) item(line);
    }
    close_list();
    close(fd);
    close(any);
}

/* Connecting a datagram socket looks for a route, and sends nothing. The addresses are those kept for documentation. */
static void list_routes(void) {
    struct sockaddr_in four = {.sin_family = AF_INET, .sin_port = htons(9)};
    struct sockaddr_in6 six = {.sin6_family = AF_INET6, .sin6_port = htons(9)};
    inet_pton(AF_INET, "192.0.2.1", &four.sin_addr);
    inet_pton(AF_INET6, "2001:db8::1", &six.sin6_addr);
    open_list("routes");
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    if (fd >= 0 && connect(fd, (struct sockaddr *)&four, sizeof four) == 0) item("IPv4");
    close(fd);
    fd = socket(AF_INET6, SOCK_DGRAM, 0);
    if (fd >= 0 && connect(fd, (struct sockaddr *)&six, sizeof six) == 0) item("IPv6");
    close(fd);
    close_list();
}

static void list_engine_sockets(void) {
    static const char *const paths[] = {
        "/run/docker.sock", "/var/run/docker.sock", "/run/podman/podman.sock", "/run/containerd/containerd.sock",
    };
    open_list("engines");
    for (size_t at = 0; at < sizeof paths / sizeof *paths; at++) {
        struct sockaddr_un address = {.sun_family = AF_UNIX};
        strcpy(address.sun_path, paths[at]);
        int fd = socket(AF_UNIX, SOCK_STREAM, 0);
        if (fd >= 0 && connect(fd, (struct sockaddr *)&address, sizeof address) == 0) item(paths[at]);
        close(fd);
    }
    close_list();
}

static int try_network(void) {
    static const int kinds[] = {SOCK_STREAM, SOCK_DGRAM, SOCK_RAW, SOCK_SEQPACKET};
    long tried = 0;
    open_list("opened");
    for (int family = 0; family <= 45; family++)
        for (size_t kind = 0; kind < sizeof kinds / sizeof *kinds; kind++, tried++) {
            int fd = socket(family, kinds[kind], 0);
            if (fd < 0) continue;
            comma();
            raw("[");
            number(family);
            number(kinds[kind]);
            raw("]");
            close(fd);
        }
    close_list();
    list_interfaces();
    list_routes();
    list_engine_sockets();
    put("tried", tried);
    finish(1);
    return 0;
}

static int try_vsock(void) {
    static const int kinds[] = {SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET};
    open_list("opened");
    for (size_t kind = 0; kind < sizeof kinds / sizeof *kinds; kind++) {
        int fd = socket(AF_VSOCK, kinds[kind], 0);
        if (fd >= 0) number(kinds[kind]);
        close(fd);
    }
    close_list();
    put("device", opens("/dev/vsock", O_RDONLY));
    finish(1);
    return 0;
}

/* A mount point as /proc/self/mounts spells it: blanks and the like are \ and three octal digits. */
static void unescape(char *text) {
    char *to = text;
    for (; *text; text++)
        if (*text == '\\' && text[1] && text[2] && text[3]) {
            *to++ = (char)((text[1] - '0') * 64 + (text[2] - '0') * 8 + (text[3] - '0'));
            text += 3;
        } else {
            *to++ = *text;
        }
    *to = 0;
}

static long try_mounts(void) {
    static char text[1 << 16];
    long tried = 0;
    int fd = open("/proc/self/mounts", O_RDONLY);
    ssize_t size = 0, more;
    while (fd >= 0 && (more = read(fd, text + size, sizeof text - 1 - (size_t)size)) > 0) size += more;
    close(fd);
    text[size] = 0;
    for (char *line = text; *line; tried++) {
        char *next = strchr(line, '\n'), *place = strchr(line, ' '), *end = place ? strchr(place + 1, ' ') : 0;
        if (end) {
            *end = 0;
            unescape(place + 1);
            try_to_write(place + 1);
        }
        if (!next) break;
        line = next + 1;
    }
    return tried;
}

/* Every node that can be opened, but for those that are in each container and lead nowhere. */
static long try_devices(void) {
    static const char harmless[] = " null zero full random urandom tty ptmx console ";
    long tried = 0;
    DIR *folder = opendir("/dev");
    for (struct dirent *entry; folder && (entry = readdir(folder)); tried++) {
        char path[300] = "/dev/", word[300] = " ";
        struct stat node;
        strcat(strcat(word, entry->d_name), " ");
        strcat(path, entry->d_name);
        if (strstr(harmless, word) || lstat(path, &node) || !(S_ISCHR(node.st_mode) || S_ISBLK(node.st_mode))) continue;
        /* Opening a watchdog starts it: that it may be opened is enough. */
        if (!strncmp(entry->d_name, "watchdog", 8) ? !access(path, W_OK) : opens(path, O_RDWR | O_NOCTTY)) item(path);
    }
    if (folder) closedir(folder);
    return tried;
}

/* Of the places that may be written because they are memory, those that are. */
static void list_memory(void) {
    static const char *const places[] = {"/tmp", "/var/tmp", "/dev/shm"};
    struct statfs system;
    open_list("in_memory");
    for (size_t place = 0; place < sizeof places / sizeof *places; place++)
        if (!statfs(places[place], &system) && system.f_type == 0x01021994) item(places[place]);
    close_list();
}

static int try_outside(void) {
    static const char *const places[] = {
        "/", "/bin", "/etc", "/usr", "/lib", "/var", "/root", "/home", "/input", "/proc", "/proc/sys",
        "/proc/sys/kernel", "/sys", "/sys/fs/cgroup", "/sys/kernel", "/dev", "/proc/sysrq-trigger",
        "/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe", "/proc/sys/vm/drop_caches", "/proc/kcore",
        "/sys/kernel/uevent_helper", "/sys/power/state", "/output", "/checkpoint", "/run", "/tmp", "/dev/shm", "/var/tmp",
    };
    long tried = sizeof places / sizeof *places;
    open_list("written");
    for (long place = 0; place < tried; place++) try_to_write(places[place]);
    tried += try_mounts();
    close_list();
    list_memory();
    open_list("devices");
    tried += try_devices();
    close_list();
    deface_input();
    put("tried", tried);
    finish(1);
    return 0;
}

static int fork_until_refused(long children_max) {
    static pid_t children[4096];
    long count = 0;
    int refusal = 0;
    if (children_max > 4096) children_max = 4096;
    while (count < children_max) {
        pid_t child = fork();
        if (child < 0) {
            refusal = errno;
            break;
        }
        if (!child)
            for (;;) pause();
        children[count++] = child;
    }
    for (long at = 0; at < count; at++) kill(children[at], SIGKILL);
    while (wait(0) > 0) {
    }
    put("children", count);
    put("errno", refusal);
    finish(1);
    return 0;
}

/* Two children, of two children each, of two children each: all in sessions of their own, none of them listening. */
static int be_stubborn(void) {
    for (int number = 1; number < NSIG; number++) signal(number, SIG_IGN);
    for (int depth = 0; depth < 3; depth++)
        for (int twin = 0; twin < 2; twin++)
            if (!fork()) {
                setsid();
                break;
            } else if (twin) {
                depth = 3;
            }
    touch("/output/ready");
    for (;;) pause();
}

/* --- privileges: each call in a child, so that one which succeeds changes nothing for the next --------------------- */

static char zeros[256];

static long set_user(void) { return setuid(0); }
static long set_group(void) { return setgid(0); }
static long mount_tmpfs(void) { return syscall(SYS_mount, "none", "/tmp", "tmpfs", 0, 0); }
static long unmount(void) { return syscall(SYS_umount2, "/proc", 2); }
static long change_root(void) { return syscall(SYS_chroot, "/"); }
static long pivot(void) { return syscall(SYS_pivot_root, "/", "/"); }
static long make_node(void) { return mknod("/tmp/" MARK, S_IFCHR | 0600, 0x101); }
static long trace(void) { return syscall(SYS_ptrace, 0, 0, 0, 0); }
static long read_process(void) { return syscall(SYS_process_vm_readv, getppid(), 0, 0, 0, 0, 0); }
static long key_ring(void) { return syscall(SYS_keyctl, 0, -3, 0, 0, 0); }
static long add_a_key(void) { return syscall(SYS_add_key, "user", MARK, "x", 1, -2); }
static long io_uring(void) { return syscall(SYS_io_uring_setup, 1, zeros); }
static long new_user_namespace(void) { return unshare(CLONE_NEWUSER); }
static long new_mount_namespace(void) { return unshare(CLONE_NEWNS); }
static long enter_namespace(void) { return syscall(SYS_setns, open("/proc/self/ns/net", O_RDONLY), 0); }
static long load_bpf(void) { return syscall(SYS_bpf, 0, zeros, 48); }
static long fault_handler(void) { return syscall(SYS_userfaultfd, 1); }
static long kernel_log(void) { return syscall(SYS_syslog, 3, zeros, 16); }
static long load_module(void) { return syscall(SYS_init_module, zeros, 0, ""); }
static long load_kernel(void) { return syscall(SYS_kexec_load, 0, 0, 0, 0); }
static long open_handle(void) { return syscall(SYS_open_by_handle_at, -1, zeros, 0); }
static long no_randomised_addresses(void) { return syscall(SYS_personality, 0x40000); }
static long set_clock(void) { return syscall(SYS_settimeofday, 0, 0); }

static long clone_user_namespace(void) {
    long child = syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0);
    if (!child) _exit(0);
    return child;
}

static long measure_performance(void) {
    struct perf_event_attr what = {.type = PERF_TYPE_SOFTWARE, .size = sizeof what, .config = PERF_COUNT_SW_CPU_CLOCK};
    what.exclude_kernel = 1;
    return syscall(SYS_perf_event_open, &what, 0, -1, -1, 0);
}

static const struct {
    const char *name;
    long (*call)(void);
} privileges[] = {
    {"setuid", set_user}, {"setgid", set_group}, {"mount", mount_tmpfs}, {"umount", unmount}, {"chroot", change_root},
    {"pivot_root", pivot}, {"mknod", make_node}, {"ptrace", trace}, {"process_vm_readv", read_process},
    {"keyctl", key_ring}, {"add_key", add_a_key}, {"io_uring_setup", io_uring},
    {"unshare(CLONE_NEWUSER)", new_user_namespace}, {"unshare(CLONE_NEWNS)", new_mount_namespace},
    {"clone(CLONE_NEWUSER)", clone_user_namespace}, {"setns", enter_namespace}, {"bpf", load_bpf},
    {"perf_event_open", measure_performance}, {"userfaultfd", fault_handler}, {"syslog", kernel_log},
    {"init_module", load_module}, {"kexec_load", load_kernel}, {"open_by_handle_at", open_handle},
    {"personality", no_randomised_addresses}, {"settimeofday", set_clock},
};

/* 0: it succeeded; else the errno with which it failed; -1: not tried. */
static int try_call(long (*call)(void)) {
    int status;
    pid_t child = fork();
    if (!child) _exit(call() >= 0 ? 0 : errno);
    if (child < 0 || waitpid(child, &status, 0) != child || !WIFEXITED(status)) return -1;
    return WEXITSTATUS(status);
}

static void copy_status(void) {
    char text[4096];
    int fd = open("/proc/self/status", O_RDONLY);
    ssize_t size = fd >= 0 ? read(fd, text, sizeof text - 1) : 0;
    close(fd);
    text[size > 0 ? size : 0] = 0;
    key("status");
    raw("{");
    for (char *line = strtok(text, "\n"); line; line = strtok(0, "\n")) {
        char *value = strchr(line, ':');
        if (!value || (strncmp(line, "Cap", 3) && strncmp(line, "Seccomp:", 8) && strncmp(line, "NoNewPrivs", 10)))
            continue;
        *value++ = 0;
        key(line);
        quoted(value + strspn(value, " \t"));
    }
    raw("}");
}

static int try_privileges(void) {
    put("uid", getuid());
    put("gid", getgid());
    put("groups", getgroups(0, 0));
    copy_status();
    key("calls");
    raw("{");
    for (size_t at = 0; at < sizeof privileges / sizeof *privileges; at++)
        put(privileges[at].name, try_call(privileges[at].call));
    raw("}");
    finish(1);
    return 0;
}

static int try_here(const char *name, long argument) {
    if (!strcmp(name, "net")) return try_network();
    if (!strcmp(name, "vsock")) return try_vsock();
    if (!strcmp(name, "write-outside")) return try_outside();
    if (!strcmp(name, "fork")) return fork_until_refused(argument);
    if (!strcmp(name, "privilege")) return try_privileges();
    if (!strcmp(name, "stubborn")) return be_stubborn();
    return -1;
}
#endif

int main(int count, char **words) {
    const char *name = count > 1 ? words[1] : "";
    long argument = count > 2 ? strtol(words[2], 0, 10) : 0, seconds = count > 3 ? strtol(words[3], 0, 10) : 0;
#ifndef __wasi__
    signal(SIGXFSZ, SIG_IGN);
#endif
    raw("{");
    key("probe");
    quoted(name);
    if (!strcmp(name, "memory")) return fill_memory(argument);
    if (!strcmp(name, "disk")) return fill_disk(argument, seconds);
    if (!strcmp(name, "files")) return make_files(argument, seconds);
    if (!strcmp(name, "log")) return flood_log(argument);
    if (!strcmp(name, "spin")) return spin();
    if (!strcmp(name, "tricks")) return make_tricks();
    if (!strcmp(name, "look")) return look_around();
    if (!strcmp(name, "exit")) return (int)argument;
    int status = try_here(name, argument);
    if (status < 0) write_all(2, "unknown probe\n", 14);
    return status < 0 ? 64 : status;
}
