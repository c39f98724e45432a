// Deformable attention (equation 6) with the position bias computed on the fly, forward and backward.
//
// Lanes are queries that follow one another in a row of the map. A tile is a block of queries by a block of keys, its
// logits S are stored key by key, so that for one key
//   - q k^T is a broadcast of k's channels against vectors of queries, a small matrix product (multiply);
//   - the bias is separable: one linear interpolation between two rows of the table, then, as neighbouring queries read
//     neighbouring cells, a permutation of that register for the columns: no gathers.
// The softmax is the online one (Milakov and Gimelshein, arXiv 1805.02867; FlashAttention, arXiv 2205.14135), backward
// recomputes the weights from the logarithm of their sum. Logits are in units of log2(e), for exp2.
//
// No two work items write to the same place and sums run in a fixed order: results are the same in every run.

#include "vectors.h"

namespace {

constexpr int KEYS = 64;               // keys in a tile
constexpr int WIDE = VECTORS * LANES;  // queries in a tile, at most

// Tables with a margin of zeros, wide enough that every read of a clamped position stays inside, times log2(e).
struct Tables {
  static constexpr int64_t MARGIN_Y = 2, MARGIN_X = LANES;
  int64_t height, width, stride, size;
  explicit Tables(const Problem& p)
      : height(p.table_h), width(p.table_w), stride(width + 2 * MARGIN_X), size((height + 2 * MARGIN_Y) * stride) {}
  void fill(const float* table, float* to) const {
    for (int64_t y = 0; y < height; y++)
      for (int64_t x = 0; x < width; x++) to[(y + MARGIN_Y) * stride + x + MARGIN_X] = LOG2E * table[y * width + x];
  }
};

// Queries of a tile that lie in one row of the map and, for one key, read cells of the table that fit in one register.
struct Segment {
  int lane, length;      // first query of the tile, how many
  float row, column;     // step * (i, j) of the first
};

struct Queries {
  int64_t from;
  int count, vectors, segments;
  Segment segment[WIDE];
};

// A block of queries cut into segments. The last lane of a register is left out, see scatter.
Queries block_of(const Problem& p, int64_t from, int count) {
  Queries block{from, count, (count + LANES - 1) / LANES, 0, {}};
  if (!p.table) return block;
  int64_t longest = LANES - 1;
  if (p.step_x * (LANES - 2) > LANES - 2) longest = (int64_t)((LANES - 2) / p.step_x) + 1;
  for (int lane = 0; lane < count;) {
    int64_t i = (from + lane) / p.width, j = (from + lane) % p.width;
    int64_t length = min(min(longest, p.width - j), count - lane);
    block.segment[block.segments++] = {lane, (int)length, p.step_y * i, p.step_x * j};
    lane += (int)length;
  }
  return block;
}

// Where the keys of a tile read the table for one segment: cell of its first query, and fractions beyond it.
struct Reads {
  alignas(64) int32_t cell[KEYS + LANES];
  alignas(64) float fy[KEYS + LANES], fx[KEYS + LANES];
  void find(const Tables& t, const Segment& s, const float* first_y, const float* first_x, int keys) {
    for (int n = 0; n < keys; n += LANES) {
      // Far from the table only zeros are read: positions are clamped to the margin. Comparisons are such that what is
      // not a number is clamped too.
      Vec y = load(first_y + n) + s.row, x = load(first_x + n) + s.column;
      Vec top = all((float)-Tables::MARGIN_Y), bottom = all((float)t.height);
      Vec left = all((float)-Tables::MARGIN_X), right = all((float)t.width);
      y = y > top ? y : top; y = y < bottom ? y : bottom;
      x = x > left ? x : left; x = x < right ? x : right;
      Vec y0 = floor(y), x0 = floor(x);
      Int at = (truncate(y0) + (int32_t)Tables::MARGIN_Y) * (int32_t)t.stride + truncate(x0) + (int32_t)Tables::MARGIN_X;
      std::memcpy(cell + n, &at, sizeof at);
      store(fy + n, y - y0);
      store(fx + n, x - x0);
    }
  }
};

// S += bias for the keys of a tile; with slope, also the derivative of the bias by the column.
void add_bias(const Tables& t, const float* table, const Problem& p, const Queries& block, const float* first_y,
              const float* first_x, int keys, Reads& reads, float* s, int64_t stride, float* slope) {
  // Vectors reach past their segment: there S gets zeros added, and slope, whose rows are a register longer, is written
  // again with the next segment.
  const Vec moves = p.step_x * ramp();
  for (int i = 0; i < block.segments; i++) {
    const Segment& part = block.segment[i];
    const Int mask = ramp() < all((float)part.length);
    reads.find(t, part, first_y, first_x, keys);
    for (int n = 0; n < keys; n++) {
      const float* cell = table + reads.cell[n];
      Vec above = load(cell), below = load(cell + t.stride);
      Vec row = above + reads.fy[n] * (below - above);
      Vec x = moves + reads.fx[n];  // not negative
      Int index = truncate(x);
      Vec left = permute(row, index), rise = permute(row, index + 1) - left;
      float* to = s + n * stride + part.lane;
      store(to, load(to) + keep(left + fraction(x) * rise, mask));
      if (slope) store(slope + n * (stride + LANES) + part.lane, rise);
    }
  }
}

// Blocks of queries of even size, none larger than a tile.
struct Blocks {
  int64_t count, size;
  explicit Blocks(int64_t queries) {
    int64_t vectors = (queries + LANES - 1) / LANES;
    count = (vectors + VECTORS - 1) / VECTORS;
    size = (vectors + count - 1) / count * LANES;
    count = (queries + size - 1) / size;
  }
};

struct Shared {
  Tables tables;
  float* padded;         // (heads, tables.size)
  int64_t together;      // blocks of queries an item of forward takes
  int64_t chunks;        // parts of the keys in backward
  float* grad_q;         // (batch, heads, chunks, queries, dim), where chunks > 1
  float* grad_tables;    // (batch, heads, chunks, tables.size)
};

// (keys, 2) -> two rows of the tile's keys
inline void split_first(const Problem& p, int64_t b, int64_t m, int64_t from, int keys, float* y, float* x) {
  if (!p.table) return;
  const float* first = p.first + ((b * p.groups + m / (p.heads / p.groups)) * p.keys + from) * 2;
  for (int n = 0; n < keys; n++) y[n] = first[2 * n], x[n] = first[2 * n + 1];
}

// Blocks of queries that pass over a tile of keys together, so that it is copied for several.
constexpr int TOGETHER = 4;

template <typename T>
void forward_items(Work<Problem>& work) {
  const Problem& p = *work.p;
  const Shared& shared = *(const Shared*)work.context;
  const Blocks blocks(p.queries);
  const int dim = (int)p.dim, dim_v = (int)p.dim_v;
  const int64_t wide = blocks.size, v_rows = up(dim_v, ROWS), together = shared.together;
  Floats q(together * dim * wide), out(together * v_rows * wide), most(together * wide), total(together * wide);
  Floats k(KEYS * dim), v(KEYS * v_rows), s(KEYS * wide), first_y(KEYS), first_x(KEYS);
  Reads reads;
  Queries block[TOGETHER];
  if (!q || !k || !v || !s || !out || !most || !total || !first_y || !first_x) { work.failed = 1; return; }
  for (int64_t item; (item = work.take()) < work.items;) {
    const int64_t parts = (blocks.count + together - 1) / together;
    const int64_t b = item / parts / p.heads, m = item / parts % p.heads, begin = item % parts * together;
    const int count = (int)min(together, blocks.count - begin);
    std::memset(q, 0, sizeof(float) * together * dim * wide);
    std::memset(out, 0, sizeof(float) * together * v_rows * wide);
    for (int i = 0; i < count * wide; i++) most[i] = -1e30f, total[i] = 0;
    for (int i = 0; i < count; i++) {
      const int64_t from = (begin + i) * wide;
      block[i] = block_of(p, from, (int)min(wide, p.queries - from));
      columns_of<T>(p.q, b, m, from, block[i].count, dim, p.scale * LOG2E, q + i * dim * wide, wide);
    }
    for (int64_t key = 0; key < p.keys; key += KEYS) {
      const int keys = (int)min(KEYS, p.keys - key);
      rows_of<T>(p.k, b, m, key, keys, dim, 1, k, dim);
      rows_of<T>(p.v, b, m, key, keys, dim_v, 1, v, v_rows);
      split_first(p, b, m, key, keys, first_y, first_x);
      for (int i = 0; i < count; i++) {
        const int vectors = block[i].vectors;
        multiply<false>((int)up(keys, ROWS), dim, vectors, k, dim, q + i * dim * wide, wide, s, wide, false);
        if (p.table)
          add_bias(shared.tables, shared.padded + m * shared.tables.size, p, block[i], first_y, first_x, keys, reads, s,
                   wide, nullptr);
        online_softmax(s, out + i * v_rows * wide, most + i * wide, total + i * wide, keys, vectors, dim_v, wide);
        multiply<true>((int)v_rows, keys, vectors, v, v_rows, s, wide, out + i * v_rows * wide, wide, true);
      }
    }
    for (int i = 0; i < count; i++) {
      const int64_t from = (begin + i) * wide;
      float* lse = p.lse + (b * p.heads + m) * p.queries + from;
      for (int j = 0; j < block[i].count; j++) lse[j] = most[i * wide + j] + std::log2(total[i * wide + j]);
      float* rows = out + i * v_rows * wide;
      for (int lane = 0; lane < block[i].vectors * LANES; lane += LANES)
        for (int c = 0; c < dim_v; c++)
          store(rows + c * wide + lane, load(rows + c * wide + lane) / load(total + i * wide + lane));
      write_columns<T>(p.out, b, m, from, block[i].count, dim_v, 1, rows, wide);
    }
  }
}

// What one worker keeps of a head in backward: its queries and their gradients, channel by channel and row by row.
struct Head {
  Floats q, q_rows, grad, grad_rows, grad_q, lse, delta;
  Head(const Problem& p, const Blocks& b, int64_t dim_rows, int64_t dim_v_rows, int64_t dim_up)
      : q(b.count * b.size * p.dim), q_rows(b.count * b.size * dim_rows), grad(b.count * b.size * p.dim_v),
        grad_rows(b.count * b.size * dim_v_rows), grad_q(b.count * b.size * dim_up), lse(b.count * b.size),
        delta(b.count * b.size) {}
  bool ok() const { return q && q_rows && grad && grad_rows && grad_q && lse && delta; }
};

// Gradients of table, rows and columns for the keys of a tile; ds are the gradients of the logits. The transposed
// permutation: cell c takes from query j the weight 1 - |x_j - c| where that is positive, x_j being step * j + fx. The
// first such j is found by division and at most `reach` are in reach. Queries past the register's end are read from its
// last lane, which no segment fills.
void scatter(const Tables& t, const float* table, float* grad_table, const Problem& p, const Queries& block,
             const float* first_y, const float* first_x, int keys, Reads& reads, const float* ds, const float* slope,
             int64_t stride, float* grad_y, float* grad_x) {
  const int reach = p.step_x * LANES > 2 ? (int)(2 / p.step_x - 1e-6f) + 1 : LANES;
  const Vec cells = ramp();
  const Int last = all((int32_t)(LANES - 1));
  const float inverse = p.step_x > 0 ? 1 / p.step_x : 0;
  for (int i = 0; i < block.segments; i++) {
    const Segment& part = block.segment[i];
    const Int mask = cells < all((float)part.length);
    reads.find(t, part, first_y, first_x, keys);
    for (int n = 0; n < keys; n++) {
      const Vec d = keep(load(ds + n * stride + part.lane), mask);
      const Vec query = max(all(0.0f), -floor((1 + reads.fx[n] - cells) * inverse));
      Vec apart = query * p.step_x + reads.fx[n] - cells, found = Vec{};
      Int j = truncate(query);
      for (int k = 0; k < reach; k++) {
        found += max(all(0.0f), 1 - abs(apart)) * permute(d, min(j, last));
        apart += p.step_x;
        j += 1;
      }
      const float *above = table + reads.cell[n], *below = above + t.stride;
      store(grad_y + n * LANES, load(grad_y + n * LANES) + found * (load(below) - load(above)));
      store(grad_x + n * LANES, load(grad_x + n * LANES) + d * load(slope + n * (stride + LANES) + part.lane));
      if (grad_table) {
        float *to = grad_table + reads.cell[n], *next = to + t.stride;
        Vec down = found * reads.fy[n];
        store(to, load(to) + (found - down));
        store(next, load(next) + down);
      }
    }
  }
}

template <typename T>
void backward_items(Work<Problem>& work) {
  const Problem& p = *work.p;
  const Shared& shared = *(const Shared*)work.context;
  const Tables& tables = shared.tables;
  const Blocks blocks(p.queries);
  const int dim = (int)p.dim, dim_v = (int)p.dim_v;
  const int64_t wide = blocks.size, padded = blocks.count * wide;
  const int64_t dim_rows = up(dim, LANES), dim_v_rows = up(dim_v, LANES);  // rows of vectors
  const int64_t dim_up = up(dim, ROWS);
  Head head(p, blocks, dim_rows, dim_v_rows, dim_up);
  Floats k(KEYS * dim_up), v(KEYS * dim_v), s(KEYS * wide), ds(KEYS * wide), slope(KEYS * (wide + LANES));
  Floats grad_k(KEYS * dim_rows), grad_v(KEYS * dim_v_rows), grad_y(KEYS * LANES), grad_x(KEYS * LANES);
  Floats first_y(KEYS), first_x(KEYS);
  Reads reads;
  if (!head.ok() || !k || !v || !s || !ds || !slope || !grad_k || !grad_v || !grad_y || !grad_x || !first_y || !first_x) {
    work.failed = 1;
    return;
  }
  const bool places = p.table && (p.grad_first || p.grad_table);
  const int64_t tiles = (p.keys + KEYS - 1) / KEYS, per_chunk = (tiles + shared.chunks - 1) / shared.chunks * KEYS;
  for (int64_t item; (item = work.take()) < work.items;) {
    const int64_t bm = item / shared.chunks, b = bm / p.heads, m = bm % p.heads, chunk = item % shared.chunks;
    const int64_t begin = chunk * per_chunk, end = min(p.keys, begin + per_chunk);
    const float* table = p.table ? shared.padded + m * tables.size : nullptr;
    float* grad_table = shared.grad_tables ? shared.grad_tables + item * tables.size : nullptr;
    std::memset(head.grad_q, 0, sizeof(float) * padded * dim_up);
    for (int64_t block = 0; block < blocks.count; block++) {
      const int64_t from = block * wide;
      const int count = (int)min(wide, p.queries - from);
      columns_of<T>(p.q, b, m, from, count, dim, p.scale * LOG2E, head.q + from * dim, wide);
      columns_of<T>(p.grad_out, b, m, from, count, dim_v, 1, head.grad + from * dim_v, wide);
      rows_of<T>(p.q, b, m, from, count, dim, p.scale, head.q_rows + from * dim_rows, dim_rows);
      rows_of<T>(p.grad_out, b, m, from, count, dim_v, 1, head.grad_rows + from * dim_v_rows, dim_v_rows);
      const T* out = (const T*)p.out.data + b * p.out.batch + m * p.out.head + from * p.out.token;
      for (int i = 0; i < count; i++) {
        float dot = 0;
        for (int c = 0; c < dim_v; c++) dot += read(out + i * p.out.token + c) * head.grad_rows[(from + i) * dim_v_rows + c];
        head.delta[from + i] = dot;
        head.lse[from + i] = p.lse[bm * p.queries + from + i];
      }
    }
    for (int64_t key = begin; key < end; key += KEYS) {
      const int keys = (int)min(KEYS, end - key), keys_up = (int)up(keys, ROWS);
      rows_of<T>(p.k, b, m, key, keys, dim, 1, k, dim_up);
      rows_of<T>(p.v, b, m, key, keys, dim_v, 1, v, dim_v);
      split_first(p, b, m, key, keys, first_y, first_x);
      std::memset(grad_k, 0, sizeof(float) * KEYS * dim_rows);
      std::memset(grad_v, 0, sizeof(float) * KEYS * dim_v_rows);
      std::memset(grad_y, 0, sizeof(float) * KEYS * LANES);
      std::memset(grad_x, 0, sizeof(float) * KEYS * LANES);
      for (int64_t at = 0; at < blocks.count; at++) {
        const int64_t from = at * wide;
        const Queries block = block_of(p, from, (int)min(wide, p.queries - from));
        multiply<false>(keys_up, dim, block.vectors, k, dim_up, head.q + from * dim, wide, s, wide, false);
        if (p.table)
          add_bias(tables, table, p, block, first_y, first_x, keys, reads, s, wide, places ? slope.data : nullptr);
        multiply<false>(keys_up, dim_v, block.vectors, v, dim_v, head.grad + from * dim_v, wide, ds, wide, false);
        for (int n = 0; n < keys; n++)
          for (int lane = 0; lane < block.vectors * LANES; lane += LANES) {
            Vec weight = exp2(load(s + n * wide + lane) - load(head.lse + from + lane));
            store(s + n * wide + lane, weight);
            store(ds + n * wide + lane, weight * (load(ds + n * wide + lane) - load(head.delta + from + lane)));
          }
        multiply<false>(keys_up, block.count, (int)(dim_v_rows / LANES), s, wide, head.grad_rows + from * dim_v_rows,
                        dim_v_rows, grad_v, dim_v_rows, true);
        multiply<false>(keys_up, block.count, (int)(dim_rows / LANES), ds, wide, head.q_rows + from * dim_rows,
                        dim_rows, grad_k, dim_rows, true);
        multiply<true>((int)dim_up, keys, block.vectors, k, dim_up, ds, wide, head.grad_q + from * dim_up, wide, true);
        if (places)
          scatter(tables, table, grad_table, p, block, first_y, first_x, keys, reads, ds, slope, wide, grad_y, grad_x);
      }
      write_rows<T>(p.grad_k, b, m, key, keys, dim, 1, grad_k, dim_rows);
      write_rows<T>(p.grad_v, b, m, key, keys, dim_v, 1, grad_v, dim_v_rows);
      if (places && p.grad_first)
        for (int n = 0; n < keys; n++) {  // the tables here are times log2(e)
          float* to = p.grad_first + (bm * p.keys + key + n) * 2;
          to[0] = LN2 * sum(load(grad_y + n * LANES));
          to[1] = LN2 * sum(load(grad_x + n * LANES));
        }
    }
    for (int64_t at = 0; at < blocks.count; at++) {
      const int64_t from = at * wide;
      const int count = (int)min(wide, p.queries - from);
      const float* grad = head.grad_q + from * dim_up;
      if (shared.chunks == 1) {
        write_columns<T>(p.grad_q, b, m, from, count, dim, p.scale, grad, wide);
      } else {
        Tokens part{shared.grad_q, 0, p.queries * dim, dim};
        write_columns<float>(part, 0, item, from, count, dim, p.scale, grad, wide);
      }
    }
  }
}

// Sums over what the items of backward found apart: chunks of keys, and images.
template <typename T>
void sum_items(Work<Problem>& work) {
  const Problem& p = *work.p;
  const Shared& shared = *(const Shared*)work.context;
  const Tables& t = shared.tables;
  for (int64_t item; (item = work.take()) < work.items;) {
    if (item < p.heads) {  // a head's table
      if (!shared.grad_tables) continue;
      for (int64_t y = 0; y < t.height; y++)
        for (int64_t x = 0; x < t.width; x++) {
          float total = 0;
          for (int64_t b = 0; b < p.batch; b++)
            for (int64_t c = 0; c < shared.chunks; c++)
              total += shared.grad_tables[((b * p.heads + item) * shared.chunks + c) * t.size +
                                          (y + Tables::MARGIN_Y) * t.stride + x + Tables::MARGIN_X];
          p.grad_table[(item * t.height + y) * t.width + x] = total;
        }
    } else {  // queries of a head and image
      const int64_t bm = item - p.heads;
      T* to = (T*)p.grad_q.data + bm / p.heads * p.grad_q.batch + bm % p.heads * p.grad_q.head;
      const float* parts = shared.grad_q + bm * shared.chunks * p.queries * p.dim;
      for (int64_t i = 0; i < p.queries; i++)
        for (int64_t c = 0; c < p.dim; c++) {
          float total = 0;
          for (int64_t n = 0; n < shared.chunks; n++) total += parts[(n * p.queries + i) * p.dim + c];
          write(to + i * p.grad_q.token + c, total);
        }
    }
  }
}

void fill_tables(Work<Problem>& work) {
  const Shared& shared = *(const Shared*)work.context;
  for (int64_t m; (m = work.take()) < work.items;)
    shared.tables.fill(work.p->table + m * shared.tables.height * shared.tables.width,
                       shared.padded + m * shared.tables.size);
}

}  // namespace

