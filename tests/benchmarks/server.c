/* The reference server of the benchmarks: streams whose times are exactly known, because it stamps what it sends.
 *
 *     gcc -O2 -o server server.c && ./server --port 8000 --ttft-ms 50 --gap-ms 10 --tokens 128
 *
 * HTTP/1.1 with keep-alive. POST /v1/completions and /v1/chat/completions answer in vLLM's form: the head at once, the
 * first chunk a TTFT after the request's last byte was read, one more each gap, then the usage and the end mark. One
 * thread, one epoll, absolute deadlines in a heap: a late chunk does not delay the next. Reads and writes take turns in
 * small batches, so that neither an arrival nor a chunk waits for a thousand of the other kind.
 *
 * All stamps are CLOCK_MONOTONIC: `arrived` after the read of a request's last byte, `first` and `last` after the write
 * of the first and last token chunk. A chunk's lateness is its stamp minus its due time.
 *
 * Several of these processes share a port (--port P, the same for all; the system deals out the connections) where one
 * core is not enough. Each answers on a port of its own too, where its own stamps are asked for.
 *
 *     GET /stats[?reset=1]   JSON: requests that ended since the reset, TTFT, TPOT, lateness, own CPU
 *     GET /requests          the same requests, each as four little-endian int64: arrived, first, last (ns), tokens
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { BATCH = 16, READ_BYTES = 65536, REQUEST_BYTES_MAX = 64 << 20, BINS = 100000, BIN_NS = 1000 };
#define MODEL "reference"

typedef struct {
    char *data;
    size_t size, room;
} Bytes;

typedef struct {
    int fd, place;                       /* place in the heap, -1: no answer under way */
    int64_t due, arrived, first, last;
    int tokens, sent;
    bool chat, ids, stream, close, waits; /* waits: for the socket to take more */
    char tail[512];                      /* usage, end mark, end of the body */
    int tail_size;
    Bytes in, out;
    size_t out_at;
} Conn;

typedef struct {
    int64_t arrived, first, last, tokens;
} Row;

static int64_t ttft_ns = 50000000, gap_ns = 10000000;
static int tokens_default = 128, chunk_bytes = 0;
static int epoll_fd, listeners[2]; /* the shared port, the own one */
static Conn **heap;
static int heap_size, heap_room;
static Bytes token_chunk[2][2][2]; /* chat, with token ids, the last one */
static Bytes role_chunk;
static const char stream_head[] = "HTTP/1.1 200 OK\r\ndate: Thu, 01 Jan 2026 00:00:00 GMT\r\nserver: uvicorn\r\n"
                                  "content-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n";

static Row *rows;
static size_t row_count, row_room;
static uint64_t chunks, blocked, aborted, late_bins[BINS];
static int64_t late_sum, late_max, since;
static double cpu_since;

static int64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static double cpu_s(void)
{
    struct rusage r;
    getrusage(RUSAGE_SELF, &r);
    return r.ru_utime.tv_sec + r.ru_stime.tv_sec + (r.ru_utime.tv_usec + r.ru_stime.tv_usec) / 1e6;
}

static void *must(void *memory)
{
    if (!memory) { perror("server"); exit(1); }
    return memory;
}

static void append(Bytes *b, const void *data, size_t n)
{
    if (b->size + n > b->room) {
        b->room = (b->size + n) * 2;
        b->data = must(realloc(b->data, b->room));
    }
    memcpy(b->data + b->size, data, n);
    b->size += n;
}

/* --- the heap of streams, the earliest deadline first --- */

static void place(Conn *c, int i) { heap[i] = c; c->place = i; }

static void sift(Conn *c, int i)
{
    while (i > 0 && heap[(i - 1) / 2]->due > c->due) { place(heap[(i - 1) / 2], i); i = (i - 1) / 2; }
    for (int k; (k = 2 * i + 1) < heap_size; i = k) {
        if (k + 1 < heap_size && heap[k + 1]->due < heap[k]->due) k++;
        if (heap[k]->due >= c->due) break;
        place(heap[k], i);
    }
    place(c, i);
}

static void heap_add(Conn *c)
{
    if (heap_size == heap_room) heap = must(realloc(heap, (heap_room = heap_room * 2 + 64) * sizeof *heap));
    sift(c, heap_size++);
}

static void heap_remove(Conn *c)
{
    int i = c->place;
    Conn *last = heap[--heap_size];
    c->place = -1;
    if (last != c) sift(last, i);
}

/* --- connections --- */

static void drop(Conn *c)
{
    if (c->place >= 0) { heap_remove(c); aborted++; }
    close(c->fd);
    free(c->in.data);
    free(c->out.data);
    free(c);
}

