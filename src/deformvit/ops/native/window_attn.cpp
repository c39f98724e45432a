// Attention within windows of a map, plain or shifted, with a relative position bias (Swin Transformer); forward.
//
// Windows are read from the map and written back to it where they stand: the roll, the padding and the masks of the
// textbook formulation are index arithmetic here. Lanes are queries, as in deform_attn.cpp.

#include "vectors.h"

namespace {

struct Windows {
  int64_t rows, cols, length, wide, keys;  // windows; tokens of one; these in whole vectors, and in whole rows of a product
  explicit Windows(const WindowProblem& p)
      : rows((p.height + p.window_h - 1) / p.window_h), cols((p.width + p.window_w - 1) / p.window_w),
        length(p.window_h * p.window_w), wide(up(length, LANES)), keys(up(length, ROWS)) {}
};

struct WindowShared {
  Windows windows;
  float* bias;  // (heads, keys, wide), times log2(e)
};

void fill_bias(Work<WindowProblem>& work) {
  const WindowProblem& p = *work.p;
  const WindowShared& shared = *(const WindowShared*)work.context;
  const Windows& w = shared.windows;
  for (int64_t m; (m = work.take()) < work.items;) {
    float* to = shared.bias + m * w.keys * w.wide;
    for (int64_t n = 0; n < w.length; n++)
      for (int64_t i = 0; i < w.length; i++) {
        int64_t y = i / p.window_w - n / p.window_w + p.side - 1, x = i % p.window_w - n % p.window_w + p.side - 1;
        to[n * w.wide + i] = LOG2E * p.table[(y * (2 * p.side - 1) + x) * p.heads + m];
      }
  }
}

// One axis of a window: where its tokens stand on the map (-1: padding), and which side of the shift's seam they are on.
struct Axis {
  int64_t at[256];
  int32_t side[256];
  Axis(int64_t index, int64_t window, int64_t count, int64_t shift, int64_t length) {
    for (int64_t i = 0; i < window; i++) {
      int64_t rolled = index * window + i, total = count * window, source = (rolled + shift) % total;
      at[i] = source < length ? source : -1;
      side[i] = rolled >= total - shift;
    }
  }
};

template <typename T>
void window_items(Work<WindowProblem>& work) {
  const WindowProblem& p = *work.p;
  const WindowShared& shared = *(const WindowShared*)work.context;
  const Windows& w = shared.windows;
  const int dim = (int)p.dim, length = (int)w.length, vectors = (int)(w.wide / LANES);
  const int64_t channels = p.heads * dim, rows = up(dim, ROWS);
  const int64_t q_size = dim * w.wide, k_size = w.keys * dim, v_size = w.keys * rows;
  Floats q_all(p.heads * q_size), k_all(p.heads * k_size), v_all(p.heads * v_size);
  Floats s(w.keys * w.wide), out(rows * w.wide);
  Floats most(w.wide), total(w.wide), token(2 * w.wide);
  if (!q_all || !k_all || !v_all || !s || !out || !most || !total || !token) { work.failed = 1; return; }
  int64_t* at = (int64_t*)token.data;
  alignas(64) int32_t region[256 + 2 * LANES];
  for (int64_t item; (item = work.take()) < work.items;) {
    const int64_t b = item / (w.rows * w.cols), row = item / w.cols % w.rows, col = item % w.cols;
    const Axis y(row, p.window_h, w.rows, p.shift_y, p.height), x(col, p.window_w, w.cols, p.shift_x, p.width);
    bool masked = false;
    for (int i = 0; i < length; i++) {
      const int64_t r = i / p.window_w, c = i % p.window_w;
      const bool real = y.at[r] >= 0 && x.at[c] >= 0;
      at[i] = real ? (b * p.height + y.at[r]) * p.width + x.at[c] : -1;
      region[i] = real ? 2 * y.side[r] + x.side[c] : -1;
      masked |= region[i] != region[0];
    }
    if (!masked && region[0] < 0) continue;  // padding alone
    for (int i = 0; i < length; i++) {  // token by token, as they lie in memory, for all heads
      for (int64_t m = 0; m < p.heads; m++) {
        float *q = q_all + m * q_size + i, *k = k_all + m * k_size + i * dim, *v = v_all + m * v_size + i * rows;
        if (at[i] < 0) {  // masked, but not to hold what is not a number
          for (int c = 0; c < dim; c++) q[c * w.wide] = k[c] = v[c] = 0;
          continue;
        }
        const T* from = (const T*)p.qkv + at[i] * 3 * channels + m * dim;
        for (int c = 0; c < dim; c++) q[c * w.wide] = p.scale * LOG2E * read(from + c);
        for (int c = 0; c < dim; c++) k[c] = read(from + channels + c);
        for (int c = 0; c < dim; c++) v[c] = read(from + 2 * channels + c);
      }
    }
    for (int64_t m = 0; m < p.heads; m++) {
      const float *q = q_all + m * q_size, *k = k_all + m * k_size, *v = v_all + m * v_size;
      multiply<false>((int)w.keys, dim, vectors, k, dim, q, w.wide, s, w.wide, false);
      const float* bias = shared.bias + m * w.keys * w.wide;
      for (int n = 0; n < length; n++)
        for (int64_t lane = n * w.wide; lane < (n + 1) * w.wide; lane += LANES) {
          Vec logits = load(s + lane) + load(bias + lane);
          if (masked) {
            Int there;
            std::memcpy(&there, region + (lane - n * w.wide), sizeof there);
            logits = there == all(region[n]) ? logits : all(-1e30f);
          }
          store(s + lane, logits);
        }
      for (int i = 0; i < w.wide; i++) most[i] = -1e30f, total[i] = 0;
      std::memset(out, 0, sizeof(float) * rows * w.wide);
      online_softmax(s, out, most, total, length, vectors, dim, w.wide);
      multiply<true>((int)rows, length, vectors, v, rows, s, w.wide, out, w.wide, false);
      for (int i = 0; i < length; i++) {
        if (at[i] < 0) continue;
        T* to = (T*)p.out + at[i] * channels + m * dim;
        const float inverse = 1 / total[i];
        for (int c = 0; c < dim; c++) write(to + c, inverse * out[c * w.wide + i]);
      }
    }
  }
}

}  // namespace

// 0, or 1 where memory ran out.
extern "C" int NAME(windows, INSTRUCTIONS)(const WindowProblem* p) {
  WindowShared shared{Windows(*p), nullptr};
  Floats bias(p->heads * shared.windows.keys * shared.windows.wide);
  if (!bias) return 1;
  shared.bias = bias;
  if (!Work<WindowProblem>(p, fill_bias, p->heads, &shared).run()) return 1;
  Work<WindowProblem> work(p, p->bfloat16 ? window_items<uint16_t> : window_items<float>,
                           p->batch * shared.windows.rows * shared.windows.cols, &shared);
  return work.run() ? 0 : 1;
}
