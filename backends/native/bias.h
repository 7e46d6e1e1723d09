/* The position bias of a block, and its gradient, in one precision. */

/* Biases of query i of the stretch over sorted positions from .. end - 1; `next` is where its runs have got to. */
static void NAME(fill_runs)(const struct call *c, const struct shared *shared, int64_t h, int64_t i, double p,
                            int64_t from, int64_t end, int64_t *next, REAL *to) {
    const double *v = shared->places.at;
    const REAL *near = shared->places.near;
    const double *slopes = c->slopes + h * (2 * c->K + 1), *intercepts = c->intercepts + h * (2 * c->K + 1);
    const struct run *runs = shared->runs + i * shared->most;
    int64_t j = from, finite = isfinite(p) ? least(end, shared->places.finite) : from;
    while (j < finite) {
        const struct run *run = runs + *next;
        int64_t stop = least(run->end, finite);
        /* The first in double, the others by their distance from it: large intercepts cancel once, not at each. */
        REAL first = (REAL)(slopes[run->cell] * (v[j] - p) + intercepts[run->cell]);
        REAL slope = (REAL)slopes[run->cell], start = near[j];
        /* Whole vectors: what is written beyond the run is the next one's, or beyond the last key. */
        for (int64_t n = j; n < stop; n += LANES)
            NAME(store)(to + n - from, first + slope * (NAME(load)(near + n) - start));
        j = stop;
        if (j == run->end) ++*next;
    }
    for (; j < end; j++) to[j - from] = (REAL)bias_at(c, h, v[j] - p);
}

/* Positions out of order: a row is filled in their order, and spread to where its keys stand. */
static void NAME(fill_whole_rows)(const struct call *c, const struct shared *shared, struct NAME(desk) *desk, int64_t b,
                                  int64_t h, int64_t i0, int64_t rows, int64_t in_stretch) {
    REAL *sorted = desk->whole_rows + QUERIES * c->N;
    for (int64_t r = 0; r < rows; r++) {
        int64_t next = 0;
        double p = c->query_positions[b * c->query_positions_at + i0 + r];
        NAME(fill_runs)(c, shared, h, in_stretch + r, p, 0, c->N, &next, sorted);
        for (int64_t n = 0; n < c->N; n++) desk->whole_rows[r * c->N + shared->places.order[n]] = sorted[n];
    }
}

/* What is added to the scores of a block, put where they will stand; 0 if there is nothing to add. */
static int NAME(fill_bias)(const struct call *c, const struct shared *shared, struct NAME(desk) *desk, int64_t b,
                           int64_t h, int64_t i0, int64_t rows, int64_t in_stretch, int64_t j0, int64_t keys) {
    const REAL *bias = c->bias;
    if (!bias && !c->slopes) return 0;
    for (int64_t r = 0; r < rows; r++) {
        REAL *to = desk->scores + r * PITCH;
        if (bias) {
            const int64_t *at = c->bias_at;
            const REAL *from = bias + b * at[0] + h * at[1] + (i0 + r) * at[2] + j0 * at[3];
            for (int64_t n = 0; n < keys; n++) to[n] = from[n * at[3]];
        } else if (shared->places.order) {
            memcpy(to, desk->whole_rows + r * c->N + j0, sizeof(REAL) * keys);
        } else {
            double p = c->query_positions[b * c->query_positions_at + i0 + r];
            NAME(fill_runs)(c, shared, h, in_stretch + r, p, j0, j0 + keys, desk->next + r, to);
        }
    }
    return 1;
}

/* sum_n ds[n] and sum_n ds[n] (near[n] - near[0]). */
static inline void NAME(run_sums)(const REAL *ds, const REAL *near, int64_t length, double *plain, double *by_t) {
    vec zeroth = {0}, first = {0};
    REAL start = near[0];
    double a = 0, b = 0;
    int64_t n = 0;
    for (; n + LANES <= length; n += LANES) {
        vec x = NAME(load)(ds + n);
        zeroth += x;
        first += x * (NAME(load)(near + n) - start);
    }
    if (n)
        for (int64_t lane = 0; lane < LANES; lane++) {
            a += zeroth[lane];
            b += first[lane];
        }
    for (; n < length; n++) {
        a += ds[n];
        b += ds[n] * (near[n] - start);
    }
    *plain = a;
    *by_t = b;
}

/* Gradients of slopes, intercepts and positions from one row of dS over keys j0 .. j0 + keys - 1. */
static void NAME(bias_gradients)(const struct call *c, const struct shared *shared, struct NAME(desk) *desk, int64_t b,
                                 int64_t h, int64_t i, int64_t in_stretch, const REAL *ds, int64_t j0, int64_t keys,
                                 int64_t *next) {
    int64_t cells = 2 * c->K + 1;
    const double *slopes = c->slopes + h * cells, *v = c->value_positions + b * c->value_positions_at;
    double *d_slopes = desk->d_slopes, *d_intercepts = desk->d_intercepts, to_query = 0;
    double p = c->query_positions[b * c->query_positions_at + i];
    const struct run *runs = shared->runs + in_stretch * shared->most;
    int by_runs = !shared->places.order && isfinite(p);
    for (int64_t j = j0; j < j0 + keys;) {
        int64_t stop = j + 1;
        int32_t cell;
        double plain = ds[j - j0], by_t = 0, t = v[j] - p;
        if (by_runs) {
            stop = least(runs[*next].end, j0 + keys);
            cell = runs[*next].cell;
            NAME(run_sums)(ds + j - j0, (const REAL *)shared->places.near + j, stop - j, &plain, &by_t);
            if (stop == runs[*next].end) ++*next;
        } else {
            cell = cell_of(c->knots, c->K, t);
        }
        /* Where nothing flows back, the offset may be nan. */
        if (plain != 0 || by_t != 0) {
            d_intercepts[cell] += plain;
            d_slopes[cell] += by_t + plain * t;
            to_query -= slopes[cell] * plain;
        }
        if (desk->d_value_positions)
            for (int64_t n = j; n < stop; n++) desk->d_value_positions[n] += slopes[cell] * ds[n - j0];
        j = stop;
    }
    desk->d_query_positions[in_stretch] += to_query;
}
