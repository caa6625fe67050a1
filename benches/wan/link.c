/* A slow link between two network namespaces, for kernels without netem.
 *
 *   link NS_A[:DEVICE] NS_B[:DEVICE] [rate=MBIT] [delay=MS] [queue=BYTES] [loss=SHARE] [seed=N]
 *
 * Makes a TUN device ("wan") in each namespace and carries IP between the two. Each direction has a drop-tail queue in front of
 * `rate`, then `delay`; random losses fall on the way from A to B only. Prints "ready". Each line on stdin is answered by a line
 * of JSON with the counters since the line before; it ends when stdin does.
 *
 * The kernel hands over super-packets (TSO, USO) as it would to a network card. They are cut into packets of the wire's size, each
 * with its own fate, and neighbours of one flow that arrive together are joined again, as GRO does.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <linux/virtio_net.h>
#include <poll.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#ifndef TUN_F_USO4
#define TUN_F_USO4 0x20
#endif
#ifndef VIRTIO_NET_HDR_GSO_UDP_L4
#define VIRTIO_NET_HDR_GSO_UDP_L4 5
#endif

enum {
    IP = 20,            /* header without options: nothing else is cut or joined */
    WIRE = 1500,        /* MTU of the devices */
    SLOTS = 1 << 18,    /* packets on their way, a direction: 1 Gbit/s for 3 s */
    JOINED = 60,        /* packets in one write: at most 64 KiB */
    TICK = 50000,       /* ns between wake-ups: what arrives or leaves in between waits for the next */
};

struct packet {
    int64_t due;
    uint16_t len;
    uint16_t head;      /* length of the IP and TCP or UDP headers when it can be joined, else 0 */
    /* where the checksum is that is left to the receiving kernel, as virtio has it; 0: it is done */
    uint16_t sum_start, sum_offset;
    uint8_t data[WIRE];
};

struct direction {
    int in, out;
    double ns_per_byte;
    int64_t delay, queue;
    double loss;
    uint64_t random;
    struct packet **ring;
    uint32_t first, after;
    int64_t busy_until;
    /* counters since the last report */
    uint64_t carried, bytes, lost, overflowed, refused;
    int64_t waited, longest, latest;
};

static struct packet *spare;

static void die(const char *what)
{
    fprintf(stderr, "link: %s: %s\n", what, strerror(errno));
    exit(1);
}

static int64_t nanoseconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static struct packet *take(void)
{
    struct packet *p = spare;
    if (p)
        memcpy(&spare, p->data, sizeof spare);
    else if (!(p = malloc(sizeof *p)))
        die("memory");
    return p;
}

static void give(struct packet *p)
{
    memcpy(p->data, &spare, sizeof spare);
    spare = p;
}

static uint16_t get16(const uint8_t *p) { return p[0] << 8 | p[1]; }
static void put16(uint8_t *p, unsigned v) { p[0] = v >> 8; p[1] = v; }
static uint32_t get32(const uint8_t *p) { return (uint32_t)get16(p) << 16 | get16(p + 2); }
static void put32(uint8_t *p, uint32_t v) { put16(p, v >> 16); put16(p + 2, v); }

static uint32_t sum(const uint8_t *p, int n, uint32_t s)
{
    for (; n > 1; n -= 2, p += 2)
        s += get16(p);
    return s;
}

static unsigned fold(uint32_t s)
{
    while (s >> 16)
        s = (s & 0xffff) + (s >> 16);
    return s;
}

/* Makes the headers say `len` bytes in all, and leaves the sum of the pseudo-header where the kernel expects it. */
static void set_length(uint8_t *ip, int len)
{
    int udp = ip[9] == IPPROTO_UDP;
    put16(ip + 2, len);
    put16(ip + 10, 0);
    put16(ip + 10, ~fold(sum(ip, IP, 0)));
    if (udp)
        put16(ip + IP + 4, len - IP);
    put16(ip + IP + (udp ? 6 : 16), fold(sum(ip + 12, 8, ip[9] + (uint32_t)(len - IP))));
}

