/* Answers the golden vectors of docs/vectors.md in C, with nothing but the C library:
 *
 *     cc -std=c11 -O2 -o vectors_check vectors_check.c -lm
 *     ./vectors_check SET RESULTS && ia-core vectors check RESULTS
 *
 * SET/vectors.safetensors says everything that is needed: each vector's tensors stand together in its header, and
 * which results are wanted shows in which expected ones there are. All is computed in double and rounded once.
 * Numbers of the files are little endian, and so must the machine be. -DWRONG_SCALE makes a program that is wrong.
 */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_RANK 16
#define MAX_PARTS 64

enum kind { F64, F32, F16, BF16, U8, I64, KINDS };
static const char *const KIND_NAMES[KINDS] = {"F64", "F32", "F16", "BF16", "U8", "I64"};
static const size_t KIND_SIZES[KINDS] = {8, 4, 2, 2, 1, 8};

struct tensor {
    char name[128]; /* without the id */
    enum kind kind;
    int rank;
    size_t shape[MAX_RANK], begin, end;
};

struct vector {
    char id[64];
    int count;
    struct tensor parts[MAX_PARTS];
};

static const unsigned char *data; /* the bytes after the header */

static void die(const char *what, const char *where) {
    fprintf(stderr, "vectors_check: %s: %.60s\n", what, where);
    exit(2);
}

static void *allocate(size_t count, size_t size) {
    void *found = calloc(count ? count : 1, size);
    if (!found) die("out of memory", "");
    return found;
}

/* ---- the header: {"name":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},...}, keys in any order ---- */

static void expect(const char **at, char wanted) {
    if (**at != wanted) die("the header is not as expected", *at);
    ++*at;
}

static void read_string(const char **at, char *found, size_t room) {
    size_t n = 0;
    for (expect(at, '"'); **at != '"'; ++*at) {
        if (!**at || **at == '\\' || n + 1 >= room) die("a string is too long or escaped", *at);
        found[n++] = **at;
    }
    found[n] = 0;
    ++*at;
}

static int read_sizes(const char **at, size_t *found) {
    int n = 0;
    for (expect(at, '['); **at != ']'; ++n) {
        char *after;
        if (n) expect(at, ',');
        if (n == MAX_RANK || **at < '0' || **at > '9') die("a list of sizes is wrong", *at);
        found[n] = strtoull(*at, &after, 10);
        *at = after;
    }
    ++*at;
    return n;
}

static void read_tensor(const char **at, struct tensor *t) {
    char key[32], word[32];
    size_t range[MAX_RANK];
    for (int field = 0; field < 3; field++) {
        expect(at, field ? ',' : '{');
        read_string(at, key, sizeof key);
        expect(at, ':');
        if (!strcmp(key, "dtype")) {
            read_string(at, word, sizeof word);
            for (t->kind = 0; t->kind < KINDS && strcmp(word, KIND_NAMES[t->kind]); t->kind++) {}
            if (t->kind == KINDS) die("an unknown dtype", word);
        } else if (!strcmp(key, "shape")) {
            t->rank = read_sizes(at, t->shape);
        } else if (!strcmp(key, "data_offsets")) {
            if (read_sizes(at, range) != 2) die("data_offsets must be two", *at);
            t->begin = range[0], t->end = range[1];
        } else {
            die("an unknown key", key);
        }
    }
    expect(at, '}');
}

/* The next vector, whose tensors stand together; 0 at the end. The id is all before the third slash. */
static int read_vector(const char **at, struct vector *v) {
    for (v->count = 0; **at == '{' || **at == ',';) {
        const char *before = *at;
        char name[128];
        ++*at;
        read_string(at, name, sizeof name);
        char *slash = name;
        for (int n = 0; n < 3; n++) {
            if (!(slash = strchr(slash, '/'))) die("a name without an id", name);
            slash++;
        }
        slash[-1] = 0;
        if (v->count && strcmp(v->id, name)) {
            *at = before;
            break;
        }
        if (v->count == MAX_PARTS || strlen(name) >= sizeof v->id) die("too many tensors, or too long an id", name);
        strcpy(v->id, name);
        expect(at, ':');
        struct tensor *t = &v->parts[v->count++];
        strcpy(t->name, slash);
        read_tensor(at, t);
    }
    return v->count;
}

static const struct tensor *part(const struct vector *v, const char *name) {
    for (int n = 0; n < v->count; n++)
        if (!strcmp(v->parts[n].name, name)) return &v->parts[n];
    return NULL;
}

/* ---- numbers ---- */

static double from_half(uint16_t bits) {
    int exponent = bits >> 10 & 31, fraction = bits & 1023;
    double size = exponent == 31 ? (fraction ? NAN : INFINITY)
                  : exponent    ? ldexp(1024 + fraction, exponent - 25)
                                : ldexp(fraction, -24);
    return bits >> 15 ? -size : size;
}

static float from_bits(uint32_t bits) {
    float found;
    memcpy(&found, &bits, 4);
    return found;
}

