/* Softphones and a Deepgram in one thread: what a relay between them costs and delays.
 *
 * See bench/README.md. Says `MARK name` at the turns of a run, at last one line of JSON. */
#define _GNU_SOURCE
#include "wire.h"

#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#define MS 1000000ull
#define SECOND 1000000000ull
#define PERIOD (20 * MS)
#define FRAME 160 /* bytes: 20 ms of G.711 */
#define RATE 8000
#define MAGIC 0x9e3779b97f4a7c15ull
#define IN_FLIGHT 32     /* handshakes at a time */
#define FINAL_EVERY 8    /* results */
#define GIVE_UP (30 * SECOND) /* on calls that do not open */
#define DRAIN (700 * MS)
#define HANG_UP (500 * MS) /* over which the calls end */
#define LAST_WORDS (2 * SECOND)
#define BURST 1.0 /* seconds of audio that may come ahead of the pace */
#define MARKER "T~"

/* Latencies in ns, by steps of 3 % */

#define BINS (64 * 32)
struct histogram {
    uint64_t count, max, bins[BINS];
};

static int bin_of(uint64_t v) {
    if (v < 32) return v;
    int octave = 63 - __builtin_clzll(v);
    return (octave - 4) * 32 + (int)(v >> (octave - 5)) - 32;
}

static uint64_t top_of(int bin) { /* the largest value in it */
    if (bin < 32) return bin;
    return ((uint64_t)(bin % 32 + 33) << (bin / 32 - 1)) - 1;
}

static void observe(struct histogram *h, uint64_t v) {
    h->bins[bin_of(v)]++;
    h->count++;
    if (v > h->max) h->max = v;
}

static double quantile_ms(const struct histogram *h, double q) {
    uint64_t seen = 0, wanted = (uint64_t)(q * h->count);
    for (int i = 0; i < BINS; i++)
        if ((seen += h->bins[i]) > wanted) return (top_of(i) < h->max ? top_of(i) : h->max) / 1e6;
    return h->max / 1e6;
}

static void print_histogram(const char *name, const struct histogram *h) {
    printf("\"%s\": {\"count\": %llu, \"p50\": %.3f, \"p99\": %.3f, \"p9999\": %.3f, \"max\": %.3f, \"bins\": [",
           name, (unsigned long long)h->count, quantile_ms(h, 0.5), quantile_ms(h, 0.99), quantile_ms(h, 0.9999),
           h->max / 1e6);
    const char *comma = "";
    for (int i = 0; i < BINS; i++)
        if (h->bins[i]) {
            printf("%s[%.4f, %llu]", comma, top_of(i) / 1e6, (unsigned long long)h->bins[i]);
            comma = ", ";
        }
    printf("]}, ");
}

/* What a frame holds. `due` is when it should have left: a late sender delays nobody else's figures. */

struct frame {
    uint64_t magic;
    uint32_t session, number;
    uint64_t due;
    uint8_t audio[FRAME - 24];
};

struct upstream { /* one connection at the sink */
    struct conn *conn;
    int session; /* -1 until its first frame */
    uint64_t bytes, opened, skipped;
    double final_end; /* seconds of this connection's audio */
    int results;
    uint8_t partial[FRAME];
    size_t fill;
};

struct session {
    struct conn *client;
    struct upstream *upstream;
    uint32_t sent, next; /* frames sent; the frame that the sink waits for */
    uint32_t results_sent, results_got;
    int open, ended, over;
    uint32_t *seconds; /* bytes received in each second after the blackout */
    uint64_t caught_up; /* since the blackout */
};

static struct {
    int calls, seconds, warm_up, ramp, target, blackout, rate;
    const char *path, *cert, *key;
    int listen;
} options = {.calls = 50, .seconds = 4, .warm_up = 1, .ramp = 500, .rate = 3,
             .path = "/v1/listen?model=nova-3&encoding=mulaw&sample_rate=8000&interim_results=true"};

static struct session *sessions;
static int *order; /* sessions by their phase in the 20 ms */
static int opened, arrived, closed_early, running = 1;
static uint64_t window_from, window_to, blackout_at;
static struct histogram up, down, late;
static uint64_t received_frames, missing, repeated, crossed, skipped, reconnects;
static char noise[FRAME];