/* xorshift64*: Vigna 2014 */
static double draw(struct direction *d)
{
    d->random ^= d->random >> 12;
    d->random ^= d->random << 25;
    d->random ^= d->random >> 27;
    return (double)(d->random * 0x2545F4914F6CDD1DULL >> 11) * 0x1p-53;
}

/* What the link does with a packet: it joins the queue or is dropped. */
static void enter(struct direction *d, struct packet *p, int64_t now)
{
    int64_t wait = d->busy_until > now ? d->busy_until - now : 0;
    if (d->ns_per_byte > 0 && wait > 0 && wait / d->ns_per_byte + p->len > d->queue) {
        d->overflowed++;
        give(p);
        return;
    }
    d->busy_until = now + wait + (int64_t)(p->len * d->ns_per_byte);
    d->waited += wait;
    d->longest = wait > d->longest ? wait : d->longest;
    d->carried++;
    d->bytes += p->len;
    if (d->loss > 0 && draw(d) < d->loss) {
        d->lost++;
        give(p);
        return;
    }
    if (d->after - d->first == SLOTS) {
        d->refused++;
        give(p);
        return;
    }
    p->due = d->busy_until + d->delay;
    d->ring[d->after++ % SLOTS] = p;
}

static void enter_super(struct direction *d, const uint8_t *ip, int len, int head, int size, int64_t now)
{
    int udp = ip[9] == IPPROTO_UDP;
    for (int at = head; at < len; at += size) {
        struct packet *p = take();
        int n = len - at < size ? len - at : size;
        memcpy(p->data, ip, head);
        memcpy(p->data + head, ip + at, n);
        p->len = head + n;
        p->head = head;
        p->sum_start = IP;
        p->sum_offset = udp ? 6 : 16;
        if (!udp) {
            put32(p->data + IP + 4, get32(ip + IP + 4) + at - head);
            if (at + n < len)
                p->data[IP + 13] &= ~0x09; /* FIN and PSH are the last one's */
        }
        set_length(p->data, p->len);
        enter(d, p, now);
    }
}

/* Length of the headers of a plain IPv4 packet with TCP or UDP; 0 for anything else. */
static int head_of(const uint8_t *ip, int len)
{
    if (len < IP + 8 || ip[0] != 0x45 || get16(ip + 6) & 0x3fff || get16(ip + 2) != len)
        return 0;
    int head = ip[9] == IPPROTO_UDP ? IP + 8 : ip[9] == IPPROTO_TCP && len >= IP + 20 ? IP + (ip[IP + 12] >> 4) * 4 : 0;
    return head < len ? head : 0;
}

static int receive(struct direction *d, int64_t now)
{
    static uint8_t buffer[sizeof(struct virtio_net_hdr) + 65536];
    struct virtio_net_hdr *v = (void *)buffer;
    uint8_t *ip = buffer + sizeof *v;
    ssize_t got = read(d->in, buffer, sizeof buffer);
    if (got < 0)
        return 0;
    int len = (int)got - (int)sizeof *v;
    int head = len > 0 ? head_of(ip, len) : 0;
    if (v->gso_type != VIRTIO_NET_HDR_GSO_NONE) {
        if (head && v->gso_size && head + v->gso_size <= WIRE)
            enter_super(d, ip, len, head, v->gso_size, now);
        else
            d->refused++;
    } else if (len > 0 && len <= WIRE) {
        struct packet *p = take();
        memcpy(p->data, ip, len);
        p->len = len;
        p->sum_start = v->flags & VIRTIO_NET_HDR_F_NEEDS_CSUM ? v->csum_start : 0;
        p->sum_offset = v->csum_offset;
        p->head = p->sum_start ? head : 0;
        enter(d, p, now);
    }
    return 1;
}

