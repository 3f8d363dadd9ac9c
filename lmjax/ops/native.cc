// Two products that XLA:CPU is slow at, for decoding: a few rows times a matrix stored a row an
// output in f32, bf16 or int8, and attention of one new token over a cache. Built by native.py.
//
// T rows (tokens), I inputs, O outputs; B batch, M cache slots, H query heads, G key/value heads, K
// head dim. All sums are f32.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <thread>
#include <vector>

#ifdef __AVX2__
#include <immintrin.h>
#endif

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

// kTall rows of a matrix share a load of x, and kWide of x one of it: as many sums as fit the registers.
#ifdef __AVX512F__
constexpr int kLanes = 16, kTall = 4;
#else
constexpr int kLanes = 8, kTall = 3;
#endif
constexpr int kWide = 4;
constexpr int64_t kPieceBytes = 1 << 17;  // of a matrix, that a thread takes at a time

typedef float F32 __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));
struct BF16 {
  uint16_t bits;
};

float Scalar(float x) { return x; }
float Scalar(int8_t x) { return x; }
float Scalar(BF16 x) {
  uint32_t bits = uint32_t{x.bits} << 16;
  float y;
  std::memcpy(&y, &bits, sizeof y);
  return y;
}

// kLanes numbers as f32. GCC 12 widens short vectors an element at a time unless told how.
F32 Load(const float* p) { return *reinterpret_cast<const F32*>(p); }

#if defined(__AVX512F__)
F32 Load(const BF16* p) {
  const __m512i bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p));
  return (F32)_mm512_slli_epi32(bits, 16);
}
F32 Load(const int8_t* p) {
  return (F32)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)));
}
float Sum(F32 v) { return _mm512_reduce_add_ps((__m512)v); }
#elif defined(__AVX2__)
F32 Load(const BF16* p) {
  const __m256i bits = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p));
  return (F32)_mm256_slli_epi32(bits, 16);
}
F32 Load(const int8_t* p) {
  return (F32)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)));
}
float Sum(F32 v) {
  __m128 x = _mm_add_ps(_mm256_castps256_ps128((__m256)v), _mm256_extractf128_ps((__m256)v, 1));
  x = _mm_add_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
}
#else
template <typename W>
F32 Load(const W* p) {
  F32 v;
  for (int i = 0; i < kLanes; ++i) v[i] = Scalar(p[i]);
  return v;
}
float Sum(F32 v) {
  float y = 0;
  for (int i = 0; i < kLanes; ++i) y += v[i];
  return y;
}
#endif

// The same, into a register: GCC would read memory again in each multiply-add.
template <typename W>
F32 Keep(const W* p) {
  F32 v = Load(p);
#ifdef __AVX2__
  asm("" : "+v"(v));
#endif
  return v;
}

// Calls f(i) for i < count, on the caller and on as many threads of the pool as are free.
template <typename F>
void Parallel(ffi::ThreadPool& pool, int64_t count, const F& f) {
  struct Shared {
    std::atomic<int64_t> next{0}, done{0};
  };
  auto shared = std::make_shared<Shared>();
  // A task that starts when all is done touches nothing but `shared`.
  auto work = [shared, count, &f] {
    for (int64_t i; (i = shared->next.fetch_add(1)) < count;) {
      f(i);
      shared->done.fetch_add(1, std::memory_order_release);
    }
  };
  const int64_t threads = std::min(pool.num_threads(), count);
  for (int64_t i = 1; i < threads; ++i) pool.Schedule(decltype(work)(work));
  work();
  while (shared->done.load(std::memory_order_acquire) < count) std::this_thread::yield();
}

// A matrix of outputs [O, I], `stride` numbers from row to row; scales of each `group` inputs, or none.
template <typename W>
struct Matrix {
  const W* data;
  int64_t O, I, stride;
  const float* scales;
  int64_t group;
};

// y[n, o + r] = sum over i of m[o + r, i] * x[n, i], for R rows of m and N of x.
template <int R, int N, typename W>
void Tile(const Matrix<W>& m, int64_t o, const float* x, float* y) {
  const W* w = m.data + o * m.stride;
  const int64_t I = m.I, stride = m.stride, groups = I / m.group;
  F32 sums[R][N] = {};
  float rest[R][N] = {};
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t stop = (g + 1) * m.group;
    int64_t i = g * m.group;
    F32 part[R][N] = {};
    for (; i + kLanes <= stop; i += kLanes) {
      F32 row[R];
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        row[r] = Keep(w + r * stride + i);
        __builtin_prefetch(w + (R + r) * stride + i);  // the next tile's
      }
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) {
        const F32 column = Keep(x + n * I + i);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) part[r][n] += row[r] * column;
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const float scale = m.scales ? m.scales[(o + r) * groups + g] : 1.0f;
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) sums[r][n] += part[r][n] * scale;
      for (int64_t j = i; j < stop; ++j)
        for (int n = 0; n < N; ++n) rest[r][n] += Scalar(w[r * stride + j]) * x[n * I + j] * scale;
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) y[n * m.O + o + r] = Sum(sums[r][n]) + rest[r][n];
}

template <int R, typename W>
void Rows(const Matrix<W>& m, int64_t o, const float* x, float* y, int64_t T) {
  for (; T >= kWide; T -= kWide, x += kWide * m.I, y += kWide * m.O) Tile<R, kWide>(m, o, x, y);
  for (; T > 0; --T, x += m.I, y += m.O) Tile<R, 1>(m, o, x, y);
}