static int in_window(uint64_t due) { return due >= window_from && due < window_to; }

static void mark(const char *name) {
    printf("MARK %s\n", name);
    fflush(stdout);
}

/* The sink */

static void frame_received(struct upstream *u, const struct frame *f, uint64_t now) {
    if (f->session >= (uint32_t)options.calls) {
        crossed++;
        return;
    }
    struct session *s = &sessions[f->session];
    if (u->session < 0) {
        if (s->upstream) reconnects++;
        u->session = f->session;
        s->upstream = u;
    }
    if (u->session != (int)f->session) {
        crossed++;
        return;
    }
    if (s->seconds) s->seconds[(now - blackout_at) / SECOND] += FRAME;
    if (f->number < s->next) {
        repeated++;
        return;
    }
    missing += f->number - s->next;
    s->next = f->number + 1;
    received_frames++;
    if (in_window(f->due)) observe(&up, now > f->due ? now - f->due : 0);
    if (s->seconds && !s->caught_up && f->due > blackout_at && now - f->due < SECOND / 2)
        s->caught_up = now - blackout_at;
}

void on_audio(struct conn *c, const uint8_t *data, size_t length) {
    struct upstream *u = c->owner;
    uint64_t now = now_ns();
    if (!u) return;
    u->bytes += length;
    while (length) {
        size_t part = FRAME - u->fill < length ? FRAME - u->fill : length;
        memcpy(u->partial + u->fill, data, part);
        u->fill += part;
        data += part;
        length -= part;
        while (u->fill == FRAME) {
            const uint64_t magic = MAGIC;
            if (!memcmp(u->partial, &magic, 8)) {
                struct frame f;
                memcpy(&f, u->partial, FRAME);
                frame_received(u, &f, now);
                u->fill = 0;
            } else { /* a replay begins anywhere in a frame */
                u->fill--;
                u->skipped++;
                memmove(u->partial, u->partial + 1, u->fill);
                break;
            }
        }
    }
}

static const char *const WORDS[] = {"it", "was", "the", "best", "of", "times", "it", "was", "the", "worst"};
static const int SAID[8] = {10, 6, 8, 9, 7, 10, 6, 8}; /* words in each kind of result */

static void send_result(struct upstream *u, int final, uint64_t due) {
    char text[4096], tag[64];
    struct session *s = &sessions[u->session];
    double start = u->final_end, end = (double)u->bytes / RATE;
    int words = SAID[u->results % 8], n;
    double step = (end - start) / words;
    if (end <= start && !final) return;
    /* the last word: the first ones are cut off where a replay overlaps */
    snprintf(tag, sizeof tag, MARKER "%020llu~%u", (unsigned long long)due, (unsigned)u->session);
    n = snprintf(text, sizeof text,
                 "{\"type\":\"Results\",\"channel_index\":[0,1],\"duration\":%.6f,\"start\":%.6f,\"is_final\":%s,"
                 "\"speech_final\":%s,\"channel\":{\"alternatives\":[{\"transcript\":\"",
                 end - start, start, final ? "true" : "false", final ? "true" : "false");
    for (int i = 0; i < words - 1; i++) n += snprintf(text + n, sizeof text - n, "%s ", WORDS[i]);
    n += snprintf(text + n, sizeof text - n, "%s\",\"confidence\":0.98876953,\"words\":[", tag);
    for (int i = 0; i < words; i++) {
        const char *word = i == words - 1 ? tag : WORDS[i];
        n += snprintf(text + n, sizeof text - n,
                      "%s{\"word\":\"%s\",\"start\":%.3f,\"end\":%.3f,\"confidence\":0.9921875,"
                      "\"punctuated_word\":\"%s\"}",
                      i ? "," : "", word, start + step * i, start + step * (i + 1), word);
    }
    n += snprintf(text + n, sizeof text - n,
                  "]}]},\"metadata\":{\"request_id\":\"00000000-0000-4000-8000-%012x\",\"model_info\":{\"name\":"
                  "\"general-nova-3\",\"version\":\"2024-12-20.0\",\"arch\":\"nova-3\"},\"model_uuid\":"
                  "\"1ed36bac-f71c-4f3f-a31f-02fd6525c489\"},\"from_finalize\":false}",
                  u->conn->serial);
    wire_send(u->conn, TEXT, text, n);
    if (final) u->final_end = end;
    u->results++;
    s->results_sent++;
}

