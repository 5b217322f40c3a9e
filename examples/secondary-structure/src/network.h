/* The PredictDSSP network: its shape, its weights file and its forward pass.
 *
 * Knows nothing of files, FASTA or how a prediction is written: predict.c does.
 *
 * Every operation is an IEEE 754 binary64 +, -, * or /, in an order that the source fixes, with an exponential of our
 * own: so the same bytes in give the same bits out on every machine, under wasm or native, provided that the compiler
 * contracts nothing into a fused multiply-add (-ffp-contract=off) and keeps no excess precision (no x87).
 */
#ifndef NETWORK_H
#define NETWORK_H

#include <stddef.h>

enum {
    RESIDUES = 20,             /* one-hot input, in the order of RESIDUE_LETTERS */
    HIDDEN = 20,               /* hidden units of one direction of one layer */
    LAYERS = 2,                /* bidirectional LSTM layers */
    CLASSES = 3,               /* output, in the order of CLASS_LETTERS */
    BOTH = 2 * HIDDEN,         /* forward and backward hidden states, side by side */
    GATES = 4 * HIDDEN,        /* input, forget, cell, output: PyTorch's order */
    UNKNOWN = RESIDUES         /* the code of a residue outside the 20: an all-zero input */
};

#define RESIDUE_LETTERS "ACDEFGHIKLMNPQRSTVWY"
#define CLASS_LETTERS "HEL"

enum {
    /* Two directions of: input weights, hidden weights, two biases. */
    FIRST_LAYER_FLOATS = 2 * (GATES * RESIDUES + GATES * HIDDEN + 2 * GATES),
    NEXT_LAYER_FLOATS = 2 * (GATES * BOTH + GATES * HIDDEN + 2 * GATES),
    WEIGHT_FLOATS = FIRST_LAYER_FLOATS + (LAYERS - 1) * NEXT_LAYER_FLOATS + CLASSES * BOTH + CLASSES,
    WEIGHTS_HEADER_BYTES = 8 + 5 * 4 + RESIDUES + 4,
    WEIGHTS_BYTES = WEIGHTS_HEADER_BYTES + 4 * WEIGHT_FLOATS
};

/* One direction of one LSTM layer. The matrices are transposed, so that a step adds whole rows: the compiler may use
 * vectors without changing the order of any sum. */
struct direction {
    double from_input[BOTH][GATES]; /* the first layer uses only its first RESIDUES rows */
    double from_hidden[HIDDEN][GATES];
    double bias[GATES];
};

struct network {
    struct direction lstm[LAYERS][2]; /* [layer][0 = forward, 1 = backward] */
    double from_lstm[BOTH][CLASSES];
    double bias[CLASSES];
};

/* Called now and then with the share of the work that is done, in [0, 1]. */
typedef void progress_fn(double share);

/* Reads a weights file (layout in README.md). NULL when all is well, else what is wrong with it. */
const char *network_load(struct network *net, const unsigned char *bytes, size_t size);

/* 0..19 for one of the 20 residues (upper case), else UNKNOWN. */
unsigned char residue_code(char letter);

/* `codes`: n residue codes. `between`: room for n * BOTH doubles. `probabilities`: n * CLASSES results. */
void network_run(const struct network *net, const unsigned char *codes, size_t n, double *between,
                 double *probabilities, progress_fn *progress);

#endif
