/* See network.h. */
#include "network.h"

#include <stdint.h>
#include <string.h>

#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#endif
#if defined(__FLT_EVAL_METHOD__) && __FLT_EVAL_METHOD__ != 0
#error "this target keeps excess precision: its results would differ from everyone else's"
#endif

#define MAGIC "NXSSWGHT"
enum { VERSION = 1, PROGRESS_STEPS = 4096 };

/* --- the weights file ------------------------------------------------------------------------------------------- */

struct reader {
    const unsigned char *at;
    int finite; /* cleared by the first number that is not */
};

static uint32_t read_u32(struct reader *in)
{
    const unsigned char *p = in->at;
    in->at += 4;
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static double read_f32(struct reader *in)
{
    uint32_t bits = read_u32(in);
    float value;
    if ((bits >> 23 & 0xff) == 0xff)
        in->finite = 0; /* a NaN's bits may differ between machines, so none may enter */
    memcpy(&value, &bits, sizeof value);
    return (double)value;
}

/* `rows` x `columns` in the file (row by row), transposed in memory: target[column * rows + row]. */
static void read_transposed(struct reader *in, double *target, size_t rows, size_t columns)
{
    for (size_t row = 0; row < rows; row++)
        for (size_t column = 0; column < columns; column++)
            target[column * rows + row] = read_f32(in);
}

static void read_direction(struct reader *in, struct direction *d, size_t inputs)
{
    read_transposed(in, &d->from_input[0][0], GATES, inputs);
    read_transposed(in, &d->from_hidden[0][0], GATES, HIDDEN);
    for (size_t j = 0; j < GATES; j++)
        d->bias[j] = read_f32(in);
    for (size_t j = 0; j < GATES; j++)
        d->bias[j] += read_f32(in);
}

static const char *check_header(struct reader *in)
{
    static const uint32_t expected[] = {RESIDUES, HIDDEN, LAYERS, CLASSES};
    in->at += strlen(MAGIC);
    if (read_u32(in) != VERSION)
        return "weights of another version of the format";
    for (size_t i = 0; i < sizeof expected / sizeof *expected; i++)
        if (read_u32(in) != expected[i])
            return "weights of a network of another shape";
    if (memcmp(in->at, RESIDUE_LETTERS, RESIDUES) != 0)
        return "weights for another order of the residues";
    in->at += RESIDUES;
    if (memcmp(in->at, CLASS_LETTERS, CLASSES + 1) != 0)
        return "weights for another order of the classes";
    in->at += CLASSES + 1;
    return NULL;
}

const char *network_load(struct network *net, const unsigned char *bytes, size_t size)
{
    struct reader in = {bytes, 1};
    const char *wrong;

    if (size < strlen(MAGIC) || memcmp(bytes, MAGIC, strlen(MAGIC)) != 0)
        return "not a weights file (make one with weights.py)";
    if (size < WEIGHTS_BYTES)
        return "the weights file is truncated";
    if (size > WEIGHTS_BYTES)
        return "the weights file has bytes beyond its end";
    if ((wrong = check_header(&in)) != NULL)
        return wrong;

    memset(net, 0, sizeof *net);
    for (size_t layer = 0; layer < LAYERS; layer++)
        for (size_t way = 0; way < 2; way++)
            read_direction(&in, &net->lstm[layer][way], layer == 0 ? RESIDUES : BOTH);
    read_transposed(&in, &net->from_lstm[0][0], CLASSES, BOTH);
    for (size_t c = 0; c < CLASSES; c++)
        net->bias[c] = read_f32(&in);
    return in.finite ? NULL : "a weight is not a finite number";
}

unsigned char residue_code(char letter)
{
    const char *found = letter ? strchr(RESIDUE_LETTERS, letter) : NULL;
    return found ? (unsigned char)(found - RESIDUE_LETTERS) : UNKNOWN;
}

/* --- mathematics ------------------------------------------------------------------------------------------------ */

/* e^x for x <= 0. The C library's differs between systems in the last bit, so here is one that does not:
 * x = k ln 2 + r with |r| <= ln 2 / 2, then the Taylor series of e^r to r^13 / 13!, whose remainder is under 1e-17. */
static double exp_nonpositive(double x)
{
    static const double inverse_factorials[] = {
        1.0 / 6227020800.0, 1.0 / 479001600.0, 1.0 / 39916800.0, 1.0 / 3628800.0, 1.0 / 362880.0,
        1.0 / 40320.0,      1.0 / 5040.0,      1.0 / 720.0,      1.0 / 120.0,     1.0 / 24.0,
        1.0 / 6.0,          1.0 / 2.0,         1.0,              1.0};
    const double ln2_high = 6.93147180369123816490e-01; /* its last 21 bits are zero: k * ln2_high is exact */
    const double ln2_low = 1.90821492927058770002e-10;
    double r, sum, scale;
    uint64_t bits;
    int k;

    if (x < -700.0)
        return 0.0; /* under 1e-304: nothing that is added to it would show it */
    k = (int)(x * 1.44269504088896338700 - 0.5);
    r = (x - k * ln2_high) - k * ln2_low;
    sum = inverse_factorials[0];
    for (size_t i = 1; i < sizeof inverse_factorials / sizeof *inverse_factorials; i++)
        sum = sum * r + inverse_factorials[i];
    bits = (uint64_t)(1023 + k) << 52;
    memcpy(&scale, &bits, sizeof scale);
    return sum * scale;
}

static double sigmoid(double x)
{
    double e = exp_nonpositive(x < 0.0 ? x : -x);
    return x < 0.0 ? e / (1.0 + e) : 1.0 / (1.0 + e);
}

static double hyperbolic_tangent(double x)
{
    double e = exp_nonpositive(x < 0.0 ? 2.0 * x : -2.0 * x);
    double t = (1.0 - e) / (1.0 + e);
    return x < 0.0 ? -t : t;
}

static void softmax(double *values)
{
    double highest = values[0], sum = 0.0;
    for (size_t c = 1; c < CLASSES; c++)
        if (values[c] > highest)
            highest = values[c];
    for (size_t c = 0; c < CLASSES; c++) {
        values[c] = exp_nonpositive(values[c] - highest);
        sum += values[c];
    }
    for (size_t c = 0; c < CLASSES; c++)
        values[c] /= sum;
}

/* --- the forward pass ------------------------------------------------------------------------------------------- */

static void add_scaled_row(double *gates, const double *row, double factor)
{
    for (size_t j = 0; j < GATES; j++)
        gates[j] += row[j] * factor;
}

/* One step of one direction: `gates` holds bias and input already; `h` and `c` are its state. */
static void lstm_step(const struct direction *d, double *gates, double *h, double *c)
{
    for (size_t k = 0; k < HIDDEN; k++)
        add_scaled_row(gates, d->from_hidden[k], h[k]);
    for (size_t k = 0; k < HIDDEN; k++) {
        double input = sigmoid(gates[k]);
        double forget = sigmoid(gates[HIDDEN + k]);
        double cell = hyperbolic_tangent(gates[2 * HIDDEN + k]);
        double output = sigmoid(gates[3 * HIDDEN + k]);
        c[k] = forget * c[k] + input * cell;
        h[k] = output * hyperbolic_tangent(c[k]);
    }
}

static void report(progress_fn *progress, size_t done, size_t n)
{
    if (done % PROGRESS_STEPS == 0)
        progress((double)done / (double)(n * LAYERS * 2));
}

static void first_layer(const struct network *net, size_t way, const unsigned char *codes, size_t n, double *between,
                        progress_fn *progress)
{
    const struct direction *d = &net->lstm[0][way];
    double h[HIDDEN] = {0.0}, c[HIDDEN] = {0.0}, gates[GATES];

    for (size_t step = 0; step < n; step++) {
        size_t at = way ? n - 1 - step : step;
        memcpy(gates, d->bias, sizeof gates);
        if (codes[at] != UNKNOWN)
            add_scaled_row(gates, d->from_input[codes[at]], 1.0);
        lstm_step(d, gates, h, c);
        memcpy(between + at * BOTH + way * HIDDEN, h, sizeof h);
        report(progress, way * n + step, n);
    }
}

static void last_layer(const struct network *net, size_t way, const double *between, size_t n, double *logits,
                       progress_fn *progress)
{
    const struct direction *d = &net->lstm[LAYERS - 1][way];
    double h[HIDDEN] = {0.0}, c[HIDDEN] = {0.0}, gates[GATES];

    for (size_t step = 0; step < n; step++) {
        size_t at = way ? n - 1 - step : step;
        memcpy(gates, d->bias, sizeof gates);
        for (size_t k = 0; k < BOTH; k++)
            add_scaled_row(gates, d->from_input[k], between[at * BOTH + k]);
        lstm_step(d, gates, h, c);
        for (size_t k = 0; k < HIDDEN; k++)
            for (size_t class = 0; class < CLASSES; class++)
                logits[at * CLASSES + class] += net->from_lstm[way * HIDDEN + k][class] * h[k];
        report(progress, (2 + way) * n + step, n);
    }
}

void network_run(const struct network *net, const unsigned char *codes, size_t n, double *between,
                 double *probabilities, progress_fn *progress)
{
    first_layer(net, 0, codes, n, between, progress);
    first_layer(net, 1, codes, n, between, progress);
    for (size_t at = 0; at < n; at++)
        memcpy(probabilities + at * CLASSES, net->bias, sizeof net->bias);
    last_layer(net, 0, between, n, probabilities, progress);
    last_layer(net, 1, between, n, probabilities, progress);
    for (size_t at = 0; at < n; at++)
        softmax(probabilities + at * CLASSES);
}