static double number(const struct tensor *t, size_t n) {
    const unsigned char *at = data + t->begin + n * KIND_SIZES[t->kind];
    double d;
    float f;
    uint16_t h;
    int64_t i;
    switch (t->kind) {
    case F64: memcpy(&d, at, 8); return d;
    case F32: memcpy(&f, at, 4); return f;
    case F16: memcpy(&h, at, 2); return from_half(h);
    case BF16: memcpy(&h, at, 2); return from_bits((uint32_t)h << 16);
    case I64: memcpy(&i, at, 8); return (double)i;
    default: return *at;
    }
}

/* To p significant bits, ties to even; below 2^least steps stay as large as there. */
static double rounded(double x, int p, int least) {
    int exponent;
    if (x == 0 || !isfinite(x)) return x;
    frexp(x, &exponent);
    int step = (exponent - 1 > least ? exponent - 1 : least) - p + 1;
    return ldexp(nearbyint(ldexp(x, -step)), step);
}

static uint16_t to_half(double x) {
    int exponent;
    double size = fabs(rounded(x, 11, -14));
    uint16_t sign = signbit(x) ? 0x8000 : 0;
    if (isnan(x)) return 0x7e00;
    if (size > 65504) return sign | 0x7c00;
    if (size < ldexp(1, -14)) return sign | (uint16_t)ldexp(size, 24);
    double fraction = frexp(size, &exponent);
    return sign | (uint16_t)((exponent + 14) << 10) | (uint16_t)(ldexp(fraction, 11) - 1024);
}

static void put_number(enum kind kind, double x, unsigned char *at) {
    float f = (float)(kind == BF16 ? rounded(x, 8, -126) : x);
    uint16_t h = kind == F16 ? to_half(x) : 0;
    if (kind == BF16) {
        uint32_t bits;
        memcpy(&bits, &f, 4);
        h = (uint16_t)(bits >> 16);
    }
    memcpy(at, kind == F64 ? (void *)&x : kind == F32 ? (void *)&f : (void *)&h, KIND_SIZES[kind]);
}

/* ---- results: a header and bytes that grow ---- */

static struct buffer {
    char *bytes;
    size_t used, room;
} header, body;

static void append(struct buffer *b, const void *bytes, size_t count) {
    if (b->used + count > b->room) {
        b->room = 2 * (b->used + count);
        if (!(b->bytes = realloc(b->bytes, b->room))) die("out of memory", "");
    }
    memcpy(b->bytes + b->used, bytes, count);
    b->used += count;
}

static size_t elements(const struct tensor *t) {
    size_t n = 1;
    for (int axis = 0; axis < t->rank; axis++) n *= t->shape[axis];
    return n;
}

/* A result has the dtype and the shape of the expected one. */
static void put_result(const struct vector *v, const struct tensor *like, const double *numbers) {
    char text[512];
    size_t count = elements(like), begin = body.used;
    int n = snprintf(text, sizeof text, "%s\"%s/%s\":{\"dtype\":\"%s\",\"shape\":[", header.used ? "," : "{", v->id,
                     like->name, KIND_NAMES[like->kind]);
    for (int axis = 0; axis < like->rank; axis++)
        n += snprintf(text + n, sizeof text - n, "%s%zu", axis ? "," : "", like->shape[axis]);
    for (size_t i = 0; i < count; i++) {
        unsigned char bytes[8];
        put_number(like->kind, numbers[i], bytes);
        append(&body, bytes, KIND_SIZES[like->kind]);
    }
    n += snprintf(text + n, sizeof text - n, "],\"data_offsets\":[%zu,%zu]}", begin, body.used);
    append(&header, text, (size_t)n);
}

/* ---- indirect attention ---- */

/* Where element `at` of a full shape lies in a tensor that broadcasts to it: axes of size 1 and missing ones repeat. */
static size_t broadcast(const struct tensor *t, const size_t *at, int rank) {
    size_t found = 0;
    for (int axis = 0; axis < t->rank; axis++)
        found = found * t->shape[axis] + (t->shape[axis] == 1 ? 0 : at[rank - t->rank + axis]);
    return found;
}

/* Row `row` of (..., H, M), counted in C order, as the place of its scores in (..., H, M, N). */
static void place(const struct tensor *query, size_t row, size_t *at) {
    for (int axis = query->rank - 2; axis >= 0; axis--) {
        at[axis] = row % query->shape[axis];
        row /= query->shape[axis];
    }
}

