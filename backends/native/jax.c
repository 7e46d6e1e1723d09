/* What JAX calls: the buffers of a call from XLA, described as the kernels of attention.c take them.
 *
 * Arguments: query (B, H, M, D), key (B, Hk, N, D), value (B, Hk, N, Dv); where the attribute `lines` is 1, positions (B, M)
 * and (B, N), knots (K), slopes and intercepts (H, 2K+1); where `masked` is 1, a mask (B or 1, H or 1, M or 1, N or 1). The
 * backward kernel has output, lse, top, total and the cotangents of the first two between value and positions.
 */
#include "attention.c"

#include "xla/ffi/api/c_api.h"

#define MOST_HELD 16

/* Arrays in double, freed together. */
struct held {
    double *at[MOST_HELD];
    int count;
};

static double *hold(struct held *held, int64_t length) {
    return held->at[held->count++] = zeros(sizeof(double) * length);
}

static void let_go(struct held *held) {
    while (held->count) free(held->at[--held->count]);
}

static int64_t length_of(const XLA_FFI_Buffer *buffer) {
    int64_t length = 1;
    for (int64_t axis = 0; axis < buffer->rank; axis++) length *= buffer->dims[axis];
    return length;
}

/* Whole numbers of 32 bits have no exact float: so they come as they are. */
static const double *in_doubles(struct held *held, const XLA_FFI_Buffer *from) {
    int64_t length = length_of(from);
    double *to = hold(held, length);
    for (int64_t n = 0; to && n < length; n++) {
        if (from->dtype == XLA_FFI_DataType_F64) to[n] = ((const double *)from->data)[n];
        else if (from->dtype == XLA_FFI_DataType_F32) to[n] = ((const float *)from->data)[n];
        else if (from->dtype == XLA_FFI_DataType_S64) to[n] = (double)((const int64_t *)from->data)[n];
        else to[n] = ((const int32_t *)from->data)[n];
    }
    return to;
}

/* to[i, j] = sum_h from[i, h, j], in float or double. */
static void sum_heads(const double *from, int64_t heads, const XLA_FFI_Buffer *to) {
    int64_t inner = to->dims[to->rank - 1], outer = length_of(to) / (inner ? inner : 1);
    for (int64_t i = 0; i < outer; i++)
        for (int64_t j = 0; j < inner; j++) {
            double sum = 0;
            for (int64_t h = 0; h < heads; h++) sum += from[(i * heads + h) * inner + j];
            if (to->dtype == XLA_FFI_DataType_F64) ((double *)to->data)[i * inner + j] = sum;
            else ((float *)to->data)[i * inner + j] = (float)sum;
        }
}

static double attribute(const XLA_FFI_CallFrame *frame, const char *name) {
    for (int64_t n = 0; n < frame->attrs.size; n++) {
        const XLA_FFI_ByteSpan *own = frame->attrs.names[n];
        if (own->len != strlen(name) || strncmp(own->ptr, name, own->len)) continue;
        const XLA_FFI_Scalar *scalar = frame->attrs.attrs[n];
        return scalar->dtype == XLA_FFI_DataType_F64 ? *(const double *)scalar->value : *(const int64_t *)scalar->value;
    }
    return 0;
}

static void row_strides(const XLA_FFI_Buffer *buffer, int64_t at[3]) {
    at[2] = buffer->dims[3];
    at[1] = at[2] * buffer->dims[2];
    at[0] = at[1] * buffer->dims[1];
}

/* 0 if there is no memory. `first` is the argument after value and what the backward kernel has beside it. */
static int describe(const XLA_FFI_CallFrame *frame, int64_t first, struct call *c, struct held *held) {
    XLA_FFI_Buffer **args = (XLA_FFI_Buffer **)frame->args.args, **next = args + first;
    const XLA_FFI_Buffer *q = args[0], *k = args[1], *v = args[2];
    *c = (struct call){.B = q->dims[0], .H = q->dims[1], .Hk = k->dims[1], .M = q->dims[2], .N = k->dims[2]};
    c->D = q->dims[3], c->Dv = v->dims[3];
    c->query = q->data, c->key = k->data, c->value = v->data;
    row_strides(q, c->query_at), row_strides(k, c->key_at), row_strides(v, c->value_at);
    c->threads = omp_get_max_threads(), c->scale = attribute(frame, "scale");
    if (attribute(frame, "lines")) {
        c->query_positions = in_doubles(held, next[0]), c->value_positions = in_doubles(held, next[1]);
        c->whole_positions = next[1]->dtype != XLA_FFI_DataType_F32 && next[1]->dtype != XLA_FFI_DataType_F64;
        c->query_positions_at = c->M, c->value_positions_at = c->N;
        c->K = next[2]->dims[0], c->knots = in_doubles(held, next[2]);
        c->slopes = in_doubles(held, next[3]), c->intercepts = in_doubles(held, next[4]);
        if (!c->query_positions || !c->value_positions || !c->knots || !c->slopes || !c->intercepts) return 0;
        next += 5;
    }
    if (attribute(frame, "masked")) {
        const XLA_FFI_Buffer *mask = next[0];
        c->mask = mask->data;
        for (int64_t axis = 3, step = 1; axis >= 0; step *= mask->dims[axis--])
            c->mask_at[axis] = mask->dims[axis] == 1 ? 0 : step;
    }
    return 1;
}