static void end_stream(struct upstream *u) {
    char text[512];
    if (u->session >= 0) send_result(u, 1, 0);
    int n = snprintf(text, sizeof text,
                     "{\"type\":\"Metadata\",\"transaction_key\":\"deprecated\",\"request_id\":\"00000000-0000-4000-"
                     "8000-%012x\",\"sha256\":\"%064d\",\"created\":\"2025-01-01T00:00:00.000Z\",\"duration\":%.6f,"
                     "\"channels\":1}",
                     u->conn->serial, 0, (double)u->bytes / RATE);
    wire_send(u->conn, TEXT, text, n);
    wire_close(u->conn, 1000);
}

static void cut_all(void) {
    blackout_at = now_ns();
    for (int i = 0; i < options.calls; i++) {
        struct session *s = &sessions[i];
        s->seconds = calloc(options.seconds + 600, sizeof *s->seconds);
        if (s->upstream) wire_reset(s->upstream->conn);
    }
}

/* Both sides */

void on_open(struct conn *c) {
    if (c->role == SERVER) {
        struct upstream *u = calloc(1, sizeof *u);
        *u = (struct upstream){.conn = c, .session = -1, .opened = now_ns()};
        c->owner = u;
        arrived++;
    } else {
        ((struct session *)c->owner)->open = 1;
        opened++;
    }
}

void on_text(struct conn *c, const char *text, size_t length) {
    if (c->role == SERVER) {
        if (c->owner && strstr(text, "CloseStream")) end_stream(c->owner);
        return;
    }
    struct session *s = c->owner;
    const char *marker = memmem(text, length, MARKER, strlen(MARKER));
    if (marker) {
        char *rest;
        uint64_t due = strtoull(marker + strlen(MARKER), &rest, 10), now = now_ns();
        if (strtoul(rest + 1, NULL, 10) != (unsigned long)(s - sessions)) crossed++;
        if (in_window(due)) observe(&down, now - due);
        s->results_got++;
    } else if (strstr(text, "\"Metadata\"")) {
        s->ended = 1;
    }
}

void on_close(struct conn *c, int code) {
    (void)code;
    if (c->role == SERVER) {
        if (c->owner) skipped += ((struct upstream *)c->owner)->skipped;
        return;
    }
    struct session *s = c->owner;
    if (!s->over && running) closed_early++;
    s->over = 1;
}

/* The softphones */

static void send_frame(struct session *s, uint64_t due, uint64_t now) {
    struct frame f = {.magic = MAGIC, .session = s - sessions, .number = s->sent, .due = due};
    if (s->over) return;
    memcpy(f.audio, noise, sizeof f.audio);
    wire_send(s->client, BINARY, &f, sizeof f);
    s->sent++;
    if (in_window(due)) observe(&late, now > due ? now - due : 0);
}

/* Time */

static int epoll;

static void wait_until(uint64_t at) {
    static struct epoll_event events[512];
    uint64_t now = now_ns();
    uint64_t left = at > now ? at - now : 0;
    struct timespec timeout = {left / SECOND, left % SECOND};
    int n = syscall(SYS_epoll_pwait2, epoll, events, 512, &timeout, NULL, 0);
    if (n < 0 && errno == ENOSYS) n = epoll_wait(epoll, events, 512, left / MS);
    for (int i = 0; i < n; i++) wire_event(events[i].data.ptr, events[i].events);
}

static int open_all(void) {
    uint64_t interval = SECOND / options.ramp, next = now_ns(), deadline = next + GIVE_UP;
    int dialled = 0;
    while ((opened < options.calls || arrived < options.calls) && now_ns() < deadline) {
        int slowest = opened < arrived ? opened : arrived;
        if (dialled < options.calls && dialled - slowest < IN_FLIGHT && now_ns() >= next) {
            struct session *s = &sessions[dialled++];
            s->client = wire_connect(epoll, "127.0.0.1", options.target, options.path);
            s->client->owner = s;
            next += interval;
            deadline = now_ns() + GIVE_UP;
        }
        wait_until(next > now_ns() ? next : now_ns() + MS);
    }
    return opened == options.calls && arrived == options.calls;
}

