/* What a guest's programs do all day, row by row, with the time that each operation takes.
 *
 * One static binary for every side of a comparison: run from a shell it measures the host; run as the first process
 * of a guest it mounts what it needs, measures, and powers the machine off. A row runs often enough to fill about
 * BENCH_SECONDS (0.3 by default; BENCH_ROWS, comma-separated, chooses rows) and prints
 *
 *     row <name> <operations> <nanoseconds an operation> <checksum>
 *
 * where the checksum is of a fixed amount of work, so that every side must print the same.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <immintrin.h>
#include <math.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

typedef uint64_t (*row_function)(uint64_t operations);

struct row {
    const char *name;
    row_function run;
    uint64_t verified; /* operations whose checksum is printed */
};

static const char *self = "/proc/self/exe";

static uint64_t clock_ns(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

/* Marsaglia's xorshift64: the same numbers everywhere. */
static uint64_t next_random(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

/* ---- integer ---- */

/* One operation: all primes below 65536. */
static uint64_t sieve(uint64_t operations)
{
    static uint8_t composite[65536];
    uint64_t primes = 0;
    while (operations--) {
        memset(composite, 0, sizeof composite);
        for (unsigned i = 2; i < sizeof composite; i++) {
            if (composite[i])
                continue;
            primes++;
            for (unsigned multiple = 2 * i; multiple < sizeof composite; multiple += i)
                composite[multiple] = 1;
        }
        __asm__ volatile("" ::"r"(composite) : "memory");
    }
    return primes;
}

static void quicksort(uint32_t *values, long low, long high)
{
    while (low < high) {
        uint32_t pivot = values[(low + high) / 2];
        long i = low, j = high;
        while (i <= j) {
            while (values[i] < pivot)
                i++;
            while (values[j] > pivot)
                j--;
            if (i <= j) {
                uint32_t held = values[i];
                values[i++] = values[j];
                values[j--] = held;
            }
        }
        quicksort(values, low, j);
        low = i;
    }
}

/* One operation: sort 16384 random numbers. */
static uint64_t sort(uint64_t operations)
{
    static uint32_t values[16384];
    uint64_t sum = 0, state = 88172645463325252u;
    while (operations--) {
        for (unsigned i = 0; i < 16384; i++)
            values[i] = (uint32_t)next_random(&state);
        quicksort(values, 0, 16383);
        sum += values[1] ^ values[8192];
    }
    return sum;
}

#define NODES (1u << 19)

/* One operation: follow one pointer of a random cycle through 4 MiB. */
static uint64_t pointer_chase(uint64_t operations)
{
    static uint64_t *next;
    if (!next) {
        uint64_t state = 1234567;
        next = malloc(NODES * sizeof *next);
        for (uint64_t i = 0; i < NODES; i++)
            next[i] = i;
        for (uint64_t i = NODES - 1; i > 0; i--) { /* Sattolo's algorithm: a single cycle */
            uint64_t j = next_random(&state) % i, held = next[i];
            next[i] = next[j];
            next[j] = held;
        }
    }
    uint64_t at = 0;
    while (operations--)
        at = next[at];
    return at;
}

static __attribute__((noinline)) uint64_t fibonacci(uint64_t n)
{
    __asm__ volatile("" : "+r"(n));
    return n < 2 ? n : fibonacci(n - 1) + fibonacci(n - 2);
}

/* One operation: fib(20), 21891 calls and returns. */
static uint64_t call_return(uint64_t operations)
{
    uint64_t sum = 0;
    while (operations--)
        sum += fibonacci(20);
    return sum;
}

static uint64_t step_add(uint64_t x) { return x + 0x9e3779b97f4a7c15u; }
static uint64_t step_xor(uint64_t x) { return x ^ (x >> 31); }
static uint64_t step_mul(uint64_t x) { return x * 0xbf58476d1ce4e5b9u; }
static uint64_t step_rot(uint64_t x) { return (x << 23) | (x >> 41); }

/* One operation: one call through a table of four functions, in an order that data decides. */
static uint64_t indirect_call(uint64_t operations)
{
    static uint64_t (*volatile const steps[4])(uint64_t) = {step_add, step_xor, step_mul, step_rot};
    uint64_t x = 1;
    while (operations--)
        x = steps[(x >> 7) & 3](x) + operations;
    return x;
}

/* ---- floating point ---- */

struct body {
    double x, y, z, vx, vy, vz, mass;
};

static void advance(struct body *bodies, int count, double dt)
{
    for (int i = 0; i < count; i++) {
        for (int j = i + 1; j < count; j++) {
            double dx = bodies[i].x - bodies[j].x, dy = bodies[i].y - bodies[j].y, dz = bodies[i].z - bodies[j].z;
            double d2 = dx * dx + dy * dy + dz * dz + 0.01;
            double pull = dt / (d2 * sqrt(d2));
            bodies[i].vx -= dx * bodies[j].mass * pull;
            bodies[i].vy -= dy * bodies[j].mass * pull;
            bodies[i].vz -= dz * bodies[j].mass * pull;
            bodies[j].vx += dx * bodies[i].mass * pull;
            bodies[j].vy += dy * bodies[i].mass * pull;
            bodies[j].vz += dz * bodies[i].mass * pull;
        }
    }
    for (int i = 0; i < count; i++) {
        bodies[i].x += dt * bodies[i].vx;
        bodies[i].y += dt * bodies[i].vy;
        bodies[i].z += dt * bodies[i].vz;
    }
}

/* One operation: one step of five bodies, scalar double. */
static uint64_t nbody(uint64_t operations)
{
    struct body bodies[5];
    for (int i = 0; i < 5; i++)
        bodies[i] = (struct body){i, 1.5 * i - 2, 0.5 * i * i, 0.1 * i, -0.05 * i, 0.02, 1.0 / (i + 1)};
    while (operations--)
        advance(bodies, 5, 0.001);
    uint64_t bits;
    memcpy(&bits, &bodies[0].x, sizeof bits);
    return bits;
}

#define SIZE 64
static float left[SIZE][SIZE], right[SIZE][SIZE], product[SIZE][SIZE] __attribute__((aligned(32)));

/* Products and sums are rounded apart in both versions, so that they agree to the last bit. */
__attribute__((target("avx2"))) static void multiply_avx2(void)
{
    for (int i = 0; i < SIZE; i++) {
        for (int j = 0; j < SIZE; j += 8) {
            __m256 sum = _mm256_setzero_ps();
            for (int k = 0; k < SIZE; k++)
                sum = _mm256_add_ps(sum, _mm256_mul_ps(_mm256_set1_ps(left[i][k]), _mm256_loadu_ps(&right[k][j])));
            _mm256_storeu_ps(&product[i][j], sum);
        }
    }
}

static void multiply_sse(void)
{
    for (int i = 0; i < SIZE; i++) {
        for (int j = 0; j < SIZE; j += 4) {
            __m128 sum = _mm_setzero_ps();
            for (int k = 0; k < SIZE; k++)
                sum = _mm_add_ps(sum, _mm_mul_ps(_mm_set1_ps(left[i][k]), _mm_loadu_ps(&right[k][j])));
            _mm_storeu_ps(&product[i][j], sum);
        }
    }
}

/* One operation: the product of two matrices of 64 by 64 floats, with AVX2 where CPUID says so, else SSE. */
static uint64_t matmul(uint64_t operations)
{
    for (int i = 0; i < SIZE; i++)
        for (int j = 0; j < SIZE; j++) {
            left[i][j] = 0.01f * (float)(i + j);
            right[i][j] = 0.5f - 0.003f * (float)(i * j % 97);
        }
    void (*multiply)(void) = __builtin_cpu_supports("avx2") ? multiply_avx2 : multiply_sse;
    while (operations--) {
        multiply();
        left[operations % SIZE][0] += 0.001f;
    }
    uint32_t bits;
    memcpy(&bits, &product[17][23], sizeof bits);
    return bits;
}

/* ---- copies ---- */

#define COPY_SIZE (4u << 20)

static uint8_t *copy_buffer(void)
{
    static uint8_t *buffer;
    if (!buffer) {
        buffer = malloc(2 * COPY_SIZE);
        for (unsigned i = 0; i < 2 * COPY_SIZE; i++)
            buffer[i] = (uint8_t)(i * 31 >> 3);
    }
    return buffer;
}

/* One operation: copy 4 MiB. */
static uint64_t copy(uint64_t operations)
{
    uint8_t *buffer = copy_buffer();
    while (operations--) {
        memcpy(buffer + COPY_SIZE, buffer, COPY_SIZE);
        __asm__ volatile("" ::"r"(buffer) : "memory");
    }
    return buffer[COPY_SIZE + 12345];
}

/* One operation: fill 4 MiB. */
static uint64_t fill(uint64_t operations)
{
    uint8_t *buffer = copy_buffer() + COPY_SIZE;
    while (operations--) {
        memset(buffer, 0x5a, COPY_SIZE);
        __asm__ volatile("" ::"r"(buffer) : "memory");
    }
    return buffer[54321];
}

/* ---- the kernel ---- */

/* One operation: one system call that does nothing much. */
static uint64_t system_call(uint64_t operations)
{
    uint64_t done = 0;
    while (operations--)
        done += syscall(SYS_getppid) >= 0;
    return done;
}

static volatile sig_atomic_t signals;

static void count_signal(int number)
{
    (void)number;
    signals++;
}

/* One operation: a signal sent to oneself and handled. */
static uint64_t signal_delivery(uint64_t operations)
{
    signal(SIGUSR1, count_signal);
    signals = 0;
    pid_t own = getpid();
    while (operations--)
        kill(own, SIGUSR1);
    return (uint64_t)signals;
}

static void echo_bytes(int from, int to)
{
    char byte;
    while (read(from, &byte, 1) == 1)
        if (write(to, &byte, 1) != 1)
            break;
    _exit(0);
}

/* One operation: a byte to another process and back, both on one CPU: two context switches. */
static uint64_t pipe_ping_pong(uint64_t operations)
{
    int there[2], back[2];
    uint64_t sum = 0;
    cpu_set_t first, before;
    CPU_ZERO(&first);
    CPU_SET(0, &first);
    sched_getaffinity(0, sizeof before, &before);
    sched_setaffinity(0, sizeof first, &first);
    if (pipe(there) || pipe(back))
        fail("pipe");
    pid_t child = fork();
    if (child == 0) {
        close(there[1]);
        close(back[0]);
        echo_bytes(there[0], back[1]);
    }
    close(there[0]);
    close(back[1]);
    while (operations--) {
        char byte = (char)(operations & 0x7f);
        if (write(there[1], &byte, 1) != 1 || read(back[0], &byte, 1) != 1)
            fail("pipe");
        sum += (uint64_t)byte;
    }
    close(there[1]);
    close(back[0]);
    waitpid(child, NULL, 0);
    sched_setaffinity(0, sizeof before, &before);
    return sum;
}

/* One operation: two processes on one CPU give way to each other once. */
static uint64_t context_switch(uint64_t operations)
{
    cpu_set_t first, before;
    CPU_ZERO(&first);
    CPU_SET(0, &first);
    sched_getaffinity(0, sizeof before, &before);
    sched_setaffinity(0, sizeof first, &first);
    uint64_t count = operations;
    pid_t child = fork();
    if (child == 0)
        for (;;)
            sched_yield();
    while (operations--)
        sched_yield();
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    sched_setaffinity(0, sizeof before, &before);
    return count;
}

/* One operation: a child made, ended and waited for. */
static uint64_t fork_wait(uint64_t operations)
{
    uint64_t sum = 0;
    while (operations--) {
        int status = 0;
        pid_t child = fork();
        if (child == 0)
            _exit(7);
        if (child < 0 || waitpid(child, &status, 0) != child)
            fail("fork");
        sum += (uint64_t)WEXITSTATUS(status);
    }
    return sum;
}

/* One operation: a child made that runs this program anew, ended and waited for. */
static uint64_t fork_exec(uint64_t operations)
{
    volatile uint64_t sum = 0; /* kept across vfork */
    while (operations--) {
        int status = 0;
        pid_t child = vfork();
        if (child == 0) {
            execl(self, "bench", "--nothing", (char *)NULL);
            _exit(1);
        }
        if (child < 0 || waitpid(child, &status, 0) != child)
            fail("exec");
        sum = sum + (uint64_t)WEXITSTATUS(status);
    }
    return sum;
}

#define FAULT_PAGES 4096u

/* One operation: the first touch of one page of fresh memory (mapped and unmapped 16 MiB at a time). */
static uint64_t page_fault(uint64_t operations)
{
    uint64_t sum = 0;
    while (operations) {
        uint64_t pages = operations < FAULT_PAGES ? operations : FAULT_PAGES;
        uint8_t *area = mmap(NULL, FAULT_PAGES * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (area == MAP_FAILED)
            fail("mmap");
        madvise(area, FAULT_PAGES * 4096, MADV_NOHUGEPAGE);
        for (uint64_t page = 0; page < pages; page++) {
            area[page * 4096] = 1;
            sum += area[page * 4096] + area[page * 4096 + 1];
        }
        munmap(area, FAULT_PAGES * 4096);
        operations -= pages;
    }
    return sum;
}

/* One operation: 64 KiB mapped, one page touched, unmapped. */
static uint64_t map_unmap(uint64_t operations)
{
    uint64_t sum = 0;
    while (operations--) {
        uint8_t *area = mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (area == MAP_FAILED)
            fail("mmap");
        area[4096] = 3;
        sum += area[4096];
        munmap(area, 65536);
    }
    return sum;
}

/* One operation: 4 KiB read out of a file of 1 MiB that is in the page cache. */
static uint64_t file_read(uint64_t operations)
{
    static uint8_t buffer[4096];
    static int file = -1;
    if (file < 0) {
        char name[] = "/tmp/bench-XXXXXX";
        file = mkstemp(name);
        if (file < 0)
            fail("mkstemp");
        unlink(name);
        for (unsigned block = 0; block < 256; block++) {
            memset(buffer, (int)block, sizeof buffer);
            if (write(file, buffer, sizeof buffer) != (ssize_t)sizeof buffer)
                fail("write");
        }
    }
    uint64_t sum = 0;
    while (operations--) {
        if (pread(file, buffer, sizeof buffer, (off_t)(operations % 256 * 4096)) != (ssize_t)sizeof buffer)
            fail("pread");
        sum += buffer[99];
    }
    return sum;
}

static const struct row rows[] = {
    {"sieve", sieve, 2},
    {"sort", sort, 2},
    {"pointer-chase", pointer_chase, 1000},
    {"call-return", call_return, 2},
    {"indirect-call", indirect_call, 1000},
    {"nbody", nbody, 1000},
    {"matmul", matmul, 3},
    {"memcpy", copy, 1},
    {"memset", fill, 1},
    {"getppid", system_call, 100},
    {"signal", signal_delivery, 100},
    {"pipe-ping-pong", pipe_ping_pong, 100},
    {"context-switch", context_switch, 100},
    {"fork", fork_wait, 3},
    {"exec", fork_exec, 3},
    {"page-fault", page_fault, 1000},
    {"mmap-munmap", map_unmap, 100},
    {"file-read", file_read, 300},
};

/* Run a row for about a given time, and print its line. */
static void measure(const struct row *row, double seconds)
{
    uint64_t checksum = row->run(row->verified), operations = 1, elapsed;
    for (;;) {
        uint64_t start = clock_ns(CLOCK_MONOTONIC);
        row->run(operations);
        elapsed = clock_ns(CLOCK_MONOTONIC) - start;
        if ((double)elapsed >= seconds * 0.7e9)
            break;
        double factor = elapsed > 1000000 ? seconds * 1e9 / (double)elapsed : 10.0;
        operations = (uint64_t)((double)operations * (factor > 10.0 ? 10.0 : factor)) + 1;
    }
    printf("row %s %llu %.3f %016llx\n", row->name, (unsigned long long)operations,
           (double)elapsed / (double)operations, (unsigned long long)checksum);
    fflush(stdout);
}

static int wanted(const char *list, const char *name)
{
    size_t length = strlen(name);
    if (!list || !*list)
        return 1;
    for (const char *at = list; (at = strstr(at, name)); at += length)
        if ((at == list || at[-1] == ',') && (at[length] == ',' || at[length] == '\0'))
            return 1;
    return 0;
}

static void become_init(void)
{
    mkdir("/proc", 0755);
    mkdir("/dev", 0755);
    mkdir("/tmp", 01777);
    mount("proc", "/proc", "proc", 0, NULL);
    mount("tmpfs", "/tmp", "tmpfs", 0, NULL);
    self = "/init";
}

int main(int count, char **arguments)
{
    if (count > 1 && !strcmp(arguments[1], "--nothing"))
        return 7;
    int first_process = getpid() == 1;
    if (first_process) {
        printf("\ninit %.6f\n", (double)clock_ns(CLOCK_BOOTTIME) / 1e9);
        fflush(stdout);
        become_init();
    }
    const char *seconds = getenv("BENCH_SECONDS"), *list = getenv("BENCH_ROWS");
    for (unsigned i = 0; i < sizeof rows / sizeof *rows; i++)
        if (wanted(list, rows[i].name))
            measure(&rows[i], seconds ? atof(seconds) : 0.3);
    printf("done\n");
    fflush(stdout);
    if (first_process) {
        sync();
        reboot(RB_POWER_OFF);
    }
    return 0;
}
