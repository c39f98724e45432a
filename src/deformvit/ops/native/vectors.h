// What the CPU kernels are made of: vectors of LANES floats, small matrix products, threads.
//
// Everything is in an unnamed namespace: files that include this are compiled once for every instruction set, and the
// linker must not take a function of one for that of another.

#ifndef DEFORMVIT_VECTORS_H
#define DEFORMVIT_VECTORS_H

#include <atomic>
#include <cmath>
#include <cstdlib>
#include <cstring>
#if !defined(_WIN32)
#include <pthread.h>
#endif
#if LANES > 4
#include <immintrin.h>
#endif

#include "native.h"

namespace {

typedef float Vec __attribute__((vector_size(4 * LANES)));
typedef int32_t Int __attribute__((vector_size(4 * LANES)));

constexpr int VECTORS = 3;                 // vectors of a row held in registers
constexpr int ROWS = LANES == 16 ? 8 : 4;  // and how many rows of a matrix product
constexpr float LOG2E = 1.4426950408889634f, LN2 = 0.6931471805599453f;

inline Vec load(const float* p) { Vec v; std::memcpy(&v, p, sizeof v); return v; }
inline void store(float* p, Vec v) { std::memcpy(p, &v, sizeof v); }
inline Vec all(float x) { return x - Vec{}; }
inline Int all(int32_t x) { return x - Int{}; }
inline Vec as_float(Int x) { Vec v; std::memcpy(&v, &x, sizeof v); return v; }
inline Int as_int(Vec x) { Int v; std::memcpy(&v, &x, sizeof v); return v; }
inline Vec keep(Vec x, Int mask) { return as_float(as_int(x) & mask); }

#if LANES == 16
inline Vec max(Vec a, Vec b) { return (Vec)_mm512_max_ps((__m512)a, (__m512)b); }
inline Vec floor(Vec x) { return (Vec)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC); }
inline Int truncate(Vec x) { return (Int)_mm512_cvttps_epi32((__m512)x); }
inline Vec fraction(Vec x) { return (Vec)_mm512_reduce_ps((__m512)x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC); }
inline Int min(Int a, Int b) { return (Int)_mm512_min_epi32((__m512i)a, (__m512i)b); }
inline Vec permute(Vec x, Int index) { return (Vec)_mm512_permutexvar_ps((__m512i)index, (__m512)x); }
#elif LANES == 8
inline Vec max(Vec a, Vec b) { return (Vec)_mm256_max_ps((__m256)a, (__m256)b); }
inline Vec floor(Vec x) { return (Vec)_mm256_floor_ps((__m256)x); }
inline Int truncate(Vec x) { return (Int)_mm256_cvttps_epi32((__m256)x); }
inline Int min(Int a, Int b) { return (Int)_mm256_min_epi32((__m256i)a, (__m256i)b); }
inline Vec permute(Vec x, Int index) { return (Vec)_mm256_permutevar8x32_ps((__m256)x, (__m256i)index); }
#else
inline Vec max(Vec a, Vec b) { return a > b ? a : b; }
inline Int min(Int a, Int b) { return a < b ? a : b; }
inline Int truncate(Vec x) { return __builtin_convertvector(x, Int); }
inline Vec floor(Vec x) {  // arguments are small: table cells
  Vec whole = __builtin_convertvector(truncate(x), Vec);
  return whole - (whole > x ? all(1.0f) : all(0.0f));
}
inline Vec permute(Vec x, Int index) {
  Vec out;
  for (int i = 0; i < LANES; i++) out[i] = x[index[i] & (LANES - 1)];
  return out;
}
#endif
#if LANES != 16
inline Vec fraction(Vec x) { return x - floor(x); }
#endif
inline Vec abs(Vec x) { return as_float(as_int(x) & all(0x7fffffff)); }
inline Vec ramp() { Vec v; for (int i = 0; i < LANES; i++) v[i] = (float)i; return v; }
inline float sum(Vec x) { float s = 0; for (int i = 0; i < LANES; i++) s += x[i]; return s; }

// 2^x for x <= 0 and little above; not a number stays not a number.
inline Vec exp2(Vec x) {
#if LANES == 16
  Vec whole = (Vec)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), f = x - whole;
