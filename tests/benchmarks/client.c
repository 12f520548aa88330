/* The plain C client: what one core can read at most, to set our own client beside.
 *
 *     gcc -O2 -o client client.c && ./client --port 8000 --streams 1024 --seconds 10 --ramp-ms 1330 --request request.bin
 *
 * A closed loop over kept connections, one epoll, one thread: sends the bytes of the file again and again, stamps each
 * read, counts token chunks, finds the end of the body. Starts are staggered over the ramp. Figures are of the requests
 * sent, and of the chunks that arrived, between the ramp's end and --seconds later. Prints one JSON object.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { CARRY = 16, READ_BYTES = 65536, BATCH = 256 };
static const char token[] = "\"choices\":[{", end_of_body[] = "\r\n0\r\n\r\n";
enum { TOKEN = sizeof token - 1, END = sizeof end_of_body - 1 };

typedef struct {
    int fd, chunks;
    int64_t sent, first, last;
    int kept;          /* bytes of the last read that a pattern may begin in */
    char carry[CARRY];
} Stream;

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

static int by_value(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

static void fail(const char *what) { perror(what); exit(1); }

static char *request;
static size_t request_size;

static void ask(Stream *s)
{
    s->chunks = s->kept = 0;
    s->first = s->last = 0;
    s->sent = now_ns();
    if (send(s->fd, request, request_size, MSG_NOSIGNAL) != (ssize_t)request_size) fail("send");
}

int main(int argc, char **argv)
{
    static const struct option options[] = {{"port", 1, 0, 'p'}, {"streams", 1, 0, 'c'}, {"seconds", 1, 0, 's'},
                                            {"ramp-ms", 1, 0, 'r'}, {"request", 1, 0, 'f'}, {0}};
    int port = 8000, count = 1, option;
    double seconds = 10, ramp_ms = 1000;
    const char *file = NULL;
    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) switch (option) {
        case 'p': port = atoi(optarg); break;
        case 'c': count = atoi(optarg); break;
        case 's': seconds = atof(optarg); break;
        case 'r': ramp_ms = atof(optarg); break;
        case 'f': file = optarg; break;
        default: return 2;
    }
    FILE *f = file ? fopen(file, "rb") : NULL;
    if (!f) fail("--request");
    request = malloc(1 << 20);
    request_size = fread(request, 1, 1 << 20, f);
    prctl(PR_SET_TIMERSLACK, 1);
    int epoll_fd = epoll_create1(0), on = 1;
    Stream *streams = calloc(count, sizeof *streams);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    for (int i = 0; i < count; i++) {
        streams[i].fd = socket(AF_INET, SOCK_STREAM, 0);
        if (connect(streams[i].fd, (void *)&address, sizeof address)) fail("connect");
        setsockopt(streams[i].fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        struct epoll_event e = {.events = EPOLLIN, .data.ptr = &streams[i]};
        epoll_ctl(epoll_fd, EPOLL_CTL_ADD, streams[i].fd, &e);
    }
    static char buffer[CARRY + READ_BYTES];
    size_t ended = 0, room = 1 << 16;
    int64_t *ttft = malloc(room * sizeof *ttft);
    double ttft_sum = 0, tpot_sum = 0, cpu_open = 0;
    uint64_t chunks = 0, reads = 0, paced = 0;
    int64_t start = now_ns(), opens = start + ramp_ms * 1e6, closes = opens + seconds * 1e9;
    int started = 0;
    bool open = false;
    for (int64_t now; (now = now_ns()) < closes;) {
        while (started < count && now >= start + (opens - start) * started / count) ask(&streams[started++]);
        if (!open && now >= opens) { open = true; chunks = reads = 0; cpu_open = cpu_s(); }
        int64_t next = started < count ? start + (opens - start) * started / count : open ? closes : opens;
        int64_t wait = next > now ? next - now : 0;
        struct timespec left = {wait / 1000000000, wait % 1000000000};
        struct epoll_event events[BATCH];
        int n = epoll_pwait2(epoll_fd, events, BATCH, &left, NULL);
        for (int i = 0; i < n; i++) {
            Stream *s = events[i].data.ptr;
            ssize_t k = recv(s->fd, buffer + CARRY, READ_BYTES, MSG_DONTWAIT);
            int64_t at = now_ns();
            if (k < 0 && (errno == EAGAIN || errno == EINTR)) continue;
            if (k <= 0) fail("the server closed a connection");
            reads++;
            char *begin = buffer + CARRY - s->kept, *end = buffer + CARRY + k;
            memcpy(begin, s->carry, s->kept);
            int found = 0;
            for (char *p = begin; (p = memmem(p, end - p, token, TOKEN)); p += TOKEN) found++;
            if (found) {
                if (!s->first) s->first = at;
                s->last = at;
                s->chunks += found;
                chunks += found;
            }
            if (end - begin >= END && !memcmp(end - END, end_of_body, END)) {
                if (open && s->sent >= opens) {
                    if (ended == room) ttft = realloc(ttft, (room *= 2) * sizeof *ttft);
                    ttft[ended++] = s->first - s->sent;
                    ttft_sum += s->first - s->sent;
                    if (s->chunks > 1) { paced++; tpot_sum += (double)(s->last - s->first) / (s->chunks - 1); }
                }
                ask(s);
            } else { /* fewer bytes than either pattern has, so that nothing is counted twice */
                s->kept = end - begin < TOKEN - 1 ? end - begin : TOKEN - 1;
                memcpy(s->carry, end - s->kept, s->kept);
            }
        }
    }
    double cpu = cpu_s() - cpu_open, wall = (now_ns() - opens) / 1e9;
    qsort(ttft, ended, sizeof *ttft, by_value);
    printf("{\"requests\": %zu, \"chunks\": %lu, \"seconds\": %.6f, \"chunks_per_s\": %.1f, \"ttft_mean_s\": %.9f, "
           "\"ttft_p99_s\": %.9f, \"tpot_mean_s\": %.9f, \"cpu_ratio\": %.4f, \"cpu_us_per_chunk\": %.3f, "
           "\"chunks_per_read\": %.3f}\n",
           ended, chunks, wall, chunks / wall, ended ? ttft_sum / ended / 1e9 : 0.0,
           ended ? ttft[(size_t)(0.99 * (ended - 1))] / 1e9 : 0.0, paced ? tpot_sum / paced / 1e9 : 0.0, cpu / wall,
           chunks ? cpu * 1e6 / chunks : 0.0, reads ? (double)chunks / reads : 0.0);
    return 0;
}
