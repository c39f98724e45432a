// What the Python side (library.py) and the CPU kernels agree on.
//
// A plain C interface of pointers and strides: built in seconds without PyTorch's headers, good for any PyTorch.

#ifndef DEFORMVIT_NATIVE_H
#define DEFORMVIT_NATIVE_H

#include <cstdint>

// Features (batch, head, token, channel) whose channels are contiguous; strides count elements.
struct Tokens {
  void* data;
  int64_t batch, head, token;
};

// What runs body(data) on several threads at once: PyTorch's own pool (GOMP_parallel of the OpenMP runtime that it has
// loaded), so that no second pool fights it for the cores; null: threads are started for the call.
typedef void (*Parallel)(void (*body)(void*), void* data, unsigned threads, unsigned flags);

// Deformable attention.
struct Problem {
  int64_t batch, heads, groups, queries, keys, dim, dim_v;
  int64_t width;               // queries lie row by row on a map of this width
  int64_t table_h, table_w;
  int64_t threads;
  int64_t bfloat16;            // features and their gradients are bfloat16, otherwise float32
  float scale, step_y, step_x; // see Cells in bias.py for step and first
  Parallel parallel;
  Tokens q, k, v, out;
  const float* first;          // (batch, groups, keys, 2)
  const float* table;          // (heads, table_h, table_w), or null: no bias
  float* lse;                  // (batch, heads, queries) base-2 logarithm of the sum of exponentials
  // backward alone
  Tokens grad_out, grad_q, grad_k, grad_v;
  float* grad_first;           // (batch, heads, keys, 2), or null where no gradient is asked for
  float* grad_table;           // as table, or null
};

// Attention within windows of a map.
struct WindowProblem {
  int64_t batch, height, width, heads, dim;     // dim channels a head
  int64_t window_h, window_w, shift_y, shift_x; // the map is rolled up and left by the shift, then cut into windows
  int64_t side;                                 // of the window that the table is made for
  int64_t threads, bfloat16;
  float scale;
  Parallel parallel;
  const void* qkv;      // (batch, height, width, 3, heads, dim)
  const float* table;   // ((2 side - 1)^2, heads)
  void* out;            // (batch, height, width, heads, dim)
};

#endif