// 0, or 1 where memory ran out.
extern "C" int NAME(forward, INSTRUCTIONS)(const Problem* p) {
  Shared shared{Tables(*p), nullptr, 1, 1, nullptr, nullptr};
  Floats padded(p->table ? p->heads * shared.tables.size : 0);
  if (!padded) return 1;
  shared.padded = padded;
  if (p->table && !Work<Problem>(p, fill_tables, p->heads, &shared).run()) return 1;
  // As many blocks together as leave every thread several items, which keeps them evenly busy.
  const int64_t heads = p->batch * p->heads, blocks = Blocks(p->queries).count;
  while (shared.together < TOGETHER && heads * blocks >= 16 * p->threads * shared.together) shared.together *= 2;
  Work<Problem> work(p, p->bfloat16 ? forward_items<uint16_t> : forward_items<float>,
            heads * ((blocks + shared.together - 1) / shared.together), &shared);
  return work.run() ? 0 : 1;
}

extern "C" int NAME(backward, INSTRUCTIONS)(const Problem* p) {
  // Items are heads; where these are too few to keep the threads evenly busy, parts of a head's keys.
  const int64_t heads = p->batch * p->heads, tiles = (p->keys + KEYS - 1) / KEYS;
  int64_t chunks = 1;
  if (heads && p->threads > 1 && heads < 4 * p->threads) chunks = min(tiles, (4 * p->threads + heads - 1) / heads);
  Shared shared{Tables(*p), nullptr, 1, chunks, nullptr, nullptr};
  Floats padded(p->table ? p->heads * shared.tables.size : 0);
  Floats grad_q(chunks > 1 ? heads * chunks * p->queries * p->dim : 0);
  Floats grad_tables(p->grad_table ? heads * chunks * shared.tables.size : 0);
  if (!padded || !grad_q || !grad_tables) return 1;
  shared.padded = padded;
  if (chunks > 1) shared.grad_q = grad_q;
  if (p->grad_table) shared.grad_tables = grad_tables;
  if (p->table && !Work<Problem>(p, fill_tables, p->heads, &shared).run()) return 1;
  Work<Problem> work(p, p->bfloat16 ? backward_items<uint16_t> : backward_items<float>, heads * chunks, &shared);
  if (!work.run()) return 1;
  if (chunks == 1 && !p->grad_table) return 0;
  Work<Problem> sums(p, p->bfloat16 ? sum_items<uint16_t> : sum_items<float>, p->heads + (chunks > 1 ? heads : 0), &shared);
  return sums.run() ? 0 : 1;
}