static void watch(Conn *c, bool writable)
{
    struct epoll_event e = {.events = EPOLLIN | (writable ? EPOLLOUT : 0), .data.ptr = c};
    epoll_ctl(epoll_fd, EPOLL_CTL_MOD, c->fd, &e);
    c->waits = writable;
}

/* Hand bytes to the socket; what it does not take waits. False: the connection is gone. */
static bool put(Conn *c, const char *data, size_t n)
{
    if (!c->waits) {
        ssize_t k = send(c->fd, data, n, MSG_NOSIGNAL);
        if (k < 0 && errno != EAGAIN && errno != EINTR) return false;
        if (k < 0) k = 0;
        if ((size_t)k == n) return true;
        data += k;
        n -= k;
        blocked++;
        watch(c, true);
    }
    append(&c->out, data, n);
    return true;
}

/* False: the connection is gone, or was to be closed. */
static bool flush(Conn *c)
{
    ssize_t k = send(c->fd, c->out.data + c->out_at, c->out.size - c->out_at, MSG_NOSIGNAL);
    if (k < 0) return errno == EAGAIN || errno == EINTR;
    c->out_at += k;
    if (c->out_at < c->out.size) return true;
    c->out.size = c->out_at = 0;
    watch(c, false);
    return !(c->close && c->place < 0);
}

/* --- answers --- */

static Bytes frame(const char *json)
{
    Bytes b = {0};
    char head[32];
    append(&b, head, sprintf(head, "%zx\r\ndata: ", strlen(json) + 8));
    append(&b, json, strlen(json));
    append(&b, "\n\n\r\n", 4);
    return b;
}

static void build_chunks(void)
{
    char json[70000], id[65536] = "0123456789abcdef0123456789abcdef";
    for (int chat = 0; chat < 2; chat++)
        for (int ids = 0; ids < 2; ids++)
            for (int last = 0; last < 2; last++) {
                const char *end = last ? "\"length\"" : "null", *form[2] = {
                    "{\"id\":\"cmpl-%s\",\"object\":\"text_completion\",\"created\":1767225600,\"model\":\"" MODEL "\","
                    "\"choices\":[{\"index\":0,\"text\":\" the\",\"logprobs\":null,\"finish_reason\":%s,"
                    "\"stop_reason\":null%s}],\"usage\":null}",
                    "{\"id\":\"chatcmpl-%s\",\"object\":\"chat.completion.chunk\",\"created\":1767225600,\"model\":\""
                    MODEL "\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\" the\"},\"logprobs\":null,"
                    "\"finish_reason\":%s%s}]}"};
                const char *list = ids ? (chat ? ",\"token_ids\":[262]" : ",\"prompt_token_ids\":null,\"token_ids\":[262]") : "";
                int size = sprintf(json, form[chat], id, end, list) + 8 + 8; /* with "data: ", the ends, the frame */
                if (size < chunk_bytes && !chat && !ids && !last) {
                    memset(id + 32, '0', chunk_bytes - size);
                    id[32 + chunk_bytes - size] = 0;
                    sprintf(json, form[chat], id, end, list);
                }
                token_chunk[chat][ids][last] = frame(json);
            }
    role_chunk = frame("{\"id\":\"chatcmpl-0123456789abcdef0123456789abcdef\",\"object\":\"chat.completion.chunk\","
                       "\"created\":1767225600,\"model\":\"" MODEL "\",\"choices\":[{\"index\":0,\"delta\":"
                       "{\"role\":\"assistant\",\"content\":\"\"},\"logprobs\":null,\"finish_reason\":null}]}");
}

static bool plain(Conn *c, const char *status, const char *kind, const char *body, size_t n)
{
    char head[200];
    int size = sprintf(head, "HTTP/1.1 %s\r\nContent-Type: %s\r\nContent-Length: %zu\r\n\r\n", status, kind, n);
    return put(c, head, size) && put(c, body, n);
}

static bool json_page(Conn *c, const char *status, const char *body)
{
    return plain(c, status, "application/json", body, strlen(body));
}