#else
  x = x < all(-126.0f) ? all(-126.0f) : x;
  const Vec magic = all(12582912.0f);  // adding it rounds to an integer, which stands in the low bits
  Vec shifted = x + magic, f = x - (shifted - magic);
#endif
  Vec p = all(1.32647270e-3f);  // minimax on [-1/2, 1/2], relative error 9e-8
  p = p * f + 9.67151288e-3f;
  p = p * f + 5.55073375e-2f;
  p = p * f + 2.40222421e-1f;
  p = p * f + 6.93146978e-1f;
  p = p * f + 1.0f;
#if LANES == 16
  return (Vec)_mm512_scalef_ps((__m512)p, (__m512)whole);
#else
  return p * as_float((as_int(shifted) + 127) << 23);
#endif
}

inline float read(const float* p) { return *p; }
inline float read(const uint16_t* p) { uint32_t bits = (uint32_t)*p << 16; float x; std::memcpy(&x, &bits, 4); return x; }
inline void write(float* p, float x) { *p = x; }
inline void write(uint16_t* p, float x) {  // to the nearest, ties to even
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  *p = x != x ? 0x7fc0 : (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

inline int64_t up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }
inline int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }

// Memory of one worker, aligned to cache lines and zeroed.
struct Floats {
  float* data;
  explicit Floats(int64_t n) {
    void* p = nullptr;
    if (posix_memalign(&p, 64, sizeof(float) * up(n + LANES, 16))) p = nullptr;  // a vector may be read past the end
    data = (float*)p;
    if (data) std::memset(data, 0, sizeof(float) * up(n + LANES, 16));
  }
  ~Floats() { free(data); }
  Floats(const Floats&) = delete;
  operator float*() const { return data; }
};

