/* Attention over blocks of queries and keys, the position bias evaluated inside the block that it is added to.
 *
 * Compiled when first needed (_native.py) and called on the buffers of NumPy and PyTorch. blocks.h, bias.h and attend.h are
 * the kernels, once for float and once for double. Letters as in the specification: B batch elements, H heads, Hk key
 * heads, M queries, N keys, widths D and Dv; K is the number of knots of the bias.
 */
#ifdef _OPENMP
#include <omp.h>
#else
#define omp_get_thread_num() 0
#define omp_get_max_threads() 1
#endif
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* Must agree with `Call` of _native.py, field by field. Strides count elements; 0 is a broadcast axis. */
struct call {
    int64_t B, H, Hk, M, N, D, Dv, K;
    int64_t threads;
    double scale;
    const void *query, *key, *value;          /* the last axis is contiguous */
    int64_t query_at[3], key_at[3], value_at[3]; /* (batch, head, row) */
    const void *bias;                         /* or NULL */
    int64_t bias_at[4];                       /* (batch, head, query, key) */
    const uint8_t *mask;                      /* or NULL; 1: may attend */
    int64_t mask_at[4];
    const double *knots, *slopes, *intercepts; /* (K), (H, 2K+1) twice; or NULL */
    const double *query_positions, *value_positions;
    int64_t query_positions_at, value_positions_at; /* (batch); the last axis is contiguous */
    int64_t whole_positions;                  /* values stand on integers */
    void *output, *lse, *top, *total;         /* (B, H, M, Dv), (B, H, M) thrice, contiguous; lse = top + log(total) */
    /* backward alone */
    const void *cotangent, *lse_cotangent;    /* contiguous; the second may be NULL */
    void *d_query, *d_key, *d_value;          /* (B, H, M, D), (B, H, N, D), (B, H, N, Dv), contiguous */
    double *d_slopes, *d_intercepts;          /* (B, H, 2K+1); all of these begin as 0 */
    double *d_query_positions, *d_value_positions; /* (B, H, M), (B, H, N); the second may be NULL */
};

/* For callers without a number of their own: what OMP_NUM_THREADS says, or the number of processors. */
int ia_threads(void) { return omp_get_max_threads(); }

/* For a forked child, in which the pool of threads is missing. */
void ia_one_thread(void) { omp_set_num_threads(1); }

/* A stretch of value positions, in ascending order, whose offsets from one query lie in one cell. */
struct run {
    int32_t end, cell;
};

#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#define ROWS 12
#elif defined(__AVX__)
#define VECTOR_BYTES 32
#define ROWS 6
#else
#define VECTOR_BYTES 16
#define ROWS 4
#endif

#define QUERIES 96   /* of a block: its scores stay in the second cache with the keys and values they meet */
#define KEYS 256     /* a multiple of every panel's width */
#define STRETCH 480  /* queries whose runs are held at a time, for all heads; a multiple of QUERIES */

/* In a kernel of one precision. */
#define LANES ((int64_t)(VECTOR_BYTES / sizeof(REAL)))
#define PANEL (2 * LANES)
#define PITCH (KEYS + 16) /* more than KEYS, so that a group of ROWS may begin at any of them */
#define IS_DOUBLE (sizeof(REAL) == 8)
#define padded(width) (((width) + PANEL - 1) / PANEL * PANEL)

#define GLUE_(a, b) a##_##b
#define GLUE(a, b) GLUE_(a, b)

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

static void *memory(int64_t bytes) {
    void *p = NULL;
    return posix_memalign(&p, 64, (size_t)(bytes > 0 ? bytes : 1)) ? NULL : p;
}

static void *zeros(int64_t bytes) {
    void *p = memory(bytes);
    return p ? memset(p, 0, (size_t)(bytes > 0 ? bytes : 1)) : NULL;
}

/* The first j in from .. end - 1 whose offset from p passes the knot (at_or_above: reaches it), else end. Offsets
 * ascend. The guess is right where positions are evenly spaced. */
