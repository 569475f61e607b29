/* A crowd of parked streams, so light that it does not limit what is measured (bench/crowds.py).
 *
 *     crowd PORT FIRST TEMPLATE
 *
 * FIRST is what ends the first part of an answer, after which a stream counts as parked. TEMPLATE is
 * the file with the request; in it CLIENT! stands for the stream's number as 32 hexadecimal digits,
 * USER! for its number. Every message has one `~`. One command a line comes in, one line goes out:
 *
 *     size N       open or close streams until there are N     sized N
 *     idle N       the same for streams that nobody reads      idled N
 *     reach T      wait until T messages have come             reached COUNT NANOSECONDS
 *     watch T      the same, with the arrival of every piece   reached COUNT NANOSECONDS…
 *
 * Times are of CLOCK_MONOTONIC. What must not happen ends the program with `failed` and a reason.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

/* After it has looked, so that messages seldom find it asleep: to wake a process on another core
 * costs the sender more than to send, on a virtual machine, and it is no part of serving clients
 * elsewhere. It is the most by which an arrival is noticed late. */
static const struct timespec PAUSE = {.tv_nsec = 50 * 1000};

enum { MAX_STREAMS = 1 << 17, OPENING = 64, EVENTS = 512, REQUEST = 8192, BUFFER = 1 << 18 };

/* The streams that are read come first, then those that are not; each group grows at its end. */
struct group {
    int *sockets;
    bool *parked;
    int size, wanted, waiting;
};

static struct group readers, idlers;
static int *owner; /* a socket's number in its group; the idle ones are counted from MAX_STREAMS */
static int epoll;
static uint16_t port;
static const char *first;
static char template[REQUEST];
static uint64_t messages, target, *arrivals;
static size_t arrived, room;
static int64_t last;
static bool reaching, watching;

static void fail(const char *format, ...) {
    va_list values;
    va_start(values, format);
    printf("failed ");
    vprintf(format, values);
    printf("\n");
    fflush(stdout);
    exit(1);
}

static int64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * INT64_C(1000000000) + time.tv_nsec;
}

static size_t request(char *into, int number) {
    char *end = into;
    for (const char *at = template; *at;) {
        if (strncmp(at, "CLIENT!", 7) == 0) {
            end += sprintf(end, "%032x", number);
            at += 7;
        } else if (strncmp(at, "USER!", 5) == 0) {
            end += sprintf(end, "%d", number);
            at += 5;
        } else {
            *end++ = *at++;
        }
    }
    return end - into;
}

static void open_stream(struct group *group) {
    bool idle = group == &idlers;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    /* Closing resets: ten thousand sockets in TIME_WAIT would be in the next scenario's way. */
    struct linger reset = {1, 0};
    int number = group->size;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || number >= MAX_STREAMS || fd >= 2 * MAX_STREAMS)
        fail("no more sockets: %s", strerror(errno));
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
    if (connect(fd, (struct sockaddr *)&address, sizeof address) < 0)
        fail("a stream did not connect: %s", strerror(errno));
    fcntl(fd, F_SETFL, O_NONBLOCK);
    char text[2 * REQUEST];
    size_t length = request(text, (idle ? MAX_STREAMS : 1) + number);
    if (send(fd, text, length, MSG_NOSIGNAL) != (ssize_t)length)
        fail("a request was not taken: %s", strerror(errno));
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
    epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
    group->sockets[number] = fd;
    group->parked[number] = false;
    owner[fd] = idle ? MAX_STREAMS + number : number;
    group->size++;
    group->waiting++;
}

/* Open and close as asked for, and say so when it is done. */
static void resize(struct group *group) {
    if (group->wanted < 0)
        return;
    while (group->size > group->wanted)
        close(group->sockets[--group->size]);
    while (group->size < group->wanted && group->waiting < OPENING)
        open_stream(group);
    if (group->size == group->wanted && group->waiting == 0) {
        printf("%s %d\n", group == &idlers ? "idled" : "sized", group->size);
        group->wanted = -1;
    }
}

