/* The forward and the backward kernel, and how threads share the work, in one precision. */

/* Scores of a block of queries and keys: bias, products, mask; -inf beyond the last key. */
static void NAME(score)(const struct call *c, const struct shared *shared, struct NAME(desk) *desk, int64_t b, int64_t h,
                        int64_t i0, int64_t rows, int64_t in_stretch, int64_t j0, int64_t keys) {
    int add = NAME(fill_bias)(c, shared, desk, b, h, i0, rows, in_stretch, j0, keys);
    NAME(panel_products)(rows, keys, c->D, desk->query, padded(c->D), desk->key_panels + j0 * c->D, (REAL)c->scale, add,
                         desk->scores);
    for (int64_t r = 0; r < rows; r++) {
        REAL *s = desk->scores + r * PITCH;
        if (c->mask) {
            const uint8_t *may = c->mask + b * c->mask_at[0] + h * c->mask_at[1] + (i0 + r) * c->mask_at[2] + j0 * c->mask_at[3];
            int64_t step = c->mask_at[3];
            for (int64_t n = 0; n < keys; n++) s[n] = may[n * step] ? s[n] : -(REAL)INFINITY;
        }
        for (int64_t n = keys; n < padded(keys); n++) s[n] = -(REAL)INFINITY;
    }
}

static REAL NAME(greatest)(const REAL *s, int64_t keys) {
    vec top = NAME(load)(s);
    for (int64_t n = LANES; n < padded(keys); n += LANES) {
        vec x = NAME(load)(s + n);
        top = NAME(select)((bits)(x > top), x, top);
    }
    REAL found = top[0];
    for (int64_t n = 1; n < LANES; n++) found = top[n] > found ? top[n] : found;
    return found;
}

/* s to exp(s - top); their sum. */
static REAL NAME(exponentials)(REAL *s, int64_t keys, REAL top) {
    vec sum = {0};
    for (int64_t n = 0; n < padded(keys); n += LANES) {
        vec x = NAME(exponential)(NAME(load)(s + n) - top);
        NAME(store)(s + n, x);
        sum += x;
    }
    REAL total = 0;
    for (int64_t n = 0; n < LANES; n++) total += sum[n];
    return total;
}

/* Keys and values of the key head of h, once for all the queries that come. */
static const REAL *NAME(take_head)(const struct call *c, struct NAME(desk) *desk, int64_t b, int64_t h) {
    int64_t group = h / (c->H / c->Hk), id = b * c->Hk + group;
    const REAL *key = (const REAL *)c->key + b * c->key_at[0] + group * c->key_at[1];
    const REAL *value = (const REAL *)c->value + b * c->value_at[0] + group * c->value_at[1];
    if (desk->holds != id) {
        NAME(pack_panels)(key, c->key_at[2], c->N, c->D, desk->key_panels);
        if (desk->value_rows) NAME(pack_rows)(value, c->value_at[2], c->N, c->Dv, desk->value_rows);
        if (desk->value_panels) NAME(pack_panels)(value, c->value_at[2], c->N, c->Dv, desk->value_panels);
        if (desk->key_rows) NAME(pack_rows)(key, c->key_at[2], c->N, c->D, desk->key_rows);
        desk->holds = id;
    }
    return desk->value_rows ? desk->value_rows : value;
}

