/* A process that says numbered lines, remembers how many it has said, and ends with a code that is known before.
 *
 *     teller CODE LIFETIME_MS INTERVAL_MS [FILE]
 *
 * Line n is "line n" and text up to a hundred bytes, by one write(2). FILE has the number of the last line that was
 * written whole, in decimal. It ends with CODE when told by SIGTERM, or after LIFETIME_MS if that is not 0.
 */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static long now_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static void nothing(int signal) { (void)signal; }

int main(int argc, char **argv) {
    int code = atoi(argv[1]);
    long lifetime = atol(argv[2]), interval = atol(argv[3]), end = now_ms() + lifetime;
    int count = argc > 4 ? open(argv[4], O_WRONLY | O_CREAT | O_CLOEXEC, 0644) : -1;
    struct sigaction handling = {.sa_handler = nothing}; /* the first process of a namespace gets no others */
    sigset_t term;
    sigemptyset(&term);
    sigaddset(&term, SIGTERM);
    sigprocmask(SIG_BLOCK, &term, NULL);
    sigaction(SIGTERM, &handling, NULL);
    for (long number = 1;; number++) {
        char line[101];
        int length = snprintf(line, sizeof line, "line %ld ", number);
        memset(line + length, 'x', sizeof line - 1 - length);
        line[99] = '\n';
        for (int done = 0; done < 100;) {
            ssize_t written = write(1, line + done, 100 - done);
            if (written < 0)
                return 255;
            done += written;
        }
        length = snprintf(line, sizeof line, "%ld", number);
        if (count >= 0 && pwrite(count, line, length, 0) != length)
            return 254;
        long left = lifetime ? end - now_ms() : interval;
        if (left <= 0 && lifetime)
            return code;
        if (left > interval)
            left = interval;
        struct timespec pause = {left / 1000, left % 1000 * 1000000};
        if (sigtimedwait(&term, NULL, &pause) == SIGTERM)
            return code;
    }
}