static int by_value(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

static bool stats(Conn *c, bool reset)
{
    int64_t *ttft = must(malloc((row_count + 1) * sizeof *ttft));
    double ttft_sum = 0, tpot_sum = 0, late_p99 = 0;
    size_t paced = 0;
    for (size_t i = 0; i < row_count; i++) {
        ttft[i] = rows[i].first - rows[i].arrived;
        ttft_sum += ttft[i];
        if (rows[i].tokens > 1) { paced++; tpot_sum += (double)(rows[i].last - rows[i].first) / (rows[i].tokens - 1); }
    }
    qsort(ttft, row_count, sizeof *ttft, by_value);
    uint64_t seen = 0;
    for (int i = 0; i < BINS && chunks; i++)
        if ((seen += late_bins[i]) >= 0.99 * chunks) { late_p99 = i == BINS - 1 ? late_max : (i + 1.0) * BIN_NS; break; }
    char page[1024];
    double n = row_count ? row_count : 1, wall = (now_ns() - since) / 1e9;
    sprintf(page,
            "{\"requests\": %zu, \"aborted\": %lu, \"chunks\": %lu, \"blocked_writes\": %lu, \"ttft_mean_s\": %.9f, "
            "\"ttft_p99_s\": %.9f, \"tpot_mean_s\": %.9f, \"late_mean_s\": %.9f, \"late_p99_s\": %.9f, "
            "\"late_max_s\": %.9f, \"seconds\": %.6f, \"cpu_ratio\": %.4f, \"in_flight\": %d}",
            row_count, aborted, chunks, blocked, ttft_sum / n / 1e9,
            row_count ? ttft[(size_t)(0.99 * (row_count - 1))] / 1e9 : 0.0, paced ? tpot_sum / paced / 1e9 : 0.0,
            chunks ? (double)late_sum / chunks / 1e9 : 0.0, late_p99 / 1e9, late_max / 1e9, wall,
            (cpu_s() - cpu_since) / wall, heap_size);
    free(ttft);
    if (reset) {
        row_count = 0;
        chunks = blocked = aborted = late_sum = late_max = 0;
        memset(late_bins, 0, sizeof late_bins);
        since = now_ns();
        cpu_since = cpu_s();
    }
    return json_page(c, "200 OK", page);
}

static bool metrics(Conn *c)
{
    char page[600];
    int n = sprintf(page,
                    "vllm:num_requests_running{model_name=\"" MODEL "\"} %d.0\n"
                    "vllm:num_requests_waiting{model_name=\"" MODEL "\"} 0.0\n"
                    "vllm:kv_cache_usage_perc{model_name=\"" MODEL "\"} 0.5\n"
                    "vllm:generation_tokens_total{model_name=\"" MODEL "\"} %lu.0\n", heap_size, chunks);
    return plain(c, "200 OK", "text/plain; version=0.0.4", page, n);
}

/* What follows a key of a JSON body, spaces passed over. A key inside a string has its quotes escaped: not found. */
static const char *value_of(const char *body, size_t n, const char *key)
{
    const char *at = memmem(body, n, key, strlen(key));
    if (!at) return "";
    at += strlen(key);
    while (*at == ' ') at++;
    return at;
}

/* A word of a prompt is a token; so is a number of a list. */
static int words(const char *at, const char *end)
{
    bool list = *at == '[', inside = false;
    if (!*at) return 0;
    int n = 0;
    for (at++; at < end && *at != (list ? ']' : '"'); at++) {
        if (!list && *at == '\\') at++;
        bool space = *at == ' ' || *at == ',';
        n += !space && !inside;
        inside = !space;
    }
    return n;
}

static void begin(Conn *c, const char *body, size_t n, bool chat, int64_t arrived)
{
    int asked = atoi(value_of(body, n, "\"max_tokens\":"));
    if (asked <= 0) asked = atoi(value_of(body, n, "\"max_completion_tokens\":"));
    c->tokens = asked > 0 ? asked : tokens_default;
    c->chat = chat;
    c->ids = *value_of(body, n, "\"return_token_ids\":") == 't';
    c->stream = *value_of(body, n, "\"stream\":") == 't';
    c->arrived = arrived;
    c->first = c->last = c->sent = 0;
    int prompt = words(value_of(body, n, chat ? "\"content\":" : "\"prompt\":"), body + n);
    char usage[400], counts[120];
    sprintf(counts, "{\"prompt_tokens\":%d,\"total_tokens\":%d,\"completion_tokens\":%d}", prompt, prompt + c->tokens, c->tokens);
    c->tail_size = 0;
    if (!c->stream) {
        c->tail_size = sprintf(c->tail, "%s", counts);
        c->due = arrived + ttft_ns + (c->tokens - 1) * gap_ns;
    } else {
        if (*value_of(body, n, "\"include_usage\":") == 't') {
            sprintf(usage, "{\"id\":\"cmpl-0123456789abcdef0123456789abcdef\",\"object\":\"%s\",\"created\":1767225600,"
                    "\"model\":\"" MODEL "\",\"choices\":[],\"usage\":%s}", chat ? "chat.completion.chunk" : "text_completion", counts);
            c->tail_size = sprintf(c->tail, "%zx\r\ndata: %s\n\n\r\n", strlen(usage) + 8, usage);
        }
        c->tail_size += sprintf(c->tail + c->tail_size, "e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n");
        c->due = arrived + ttft_ns;
    }
    heap_add(c);
}

static bool whole_answer(Conn *c)
{
    Bytes b = {0};
    const char *open = c->chat ? "{\"id\":\"chatcmpl-0\",\"object\":\"chat.completion\",\"created\":1767225600,\"model\":\"" MODEL "\","
                                 "\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\""
                               : "{\"id\":\"cmpl-0\",\"object\":\"text_completion\",\"created\":1767225600,\"model\":\"" MODEL "\","
                                 "\"choices\":[{\"index\":0,\"text\":\"";
    append(&b, open, strlen(open));
    for (int i = 0; i < c->tokens; i++) append(&b, " the", 4);
    const char *close = c->chat ? "\"},\"finish_reason\":\"length\"}],\"usage\":" : "\",\"finish_reason\":\"length\"}],\"usage\":";
    append(&b, close, strlen(close));
    append(&b, c->tail, c->tail_size);
    append(&b, "}", 1);
    bool there = plain(c, "200 OK", "application/json", b.data, b.size);
    free(b.data);
    return there;
}

static bool serve_requests(Conn *c, int64_t read_at);

static bool end_answer(Conn *c)
{
    heap_remove(c);
    if (row_count == row_room) rows = must(realloc(rows, (row_room = row_room * 2 + 4096) * sizeof *rows));
    rows[row_count++] = (Row){c->arrived, c->first, c->last, c->tokens};
    if (c->close) return c->waits; /* false closes it */
    return serve_requests(c, c->last); /* one that was pipelined behind it arrives now */
}

/* Send the chunk that is due. False: the connection is gone. */
static bool send_chunk(Conn *c)
{
    bool last = c->sent + 1 == c->tokens, there = true;
    if (!c->stream) {
        last = true;
        there = whole_answer(c);
    } else {
        const Bytes *chunk = &token_chunk[c->chat][c->ids][last];
        if (c->sent == 0 && c->chat) there = put(c, role_chunk.data, role_chunk.size);
        there = there && put(c, chunk->data, chunk->size);
    }
    int64_t stamp = now_ns(), late = stamp - c->due;
    if (!there) return false;
    if (c->sent++ == 0) c->first = stamp;
    c->last = stamp;
    chunks++;
    late_sum += late;
    if (late > late_max) late_max = late;
    late_bins[late / BIN_NS < BINS ? late / BIN_NS : BINS - 1]++;
    if (last) return (!c->stream || put(c, c->tail, c->tail_size)) && end_answer(c);
    c->due = c->arrived + ttft_ns + c->sent * gap_ns;
    sift(c, c->place);
    return true;
}

/* --- requests --- */

static const char *header(const char *head, const char *end, const char *name)
{
    size_t n = strlen(name);
    for (const char *at = head; (at = memchr(at, '\n', end - at)) && end - ++at > (ssize_t)n;)
        if (!strncasecmp(at, name, n) && at[n] == ':') {
            for (at += n + 1; *at == ' '; at++) {}
            return at;
        }
    return "";
}

static bool page(Conn *c, const char *head, const char *body, size_t n, int64_t read_at)
{
#define IS(text) (!strncmp(head, text, sizeof text - 1))
    if (IS("POST /v1/completions ") || IS("POST /v1/chat/completions ")) {
        begin(c, body, n, head[10] == 'h', read_at);
        return !c->stream || put(c, stream_head, sizeof stream_head - 1);
    }
    if (IS("GET /v1/models")) return json_page(c, "200 OK", "{\"object\":\"list\",\"data\":[{\"id\":\"" MODEL "\",\"object\":\"model\"}]}");
    if (IS("GET /health")) return plain(c, "200 OK", "text/plain", "", 0);
    if (IS("GET /version")) return json_page(c, "200 OK", "{\"version\":\"0.0.reference\"}");
    if (IS("GET /metrics")) return metrics(c);
    if (IS("GET /stats")) return stats(c, IS("GET /stats?reset=1"));
    if (IS("GET /requests")) return plain(c, "200 OK", "application/octet-stream", (char *)rows, row_count * sizeof *rows);
    return json_page(c, "404 Not Found", "{\"error\":{\"message\":\"not found\"}}");
}

/* Answer the whole requests in the buffer, until one is a stream. False: the connection is gone, or to be closed. */
static bool serve_requests(Conn *c, int64_t read_at)
{
    while (c->place < 0 && c->in.size) {
        const char *end = memmem(c->in.data, c->in.size, "\r\n\r\n", 4);
        if (!end) return c->in.size < READ_BYTES;
        size_t head_size = end + 4 - c->in.data;
        size_t length = strtoul(header(c->in.data, end + 2, "content-length"), NULL, 10);
        if (length > REQUEST_BYTES_MAX || !strncasecmp(header(c->in.data, end + 2, "transfer-encoding"), "chunked", 7)) {
            json_page(c, "411 Length Required", "{\"error\":{\"message\":\"a body needs a Content-Length\"}}");
            return false;
        }
        if (c->in.size < head_size + length) {
            bool asks = !strncasecmp(header(c->in.data, end + 2, "expect"), "100-continue", 12) && c->in.size == head_size;
            return !asks || put(c, "HTTP/1.1 100 Continue\r\n\r\n", 25);
        }
        c->close = !strncasecmp(header(c->in.data, end + 2, "connection"), "close", 5);
        if (!page(c, c->in.data, c->in.data + head_size, length, read_at)) return false;
        c->in.size -= head_size + length;
        memmove(c->in.data, c->in.data + head_size + length, c->in.size + 1);
        if (c->close && c->place < 0) return c->waits;
    }
    return true;
}

static void on_readable(Conn *c)
{
    static char buffer[READ_BYTES];
    ssize_t n = read(c->fd, buffer, sizeof buffer);
    int64_t at = now_ns();
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (n <= 0) { drop(c); return; }
    append(&c->in, buffer, n);
    append(&c->in, "", 1); /* not part of it: keeps a search for the end of a number inside */
    c->in.size--;
    if (!serve_requests(c, at)) drop(c);
}

static void on_connect(int listener)
{
    int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC), on = 1;
    if (fd < 0) return;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    Conn *c = must(calloc(1, sizeof *c));
    c->fd = fd;
    c->place = -1;
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = c};
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &e);
}