/* Softmax over blocks of keys with a running maximum: exp(m_old - m_new) rescales what came before. */
static void NAME(forward_block)(const struct call *c, const struct shared *shared, struct NAME(desk) *desk, int64_t b,
                                int64_t h, int64_t i0, int64_t rows, int64_t in_stretch) {
    const REAL *values = NAME(take_head)(c, desk, b, h);
    int64_t value_row = desk->value_rows ? padded(c->Dv) : c->value_at[2], width = padded(c->Dv);
    const REAL *query = (const REAL *)c->query + b * c->query_at[0] + h * c->query_at[1] + i0 * c->query_at[2];
    NAME(pack_rows)(query, c->query_at[2], rows, c->D, desk->query);
    memset(desk->output, 0, sizeof(REAL) * QUERIES * width);
    for (int64_t r = 0; r < rows; r++) {
        desk->top[r] = -(REAL)INFINITY;
        desk->total[r] = 0;
        desk->next[r] = 0;
    }
    if (c->slopes && shared->places.order) NAME(fill_whole_rows)(c, shared, desk, b, h, i0, rows, in_stretch);
    for (int64_t j0 = 0; j0 < c->N; j0 += KEYS) {
        int64_t keys = least(KEYS, c->N - j0);
        NAME(score)(c, shared, desk, b, h, i0, rows, in_stretch, j0, keys);
        for (int64_t r = 0; r < rows; r++) {
            REAL *s = desk->scores + r * PITCH, before = desk->top[r];
            REAL found = NAME(greatest)(s, keys);
            REAL top = found > before ? found : before;
            if (top > before) {
                REAL factor = before == -(REAL)INFINITY ? 0 : (REAL)exp((double)(before - top));
                desk->total[r] *= factor;
                for (int64_t d = 0; d < width; d++) desk->output[r * width + d] *= factor;
            }
            /* Where nothing is attended to yet, exp(-inf - (-inf)) would be nan. */
            desk->total[r] += NAME(exponentials)(s, keys, top == -(REAL)INFINITY ? 0 : top);
            desk->top[r] = top;
        }
        NAME(add_products)(rows, width, keys, desk->scores, PITCH, 1, values + j0 * value_row, value_row, 1, desk->output, width);
    }
    REAL *output = (REAL *)c->output + ((b * c->H + h) * c->M + i0) * c->Dv;
    REAL *lse = (REAL *)c->lse + (b * c->H + h) * c->M + i0;
    REAL *top = (REAL *)c->top + (b * c->H + h) * c->M + i0, *sum = (REAL *)c->total + (b * c->H + h) * c->M + i0;
    for (int64_t r = 0; r < rows; r++) {
        REAL total = desk->total[r] == 0 ? 1 : desk->total[r];
        top[r] = desk->top[r] == -(REAL)INFINITY ? 0 : desk->top[r];
        sum[r] = total;
        for (int64_t d = 0; d < c->Dv; d++) output[r * c->Dv + d] = desk->output[r * width + d] / total;
        lse[r] = desk->total[r] == 0 ? -(REAL)INFINITY : desk->top[r] + (REAL)log((double)total);
    }
}

/* P to where the scores are, dS to where dP is: dS = P (dP - dot), 0 for what is not attended to. The maximum and the sum
 * of a row are taken apart: in their one number, the lse, a large maximum would leave no digits to the sum. */
static void NAME(score_gradients)(struct NAME(desk) *desk, const REAL *top, const REAL *total, int64_t rows,
                                  int64_t keys) {
    for (int64_t r = 0; r < rows; r++) {
        REAL *s = desk->scores + r * PITCH, *g = desk->to_weights + r * PITCH;
        REAL dot = desk->dot[r], share = 1 / total[r];
        for (int64_t n = 0; n < padded(keys); n += LANES) {
            vec score = NAME(load)(s + n), p = NAME(exponential)(score - top[r]) * share;
            vec ds = p * (NAME(load)(g + n) - dot);
            NAME(store)(s + n, p);
            NAME(store)(g + n, NAME(select)((bits)(score == -(REAL)INFINITY), (vec){0}, ds));
        }
    }
}

