// One block of threads for each row of scores (b, h, i): scale, bias, mask, softmax. T and WIDTH are defined by the
// caller (backends/_cupy.py).
//
// scores     (B, H, rows, N)     in: <q_i, k_j>; out: exp(s_ij - top_i)
// total, lse (B, H, rows)        sum_j of the exponentials, 1 for a row with nothing to attend to; log sum exp
// knots      (K,)                ascending; K < 0 where there is no bias function
// slopes, intercepts  (H, 2 K + 1)   of the cells, as PiecewiseLinear has them
// p, x       (B, rows), (B, N)   positions of queries and values
// mask       strided over (B, H, rows, N), in elements; null where there is none

#define INF ((T)__longlong_as_double(0x7ff0000000000000LL))  // NVRTC has no INFINITY

// What maxima of the specification do: a nan goes through.
__device__ T larger(T a, T b) { return (b > a || b != b) ? b : a; }

__device__ double line_at(T t, long long K, const double* knots, const double* slopes, const double* intercepts) {
  if (t != t) return t;
  long long low = 0, high = K;
  while (low < high) {
    long long middle = (low + high) / 2;
    if (knots[middle] < t) low = middle + 1; else high = middle;
  }
  long long cell = 2 * low + (low < K && knots[low] == t ? 1 : 0);
  // A line of slope 0 goes on to infinity.
  return slopes[cell] == 0.0 ? intercepts[cell] : slopes[cell] * t + intercepts[cell];
}

extern "C" __global__ void attend_rows(
    T* scores, T* total, T* lse, long long H, long long rows, long long N, double scale, long long K,
    const double* knots, const double* slopes, const double* intercepts, const double* p, const double* x,
    const bool* mask, long long mask_b, long long mask_h, long long mask_i, long long mask_j) {
  __shared__ T shared[WIDTH];
  const long long row = blockIdx.x, i = row % rows, h = row / rows % H, b = row / rows / H;
  const int me = threadIdx.x;
  T* s = scores + row * N;
  const long long C = 2 * K + 1;
  const bool* allowed = mask ? mask + b * mask_b + h * mask_h + i * mask_i : mask;
  T top = -INF;
  for (long long j = me; j < N; j += WIDTH) {
    T score = (T)scale * s[j];
    if (K >= 0) {
      T t = (T)(x[b * N + j] - p[b * rows + i]);
      score += (T)line_at(t, K, knots, slopes + h * C, intercepts + h * C);
    }
    if (allowed && !allowed[j * mask_j]) score = -INF;
    s[j] = score;
    top = larger(top, score);
  }
  shared[me] = top;
  __syncthreads();
  for (int half = WIDTH / 2; half > 0; half /= 2) {
    if (me < half) shared[me] = larger(shared[me], shared[me + half]);
    __syncthreads();
  }
  top = ceil(shared[0]);
  if (top == -INF) top = 0;  // exp(-inf - (-inf)) would be nan
  __syncthreads();
  T sum = 0;
  for (long long j = me; j < N; j += WIDTH) {
    T e = exp(s[j] - top);
    s[j] = e;
    sum += e;
  }
  shared[me] = sum;
  __syncthreads();
  for (int half = WIDTH / 2; half > 0; half /= 2) {
    if (me < half) shared[me] += shared[me + half];
    __syncthreads();
  }
  if (me == 0) {
    sum = shared[0];
    total[row] = sum == 0 ? (T)1 : sum;
    lse[row] = sum == 0 ? -INF : top + log(sum);
  }
}
