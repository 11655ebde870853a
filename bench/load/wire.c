#define _GNU_SOURCE
#include "wire.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
#ifdef TLS
#include <openssl/err.h>
#include <openssl/ssl.h>
static SSL_CTX *tls_context;
#endif

static int epoll_fd;
static uint8_t received[1 << 18];
static uint64_t random_state = 88172645463325252ull;

uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000ull + now.tv_nsec;
}

static void die(const char *what) {
    perror(what);
    exit(1);
}

static uint32_t random32(void) { /* xorshift64: masks here must be different, not secret */
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state >> 16;
}

/* SHA-1 (RFC 3174) of less than 120 bytes: Sec-WebSocket-Accept needs no more. */

static uint32_t roll(uint32_t x, int n) { return x << n | x >> (32 - n); }

static void sha1(const char *text, size_t length, uint8_t digest[20]) {
    uint32_t h[5] = {0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476, 0xc3d2e1f0};
    uint8_t block[128] = {0};
    int blocks = length < 56 ? 1 : 2;
    memcpy(block, text, length);
    block[length] = 0x80;
    block[blocks * 64 - 2] = length >> 5;
    block[blocks * 64 - 1] = length << 3;
    for (int b = 0; b < blocks; b++) {
        uint32_t w[80], a = h[0], bb = h[1], c = h[2], d = h[3], e = h[4];
        for (int i = 0; i < 16; i++) {
            const uint8_t *p = block + 64 * b + 4 * i;
            w[i] = (uint32_t)p[0] << 24 | p[1] << 16 | p[2] << 8 | p[3];
        }
        for (int i = 16; i < 80; i++) w[i] = roll(w[i - 3] ^ w[i - 8] ^ w[i - 14] ^ w[i - 16], 1);
        for (int i = 0; i < 80; i++) {
            uint32_t f = i < 20   ? ((bb & c) | (~bb & d)) + 0x5a827999
                         : i < 40 ? (bb ^ c ^ d) + 0x6ed9eba1
                         : i < 60 ? ((bb & c) | (bb & d) | (c & d)) + 0x8f1bbcdc
                                  : (bb ^ c ^ d) + 0xca62c1d6;
            uint32_t t = roll(a, 5) + f + e + w[i];
            e = d, d = c, c = roll(bb, 30), bb = a, a = t;
        }
        h[0] += a, h[1] += bb, h[2] += c, h[3] += d, h[4] += e;
    }
    for (int i = 0; i < 20; i++) digest[i] = h[i / 4] >> (24 - i % 4 * 8);
}

static void base64_of_20(const uint8_t in[20], char out[29]) {
    static const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    uint8_t padded[21] = {0};
    memcpy(padded, in, 20);
    for (int i = 0, o = 0; i < 21; i += 3) {
        uint32_t three = padded[i] << 16 | padded[i + 1] << 8 | padded[i + 2];
        for (int shift = 18; shift >= 0; shift -= 6) out[o++] = letters[three >> shift & 63];
    }
    out[27] = '=';
    out[28] = 0;
}

/* Sockets */

static void watch(struct conn *c, int operation, uint32_t events) {
    struct epoll_event event = {.events = events, .data.ptr = c};
    if (epoll_ctl(epoll_fd, operation, c->fd, &event)) die("load: epoll_ctl");
}

static struct conn *adopt(int fd, enum role role) {
    static unsigned serial;
    struct conn *c = calloc(1, sizeof *c);
    int one = 1;
    *c = (struct conn){.fd = fd, .serial = ++serial, .role = role, .state = HTTP_HANDSHAKE};
    c->text = malloc(MESSAGE_MAX + 1);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    fcntl(fd, F_SETFL, O_NONBLOCK);
    watch(c, EPOLL_CTL_ADD, EPOLLIN);
    return c;
}

static void gone(struct conn *c, int code) {
    if (c->state == GONE) return;
    c->state = GONE;
#ifdef TLS
    if (c->tls) SSL_free(c->tls);
    c->tls = NULL;
#endif
    close(c->fd);
    free(c->out);
    c->out = NULL;
    on_close(c, code);
}

/* Bytes moved; 0: not now; -1: the connection is over. */
static ssize_t move(struct conn *c, void *data, size_t length, int writing) {
#ifdef TLS
    if (c->tls) {
        ERR_clear_error();
        int moved = writing ? SSL_write(c->tls, data, length) : SSL_read(c->tls, data, length);
        if (moved > 0) return moved;
        int error = SSL_get_error(c->tls, moved);
        return error == SSL_ERROR_WANT_READ || error == SSL_ERROR_WANT_WRITE ? 0 : -1;
    }
#endif
    ssize_t moved = writing ? send(c->fd, data, length, MSG_NOSIGNAL) : recv(c->fd, data, length, 0);
    if (moved > 0) return moved;
    return moved < 0 && errno == EAGAIN ? 0 : -1;
}