static void NAME(backward_block)(const struct call *c, const struct shared *shared, struct NAME(desk) *desk, int64_t b,
                                 int64_t h, int64_t i0, int64_t rows, int64_t in_stretch) {
    NAME(take_head)(c, desk, b, h);
    int64_t width = padded(c->D), of_values = padded(c->Dv), at = (b * c->H + h) * c->M + i0;
    int64_t group = h / (c->H / c->Hk), key_row = desk->key_rows ? width : c->key_at[2];
    const REAL *keys_at = desk->key_rows ? desk->key_rows : (const REAL *)c->key + b * c->key_at[0] + group * c->key_at[1];
    const REAL *query = (const REAL *)c->query + b * c->query_at[0] + h * c->query_at[1] + i0 * c->query_at[2];
    const REAL *output = (const REAL *)c->output + at * c->Dv, *lse = (const REAL *)c->lse + at;
    const REAL *d_lse = c->lse_cotangent ? (const REAL *)c->lse_cotangent + at : NULL;
    REAL *d_key = (REAL *)c->d_key + (b * c->H + h) * c->N * c->D;
    REAL *d_value = (REAL *)c->d_value + (b * c->H + h) * c->N * c->Dv;
    NAME(pack_rows)(query, c->query_at[2], rows, c->D, desk->query);
    NAME(pack_rows)((const REAL *)c->cotangent + at * c->Dv, c->Dv, rows, c->Dv, desk->cotangent);
    memset(desk->d_query, 0, sizeof(REAL) * QUERIES * width);
    for (int64_t r = 0; r < rows; r++) {
        REAL dot = 0, *d_output = desk->cotangent + r * of_values;
        /* The output of an empty row is a constant. */
        if (lse[r] == -(REAL)INFINITY) memset(d_output, 0, sizeof(REAL) * of_values);
        else {
            for (int64_t d = 0; d < c->Dv; d++) dot += d_output[d] * output[r * c->Dv + d];
            if (d_lse) dot -= d_lse[r];
        }
        desk->dot[r] = dot;
        desk->next[r] = desk->next[QUERIES + r] = 0;
    }
    if (c->slopes && shared->places.order) NAME(fill_whole_rows)(c, shared, desk, b, h, i0, rows, in_stretch);
    for (int64_t j0 = 0; j0 < c->N; j0 += KEYS) {
        int64_t keys = least(KEYS, c->N - j0);
        NAME(score)(c, shared, desk, b, h, i0, rows, in_stretch, j0, keys);
        NAME(panel_products)(rows, keys, c->Dv, desk->cotangent, of_values, desk->value_panels + j0 * c->Dv, 1, 0,
                             desk->to_weights);
        NAME(score_gradients)(desk, (const REAL *)c->top + at, (const REAL *)c->total + at, rows, keys);
        NAME(add_products)(keys, c->Dv, rows, desk->scores, 1, PITCH, desk->cotangent, of_values, 1, d_value + j0 * c->Dv, c->Dv);
        NAME(add_products)(keys, c->D, rows, desk->to_weights, 1, PITCH, desk->query, width, (REAL)c->scale, d_key + j0 * c->D, c->D);
        NAME(add_products)(rows, width, keys, desk->to_weights, PITCH, 1, keys_at + j0 * key_row, key_row, (REAL)c->scale,
                           desk->d_query, width);
        if (c->slopes)
            for (int64_t r = 0; r < rows; r++)
                NAME(bias_gradients)(c, shared, desk, b, h, i0 + r, in_stretch + r, desk->to_weights + r * PITCH, j0, keys,
                                     desk->next + QUERIES + r);
    }
    REAL *d_query = (REAL *)c->d_query + at * c->D;
    for (int64_t r = 0; r < rows; r++) memcpy(d_query + r * c->D, desk->d_query + r * width, sizeof(REAL) * c->D);
}

/* The gradients of a head's bias, from a thread's sums to those of all: per batch element and head, so that no two threads
 * write to one place and the order of the sums is always the same. */