static int64_t first_past(const double *v, double p, double knot, int at_or_above, int64_t from, int64_t end) {
#define PAST(j) (at_or_above ? v[j] - p >= knot : v[j] - p > knot)
    int64_t low = from, high = end; /* low - 1 is not past, high is */
    if (end - from > 2) {
        double step = v[from + 1] - v[from];
        double ahead = (knot - (v[from] - p)) / step;
        if (ahead >= 0 && ahead < (double)(end - from)) {
            int64_t guess = from + (int64_t)ahead;
            if (PAST(guess)) {
                high = guess;
                if (guess > from && !PAST(guess - 1)) low = guess;
            } else {
                low = guess + 1;
                if (low < end && PAST(low)) high = low;
            }
        }
    }
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        if (PAST(middle)) high = middle;
        else low = middle + 1;
    }
    return low;
#undef PAST
}

/* The cell of one offset; that of nan is the last one. */
static int32_t cell_of(const double *knots, int64_t K, double t) {
    int64_t low = 0, high = K;
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        if (knots[middle] >= t) high = middle;
        else low = middle + 1;
    }
    return (int32_t)(2 * low + (low < K && knots[low] == t));
}

/* The runs of one query over n ascending positions; their number. */
static int64_t find_runs(const double *knots, int64_t K, const double *v, int64_t n, double p, struct run *runs) {
    int64_t count = 0, c = 0;
    for (int64_t j = 0; j < n; count++) {
        double t = v[j] - p;
        if (j == 0) c = cell_of(knots, K, t) / 2;
        else while (c < K && knots[c] < t) c++;
        int on = c < K && knots[c] == t;
        runs[count].cell = (int32_t)(2 * c + on);
        j = c == K ? n : first_past(v, p, knots[c], !on, j, n);
        runs[count].end = (int32_t)j;
    }
    return count;
}

/* Value positions in ascending order; those that are not finite come last. */
struct places {
    double *at;
    void *near;     /* the same in REAL; whole numbers as distances from the first, which stay exact for longer */
    int32_t *order; /* where they came from; NULL if they were in order */
    int64_t finite; /* their number */
};

struct place {
    double at;
    int32_t j;
};

static int by_place(const void *a, const void *b) {
    double x = ((const struct place *)a)->at, y = ((const struct place *)b)->at;
    if (isfinite(x) && isfinite(y)) return (x > y) - (x < y);
    return isfinite(y) - isfinite(x);
}

static int in_order(const double *v, int64_t N) {
    int so = N == 0 || (isfinite(v[0]) && isfinite(v[N - 1]));
    for (int64_t j = 1; j < N && so; j++) so = v[j - 1] <= v[j];
    return so;
}

/* 0 if there is no memory. */
static int sort_places(struct places *to, const double *v, int64_t N) {
    to->finite = N;
    if (in_order(v, N)) {
        memcpy(to->at, v, sizeof(double) * N);
        return 1;
    }
    struct place *sorted = memory(sizeof(struct place) * N);
    to->order = memory(sizeof(int32_t) * N);
    if (!sorted || !to->order) {
        free(sorted);
        return 0;
    }
    for (int64_t j = 0; j < N; j++) sorted[j] = (struct place){v[j], (int32_t)j};
    qsort(sorted, N, sizeof(struct place), by_place);
    for (int64_t j = 0; j < N; j++) {
        to->at[j] = sorted[j].at;
        to->order[j] = sorted[j].j;
        to->finite -= !isfinite(sorted[j].at);
    }
    free(sorted);
    return 1;
}

/* What the threads share about the positions of one batch element. */
struct shared {
    struct places places;
    struct run *runs; /* of STRETCH queries, `most` each */
    int64_t most;
};

/* The bias of head h at one offset. At an infinite one, a line without a slope is its intercept. */
static double bias_at(const struct call *c, int64_t h, double t) {
    int64_t at = h * (2 * c->K + 1) + cell_of(c->knots, c->K, t);
    return c->slopes[at] == 0 && t == t ? c->intercepts[at] : c->slopes[at] * t + c->intercepts[at];
}

#define REAL float
#define BITS int32_t
#define NAME(name) GLUE(name, float)
#include "blocks.h"
#include "bias.h"
#include "attend.h"
#undef REAL
#undef BITS
#undef NAME
#undef vec
#undef bits
#define REAL double
#define BITS int64_t
#define NAME(name) GLUE(name, double)
#include "blocks.h"
#include "bias.h"
#include "attend.h"
