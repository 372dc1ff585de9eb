/* The guest's end of benchmarks/network.py: one word says what to do with the host's server.
 *
 *   network HOST PORT send MIB | receive MIB | echo COUNT | connect COUNT | open COUNT
 *
 *   network HOST PORT serve COUNT      the other end of COUNT "send", at HOST, one after the other
 *
 * Exit status 0 when nothing was lost. */
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum { CHUNK = 256 << 10 };
static char buffer[CHUNK];
static struct sockaddr_in server;

static int fail(const char *what)
{
    perror(what);
    return 1;
}

/* A connection whose first byte tells the server what this is; -1 on failure. */
static int dial(char command)
{
    int one = 1, fd = socket(AF_INET, SOCK_STREAM, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&server, sizeof server) < 0)
        return -1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    return write(fd, &command, 1) == 1 ? fd : -1;
}

static int send_all(long mib)
{
    int fd = dial('s');
    if (fd < 0)
        return fail("connect");
    for (int64_t left = (int64_t)mib << 20; left > 0;) {
        ssize_t count = write(fd, buffer, left < CHUNK ? left : CHUNK);
        if (count <= 0)
            return fail("write");
        left -= count;
    }
    shutdown(fd, SHUT_WR);
    return read(fd, buffer, 1) == 1 ? 0 : fail("read");
}

static int serve(long count)
{
    int one = 1, listener = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&server, sizeof server) < 0 || listen(listener, 8) < 0)
        return fail("listen");
    for (; count > 0; count--) {
        int fd = accept(listener, NULL, NULL);
        while (read(fd, buffer, CHUNK) > 0)
            ;
        if (write(fd, "!", 1) != 1)
            return fail("write");
        close(fd);
    }
    return 0;
}

static int receive_all(long mib)
{
    int fd = dial('r');
    uint32_t wanted = htonl(mib);
    if (fd < 0 || write(fd, &wanted, 4) != 4)
        return fail("connect");
    for (int64_t left = (int64_t)mib << 20; left > 0;) {
        ssize_t count = read(fd, buffer, CHUNK);
        if (count <= 0)
            return fail("read");
        left -= count;
    }
    return write(fd, "!", 1) == 1 ? 0 : fail("write");
}

static int echo_on(int fd)
{
    char byte = 'x';
    return write(fd, &byte, 1) == 1 && read(fd, &byte, 1) == 1;
}

static int echo(long count)
{
    int fd = dial('e');
    while (fd >= 0 && count > 0 && echo_on(fd))
        count--;
    return count == 0 ? 0 : fail("echo");
}

static int connect_many(long count)
{
    for (; count > 0; count--) {
        int fd = dial('e');
        if (fd < 0 || !echo_on(fd))
            return fail("connection");
        close(fd);
    }
    return 0;
}

static int open_many(long count)
{
    struct rlimit limit = {count + 64, count + 64};
    int *fds = calloc(count, sizeof *fds);
    setrlimit(RLIMIT_NOFILE, &limit);
    for (long i = 0; i < count; i++)
        if ((fds[i] = dial('e')) < 0)
            return fail("connect");
    for (long i = 0; i < count; i++)
        if (!echo_on(fds[i]))
            return fail("echo");
    return 0;
}

int main(int argc, char **argv)
{
    static const struct { const char *name; int (*run)(long); } tasks[] = {
        {"send", send_all}, {"receive", receive_all}, {"echo", echo},
        {"connect", connect_many}, {"open", open_many},
        {"serve", serve},
    };
    if (argc != 5)
        return 2;
    server.sin_family = AF_INET;
    server.sin_addr.s_addr = inet_addr(argv[1]);
    server.sin_port = htons(atoi(argv[2]));
    for (unsigned i = 0; i < sizeof tasks / sizeof *tasks; i++)
        if (!strcmp(argv[3], tasks[i].name))
            return tasks[i].run(atol(argv[4]));
    return 2;
}