static void NAME(hand_in)(const struct call *c, struct NAME(desk) *desk, int64_t b, int64_t h, int64_t begin,
                          int64_t queries) {
    int64_t cells = 2 * c->K + 1, at = b * c->H + h;
    for (int64_t n = 0; n < cells; n++) {
        c->d_slopes[at * cells + n] += desk->d_slopes[n];
        c->d_intercepts[at * cells + n] += desk->d_intercepts[n];
        desk->d_slopes[n] = desk->d_intercepts[n] = 0;
    }
    for (int64_t i = 0; i < queries; i++) {
        c->d_query_positions[at * c->M + begin + i] = desk->d_query_positions[i];
        desk->d_query_positions[i] = 0;
    }
    for (int64_t j = 0; desk->d_value_positions && j < c->N; j++) {
        c->d_value_positions[at * c->N + j] += desk->d_value_positions[j];
        desk->d_value_positions[j] = 0;
    }
}

static void NAME(clear_desk)(struct NAME(desk) *desk) {
    void *all[] = {desk->query, desk->scores, desk->output, desk->top, desk->total, desk->key_panels, desk->value_rows,
                   desk->value_panels, desk->key_rows, desk->cotangent, desk->to_weights, desk->dot, desk->d_query,
                   desk->whole_rows, desk->next, desk->d_slopes, desk->d_intercepts, desk->d_query_positions, desk->d_value_positions};
    for (size_t n = 0; n < sizeof(all) / sizeof(*all); n++) free(all[n]);
}

/* 0 if there is no memory. */
static int NAME(lay_desk)(const struct call *c, int backward, int all_in_order, struct NAME(desk) *desk) {
    int64_t rows = (c->N + PANEL - 1) / PANEL * PANEL, real = sizeof(REAL), failed = 0;
    memset(desk, 0, sizeof(*desk));
    desk->holds = -1;
#define TAKE(what, bytes) failed |= !(desk->what = zeros(bytes))
    TAKE(query, real * QUERIES * padded(c->D));
    TAKE(scores, real * QUERIES * PITCH);
    TAKE(key_panels, real * rows * c->D);
    TAKE(next, sizeof(int64_t) * 2 * QUERIES);
    if (c->slopes && !all_in_order) TAKE(whole_rows, real * ((QUERIES + 1) * c->N + LANES));
    if (!backward) {
        TAKE(output, real * QUERIES * padded(c->Dv));
        TAKE(top, real * QUERIES);
        TAKE(total, real * QUERIES);
        if (c->Dv % PANEL) TAKE(value_rows, real * c->N * padded(c->Dv));
        return !failed;
    }
    TAKE(value_panels, real * rows * c->Dv);
    if (c->D % PANEL) TAKE(key_rows, real * c->N * padded(c->D));
    TAKE(cotangent, real * QUERIES * padded(c->Dv));
    TAKE(to_weights, real * QUERIES * PITCH);
    TAKE(dot, real * QUERIES);
    TAKE(d_query, real * QUERIES * padded(c->D));
    TAKE(d_slopes, sizeof(double) * (2 * c->K + 1));
    TAKE(d_intercepts, sizeof(double) * (2 * c->K + 1));
    TAKE(d_query_positions, sizeof(double) * STRETCH);
    if (c->d_value_positions) TAKE(d_value_positions, sizeof(double) * c->N);
#undef TAKE
    return !failed;
}

/* Places of every batch element of a group, of which each has runs of its own. */
static int NAME(prepare_places)(const struct call *c, int64_t b, struct shared *shared) {
    REAL *near = shared->places.near;
    free(shared->places.order);
    shared->places.order = NULL;
    if (!sort_places(&shared->places, c->value_positions + b * c->value_positions_at, c->N)) return 0;
    double origin = c->whole_positions && c->N ? shared->places.at[0] : 0;
    for (int64_t j = 0; j < c->N; j++) near[j] = (REAL)(shared->places.at[j] - origin);
    return 1;
}

/* A stretch of queries of `group` batch elements from b on, by all threads. Which thread does what depends on sizes alone:
 * sums come out the same in every call. */