static XLA_FFI_Error *without_memory(const XLA_FFI_CallFrame *frame) {
    XLA_FFI_Error_Create_Args args = {XLA_FFI_Error_Create_Args_STRUCT_SIZE, NULL, NULL, XLA_FFI_Error_Code_RESOURCE_EXHAUSTED};
    args.message = "the compiled kernel found no memory for its blocks";
    return frame->api->XLA_FFI_Error_Create(&args);
}

/* XLA asks once which version of its interface this is made for. */
static int is_question(const XLA_FFI_CallFrame *frame) {
    XLA_FFI_Extension_Base *extension = frame->extension_start;
    if (!extension || extension->type != XLA_FFI_Extension_Metadata) return 0;
    XLA_FFI_Metadata *answer = ((XLA_FFI_Metadata_Extension *)extension)->metadata;
    answer->api_version.major_version = XLA_FFI_API_MAJOR;
    answer->api_version.minor_version = XLA_FFI_API_MINOR;
    return 1;
}

static int is_double(const XLA_FFI_CallFrame *frame) {
    return ((XLA_FFI_Buffer *)frame->args.args[0])->dtype == XLA_FFI_DataType_F64;
}

static void *result(const XLA_FFI_CallFrame *frame, int64_t n) { return ((XLA_FFI_Buffer *)frame->rets.rets[n])->data; }

XLA_FFI_Error *ia_jax_forward(XLA_FFI_CallFrame *frame) {
    if (is_question(frame)) return NULL;
    struct held held = {.count = 0};
    struct call c;
    int failed = !describe(frame, 3, &c, &held);
    c.output = result(frame, 0), c.lse = result(frame, 1), c.top = result(frame, 2), c.total = result(frame, 3);
    if (!failed) failed = is_double(frame) ? ia_forward_double(&c) : ia_forward_float(&c);
    let_go(&held);
    return failed ? without_memory(frame) : NULL;
}

/* Results: gradients of query (B, H, M, D), key (B, H, N, D) and value (B, H, N, Dv), and with lines of both positions (B, M)
 * and (B, N), slopes and intercepts (B, H, 2K+1). */
XLA_FFI_Error *ia_jax_backward(XLA_FFI_CallFrame *frame) {
    if (is_question(frame)) return NULL;
    XLA_FFI_Buffer **args = (XLA_FFI_Buffer **)frame->args.args, **rets = (XLA_FFI_Buffer **)frame->rets.rets;
    struct held held = {.count = 0};
    struct call c;
    int failed = !describe(frame, 9, &c, &held);
    c.output = args[3]->data, c.lse = args[4]->data, c.top = args[5]->data, c.total = args[6]->data;
    c.cotangent = args[7]->data, c.lse_cotangent = args[8]->data;
    for (int64_t n = 0; n < 3; n++) memset(rets[n]->data, 0, (is_double(frame) ? 8 : 4) * length_of(rets[n]));
    c.d_query = rets[0]->data, c.d_key = rets[1]->data, c.d_value = rets[2]->data;
    if (c.slopes && !failed) {
        int64_t rows = c.B * c.H, cells = rows * (2 * c.K + 1);
        c.d_query_positions = hold(&held, rows * c.M), c.d_value_positions = hold(&held, rows * c.N);
        c.d_slopes = hold(&held, cells), c.d_intercepts = hold(&held, cells);
        failed = !c.d_query_positions || !c.d_value_positions || !c.d_slopes || !c.d_intercepts;
    }
    if (!failed) failed = is_double(frame) ? ia_backward_double(&c) : ia_backward_float(&c);
    if (c.slopes && !failed) {
        sum_heads(c.d_query_positions, c.H, rets[3]), sum_heads(c.d_value_positions, c.H, rets[4]);
        sum_heads(c.d_slopes, 1, rets[5]), sum_heads(c.d_intercepts, 1, rets[6]);
    }
    let_go(&held);
    return failed ? without_memory(frame) : NULL;
}