static void put(struct conn *c, const void *data, size_t length) {
    if (c->state == GONE) return;
    if (!c->out_length) {
        ssize_t moved = move(c, (void *)data, length, 1);
        if (moved < 0) return; /* reading will find out, and what is there can still be read */
        data = (const uint8_t *)data + moved;
        length -= moved;
        if (!length) return;
        watch(c, EPOLL_CTL_MOD, EPOLLIN | EPOLLOUT);
    }
    if (c->out_length + length > c->out_room) {
        c->out_room = 2 * (c->out_length + length);
        c->out = realloc(c->out, c->out_room);
    }
    memcpy(c->out + c->out_length, data, length);
    c->out_length += length;
}

static void flush(struct conn *c) {
    ssize_t moved = c->out_length ? move(c, c->out, c->out_length, 1) : 0;
    if (moved < 0) moved = c->out_length;
    c->out_length -= moved;
    memmove(c->out, c->out + moved, c->out_length);
    if (!c->out_length) watch(c, EPOLL_CTL_MOD, EPOLLIN);
}

/* Frames */

static void mask(uint8_t *data, size_t length, const uint8_t key[4], uint32_t at) {
    uint8_t turned[8];
    uint64_t wide, word;
    for (int i = 0; i < 8; i++) turned[i] = key[(at + i) & 3];
    memcpy(&wide, turned, 8);
    size_t i = 0;
    for (; i + 8 <= length; i += 8) {
        memcpy(&word, data + i, 8);
        word ^= wide;
        memcpy(data + i, &word, 8);
    }
    for (; i < length; i++) data[i] ^= turned[i & 7];
}

void wire_send(struct conn *c, enum opcode opcode, const void *payload, size_t length) {
    uint8_t frame[MESSAGE_MAX + 14], *p = frame;
    if ((c->state != OPEN && opcode != CLOSE) || length > MESSAGE_MAX) return;
    int masked = c->role == CLIENT ? 0x80 : 0;
    *p++ = 0x80 | opcode;
    if (length < 126) {
        *p++ = masked | length;
    } else {
        *p++ = masked | 126;
        *p++ = length >> 8;
        *p++ = length;
    }
    if (masked) {
        uint32_t key = random32();
        memcpy(p, &key, 4);
        p += 4;
    }
    memcpy(p, payload, length);
    if (masked) mask(p, length, p - 4, 0);
    put(c, frame, p - frame + length);
}

void wire_close(struct conn *c, int code) {
    uint8_t payload[2] = {code >> 8, code};
    if (c->state != OPEN) return;
    wire_send(c, CLOSE, payload, 2);
    c->state = CLOSING;
}

void wire_half_close(struct conn *c) {
    if (c->state != GONE) shutdown(c->fd, SHUT_WR);
}

void wire_reset(struct conn *c) {
    struct linger linger = {1, 0};
    if (c->state == GONE) return;
    setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger);
    gone(c, 1006);
}

static void frame_done(struct conn *c) {
    int final = c->head[0] & 0x80;
    c->text[c->text_length] = 0;
    if (c->opcode == CLOSE) {
        int code = c->text_length >= 2 ? (uint8_t)c->text[0] << 8 | (uint8_t)c->text[1] : 1005;
        if (c->state == OPEN) wire_send(c, CLOSE, c->text, c->text_length);
        c->state = CLOSING;
        if (c->role == SERVER) /* the server closes first (RFC 6455 7.1.1) */
            gone(c, code);
        else
            on_close(c, code);
    } else if (c->opcode == PING) {
        wire_send(c, PONG, c->text, c->text_length);
    } else if (c->opcode != PONG && c->message == TEXT && final) {
        on_text(c, c->text, c->text_length);
    } else if (c->opcode != PONG && c->message == TEXT) {
        return; /* more of it comes */
    }
    c->text_length = 0;
}

static void header_done(struct conn *c) {
    const uint8_t *p = c->head + 2;
    c->opcode = c->head[0] & 15;
    if (c->opcode == TEXT || c->opcode == BINARY) c->message = c->opcode;
    c->left = c->head[1] & 127;
    if (c->left >= 126) {
        int bytes = c->left == 126 ? 2 : 8;
        for (c->left = 0; bytes--; p++) c->left = c->left << 8 | *p;
    }
    memset(c->mask, 0, 4);
    if (c->head[1] & 0x80) memcpy(c->mask, p, 4);
    c->mask_at = 0;
    c->head_length = 0;
    c->in_payload = 1;
}

static void frames(struct conn *c, uint8_t *data, size_t length) {
    while (c->state != GONE && (length || (c->in_payload && !c->left))) {
        if (!c->in_payload) {
            c->head[c->head_length++] = *data++;
            length--;
            if (c->head_length < 2) continue;
            int size = c->head[1] & 127;
            int needed = 2 + (size == 126 ? 2 : size == 127 ? 8 : 0) + (c->head[1] & 0x80 ? 4 : 0);
            if (c->head_length == needed) header_done(c);
            continue;
        }
        size_t part = c->left < length ? c->left : length;
        if (c->head[1] & 0x80) mask(data, part, c->mask, c->mask_at);
        c->mask_at = (c->mask_at + part) & 3;
        if (c->opcode < CLOSE && c->message == BINARY) {
            on_audio(c, data, part);
        } else {
            size_t room = MESSAGE_MAX - c->text_length, kept = part < room ? part : room;
            memcpy(c->text + c->text_length, data, kept);
            c->text_length += kept;
        }
        data += part;
        length -= part;
        c->left -= part;
        if (!c->left) {
            c->in_payload = 0;
            frame_done(c);
        }
    }
}