static void NAME(stretch)(const struct call *c, struct shared *shared, struct NAME(desk) *desks, int64_t b, int64_t group,
                          int64_t begin, int64_t queries, int backward) {
    int64_t blocks = (queries + QUERIES - 1) / QUERIES;
#pragma omp parallel num_threads((int)c->threads)
    {
        struct NAME(desk) *desk = desks + omp_get_thread_num();
        if (c->slopes) {
#pragma omp for schedule(static)
            for (int64_t at = 0; at < group * queries; at++) {
                struct shared *of = shared + at / queries;
                double p = c->query_positions[(b + at / queries) * c->query_positions_at + begin + at % queries];
                if (isfinite(p))
                    find_runs(c->knots, c->K, of->places.at, of->places.finite, p, of->runs + at % queries * of->most);
            }
        }
#pragma omp for schedule(static)
        for (int64_t task = 0; task < group * c->H * (backward ? 1 : blocks); task++) {
            int64_t of_head = backward ? task : task / blocks, h = of_head % c->H, e = of_head / c->H;
            int64_t first = backward ? 0 : task % blocks, last = backward ? blocks : first + 1;
            for (int64_t n = first; n < last; n++)
                (backward ? NAME(backward_block) : NAME(forward_block))(
                    c, shared + e, desk, b + e, h, begin + n * QUERIES, least(QUERIES, queries - n * QUERIES), n * QUERIES);
            if (backward && c->slopes) NAME(hand_in)(c, desk, b + e, h, begin, queries);
        }
    }
}

/* 0 if all went well, 1 if there is no memory. */
static int NAME(run)(const struct call *c, int backward) {
    /* Tasks enough for all threads, also where a batch element has few heads. */
    int64_t group = least(c->B, 1 + 4 * c->threads / (c->H > 0 ? c->H : 1));
    int64_t length = c->slopes ? STRETCH : (c->M > 0 ? c->M : 1);
    struct shared *shared = zeros(sizeof(*shared) * group);
    struct NAME(desk) *desks = zeros(sizeof(*desks) * c->threads);
    int failed = !desks || !shared, ordered = 1;
    for (int64_t b = 0; b < c->B && c->slopes; b++) ordered &= in_order(c->value_positions + b * c->value_positions_at, c->N);
    for (int64_t e = 0; e < group && c->slopes && !failed; e++) {
        struct shared *one = shared + e;
        one->most = least(2 * c->K + 1, c->N) + 1;
        one->places.at = zeros(sizeof(double) * c->N);
        one->places.near = zeros(sizeof(REAL) * (c->N + LANES));
        one->runs = zeros(sizeof(struct run) * one->most * least(STRETCH, c->M));
        failed |= !one->places.at || !one->places.near || !one->runs;
    }
    for (int64_t n = 0; n < c->threads && !failed; n++) failed |= !NAME(lay_desk)(c, backward, ordered, desks + n);
    for (int64_t b = 0; b < c->B && !failed; b += group) {
        int64_t here = least(group, c->B - b);
        for (int64_t e = 0; e < here && c->slopes; e++) failed |= !NAME(prepare_places)(c, b + e, shared + e);
        for (int64_t begin = 0; begin < c->M && !failed; begin += length)
            NAME(stretch)(c, shared, desks, b, here, begin, least(length, c->M - begin), backward);
    }
    for (int64_t n = 0; desks && n < c->threads; n++) NAME(clear_desk)(desks + n);
    for (int64_t e = 0; shared && e < group; e++) {
        free(shared[e].runs);
        free(shared[e].places.at);
        free(shared[e].places.near);
        free(shared[e].places.order);
    }
    free(shared);
    free(desks);
    return failed;
}

int NAME(ia_forward)(const struct call *c) { return NAME(run)(c, 0); }

int NAME(ia_backward)(const struct call *c) { return NAME(run)(c, 1); }
