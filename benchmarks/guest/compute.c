/* A fixed amount of integer, floating-point and memory work on one processor; prints a checksum. */
#include <stdint.h>
#include <stdio.h>
#include <string.h>

enum { PRIMES_BELOW = 1 << 20, SIDE = 96, TURNS = 120 };

static unsigned char composite[PRIMES_BELOW];
static double a[SIDE][SIDE], b[SIDE][SIDE], c[SIDE][SIDE];

static uint64_t count_primes(void) {
    uint64_t count = 0;
    memset(composite, 0, sizeof composite);
    for (uint32_t i = 2; i < PRIMES_BELOW; i++) {
        if (composite[i])
            continue;
        count++;
        for (uint32_t j = 2 * i; j < PRIMES_BELOW; j += i)
            composite[j] = 1;
    }
    return count;
}

static double multiply(int turn) {
    for (int i = 0; i < SIDE; i++)
        for (int j = 0; j < SIDE; j++) {
            a[i][j] = (i * 7 + j * 3 + turn) % 11;
            b[i][j] = (i + j * 5 + turn) % 13;
            c[i][j] = 0;
        }
    for (int i = 0; i < SIDE; i++)
        for (int k = 0; k < SIDE; k++)
            for (int j = 0; j < SIDE; j++)
                c[i][j] += a[i][k] * b[k][j];
    return c[SIDE / 2][SIDE / 3];
}

int main(void) {
    uint64_t primes = 0;
    double products = 0;
    for (int turn = 0; turn < TURNS; turn++) {
        primes += count_primes();
        products += multiply(turn);
    }
    printf("%llu %.0f\n", (unsigned long long)primes, products);
    return 0;
}