/* Handshakes */

static int answer(struct conn *c) {
    char text[128], accept[29], reply[512];
    uint8_t digest[20];
    char *key = strcasestr(c->text, "\r\nSec-WebSocket-Key:");
    if (!key) return 0;
    key += 20 + strspn(key + 20, " ");
    int length = snprintf(text, sizeof text, "%.24s258EAFA5-E914-47DA-95CA-C5AB0DC85B11", key);
    sha1(text, length, digest);
    base64_of_20(digest, accept);
    length = snprintf(reply, sizeof reply,
                      "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                      "Sec-WebSocket-Accept: %s\r\n"
                      "dg-request-id: 00000000-0000-4000-8000-%012x\r\n\r\n",
                      accept, c->serial);
    put(c, reply, length);
    return 1;
}

static void handshake(struct conn *c, const uint8_t *data, size_t length) {
    size_t room = MESSAGE_MAX - c->text_length, kept = length < room ? length : room;
    size_t before = c->text_length;
    memcpy(c->text + before, data, kept);
    c->text_length += kept;
    c->text[c->text_length] = 0;
    char *end = strstr(c->text, "\r\n\r\n");
    if (!end) {
        if (kept < length) gone(c, 1006);
        return;
    }
    end[4] = 0;
    int good = c->role == SERVER ? answer(c) : !strncmp(c->text, "HTTP/1.1 101", 12);
    if (!good) {
        fprintf(stderr, "load: no WebSocket: %.*s\n", (int)strcspn(c->text, "\r\n"), c->text);
        gone(c, 1006);
        return;
    }
    size_t used = end + 4 - c->text - before;
    c->text_length = 0;
    c->state = OPEN;
    on_open(c);
    frames(c, (uint8_t *)data + used, length - used);
}

static void accept_all(struct conn *listener) {
    int fd;
    while ((fd = accept(listener->fd, NULL, NULL)) >= 0) {
        struct conn *c = adopt(fd, SERVER);
#ifdef TLS
        if (tls_context) {
            c->tls = SSL_new(tls_context);
            SSL_set_fd(c->tls, fd);
            SSL_set_accept_state(c->tls);
        }
#else
        (void)c;
#endif
    }
}

void wire_event(struct conn *c, uint32_t events) {
    if (c->state == GONE) return; /* closed since the kernel said so */
    if (c->role == LISTENER) {
        accept_all(c);
        return;
    }
    if (events & EPOLLOUT) flush(c);
    for (;;) {
        ssize_t got = move(c, received, sizeof received, 0);
        if (got < 0) gone(c, 1006);
        if (got <= 0) return;
        if (c->state == HTTP_HANDSHAKE)
            handshake(c, received, got);
        else
            frames(c, received, got);
        if (c->state == GONE || !c->tls) return; /* epoll tells of the rest, but not of what TLS holds */
    }
}

int wire_listen(int epoll, uint16_t port, const char *cert, const char *key) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    socklen_t size = sizeof address;
    epoll_fd = epoll;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(fd, (void *)&address, sizeof address) || listen(fd, 4096)) die("load: --listen");
    if (cert) {
#ifdef TLS
        tls_context = SSL_CTX_new(TLS_server_method());
        SSL_CTX_set_mode(tls_context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
        SSL_CTX_set_session_cache_mode(tls_context, SSL_SESS_CACHE_OFF); /* every handshake is a whole one */
        SSL_CTX_set_num_tickets(tls_context, 0);
        if (SSL_CTX_use_certificate_chain_file(tls_context, cert) != 1 ||
            SSL_CTX_use_PrivateKey_file(tls_context, key, SSL_FILETYPE_PEM) != 1) {
            fprintf(stderr, "load: --cert, --key: not a certificate and its key\n");
            exit(2);
        }
#else
        (void)key;
        fprintf(stderr, "load: built without OpenSSL (libssl-dev): no TLS\n");
        exit(2);
#endif
    }
    struct conn *c = calloc(1, sizeof *c);
    *c = (struct conn){.fd = fd, .role = LISTENER, .state = OPEN};
    watch(c, EPOLL_CTL_ADD, EPOLLIN);
    getsockname(fd, (void *)&address, &size);
    return ntohs(address.sin_port);
}

struct conn *wire_connect(int epoll, const char *host, uint16_t port, const char *path) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    char request[1024];
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    epoll_fd = epoll;
    inet_pton(AF_INET, host, &address.sin_addr);
    if (fd < 0 || connect(fd, (void *)&address, sizeof address)) die("load: connect");
    struct conn *c = adopt(fd, CLIENT);
    int length = snprintf(request, sizeof request,
                          "GET %s HTTP/1.1\r\nHost: %s:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                          "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n",
                          path, host, port);
    put(c, request, length);
    return c;
}
