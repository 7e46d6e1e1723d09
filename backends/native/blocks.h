/* Vectors, exponentials and products of blocks, in one precision: REAL, BITS and NAME are given by attention.c. */

typedef REAL NAME(vec) __attribute__((vector_size(VECTOR_BYTES)));
typedef REAL NAME(loose) __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(REAL)), may_alias));
typedef BITS NAME(bits) __attribute__((vector_size(VECTOR_BYTES)));

#define vec NAME(vec)
#define bits NAME(bits)

static inline vec NAME(load)(const REAL *at) { return (vec) * (const NAME(loose) *)at; }
static inline void NAME(store)(REAL *at, vec x) { *(NAME(loose) *)at = (NAME(loose))x; }
static inline vec NAME(all)(REAL x) { return x - (vec){0}; }
static inline vec NAME(select)(bits which, vec yes, vec no) {
    return (vec)((which & (bits)yes) | (~which & (bits)no));
}

/* exp(x) for x of at most about 0, good to 2 ulp; 0 where it is no normal number, nan of nan. The Taylor series on
 * |r| <= log(2) / 2 is cut where its next term is below a quarter of the precision. */
static inline vec NAME(exponential)(vec x) {
    const REAL magic = IS_DOUBLE ? (REAL)6755399441055744.0 : (REAL)12582912.0; /* 1.5 * 2^(mantissa bits) */
    const REAL high = IS_DOUBLE ? (REAL)6.93147180369123816490e-01 : (REAL)0.693359375;
    const REAL low = IS_DOUBLE ? (REAL)1.90821492927058770002e-10 : (REAL)-2.12194440054690583e-4;
    const REAL smallest = IS_DOUBLE ? (REAL)-708.39 : (REAL)-87.33;
    const int mantissa = IS_DOUBLE ? 52 : 23;
    const BITS one = IS_DOUBLE ? 1023 : 127;
    vec shifted = x * (REAL)1.44269504088896340736 + magic;
    vec n = shifted - magic;
    vec r = x - n * high;
    r = r - n * low;
    vec sum = NAME(all)((REAL)(IS_DOUBLE ? 1.0 / 6227020800.0 : 1.0 / 5040.0));
    if (IS_DOUBLE) {
        sum = sum * r + (REAL)(1.0 / 479001600.0);
        sum = sum * r + (REAL)(1.0 / 39916800.0);
        sum = sum * r + (REAL)(1.0 / 3628800.0);
        sum = sum * r + (REAL)(1.0 / 362880.0);
        sum = sum * r + (REAL)(1.0 / 40320.0);
        sum = sum * r + (REAL)(1.0 / 5040.0);
    }
    sum = sum * r + (REAL)(1.0 / 720.0);
    sum = sum * r + (REAL)(1.0 / 120.0);
    sum = sum * r + (REAL)(1.0 / 24.0);
    sum = sum * r + (REAL)(1.0 / 6.0);
    sum = sum * r + (REAL)0.5;
    sum = sum * r + (REAL)1.0;
    sum = sum * r + (REAL)1.0;
    vec power = (vec)(((bits)shifted << mantissa) + (one << mantissa));
    return NAME(select)((bits)(x < smallest), (vec){0}, sum * power);
}

/* acc[r][:] = sum_k a[r, k] b[k, :] for ROWS rows and a panel of columns. */
static inline __attribute__((always_inline)) void NAME(products)(
    int64_t depth, const REAL *a, int64_t a_row, int64_t a_step, const REAL *b, int64_t b_step, vec acc[ROWS][2]) {
    for (int r = 0; r < ROWS; r++) acc[r][0] = acc[r][1] = (vec){0};
    for (int64_t k = 0; k < depth; k++) {
        vec left = NAME(load)(b), right = NAME(load)(b + LANES);
#pragma GCC unroll 12
        for (int r = 0; r < ROWS; r++) {
            vec x = NAME(all)(a[r * a_row]);
            acc[r][0] += x * left;
            acc[r][1] += x * right;
        }
        a += a_step;
        b += b_step;
    }
}

/* c = scale a b for `rows` rows over panels of keys; c is added where `add` says that it holds something. */
static void NAME(panel_products)(int64_t rows, int64_t keys, int64_t depth, const REAL *a, int64_t a_row,
                                 const REAL *panels, REAL scale, int add, REAL *c) {
    for (int64_t j = 0; j < keys; j += PANEL, panels += depth * PANEL) {
        for (int64_t i = 0; i < rows; i += ROWS) {
            vec acc[ROWS][2];
            NAME(products)(depth, a + i * a_row, a_row, 1, panels, PANEL, acc);
            REAL *to = c + i * PITCH + j;
#pragma GCC unroll 12
            for (int r = 0; r < ROWS; r++, to += PITCH) {
                vec left = acc[r][0] * scale, right = acc[r][1] * scale;
                if (add) left += NAME(load)(to), right += NAME(load)(to + LANES);
                NAME(store)(to, left);
                NAME(store)(to + LANES, right);
            }
        }
    }
}

/* c += factor a b, where c has `rows` rows of `width` numbers and b a padded width. */
static void NAME(add_products)(int64_t rows, int64_t width, int64_t depth, const REAL *a, int64_t a_row, int64_t a_step,
                               const REAL *b, int64_t b_step, REAL factor, REAL *c, int64_t c_row) {
    for (int64_t d = 0; d < width; d += PANEL) {
        for (int64_t i = 0; i < rows; i += ROWS) {
            vec acc[ROWS][2];
            NAME(products)(depth, a + i * a_row, a_row, a_step, b + d, b_step, acc);
            for (int64_t r = 0; r < ROWS && i + r < rows; r++) {
                REAL *to = c + (i + r) * c_row + d;
                vec left = acc[r][0] * factor, right = acc[r][1] * factor;
                if (d + PANEL <= width) {
                    NAME(store)(to, left + NAME(load)(to));
                    NAME(store)(to + LANES, right + NAME(load)(to + LANES));
                    continue;
                }
                for (int64_t n = 0; n < width - d; n++) to[n] += n < LANES ? left[n] : right[n - LANES];
            }
        }
    }
}

/* What one thread works with. */
struct NAME(desk) {
    REAL *query, *scores, *output, *top, *total; /* of a block of queries */
    REAL *key_panels, *value_rows;               /* of one key head; value_rows NULL if the values will do */
    REAL *value_panels, *key_rows, *cotangent, *to_weights, *dot, *d_query; /* backward */
    REAL *whole_rows;                            /* biases of a block over all keys, for positions out of order */
    int64_t *next;                               /* of every query, the run that it is in */
    double *d_slopes, *d_intercepts;             /* of one head */
    double *d_query_positions, *d_value_positions;
    int64_t holds;                               /* the key head that the panels hold */
};

/* (rows, width) to panels of keys: panel, width, key. Keys beyond the last are 0. */
static void NAME(pack_panels)(const REAL *from, int64_t row, int64_t rows, int64_t width, REAL *to) {
    for (int64_t j = 0; j < rows; j += PANEL, to += width * PANEL)
        for (int64_t n = 0; n < PANEL; n++)
            for (int64_t d = 0; d < width; d++) to[d * PANEL + n] = j + n < rows ? from[(j + n) * row + d] : 0;
}

/* Rows padded with zeros to whole panels. */
static void NAME(pack_rows)(const REAL *from, int64_t row, int64_t rows, int64_t width, REAL *to) {
    for (int64_t i = 0; i < rows; i++, to += padded(width)) {
        memcpy(to, from + i * row, sizeof(REAL) * width);
        memset(to + width, 0, sizeof(REAL) * (padded(width) - width));
    }
}