/* Audio on an absolute schedule, each call at its phase, and results; `MARK`s at the turns. */
static void talk(void) {
    uint64_t start = now_ns() + 50 * MS;
    window_from = start + options.warm_up * SECOND;
    window_to = window_from + options.seconds * SECOND;
    uint64_t cut = options.blackout ? window_from + options.blackout * SECOND : UINT64_MAX;
    uint64_t frames = 0, results = 0, spacing = SECOND / options.rate;
    int marked = 0, in_a_row = 0;
    for (;;) {
        uint64_t now = now_ns(), n = options.calls;
        uint64_t frame_due = start + frames / n * PERIOD + frames % n * PERIOD / n;
        uint64_t result_due = start + results / n * spacing + results % n * spacing / n;
        if (!marked && now >= window_from) {
            marked = 1;
            mark("window");
        }
        if (now >= cut) {
            cut = UINT64_MAX;
            cut_all();
            mark("blackout");
        }
        if (now >= window_to) break;
        if (frame_due <= now) send_frame(&sessions[order[frames++ % n]], frame_due, now);
        if (result_due <= now) {
            struct upstream *u = sessions[results++ % n].upstream;
            if (u && u->conn->state == OPEN)
                send_result(u, u->results % FINAL_EVERY == FINAL_EVERY - 1, result_due);
        }
        if ((frame_due <= now || result_due <= now) && ++in_a_row % 32) continue; /* then a look at the sockets */
        wait_until(frame_due < result_due ? frame_due : result_due);
    }
    mark("end");
}

static void wait_for(uint64_t duration) {
    for (uint64_t until = now_ns() + duration; now_ns() < until;) wait_until(until);
}

static int ended(void) {
    int count = 0;
    for (int i = 0; i < options.calls; i++) count += sessions[i].ended;
    return count;
}

static void hang_up(void) {
    running = 0;
    for (int i = 0; i < options.calls; i++) {
        if (!sessions[i].over) wire_send(sessions[i].client, TEXT, "{\"type\":\"CloseStream\"}", 22);
        wait_for(HANG_UP / options.calls);
    }
    for (uint64_t until = now_ns() + LAST_WORDS; now_ns() < until && ended() < options.calls;)
        wait_until(now_ns() + 10 * MS);
    int answered = ended();
    for (int i = 0; i < options.calls; i++) /* a relay that waits for more bytes gets an end instead */
        if (!sessions[i].ended && !sessions[i].over) wire_half_close(sessions[i].client);
    if (answered < options.calls) wait_for(LAST_WORDS);
    printf("{\"answered\": %d, ", answered);
}

/* I10 of docs/continuity.md: what came within 5 s, less the burst, as a multiple of real time */
static double fastest(const struct session *s, int seconds) {
    double most = 0;
    for (int at = 0; at + 5 <= seconds; at++) {
        double bytes = 0;
        for (int i = 0; i < 5; i++) bytes += s->seconds[at + i];
        double pace = (bytes / RATE - BURST) / 5;
        if (pace > most) most = pace;
    }
    return most;
}

static void report_blackout(void) {
    int back = 0, seconds = (now_ns() - blackout_at) / SECOND;
    double most = 0;
    uint64_t longest = 0;
    for (int i = 0; i < options.calls; i++) {
        struct session *s = &sessions[i];
        double pace = fastest(s, seconds);
        if (pace > most) most = pace;
        if (s->caught_up) back++;
        if (s->caught_up > longest) longest = s->caught_up;
    }
    printf("\"blackout\": {\"reconnects\": %llu, \"caught_up\": %d, \"caught_up_seconds\": %.2f, \"fastest\": %.3f}, ",
           (unsigned long long)reconnects, back, longest / 1e9, most);
}