static void receive(int fd) {
    static char data[BUFFER + 1];
    bool idle = owner[fd] >= MAX_STREAMS;
    struct group *group = idle ? &idlers : &readers;
    int number = owner[fd] % MAX_STREAMS;
    ssize_t length = recv(fd, data, BUFFER, 0);
    if (length < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (length <= 0)
        fail("a stream ended: %s", length ? strerror(errno) : "closed");
    data[length] = 0;
    if (!group->parked[number]) {
        if (strncmp(data, "HTTP/", 5) == 0 && strncmp(data + 8, " 200 ", 5) != 0)
            fail("a stream was answered with %.60s", data);
        if (strstr(data, first) != NULL) {
            group->parked[number] = true;
            group->waiting--;
            if (idle) /* from here on nobody reads it */
                epoll_ctl(epoll, EPOLL_CTL_DEL, fd, NULL);
        }
    }
    if (idle)
        return;
    uint64_t before = messages;
    for (char *at = data; (at = memchr(at, '~', data + length - at)) != NULL; at++)
        messages++;
    if (messages > before) {
        last = now();
        if (watching) {
            if (arrived == room)
                arrivals = realloc(arrivals, (room = 2 * room + 1024) * sizeof *arrivals);
            arrivals[arrived++] = last;
        }
    }
}

static void report(void) {
    if (!reaching || messages < target)
        return;
    printf("reached %" PRIu64, messages);
    if (watching)
        for (size_t at = 0; at < arrived; at++)
            printf(" %" PRIu64, arrivals[at]);
    else
        printf(" %" PRId64, last);
    printf("\n");
    reaching = watching = false;
    arrived = 0;
}

static void obey(const char *line) {
    char word[16];
    uint64_t number;
    if (sscanf(line, "%15s %" SCNu64, word, &number) != 2)
        fail("not understood: %s", line);
    if (strcmp(word, "size") == 0)
        readers.wanted = number;
    else if (strcmp(word, "idle") == 0)
        idlers.wanted = number;
    else if (strcmp(word, "reach") == 0 || strcmp(word, "watch") == 0) {
        target = number;
        reaching = true;
        watching = word[0] == 'w';
    } else
        fail("not understood: %s", line);
}

/* Take commands as they come, whole lines only; whether there may be more. */
static bool commands(void) {
    static char line[256];
    static size_t length;
    ssize_t got = read(STDIN_FILENO, line + length, sizeof line - 1 - length);
    if (got <= 0)
        return false;
    length += got;
    line[length] = 0;
    for (char *end; (end = strchr(line, '\n')) != NULL;) {
        *end = 0;
        obey(line);
        length -= end + 1 - line;
        memmove(line, end + 1, length + 1);
    }
    return true;
}

static struct group new_group(void) {
    struct group group = {.wanted = -1};
    group.sockets = calloc(MAX_STREAMS, sizeof *group.sockets);
    group.parked = calloc(MAX_STREAMS, sizeof *group.parked);
    return group;
}

int main(int count, char **arguments) {
    if (count != 4)
        fail("usage: crowd PORT FIRST TEMPLATE");
    port = atoi(arguments[1]);
    first = arguments[2];
    FILE *file = fopen(arguments[3], "r");
    if (file == NULL || fread(template, 1, REQUEST - 1, file) == 0)
        fail("no template: %s", strerror(errno));
    fclose(file);
    readers = new_group();
    idlers = new_group();
    owner = calloc(2 * MAX_STREAMS, sizeof *owner);
    epoll = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event input = {.events = EPOLLIN, .data.fd = STDIN_FILENO};
    epoll_ctl(epoll, EPOLL_CTL_ADD, STDIN_FILENO, &input);
    for (;;) {
        struct epoll_event events[EVENTS];
        int ready = epoll_wait(epoll, events, EVENTS, -1);
        for (int at = 0; at < ready; at++) {
            if (events[at].data.fd != STDIN_FILENO)
                receive(events[at].data.fd);
            else if (!commands())
                return 0;
        }
        resize(&readers);
        resize(&idlers);
        report();
        fflush(stdout);
        if (reaching)
            nanosleep(&PAUSE, NULL);
    }
}
