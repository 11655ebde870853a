/* The least that a relay can do: bytes from one socket to the other, whatever they are.
 *
 * bare PORT UPSTREAM_PORT [BYTES]: BYTES on the client's side before it wakes up (SO_RCVLOWAT). */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

struct side {
    int fd, ended, is_upstream, answered;
    struct side *other;
};

static int epoll;
static int low_water;
static char buffer[1 << 16];

static struct side *side(int fd) {
    struct side *s = calloc(1, sizeof *s);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = s};
    int one = 1;
    s->fd = fd;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
    return s;
}

static void join(int client, int port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    int upstream = socket(AF_INET, SOCK_STREAM, 0);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (connect(upstream, (void *)&address, sizeof address)) {
        close(client);
        close(upstream);
        return;
    }
    struct side *a = side(client), *b = side(upstream);
    a->other = b;
    b->other = a;
    b->is_upstream = 1;
}

static void relay(struct side *s) {
    ssize_t got = recv(s->fd, buffer, sizeof buffer, MSG_DONTWAIT);
    if (got > 0) {
        send(s->other->fd, buffer, got, MSG_NOSIGNAL); /* waits, if it must: nothing may be lost */
        if (low_water && s->is_upstream && !s->answered) { /* not before: the client's request is shorter */
            s->answered = 1;
            setsockopt(s->other->fd, SOL_SOCKET, SO_RCVLOWAT, &low_water, sizeof low_water);
        }
    } else if (!got || errno != EAGAIN) {
        epoll_ctl(epoll, EPOLL_CTL_DEL, s->fd, NULL);
        shutdown(s->other->fd, SHUT_WR);
        s->ended = 1;
        if (s->other->ended) { /* their memory is not worth the care: calls end when the program does */
            close(s->fd);
            close(s->other->fd);
        }
    }
}

int main(int argc, char **argv) {
    struct epoll_event events[256];
    struct sockaddr_in address = {.sin_family = AF_INET};
    int one = 1, listener = socket(AF_INET, SOCK_STREAM, 0);
    if (argc < 3) return fprintf(stderr, "usage: bare PORT UPSTREAM_PORT [BYTES]\n"), 2;
    low_water = argc > 3 ? atoi(argv[3]) : 0;
    signal(SIGPIPE, SIG_IGN);
    epoll = epoll_create1(0);
    address.sin_port = htons(atoi(argv[1]));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (void *)&address, sizeof address) || listen(listener, 4096)) return perror("bare"), 1;
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
    epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event);
    for (;;) {
        int n = epoll_wait(epoll, events, 256, -1);
        for (int i = 0; i < n; i++) {
            if (events[i].data.ptr) {
                relay(events[i].data.ptr);
            } else {
                int client = accept(listener, NULL, NULL);
                if (client >= 0) join(client, atoi(argv[2]));
            }
        }
    }
}
