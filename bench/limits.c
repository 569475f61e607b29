/* The writes of a fan-out and nothing else (bench/limits.py). */
#include <stddef.h>
#include <sys/socket.h>

void fan_out(const int *sockets, int count, const void *frame, size_t length);

void fan_out(const int *sockets, int count, const void *frame, size_t length) {
    for (int at = 0; at < count; at++)
        send(sockets[at], frame, length, MSG_NOSIGNAL | MSG_DONTWAIT);
}
