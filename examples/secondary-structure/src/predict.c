/* Protein secondary structure of one sequence: a FASTA record and weights in, a table out.
 *
 *     predict [RECORD WEIGHTS TABLE]       default: /input/record.fasta /input/weights.bin /output/prediction.tsv
 *
 * Exit: 0 = the table is written; 2 = the record or the weights are unusable, and stderr says why; 75 = this machine
 * failed (no memory, output not writable), another may succeed. When NEXAPOD_PROGRESS names a file, the share of the
 * work that is done is written there. No printf: it would be most of the module.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "network.h"

enum { BAD_INPUT = 2, TRY_ELSEWHERE = 75 };
enum { RESIDUES_MAX = 100000, FASTA_BYTES_MAX = 1 << 20, DIGITS_MAX = 20 };

/* --- saying what is wrong --------------------------------------------------------------------------------------- */

static const char *decimal(size_t value, char *buffer)
{
    char *at = buffer + DIGITS_MAX;
    *at = '\0';
    do
        *--at = (char)('0' + value % 10);
    while ((value /= 10) != 0);
    return at;
}

static void complain(const char *where, const char *what)
{
    fputs("predict: ", stderr);
    fputs(where, stderr);
    fputs(": ", stderr);
    fputs(what, stderr);
    fputs("\n", stderr);
}

static void die(int status, const char *where, const char *what)
{
    complain(where, what);
    exit(status);
}

static void die_at_line(const char *path, size_t line, const char *what)
{
    char digits[DIGITS_MAX + 1];
    fputs("predict: line ", stderr);
    fputs(decimal(line, digits), stderr);
    fputs(" of ", stderr);
    fputs(path, stderr);
    fputs(": ", stderr);
    fputs(what, stderr);
    fputs("\n", stderr);
    exit(BAD_INPUT);
}

static void *allocate(size_t count, size_t size)
{
    void *memory = calloc(count, size);
    if (!memory)
        die(TRY_ELSEWHERE, "memory", "not enough of it for this sequence");
    return memory;
}

/* --- progress --------------------------------------------------------------------------------------------------- */

static const char *progress_path; /* NULL: nobody asked */

static void write_progress(double share)
{
    unsigned thousandths = (unsigned)(share * 1000.0);
    char text[] = "0.000\n";
    FILE *file;
    int ok;

    if (!progress_path)
        return;
    text[0] = (char)('0' + thousandths / 1000);
    text[2] = (char)('0' + thousandths / 100 % 10);
    text[3] = (char)('0' + thousandths / 10 % 10);
    text[4] = (char)('0' + thousandths % 10);
    file = fopen(progress_path, "wb");
    ok = file && fputs(text, file) >= 0;
    if (file && fclose(file) != 0)
        ok = 0;
    if (!ok) { /* it is only a courtesy: the work goes on without it */
        complain(progress_path, "cannot write the progress file");
        progress_path = NULL;
    }
}

/* --- input ------------------------------------------------------------------------------------------------------ */

/* The whole file, or death. One byte more than `bytes_max` is asked for, to notice a longer file. */
static unsigned char *read_file(const char *path, size_t bytes_max, size_t *size)
{
    unsigned char *bytes = allocate(bytes_max + 1, 1);
    FILE *file = fopen(path, "rb");
    if (!file)
        die(BAD_INPUT, path, "cannot open it");
    *size = fread(bytes, 1, bytes_max + 1, file);
    if (ferror(file))
        die(BAD_INPUT, path, "cannot read it");
    fclose(file);
    return bytes;
}

static int is_blank(unsigned char c)
{
    return c == ' ' || c == '\t' || c == '\r';
}

static char upper(unsigned char c)
{
    return (char)(c >= 'a' && c <= 'z' ? c - 'a' + 'A' : c);
}

struct fasta {
    const char *path;
    const unsigned char *at, *end;
    size_t line;
};

/* One header line, before anything but blank lines. */
static void read_header(struct fasta *in)
{
    while (in->at < in->end && (is_blank(*in->at) || *in->at == '\n'))
        in->line += *in->at++ == '\n';
    if (in->at == in->end)
        die(BAD_INPUT, in->path, "the file is empty: one FASTA record is needed");
    if (*in->at != '>')
        die_at_line(in->path, in->line, "a FASTA record begins with '>'");
    while (in->at < in->end && *in->at != '\n')
        in->at++;
}

/* The residues of the one record, in upper case, into `letters` (room for RESIDUES_MAX). A final '*' (a translated
 * stop codon) is dropped. Returns how many there are. */
