/* Connections that speak WebSocket (RFC 6455), as a client or as a server; TLS for servers with -DTLS. */
#ifndef WIRE_H
#define WIRE_H

#include <stddef.h>
#include <stdint.h>

enum role { LISTENER, CLIENT, SERVER };
enum state { HTTP_HANDSHAKE, OPEN, CLOSING, GONE };
enum opcode { CONTINUATION = 0, TEXT = 1, BINARY = 2, CLOSE = 8, PING = 9, PONG = 10 };

#define MESSAGE_MAX 8192 /* of a handshake, a text or a control frame; audio is not collected */

struct conn {
    int fd;
    unsigned serial;
    enum role role;
    enum state state;
    void *tls;
    /* the frame that is being read */
    uint8_t head[14];
    int head_length;
    int in_payload;
    uint64_t left;
    uint32_t mask_at;
    uint8_t mask[4];
    enum opcode opcode;  /* of this frame */
    enum opcode message; /* of the message that it is part of */
    char *text;          /* MESSAGE_MAX + 1 bytes */
    size_t text_length;
    /* what the socket did not take yet */
    uint8_t *out;
    size_t out_length, out_room;
    void *owner;
};

/* Given by the program */
void on_open(struct conn *);                          /* both sides have shaken hands */
void on_audio(struct conn *, const uint8_t *, size_t); /* a part of a binary message, unmasked */
void on_text(struct conn *, const char *, size_t);     /* a whole one; ends in a NUL as well */
void on_close(struct conn *, int code);               /* 1006: without a close frame; called once */

uint64_t now_ns(void); /* CLOCK_MONOTONIC */
int wire_listen(int epoll, uint16_t port, const char *cert, const char *key);
struct conn *wire_connect(int epoll, const char *host, uint16_t port, const char *path);
void wire_event(struct conn *, uint32_t events);
void wire_send(struct conn *, enum opcode, const void *, size_t);
void wire_close(struct conn *, int code); /* sends a close frame */
void wire_half_close(struct conn *);      /* sends FIN */
void wire_reset(struct conn *);           /* sends RST */

#endif