// y[t, o] = sum over i of m[o, i] * x[t, i], for the rows o from `start` to `stop`.
template <typename W>
void Multiply(const Matrix<W>& m, int64_t start, int64_t stop, const float* x, float* y, int64_t T) {
  int64_t o = start;
  for (; o + kTall <= stop; o += kTall) Rows<kTall>(m, o, x, y, T);
  for (; o < stop; ++o) Rows<1>(m, o, x, y, T);
}

// x f32 [T, I], w [O, I], scales f32 [O, I / group], or [0] for none -> y f32 [T, O].
ffi::Error ProductHandler(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> x, ffi::AnyBuffer w,
                          ffi::Buffer<ffi::F32> scales, ffi::ResultBuffer<ffi::F32> y) {
  const int64_t T = x.dimensions()[0], I = x.dimensions()[1], O = w.dimensions()[0];
  const int64_t groups = scales.element_count() / O;
  const auto run = [&](auto* data) {
    const Matrix<std::decay_t<decltype(*data)>> m = {
        data, O, I, I, groups ? scales.typed_data() : nullptr, groups ? I / groups : I};
    const int64_t piece = std::max<int64_t>(1, kPieceBytes / (I * sizeof(*data)) / 12) * 12;
    Parallel(pool, (O + piece - 1) / piece, [&](int64_t i) {
      Multiply(m, i * piece, std::min(O, (i + 1) * piece), x.typed_data(), y->typed_data(), T);
    });
    return ffi::Error::Success();
  };
  switch (w.element_type()) {
    case ffi::F32: return run(static_cast<const float*>(w.untyped_data()));
    case ffi::BF16: return run(static_cast<const BF16*>(w.untyped_data()));
    case ffi::S8: return run(static_cast<const int8_t*>(w.untyped_data()));
    default: return ffi::Error::InvalidArgument("weights must be f32, bf16 or int8");
  }
}

// What the R query heads of one key/value head see: softmax(scores) v, over filled slots alone.
void Attend(const Matrix<float>& keys, const float* values, const float* q, float* y, int64_t R,
            float scale, float softcap) {
  const int64_t slots = keys.O, K = keys.I;
  std::vector<float> scores(R * slots);
  Multiply(keys, 0, slots, q, scores.data(), R);
  for (int64_t r = 0; r < R; ++r) {
    float *p = scores.data() + r * slots, *sum = y + r * K;
    float most = -std::numeric_limits<float>::infinity(), total = 0;
    for (int64_t m = 0; m < slots; ++m) {
      p[m] *= scale;
      if (softcap) p[m] = softcap * std::tanh(p[m] / softcap);
      most = std::max(most, p[m]);
    }
    std::fill(sum, sum + K, 0.0f);
    for (int64_t m = 0; m < slots; ++m) {
      const float weight = std::exp(p[m] - most);
      total += weight;
      for (int64_t k = 0; k < K; ++k) sum[k] += weight * values[m * keys.stride + k];
    }
    for (int64_t k = 0; k < K; ++k) sum[k] /= total;
  }
}

// q [B, H, K], new keys and values [B, G, K], the row i32 [B] of the caches they are of, the position
// i32 [B] they stand at, the slot i32 [B] to write (M: none), caches [rows, M, G, K] -> y [B, H, K] and
// the caches, in place. All else is f32. All is written before any token attends, so several of one
// row may come at once.
ffi::Error AttendHandler(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> q, ffi::Buffer<ffi::F32> k,
                         ffi::Buffer<ffi::F32> v, ffi::Buffer<ffi::S32> row,
                         ffi::Buffer<ffi::S32> position, ffi::Buffer<ffi::S32> slot,
                         ffi::Buffer<ffi::F32>, ffi::Buffer<ffi::F32>,
                         ffi::ResultBuffer<ffi::F32> y, ffi::ResultBuffer<ffi::F32> keys,
                         ffi::ResultBuffer<ffi::F32> values, float scale, float softcap,
                         int64_t window) {  // softcap and window: 0 is none
  const auto shape = keys->dimensions();
  const int64_t B = q.dimensions()[0], M = shape[1], G = shape[2], K = shape[3];
  const int64_t R = q.dimensions()[1] / G;
  for (int64_t b = 0; b < B; ++b) {
    const int64_t write = slot.typed_data()[b];
    if (write >= M) continue;
    const int64_t to = (row.typed_data()[b] * M + write) * G * K;
    std::copy_n(k.typed_data() + b * G * K, G * K, keys->typed_data() + to);
    std::copy_n(v.typed_data() + b * G * K, G * K, values->typed_data() + to);
  }
  Parallel(pool, B * G, [&](int64_t i) {
    const int64_t b = i / G, last = position.typed_data()[b];
    const int64_t from = (row.typed_data()[b] * M * G + i % G) * K;
    const float *ks = keys->typed_data() + from, *vs = values->typed_data() + from;
    const int64_t first = window ? std::max<int64_t>(0, last - window + 1) : 0;
    const int64_t slots = std::min(last, M - 1) - first + 1;
    const Matrix<float> seen = {ks + first * G * K, slots, K, G * K, nullptr, K};
    Attend(seen, vs + first * G * K, q.typed_data() + i * R * K, y->typed_data() + i * R * K, R,
           scale, softcap);
  });
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(LmjaxProduct, ProductHandler,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(LmjaxAttend, AttendHandler,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Attr<float>("scale")
                                  .Attr<float>("softcap")
                                  .Attr<int64_t>("window"));