static double cpu_seconds(void) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return usage.ru_utime.tv_sec + usage.ru_stime.tv_sec + (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

static uint64_t unfinal_bytes(void) {
    double bytes = 0;
    for (int i = 0; i < options.calls; i++) {
        struct upstream *u = sessions[i].upstream;
        if (u) bytes += u->bytes - u->final_end * RATE;
    }
    return bytes / options.calls;
}

static void report(uint64_t unfinal, double cpu) {
    uint64_t sent = 0, results_sent = 0, results_got = 0;
    for (int i = 0; i < options.calls; i++) {
        sent += sessions[i].sent;
        missing += sessions[i].sent - sessions[i].next; /* the tail */
        results_sent += sessions[i].results_sent;
        results_got += sessions[i].results_got;
    }
    print_histogram("up", &up);
    print_histogram("down", &down);
    print_histogram("late", &late);
    if (blackout_at) report_blackout();
    printf("\"generator\": \"c\", \"calls\": %d, \"seconds\": %d, \"frames_sent\": %llu, \"frames_received\": %llu, "
           "\"frames_lost\": %llu, \"frames_repeated\": %llu, \"crossed\": %llu, \"bytes_skipped\": %llu, "
           "\"results_sent\": %llu, \"results_lost\": %lld, \"closed_early\": %d, \"unfinal_bytes\": %llu, "
           "\"load_core\": %.3f}\n",
           options.calls, options.seconds, (unsigned long long)sent, (unsigned long long)received_frames,
           (unsigned long long)missing, (unsigned long long)repeated, (unsigned long long)crossed,
           (unsigned long long)skipped, (unsigned long long)results_sent, (long long)(results_sent - results_got),
           closed_early, (unsigned long long)unfinal, cpu / (options.seconds + options.warm_up));
}

static void read_options(int argc, char **argv) {
    static const struct option names[] = {
        {"calls", 1, 0, 'n'},  {"seconds", 1, 0, 's'}, {"warm-up", 1, 0, 'w'}, {"ramp", 1, 0, 'r'},
        {"target", 1, 0, 't'}, {"listen", 1, 0, 'l'},  {"cert", 1, 0, 'c'},    {"key", 1, 0, 'k'},
        {"path", 1, 0, 'p'},   {"blackout", 1, 0, 'b'}, {"results", 1, 0, 'R'}, {0, 0, 0, 0}};
    for (int o; (o = getopt_long(argc, argv, "", names, NULL)) != -1;) switch (o) {
            case 'n': options.calls = atoi(optarg); break;
            case 's': options.seconds = atoi(optarg); break;
            case 'w': options.warm_up = atoi(optarg); break;
            case 'r': options.ramp = atoi(optarg); break;
            case 't': options.target = atoi(optarg); break;
            case 'l': options.listen = atoi(optarg); break;
            case 'c': options.cert = optarg; break;
            case 'k': options.key = optarg; break;
            case 'p': options.path = optarg; break;
            case 'b': options.blackout = atoi(optarg); break;
            case 'R': options.rate = atoi(optarg); break;
            default: exit(2);
        }
    if (options.calls < 1 || options.seconds < 1 || options.ramp < 1 || options.rate < 1 || !options.target) {
        fprintf(stderr,
                "usage: load --target PORT --listen PORT [--calls 50] [--seconds 4] [--warm-up 1] [--ramp 500]\n"
                "            [--results 3] [--path /v1/listen?...] [--cert FILE --key FILE] [--blackout SECOND]\n"
                "--results: a second and call; --blackout: when in the window all upstream connections are cut\n");
        exit(2);
    }
}

static void arrange(void) {
    sessions = calloc(options.calls, sizeof *sessions);
    order = calloc(options.calls, sizeof *order);
    srandom(1); /* the same every time */
    for (int i = 0; i < options.calls; i++) {
        int j = random() % (i + 1);
        order[i] = order[j];
        order[j] = i;
    }
    for (size_t i = 0; i < sizeof noise; i++) noise[i] = random();
}

int main(int argc, char **argv) {
    signal(SIGPIPE, SIG_IGN);
    prctl(PR_SET_TIMERSLACK, 1); /* else every timer is 50 us late */
    read_options(argc, argv);
    epoll = epoll_create1(0);
    wire_listen(epoll, options.listen, options.cert, options.key);
    arrange();
    mark("dial");
    if (!open_all()) {
        printf("{\"error\": \"only %d of %d calls opened, and %d connections came\"}\n", opened, options.calls, arrived);
        return 1;
    }
    mark("open");
    wait_for(300 * MS); /* whoever measures takes its figures */
    double cpu = cpu_seconds();
    talk();
    cpu = cpu_seconds() - cpu;
    uint64_t unfinal = unfinal_bytes();
    wait_for(DRAIN);
    hang_up();
    report(unfinal, cpu);
    return 0;
}