static void answer(const struct vector *v) {
    const struct tensor *q = part(v, "query"), *k = part(v, "key"), *x = part(v, "value");
    const struct tensor *bias = part(v, "bias"), *mask = part(v, "mask"), *output = part(v, "output");
    const struct tensor *cotangent = part(v, "cotangent"), *lse_cotangent = part(v, "lse_cotangent");
    if (!q || !k || !x || !output || !part(v, "scale")) die("a vector lacks a tensor", v->id);
    int rank = q->rank;
    size_t D = q->shape[rank - 1], M = q->shape[rank - 2], H = q->shape[rank - 3];
    size_t N = k->shape[rank - 2], Hk = k->shape[rank - 3], Dv = x->shape[rank - 1];
    size_t group = Hk ? H / Hk : 1, rows = elements(output) / (Dv ? Dv : 1), at[MAX_RANK];
    double scale = number(part(v, "scale"), 0);
#ifdef WRONG_SCALE
    scale = 1.0 / (double)D;
#endif
    double *o = allocate(rows * Dv, 8), *lse = allocate(rows, 8), *a = allocate(N, 8);
    double *dq = allocate(elements(q), 8), *dk = allocate(elements(k), 8), *dv = allocate(elements(x), 8);
    double *db = allocate(bias ? elements(bias) : 0, 8);
    for (size_t row = 0; row < rows; row++) {
        size_t shared = row / M / group * N; /* the first row of its key head: heads of a group stand together */
        double top = -INFINITY, sum = 0, mean = 0;
        place(q, row, at);
        for (size_t j = 0; j < N; j++) {
            double s = 0, b = 0;
            at[rank - 1] = j;
            if (bias) b = number(bias, broadcast(bias, at, rank));
            a[j] = -INFINITY;
            if ((mask && !number(mask, broadcast(mask, at, rank))) || b == -INFINITY) continue;
            for (size_t d = 0; d < D; d++) s += number(q, row * D + d) * number(k, (shared + j) * D + d);
            a[j] = scale * s + b;
            if (a[j] > top) top = a[j];
        }
        for (size_t j = 0; j < N; j++) {
            a[j] = a[j] == -INFINITY ? 0 : exp(a[j] - top);
            sum += a[j];
        }
        lse[row] = sum == 0 ? -INFINITY : top + log(sum);
        for (size_t j = 0; j < N; j++) {
            if (a[j] == 0) continue; /* what stands there is not read */
            a[j] /= sum;
            for (size_t c = 0; c < Dv; c++) {
                o[row * Dv + c] += a[j] * number(x, (shared + j) * Dv + c);
                if (cotangent) {
                    double t = number(cotangent, row * Dv + c);
                    mean += a[j] * t * number(x, (shared + j) * Dv + c);
                    dv[(shared + j) * Dv + c] += a[j] * t;
                }
            }
        }
        for (size_t j = 0; cotangent && j < N; j++) {
            if (a[j] == 0) continue;
            double t = 0, ds;
            for (size_t c = 0; c < Dv; c++) t += number(cotangent, row * Dv + c) * number(x, (shared + j) * Dv + c);
            ds = a[j] * (t - mean + (lse_cotangent ? number(lse_cotangent, row) : 0));
            for (size_t d = 0; d < D; d++) {
                dq[row * D + d] += scale * ds * number(k, (shared + j) * D + d);
                dk[(shared + j) * D + d] += scale * ds * number(q, row * D + d);
            }
            at[rank - 1] = j;
            if (bias) db[broadcast(bias, at, rank)] += ds;
        }
    }
    put_result(v, output, o);
    if (part(v, "lse")) put_result(v, part(v, "lse"), lse);
    if (part(v, "grad/query")) put_result(v, part(v, "grad/query"), dq);
    if (part(v, "grad/key")) put_result(v, part(v, "grad/key"), dk);
    if (part(v, "grad/value")) put_result(v, part(v, "grad/value"), dv);
    if (part(v, "grad/bias")) put_result(v, part(v, "grad/bias"), db);
    free(o), free(lse), free(a), free(dq), free(dk), free(dv), free(db);
}

int main(int count, char **arguments) {
    static struct vector v;
    char path[4096];
    uint64_t length;
    if (count != 3) die("two folders are needed", "vectors_check SET RESULTS");
    snprintf(path, sizeof path, "%s/vectors.safetensors", arguments[1]);
    FILE *file = fopen(path, "rb");
    if (!file || fseek(file, 0, SEEK_END)) die("cannot be read", path);
    size_t size = (size_t)ftell(file);
    unsigned char *content = allocate(size + 1, 1);
    rewind(file);
    if (fread(content, 1, size, file) != size || size < 8) die("cannot be read", path);
    fclose(file);
    memcpy(&length, content, 8);
    if (length > size - 8) die("the header is longer than the file", path);
    data = content + 8 + length;
    char *text = allocate(length + 1, 1);
    memcpy(text, content + 8, length);
    for (const char *at = text; read_vector(&at, &v);) answer(&v);
    append(&header, "}", 1);
    snprintf(path, sizeof path, "%s/results.safetensors", arguments[2]);
    length = header.used;
    file = fopen(path, "wb");
    if (!file || fwrite(&length, 8, 1, file) != 1 || fwrite(header.bytes, 1, header.used, file) != header.used ||
        fwrite(body.bytes, 1, body.used, file) != body.used || fclose(file))
        die("cannot be written", path);
    free(content), free(text), free(header.bytes), free(body.bytes);
    return 0;
}
