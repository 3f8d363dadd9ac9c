// Two products that XLA:CPU is slow at, for decoding: a few rows times a matrix stored a row an
// output in f32, bf16 or int8, and attention of one new token over a cache in f32 or int8. Built by
// native.py.
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

// A cache of keys and values [rows, M, G, K] in f32, or in int8 with scales f32 [rows, M, G, 1].
template <typename C>
struct Cache {
  C *keys, *values;
  float *key_scales, *value_scales;  // or null
  int64_t M, G, K;
};

// Puts a key or a value where a cache has it.
void Store(const float* x, int64_t K, float* to, float*) { std::copy_n(x, K, to); }
void Store(const float* x, int64_t K, int8_t* to, float* scale) {
  float most = 0;
  for (int64_t k = 0; k < K; ++k) most = std::max(most, std::fabs(x[k]));
  *scale = most / 127;
  for (int64_t k = 0; k < K; ++k) to[k] = most ? std::nearbyint(x[k] / *scale) : 0;
}

// What the R query heads of one key/value head see: softmax(scores) v over `slots` slots, of which
// the first is the `first`-th key of the cache.
template <typename C>
void Attend(const Cache<C>& cache, int64_t first, int64_t slots, const float* q, float* y,
            int64_t R, float scale, float softcap) {
  const int64_t K = cache.K, G = cache.G;
  const Matrix<C> keys = {cache.keys + first * K, slots, K, G * K, nullptr, K};
  const C* values = cache.values + first * K;
  const float* key_scales = cache.key_scales ? cache.key_scales + first : nullptr;
  const float* value_scales = cache.value_scales ? cache.value_scales + first : nullptr;
  std::vector<float> scores(R * slots);
  Multiply(keys, 0, slots, q, scores.data(), R);
  for (int64_t r = 0; r < R; ++r) {
    float *p = scores.data() + r * slots, *sum = y + r * K;
    float most = -std::numeric_limits<float>::infinity(), total = 0;
    for (int64_t m = 0; m < slots; ++m) {
      p[m] *= key_scales ? scale * key_scales[m * G] : scale;
      if (softcap) p[m] = softcap * std::tanh(p[m] / softcap);
      most = std::max(most, p[m]);
    }
    std::fill(sum, sum + K, 0.0f);
    for (int64_t m = 0; m < slots; ++m) {
      float weight = std::exp(p[m] - most);
      total += weight;
      if (value_scales) weight *= value_scales[m * G];
      const C* v = values + m * G * K;
      int64_t k = 0;
      for (; k + kLanes <= K; k += kLanes) *reinterpret_cast<F32*>(sum + k) += weight * Load(v + k);
      for (; k < K; ++k) sum[k] += weight * Scalar(v[k]);
    }
    for (int64_t k = 0; k < K; ++k) sum[k] /= total;
  }
}

typedef ffi::Buffer<ffi::F32> Floats;
typedef ffi::Buffer<ffi::S32> Ints;

// q [B, H, K], new keys and values [B, G, K], the row i32 [B] of the caches they are of, the position
// i32 [B] they stand at, the slot i32 [B] to write (M: none) -> y [B, H, K] and the cache, in place.
// All is written before any token attends, so several of one row may come at once. softcap and
// window: 0 is none.
template <typename C>
ffi::Error AttendAll(ffi::ThreadPool pool, const Floats& q, const Floats& k, const Floats& v,
                     const Ints& row, const Ints& position, const Ints& slot, float* y,
                     const Cache<C>& cache, float scale, float softcap, int64_t window) {
  const int64_t M = cache.M, G = cache.G, K = cache.K;
  const int64_t B = q.dimensions()[0], R = q.dimensions()[1] / G;
  for (int64_t b = 0; b < B; ++b) {
    const int64_t write = slot.typed_data()[b];
    if (write >= M) continue;
    for (int64_t g = 0; g < G; ++g) {
      const int64_t from = (b * G + g) * K, to = (row.typed_data()[b] * M + write) * G + g;
      Store(k.typed_data() + from, K, cache.keys + to * K, cache.key_scales + to);
      Store(v.typed_data() + from, K, cache.values + to * K, cache.value_scales + to);
    }
  }
  Parallel(pool, B * G, [&](int64_t i) {
    const int64_t b = i / G, last = position.typed_data()[b];
    const int64_t first = window ? std::max<int64_t>(0, last - window + 1) : 0;
    const int64_t key = (row.typed_data()[b] * M + first) * G + i % G;
    Attend(cache, key, std::min(last, M - 1) - first + 1, q.typed_data() + i * R * K,
           y + i * R * K, R, scale, softcap);
  });
  return ffi::Error::Success();
}

ffi::Error AttendHandler(ffi::ThreadPool pool, Floats q, Floats k, Floats v, Ints row, Ints position,
                         Ints slot, Floats, Floats, ffi::Result<Floats> y, ffi::Result<Floats> keys,
                         ffi::Result<Floats> values, float scale, float softcap, int64_t window) {
  const auto shape = keys->dimensions();
  const Cache<float> cache = {
      keys->typed_data(), values->typed_data(), nullptr, nullptr, shape[1], shape[2], shape[3]};
  return AttendAll(pool, q, k, v, row, position, slot, y->typed_data(), cache, scale, softcap,
                   window);
}

ffi::Error AttendInt8Handler(ffi::ThreadPool pool, Floats q, Floats k, Floats v, Ints row,
                             Ints position, Ints slot, ffi::Buffer<ffi::S8>, ffi::Buffer<ffi::S8>,
                             Floats, Floats, ffi::Result<Floats> y,
                             ffi::ResultBuffer<ffi::S8> keys, ffi::ResultBuffer<ffi::S8> values,
                             ffi::Result<Floats> key_scales, ffi::Result<Floats> value_scales,
                             float scale, float softcap, int64_t window) {
  const auto shape = keys->dimensions();
  const Cache<int8_t> cache = {keys->typed_data(),         values->typed_data(),
                               key_scales->typed_data(),   value_scales->typed_data(),
                               shape[1], shape[2], shape[3]};
  return AttendAll(pool, q, k, v, row, position, slot, y->typed_data(), cache, scale, softcap,
                   window);
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(LmjaxProduct, ProductHandler,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>());

// What both caches are called with, before them.
auto Tokens() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::ThreadPool>()
      .Arg<Floats>()
      .Arg<Floats>()
      .Arg<Floats>()
      .Arg<Ints>()
      .Arg<Ints>()
      .Arg<Ints>();
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(LmjaxAttend, AttendHandler,
                              Tokens()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Ret<Floats>()
                                  .Ret<Floats>()
                                  .Ret<Floats>()
                                  .Attr<float>("scale")
                                  .Attr<float>("softcap")
                                  .Attr<int64_t>("window"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(LmjaxAttendInt8, AttendInt8Handler,
                              Tokens()
                                  .Arg<ffi::Buffer<ffi::S8>>()
                                  .Arg<ffi::Buffer<ffi::S8>>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Ret<Floats>()
                                  .Ret<ffi::Buffer<ffi::S8>>()
                                  .Ret<ffi::Buffer<ffi::S8>>()
                                  .Ret<Floats>()
                                  .Ret<Floats>()
                                  .Attr<float>("scale")
                                  .Attr<float>("softcap")
                                  .Attr<int64_t>("window"));