static size_t read_sequence(struct fasta *in, char *letters)
{
    size_t n = 0;
    int line_start = 0, stopped = 0;

    for (; in->at < in->end; in->at++) {
        char letter = upper(*in->at);
        if (letter == '\n') {
            in->line++;
            line_start = 1;
            continue;
        }
        if (letter == '>' && line_start)
            die_at_line(in->path, in->line, "a second record: one task predicts one sequence");
        line_start = 0;
        if (is_blank(*in->at))
            continue;
        if (stopped)
            die_at_line(in->path, in->line, "residues after the stop '*'");
        if (letter == '*') {
            stopped = 1;
            continue;
        }
        if (letter < 'A' || letter > 'Z')
            die_at_line(in->path, in->line, "a character that is no residue: only letters and a final '*' are");
        if (n == RESIDUES_MAX)
            die_at_line(in->path, in->line, "the sequence is longer than 100000 residues");
        letters[n++] = letter;
    }
    return n;
}

static size_t read_fasta(const char *path, char *letters)
{
    size_t size, n;
    unsigned char *bytes = read_file(path, FASTA_BYTES_MAX, &size);
    struct fasta in = {path, bytes, bytes + size, 1};

    if (size > FASTA_BYTES_MAX)
        die(BAD_INPUT, path, "the file is larger than 1 MiB: too long for one sequence");
    read_header(&in);
    n = read_sequence(&in, letters);
    if (n == 0)
        die(BAD_INPUT, path, "the record has no residues");
    free(bytes);
    return n;
}

static void read_weights(const char *path, struct network *net)
{
    size_t size;
    unsigned char *bytes = read_file(path, WEIGHTS_BYTES, &size);
    const char *wrong = network_load(net, bytes, size);
    if (wrong)
        die(BAD_INPUT, path, wrong);
    free(bytes);
}

/* --- output ----------------------------------------------------------------------------------------------------- */

/* `probability` with six decimals, rounded half up: "0.123457". */
static void put_probability(double probability, FILE *file)
{
    unsigned long millionths = (unsigned long)(probability * 1e6 + 0.5);
    char text[] = "0.000000";
    for (size_t i = 7; i > 1; i--, millionths /= 10)
        text[i] = (char)('0' + millionths % 10);
    text[0] = (char)('0' + millionths);
    fputs(text, file);
}

static size_t likeliest(const double *probabilities)
{
    size_t best = 0; /* the first of equals, as PredictDSSP has it */
    for (size_t c = 1; c < CLASSES; c++)
        if (probabilities[c] > probabilities[best])
            best = c;
    return best;
}

static void put_row(size_t index, char residue, const double *probabilities, FILE *file)
{
    char digits[DIGITS_MAX + 1];
    fputs(decimal(index, digits), file);
    fputc('\t', file);
    fputc(residue, file);
    fputc('\t', file);
    fputc(CLASS_LETTERS[likeliest(probabilities)], file);
    for (size_t c = 0; c < CLASSES; c++) {
        fputc('\t', file);
        put_probability(probabilities[c], file);
    }
    fputs(residue_code(residue) == UNKNOWN ? "\t0\n" : "\t1\n", file);
}

static void write_table(const char *path, const char *letters, const double *probabilities, size_t n)
{
    FILE *file = fopen(path, "wb");
    int failed;

    if (!file)
        die(TRY_ELSEWHERE, path, "cannot create it");
    fputs("index\tresidue\tlabel\tp_H\tp_E\tp_L\tknown\n", file);
    for (size_t i = 0; i < n; i++)
        put_row(i + 1, letters[i], probabilities + i * CLASSES, file);
    failed = ferror(file);
    if (fclose(file) != 0 || failed)
        die(TRY_ELSEWHERE, path, "cannot write all of it");
}

int main(int argc, char **argv)
{
    static struct network net;
    const char *record = "/input/record.fasta", *weights = "/input/weights.bin", *table = "/output/prediction.tsv";
    char *letters = allocate(RESIDUES_MAX, 1);
    unsigned char *codes;
    double *between, *probabilities;
    size_t n;

    if (argc == 4) {
        record = argv[1];
        weights = argv[2];
        table = argv[3];
    } else if (argc > 1) { /* under wasm even argv[0] may be missing */
        die(BAD_INPUT, "usage", "predict [RECORD WEIGHTS TABLE]");
    }
    progress_path = getenv("NEXAPOD_PROGRESS");
    if (progress_path && !*progress_path)
        progress_path = NULL;

    n = read_fasta(record, letters);
    read_weights(weights, &net);
    codes = allocate(n, sizeof *codes);
    between = allocate(n * BOTH, sizeof *between);
    probabilities = allocate(n * CLASSES, sizeof *probabilities);
    for (size_t i = 0; i < n; i++)
        codes[i] = residue_code(letters[i]);
    network_run(&net, codes, n, between, probabilities, write_progress);
    write_table(table, letters, probabilities, n);
    write_progress(1.0);
    free(letters);
    free(codes);
    free(between);
    free(probabilities);
    return 0;
}