/* `p` continues the packets from `group[0]` to `last`, `bytes` of payload in all. */
static int continues(const struct packet *first, const struct packet *last, const struct packet *p, int bytes)
{
    const uint8_t *a = first->data + IP, *b = p->data + IP;
    int size = first->len - first->head;
    if (!p->head || p->head != first->head || last->len != first->len || p->len > first->len || bytes + size > 64000)
        return 0;
    if (p->data[9] != first->data[9] || p->data[1] != first->data[1] || memcmp(p->data + 12, first->data + 12, 8))
        return 0;
    if (memcmp(a, b, 4))
        return 0;
    if (p->data[9] == IPPROTO_UDP)
        return 1;
    /* one ack, one window, the same options, nothing but ACK and PSH */
    return get32(b + 4) == get32(a + 4) + bytes && !memcmp(a + 8, b + 8, 4) && !memcmp(a + 14, b + 14, 2)
        && !((a[13] | b[13]) & ~0x18) && !memcmp(a + 20, b + 20, first->head - IP - 20);
}

static void leave(struct direction *d, struct packet **group, int count, int bytes)
{
    struct packet *first = group[0];
    int udp = first->data[9] == IPPROTO_UDP;
    struct virtio_net_hdr v = {0};
    struct iovec parts[JOINED + 2] = {{&v, sizeof v}};
    int used = 1;
    if (first->sum_start) {
        v.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM;
        v.csum_start = first->sum_start;
        v.csum_offset = first->sum_offset;
    }
    if (count > 1) {
        v.gso_type = udp ? VIRTIO_NET_HDR_GSO_UDP_L4 : VIRTIO_NET_HDR_GSO_TCPV4;
        v.gso_size = first->len - first->head;
        v.hdr_len = first->head;
        if (!udp)
            first->data[IP + 13] |= group[count - 1]->data[IP + 13];
        set_length(first->data, first->head + bytes);
    }
    parts[used++] = (struct iovec){first->data, first->len};
    for (int i = 1; i < count; i++)
        parts[used++] = (struct iovec){group[i]->data + group[i]->head, group[i]->len - group[i]->head};
    if (writev(d->out, parts, used) < 0)
        d->refused += count;
    for (int i = 0; i < count; i++)
        give(group[i]);
}

static void deliver(struct direction *d, int64_t now)
{
    struct packet *group[JOINED];
    int count = 0, bytes = 0;
    while (d->first != d->after && d->ring[d->first % SLOTS]->due <= now) {
        struct packet *p = d->ring[d->first++ % SLOTS];
        d->latest = now - p->due > d->latest ? now - p->due : d->latest;
        if (count && (count == JOINED || !group[0]->head || !continues(group[0], group[count - 1], p, bytes))) {
            leave(d, group, count, bytes);
            count = bytes = 0;
        }
        group[count++] = p;
        bytes += p->len - p->head;
    }
    if (count)
        leave(d, group, count, bytes);
}

static int make_device(char *end)
{
    char path[256];
    char *namespace = strsep(&end, ":");
    struct ifreq request = {.ifr_flags = IFF_TUN | IFF_NO_PI | IFF_VNET_HDR};
    snprintf(request.ifr_name, sizeof request.ifr_name, "%s", end ? end : "wan");
    int own = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
    snprintf(path, sizeof path, "/run/netns/%s", namespace);
    int other = open(path, O_RDONLY | O_CLOEXEC);
    if (own < 0 || other < 0 || setns(other, CLONE_NEWNET))
        die(path);
    int fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0 || ioctl(fd, TUNSETIFF, &request))
        die("/dev/net/tun");
    if (ioctl(fd, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4 | TUN_F_USO4) && ioctl(fd, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4))
        die("TUNSETOFFLOAD");
    if (setns(own, CLONE_NEWNET))
        die("setns");
    close(own);
    close(other);
    return fd;
}