// C[i][lanes] (+)= sum over k of A B[k][lanes] for ROWS_ rows and NV vectors; A is [i][k], or [k][i] if TRANSPOSED.
template <int ROWS_, int NV, bool TRANSPOSED>
inline void micro(int count, const float* a, int64_t lda, const float* b, int64_t ldb, float* c, int64_t ldc, bool add) {
  Vec sums[ROWS_][NV];
#pragma GCC unroll 8
  for (int i = 0; i < ROWS_; i++)
#pragma GCC unroll 3
    for (int v = 0; v < NV; v++) sums[i][v] = add ? load(c + i * ldc + v * LANES) : Vec{};
  for (int k = 0; k < count; k++) {
    Vec row[NV];
    for (int v = 0; v < NV; v++) row[v] = load(b + k * ldb + v * LANES);
    for (int i = 0; i < ROWS_; i++) {
      float x = TRANSPOSED ? a[k * lda + i] : a[i * lda + k];
      for (int v = 0; v < NV; v++) sums[i][v] += x * row[v];
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < ROWS_; i++)
#pragma GCC unroll 3
    for (int v = 0; v < NV; v++) store(c + i * ldc + v * LANES, sums[i][v]);
}

template <int NV, bool TRANSPOSED>
void columns(int rows, int count, const float* a, int64_t lda, const float* b, int64_t ldb, float* c, int64_t ldc, bool add) {
  for (int i = 0; i < rows; i += ROWS)
    micro<ROWS, NV, TRANSPOSED>(count, a + (TRANSPOSED ? i : i * lda), lda, b, ldb, c + i * ldc, ldc, add);
}

// C (rows x vectors * LANES) (+)= A B over `count` products; rows is a multiple of ROWS.
template <bool TRANSPOSED>
void multiply(int rows, int count, int vectors, const float* a, int64_t lda, const float* b, int64_t ldb, float* c,
              int64_t ldc, bool add) {
  int parts = (vectors + VECTORS - 1) / VECTORS;
  for (int part = 0, done = 0; part < parts; part++) {
    int nv = (vectors - done + parts - part - 1) / (parts - part);
    const float* b_part = b + done * LANES;
    float* c_part = c + done * LANES;
    if (nv == 1) columns<1, TRANSPOSED>(rows, count, a, lda, b_part, ldb, c_part, ldc, add);
    else if (nv == 2) columns<2, TRANSPOSED>(rows, count, a, lda, b_part, ldb, c_part, ldc, add);
    else columns<3, TRANSPOSED>(rows, count, a, lda, b_part, ldb, c_part, ldc, add);
    done += nv;
  }
}

// Rows `from` to `from + rows` of a head, row by row with `stride` floats each, times `factor`.
template <typename T>
void rows_of(const Tokens& t, int64_t b, int64_t m, int64_t from, int rows, int dim, float factor, float* to, int64_t stride) {
  const T* source = (const T*)t.data + b * t.batch + m * t.head + from * t.token;
  for (int i = 0; i < rows; i++)
    for (int c = 0; c < dim; c++) to[i * stride + c] = factor * read(source + i * t.token + c);
}

// The same, channel by channel with `stride` floats each.
template <typename T>
void columns_of(const Tokens& t, int64_t b, int64_t m, int64_t from, int rows, int dim, float factor, float* to, int64_t stride) {
  const T* source = (const T*)t.data + b * t.batch + m * t.head + from * t.token;
  for (int i = 0; i < rows; i++)
    for (int c = 0; c < dim; c++) to[c * stride + i] = factor * read(source + i * t.token + c);
}

template <typename T>
void write_rows(const Tokens& t, int64_t b, int64_t m, int64_t from, int rows, int dim, float factor, const float* x, int64_t stride) {
  T* to = (T*)t.data + b * t.batch + m * t.head + from * t.token;
  for (int i = 0; i < rows; i++)
    for (int c = 0; c < dim; c++) write(to + i * t.token + c, factor * x[i * stride + c]);
}

template <typename T>
void write_columns(const Tokens& t, int64_t b, int64_t m, int64_t from, int rows, int dim, float factor, const float* x, int64_t stride) {
  T* to = (T*)t.data + b * t.batch + m * t.head + from * t.token;
  for (int i = 0; i < rows; i++)
    for (int c = 0; c < dim; c++) write(to + i * t.token + c, factor * x[c * stride + i]);
}

// The softmax of a tile and what was summed before it: S becomes weights, `out` shrinks where a larger logit is found.
inline void online_softmax(float* s, float* out, float* most, float* total, int keys, int vectors, int dim_v, int64_t wide) {
  for (int lane = 0; lane < vectors * LANES; lane += LANES) {
    Vec before = load(most + lane), now = before, sums = Vec{};
    for (int n = 0; n < keys; n++) now = max(now, load(s + n * wide + lane));
    for (int n = 0; n < keys; n++) {
      Vec weight = exp2(load(s + n * wide + lane) - now);
      store(s + n * wide + lane, weight);
      sums += weight;
    }
    Vec shrink = exp2(before - now);
    store(most + lane, now);
    store(total + lane, load(total + lane) * shrink + sums);
    for (int c = 0; c < dim_v; c++) store(out + c * wide + lane, load(out + c * wide + lane) * shrink);
  }
}

// Work items handed out one by one, to as many threads as there are.
template <typename Job>
struct Work {
  const Job* p;
  void (*body)(Work&);
  int64_t items;
  std::atomic<int64_t> next{0};
  std::atomic<int> failed{0};
  void* context = nullptr;
  Work(const Job* p_, void (*body_)(Work&), int64_t items_, void* context_ = nullptr)
      : p(p_), body(body_), items(items_), context(context_) {}
  int64_t take() { return next.fetch_add(1, std::memory_order_relaxed); }
  static void enter(void* self) { ((Work*)self)->body(*(Work*)self); }
  static void* enter_thread(void* self) { enter(self); return nullptr; }
  bool run() {
    int64_t threads = min(p->threads, items);
    if (threads <= 1) enter(this);
    else if (p->parallel) p->parallel(enter, this, (unsigned)threads, 0);
    else {
      pthread_t others[256];
      int64_t started = 0;
      for (; started < min(threads - 1, 256); started++)
        if (pthread_create(&others[started], nullptr, enter_thread, this)) break;
      enter(this);
      for (int64_t i = 0; i < started; i++) pthread_join(others[i], nullptr);
    }
    return !failed;
  }
};

}  // namespace

#define NAME_(what, set) deformvit_##what##_##set
#define NAME(what, set) NAME_(what, set)

#endif