static int listen_on(int *port)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), on = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(*port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &on, sizeof on);
    if (bind(fd, (void *)&address, size) || listen(fd, 4096)) { perror("server"); exit(1); }
    getsockname(fd, (void *)&address, &size);
    *port = ntohs(address.sin_port);
    return fd;
}

int main(int argc, char **argv)
{
    static const struct option options[] = {{"port", 1, 0, 'p'}, {"ttft-ms", 1, 0, 't'}, {"gap-ms", 1, 0, 'g'},
                                            {"tokens", 1, 0, 'n'}, {"chunk-bytes", 1, 0, 'b'}, {0}};
    int port = 0, option;
    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) switch (option) {
        case 'p': port = atoi(optarg); break;
        case 't': ttft_ns = atof(optarg) * 1e6; break;
        case 'g': gap_ns = atof(optarg) * 1e6; break;
        case 'n': tokens_default = atoi(optarg); break;
        case 'b': chunk_bytes = atoi(optarg) < 60000 ? atoi(optarg) : 60000; break;
        default: fprintf(stderr, "usage: server [--port P] [--ttft-ms T] [--gap-ms G] [--tokens N] [--chunk-bytes B]\n"); return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    prctl(PR_SET_TIMERSLACK, 1);
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    build_chunks();
    int own = 0;
    listeners[0] = listen_on(&port);
    listeners[1] = listen_on(&own);
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event events[BATCH];
    for (int i = 0; i < 2; i++) {
        struct epoll_event e = {.events = EPOLLIN, .data.ptr = &listeners[i]};
        epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listeners[i], &e);
    }
    printf("ready on http://127.0.0.1:%d stats on http://127.0.0.1:%d\n", port, own);
    fflush(stdout);
    since = now_ns();
    for (;;) {
        int64_t now = now_ns();
        for (int i = 0; i < BATCH && heap_size && heap[0]->due <= now; i++) {
            Conn *c = heap[0];
            if (!send_chunk(c)) drop(c);
        }
        int64_t wait = heap_size ? heap[0]->due - now_ns() : 1000000000;
        if (wait < 0) wait = 0;
        struct timespec left = {wait / 1000000000, wait % 1000000000};
        int n = epoll_pwait2(epoll_fd, events, BATCH, &left, NULL);
        for (int i = 0; i < n; i++) {
            int *listener = events[i].data.ptr;
            if (listener >= listeners && listener < listeners + 2) { on_connect(*listener); continue; }
            Conn *c = events[i].data.ptr;
            if ((events[i].events & EPOLLOUT) && !flush(c)) { drop(c); continue; }
            if (events[i].events & (EPOLLIN | EPOLLERR | EPOLLHUP)) on_readable(c);
        }
    }
}