static void configure(struct direction *d, int count, char **settings, int forth)
{
    d->queue = 1 << 20;
    d->random = forth ? 1 : 2;
    for (int i = 0; i < count; i++) {
        double value;
        char key[16];
        if (sscanf(settings[i], "%15[a-z]=%lf", key, &value) != 2) {
            fprintf(stderr, "link: what is %s?\n", settings[i]);
            exit(2);
        }
        if (!strcmp(key, "rate"))
            d->ns_per_byte = 8000 / value;
        else if (!strcmp(key, "delay"))
            d->delay = (int64_t)(value * 1e6);
        else if (!strcmp(key, "queue"))
            d->queue = (int64_t)value;
        else if (!strcmp(key, "loss"))
            d->loss = forth ? value : 0;
        else if (!strcmp(key, "seed"))
            d->random = (uint64_t)value * 0x9E3779B97F4A7C15ULL | 1;
    }
    if (!(d->ring = calloc(SLOTS, sizeof *d->ring)))
        die("memory");
}

static void report(struct direction *ways)
{
    for (int i = 0; i < 2; i++) {
        struct direction *d = &ways[i];
        printf("%s\"%s\": {\"packets\": %lu, \"bytes\": %lu, \"lost\": %lu, \"overflowed\": %lu, \"refused\": %lu, "
               "\"mean_wait_ms\": %.3f, \"max_wait_ms\": %.3f, \"max_late_ms\": %.3f}%s",
               i ? ", " : "{", i ? "back" : "forth", d->carried, d->bytes, d->lost, d->overflowed, d->refused,
               d->carried ? d->waited / 1e6 / d->carried : 0, d->longest / 1e6, d->latest / 1e6, i ? "}\n" : "");
        d->carried = d->bytes = d->lost = d->overflowed = d->refused = 0;
        d->waited = d->longest = d->latest = 0;
    }
    fflush(stdout);
}

int main(int argc, char **argv)
{
    if (argc < 3) {
        fprintf(stderr, "usage: link NS_A[:DEVICE] NS_B[:DEVICE] [rate=MBIT] [delay=MS] [queue=BYTES] [loss=SHARE] [seed=N]\n");
        return 2;
    }
    static struct direction ways[2];
    int a = make_device(argv[1]), b = make_device(argv[2]);
    ways[0].in = ways[1].out = a;
    ways[0].out = ways[1].in = b;
    for (int i = 0; i < 2; i++)
        configure(&ways[i], argc - 3, argv + 3, i == 0);
    /* a link does not wait for its users' CPU: without this their threads make packets tens of milliseconds late */
    if (sched_setscheduler(0, SCHED_FIFO, &(struct sched_param){.sched_priority = 5}))
        fprintf(stderr, "link: no real-time priority: %s\n", strerror(errno));
    prctl(PR_SET_TIMERSLACK, 1);
    puts("ready");
    fflush(stdout);
    struct pollfd sources[3] = {{a, POLLIN, 0}, {b, POLLIN, 0}, {0, POLLIN, 0}};
    int64_t woke = 0;
    for (;;) {
        int64_t now = nanoseconds(), next = now + 1000000000;
        for (int i = 0; i < 2; i++) {
            struct direction *d = &ways[i];
            if (d->first != d->after && d->ring[d->first % SLOTS]->due < next)
                next = d->ring[d->first % SLOTS]->due;
        }
        int64_t pause = woke + TICK - now;
        if (pause > 0)
            clock_nanosleep(CLOCK_MONOTONIC, 0, &(struct timespec){0, pause}, NULL);
        now = nanoseconds();
        int64_t wait = next > now ? next - now : 0;
        if (ppoll(sources, 3, &(struct timespec){wait / 1000000000, wait % 1000000000}, NULL) < 0 && errno != EINTR)
            die("ppoll");
        woke = nanoseconds();
        if (sources[2].revents) {
            char line[16];
            if (read(0, line, sizeof line) <= 0)
                return 0;
            report(ways);
        }
        for (int i = 0; i < 2; i++) {
            int left = 64;
            while (left-- && receive(&ways[i], nanoseconds()))
                ;
            deliver(&ways[i], nanoseconds());
        }
    }
}
