/* What small models on a CPU spend their time in besides matrix products: one pass over memory each, float32.

   Plain C without any header of torch, so that building takes a second; __init__.py builds, loads and explains it.
   Arrays are contiguous unless a stride is given. Nothing here allocates, locks or starts threads: callers may run these
   functions side by side on different arrays. */

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define SIMD(...) _Pragma(#__VA_ARGS__)

/* exp(x) to 2 ulp by range reduction and a polynomial (Cephes); vectorises, and gives the same bits with every libm. */
static inline float exp_(float x) {
    x = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;
    const float n = rintf(x * 1.44269504088896341f);
    const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    union { int32_t i; float f; } scale = { .i = ((int32_t)n + 127) << 23 };
    return p * scale.f;
}

static inline float max_of(const float *x, long n, float m) {
    SIMD(omp simd reduction(max:m))
    for (long i = 0; i < n; i++) m = x[i] > m ? x[i] : m;
    return m;
}

/* x <- exp(x - m); returns the sum */
static inline float exp_sum(float *x, long n, float m) {
    float s = 0;
    SIMD(omp simd reduction(+:s))
    for (long i = 0; i < n; i++) { x[i] = exp_(x[i] - m); s += x[i]; }
    return s;
}

static inline void scale(float *x, long n, float a) {
    SIMD(omp simd)
    for (long i = 0; i < n; i++) x[i] *= a;
}

static inline float dot(const float *x, const float *y, long n) {
    float s = 0;
    SIMD(omp simd reduction(+:s))
    for (long i = 0; i < n; i++) s += x[i] * y[i];
    return s;
}

/* sum = x + more (both NULL: just x), y = sum / rms(sum) * w (w NULL: 1), r = 1 / rms(sum) (NULL: not wanted); rows of h */
void rms_norm(const float *x, const float *more, const float *w, float *sum, float *y, float *r,
              long rows, long h, float eps) {
    for (long i = 0; i < rows; i++, y += h) {
        const float *v = x + i * h;
        if (more) {
            const float *m = more + i * h;
            float *to = sum + i * h;
            SIMD(omp simd)
            for (long j = 0; j < h; j++) to[j] = v[j] + m[j];
            v = to;
        }
        const float inv = 1.0f / sqrtf(dot(v, v, h) / h + eps);
        if (r) r[i] = inv;
        if (w) {
            SIMD(omp simd)
            for (long j = 0; j < h; j++) y[j] = v[j] * inv * w[j];
        } else {
            SIMD(omp simd)
            for (long j = 0; j < h; j++) y[j] = v[j] * inv;
        }
    }
}

/* Gradient of rms_norm's sum x: dy comes through y, dsum (NULL: none) from what else reads the sum; dw is added to. */
void rms_norm_backward(const float *dy, const float *dsum, const float *x, const float *w, const float *r,
                       float *dx, float *dw, long rows, long h) {
    for (long i = 0; i < rows; i++, x += h, dy += h, dx += h) {
        const float inv = r[i], *ds = dsum ? dsum + i * h : NULL;
        float c = 0;
        SIMD(omp simd reduction(+:c))
        for (long j = 0; j < h; j++) c += dy[j] * w[j] * x[j];
        c *= inv * inv / h;
        SIMD(omp simd)
        for (long j = 0; j < h; j++) {
            dw[j] += dy[j] * x[j] * inv;
            dx[j] = (dy[j] * w[j] - x[j] * c) * inv;
        }
        if (ds) {
            SIMD(omp simd)
            for (long j = 0; j < h; j++) dx[j] += ds[j];
        }
    }
}

/* y = silu(gate) * up; gate and up have row stride `stride` */
void swiglu(const float *gate, const float *up, float *y, long rows, long n, long stride) {
    for (long i = 0; i < rows; i++, gate += stride, up += stride, y += n) {
        SIMD(omp simd)
        for (long j = 0; j < n; j++) y[j] = gate[j] / (1.0f + exp_(-gate[j])) * up[j];
    }
}

/* gate and up, with row stride `stride`, become their gradients */
void swiglu_backward(const float *dy, float *gate, float *up, long rows, long n, long stride) {
    for (long i = 0; i < rows; i++, dy += n, gate += stride, up += stride) {
        SIMD(omp simd)
        for (long j = 0; j < n; j++) {
            const float s = 1.0f / (1.0f + exp_(-gate[j])), g = gate[j] * s;
            gate[j] = dy[j] * up[j] * (s + g * (1.0f - s));
            up[j] = dy[j] * g;
        }
    }
}

/* Heads of flat tokens, [token, heads * d] with row stride `stride`, into the padded array that batched products want, [group, kv, seat, member, t, d]
   with heads = kv * members: place = (group * seats + seat) * t + position. Pairs (i, i + d/2) are rotated on the way by
   cos, sin [token, d/2] (cos NULL: no rotation). */
void pack(const float *x, const float *cos, const float *sin, const int64_t *place, float *out,
          long tokens, long stride, long heads, long members, long seats, long t, long d) {
    const long half = d / 2, kvs = heads / members;
    for (long i = 0; i < tokens; i++, x += stride) {
        const long block = place[i] / t, group = block / seats, seat = block % seats, position = place[i] % t;
        const float *c = cos + i * half, *s = sin + i * half;
        for (long h = 0; h < heads; h++) {
            const float *from = x + h * d;
            float *to = out + ((((group * kvs + h / members) * seats + seat) * members + h % members) * t + position) * d;
            if (!cos) { memcpy(to, from, d * sizeof(float)); continue; }
            SIMD(omp simd)
            for (long j = 0; j < half; j++) {
                to[j] = from[j] * c[j] - from[j + half] * s[j];
                to[j + half] = from[j + half] * c[j] + from[j] * s[j];
            }
        }
    }
}

/* The way back of `pack`, with the inverse rotation. */
void unpack(const float *x, const float *cos, const float *sin, const int64_t *place, float *out,
            long tokens, long stride, long heads, long members, long seats, long t, long d) {
    const long half = d / 2, kvs = heads / members;
    for (long i = 0; i < tokens; i++, out += stride) {
        const long block = place[i] / t, group = block / seats, seat = block % seats, position = place[i] % t;
        const float *c = cos + i * half, *s = sin + i * half;
        for (long h = 0; h < heads; h++) {
            const float *from = x + ((((group * kvs + h / members) * seats + seat) * members + h % members) * t + position) * d;
            float *to = out + h * d;
            if (!cos) { memcpy(to, from, d * sizeof(float)); continue; }
            SIMD(omp simd)
            for (long j = 0; j < half; j++) {
                to[j] = from[j] * c[j] + from[j + half] * s[j];
                to[j + half] = from[j + half] * c[j] - from[j] * s[j];
            }
        }
    }
}

/* One softmax over two blocks of scores, in place: a row sees `seen[i / per]` of `width` prefix keys, and of the t keys of
   its own sequence those up to its own position i % t. prefix NULL: no prefix. */
void softmax(float *prefix, float *own, const int64_t *seen, long rows, long per, long width, long t, float factor) {
    for (long i = 0; i < rows; i++, own += t) {
        const long n = prefix ? seen[i / per] : 0, k = i % t + 1;
        float *p = prefix + i * width;
        const float m = max_of(own, k, n ? max_of(p, n, -INFINITY) : -INFINITY) * factor;
        float s = 0;
        SIMD(omp simd reduction(+:s))
        for (long j = 0; j < n; j++) { p[j] = exp_(p[j] * factor - m); s += p[j]; }
        SIMD(omp simd reduction(+:s))
        for (long j = 0; j < k; j++) { own[j] = exp_(own[j] * factor - m); s += own[j]; }
        if (prefix) { scale(p, n, 1.0f / s); memset(p + n, 0, (width - n) * sizeof(float)); }
        scale(own, k, 1.0f / s);
        memset(own + k, 0, (t - k) * sizeof(float));
    }
}

/* Gradient of `softmax` from probabilities and their gradients, which it replaces. */
void softmax_backward(const float *prefix, const float *own, float *dprefix, float *down, const int64_t *seen,
                      long rows, long per, long width, long t, float factor) {
    for (long i = 0; i < rows; i++, own += t, down += t) {
        const long n = prefix ? seen[i / per] : 0, k = i % t + 1;
        const float *p = prefix + i * width;
        float *dp = dprefix + i * width;
        const float c = dot(own, down, k) + (n ? dot(p, dp, n) : 0.0f);
        SIMD(omp simd)
        for (long j = 0; j < n; j++) dp[j] = p[j] * (dp[j] - c) * factor;
        if (prefix) memset(dp + n, 0, (width - n) * sizeof(float));
        SIMD(omp simd)
        for (long j = 0; j < k; j++) down[j] = own[j] * (down[j] - c) * factor;
        memset(down + k, 0, (t - k) * sizeof(float));
    }
}

/* log p of the targets and the entropy (NULL: not wanted) of softmax(logits * factor); lse for the way back. */
void log_prob(const float *logits, const int64_t *target, float *logp, float *entropy, float *lse,
              long rows, long n, float factor) {
    for (long i = 0; i < rows; i++, logits += n) {
        const float m = max_of(logits, n, -INFINITY) * factor;
        float s = 0, e = 0;
        if (entropy) {
            SIMD(omp simd reduction(+:s, e))
            for (long j = 0; j < n; j++) {
                const float z = logits[j] * factor - m, x = exp_(z);
                s += x;
                e += x * z;
            }
            entropy[i] = logf(s) - e / s;
        } else {
            SIMD(omp simd reduction(+:s))
            for (long j = 0; j < n; j++) s += exp_(logits[j] * factor - m);
        }
        lse[i] = m + logf(s);
        logp[i] = logits[target[i]] * factor - lse[i];
    }
}

/* logits <- gradient: g (1[target] - p) from log p, and -dh p (log p + H) from the entropy (NULL: none). */
void log_prob_backward(float *logits, const int64_t *target, const float *lse, const float *g, const float *dh,
                       const float *entropy, long rows, long n, float factor) {
    for (long i = 0; i < rows; i++, logits += n) {
        const float gi = g[i] * factor, hi = dh ? dh[i] * factor : 0.0f, shift = lse[i] - (dh ? entropy[i] : 0.0f);
        const float top = lse[i];
        SIMD(omp simd)
        for (long j = 0; j < n; j++) {
            const float z = logits[j] * factor, p = exp_(z - top);
            logits[j] = -p * (gi + hi * (z - shift));
        }
        logits[target[i]] += gi;
    }
}

/* One token per row by inverse CDF: the first whose cumulative probability exceeds noise * total; factor 0: the likeliest,
   scored at temperature 1. scratch holds n floats. */
void sample(const float *logits, const float *noise, int64_t *id, float *logp, float *entropy, float *scratch,
            long rows, long n, float factor) {
    const float f = factor > 0 ? factor : 1.0f;
    for (long i = 0; i < rows; i++, logits += n) {
        const float m = max_of(logits, n, -INFINITY) * f;
        float s = 0, e = 0;
        SIMD(omp simd reduction(+:s, e))
        for (long j = 0; j < n; j++) {
            const float z = logits[j] * f - m, x = exp_(z);
            scratch[j] = x;
            s += x;
            e += x * z;
        }
        long k = 0;
        if (factor > 0) {
            double left = (double)noise[i] * s;
            enum { BLOCK = 32 };
            for (; k + BLOCK < n; k += BLOCK) {
                float b = 0;
                SIMD(omp simd reduction(+:b))
                for (long j = 0; j < BLOCK; j++) b += scratch[k + j];
                if (b > left) break;
                left -= b;
            }
            for (; k < n - 1 && scratch[k] <= left; k++) left -= scratch[k];
            while (k > 0 && scratch[k] == 0) k--;
        } else {
            while (logits[k] * f != m) k++;
        }
        id[i] = k;
        logp[i] = logits[k] * f - m - logf(s);
        entropy[i] = logf(s) - e / s;
    }
}

enum { LANES = 16 };

/* Half of LANES at any address: vectors of this size live in registers wherever there is AVX (gcc and clang). */
enum { PARTS = 2, VECTOR = LANES / PARTS };
typedef float vector __attribute__((vector_size(4 * VECTOR), aligned(4)));
static inline vector load(const float *x) { return *(const vector *)x; }
static inline void store(float *x, vector v) { *(vector *)x = v; }

/* sum[way] += factor * x, LANES of them; sums apart, or each product would wait for the one before */
enum { WAYS = 4 };
typedef struct { vector part[WAYS][PARTS]; } sums;
static inline __attribute__((always_inline)) void add(sums *s, int way, float factor, const float *x) {
    for (int i = 0; i < PARTS; i++) s->part[way][i] += factor * load(x + i * VECTOR);
}
static inline __attribute__((always_inline)) void store_sum(float *to, const sums *s) {
    for (int i = 0; i < PARTS; i++)
        store(to + i * VECTOR, (s->part[0][i] + s->part[1][i]) + (s->part[2][i] + s->part[3][i]));
}

/* p[c] = sum_j q[j] keys[j, c] for c < n, LANES of them at a time: those lie `stride` apart for each j, the next LANES begin
   `block` further on. Writes, and reads keys, up to the next multiple of LANES; d is even. */
static inline __attribute__((always_inline)) void scores(
    const float *q, const float *keys, long stride, long block, float *p, long n, const long d) {
    for (long c = 0; c < n; c += LANES, keys += block) {
        const float *k = keys;
        sums s = {0};
        long j = 0;
        for (; j + WAYS - 1 < d; j += WAYS)
            for (int way = 0; way < WAYS; way++, k += stride) add(&s, way, q[j + way], k);
        for (int way = 0; way < 2 && j < d; way++, j++, k += stride) add(&s, way, q[j], k);
        store_sum(p + c, &s);
    }
}

/* y[j] += sum_c p[c] values[c, j] for c < n */
static inline __attribute__((always_inline)) void mix(const float *p, const float *values, float *y, long n, const long d) {
    long j = 0;
    for (; j + LANES <= d; j += LANES) {
        const float *v = values + j;
        sums s = {0};
        add(&s, 0, 1.0f, y + j);
        long c = 0;
        for (; c + WAYS - 1 < n; c += WAYS)
            for (int way = 0; way < WAYS; way++, v += d) add(&s, way, p[c + way], v);
        for (; c < n; c++, v += d) add(&s, 0, p[c], v);
        store_sum(y + j, &s);
    }
    if (d % LANES)
        for (; j < d; j++)
            for (long c = 0; c < n; c++) y[j] += p[c] * values[c * d + j];
}

static inline __attribute__((always_inline)) void attend_(
    float *mixed, const float *cos, const float *sin, const float *prefix_keys, const float *prefix_values,
    float *own_keys, float *own_values, const int64_t *place, const int64_t *prompt, const int64_t *skip, float *out, float *scratch,
    long rows, long heads, long kv, long width, long width_stride, long room, long filled, const long d) {
    const long group = heads / kv, half = d / 2, present = filled + 1;
    for (long i = 0; i < rows; i++, mixed += (heads + 2 * kv) * d) {
        for (long h = 0; h < heads + kv; h++) {
            float *x = mixed + h * d;
            SIMD(omp simd)
            for (long j = 0; j < half; j++) {
                const float a = x[2 * j], b = x[2 * j + 1];
                x[2 * j] = a * cos[j] - b * sin[j];
                x[2 * j + 1] = b * cos[j] + a * sin[j];
            }
        }
        const long first = skip[prompt[i]], n = width - first;
        for (long k = 0; k < kv; k++) {
            const float *key = mixed + (heads + k) * d, *value = mixed + (heads + kv + k) * d;
            const long at = (place[i] * kv + k) * d * room;
            float *keys = own_keys + at, *values = own_values + at;
            if (k + 1 < kv || i + 1 < rows) { /* what comes next on its way from memory meanwhile */
                const long next = k + 1 < kv ? at + d * room : place[i + 1] * kv * d * room;
                for (long j = 0; j < present * d; j += LANES) {
                    __builtin_prefetch(own_keys + next + j);
                    __builtin_prefetch(own_values + next + j);
                }
            }
            float *slot = keys + filled / LANES * d * LANES + filled % LANES;
            for (long j = 0; j < d; j++) slot[j * LANES] = key[j];
            memcpy(values + filled * d, value, d * sizeof(float));
            const float *pk = prefix_keys + (prompt[i] * kv + k) * d * width_stride + first;
            const float *pv = prefix_values + ((prompt[i] * kv + k) * width + first) * d;
            for (long g = 0; g < group; g++) {
                const float *q = mixed + (k * group + g) * d;
                float *o = scratch + n, *y = out + ((i * kv + k) * group + g) * d;
                scores(q, pk, width_stride, LANES, scratch, n, d);
                scores(q, keys, LANES, d * LANES, o, present, d);
                const float s = exp_sum(scratch, n + present, max_of(scratch, n + present, -INFINITY));
                memset(y, 0, d * sizeof(float));
                mix(scratch, pv, y, n, d);
                mix(o, values, y, present, d);
                scale(y, d, 1.0f / s);
            }
        }
    }
}

/* One decoding step of attention. mixed [rows, (heads + 2 kv) d]: queries and keys in rotation order (pairs side by side),
   turned here by cos, sin [d/2]. Prefix keys [prompt, kv, d, width_stride], values [prompt, kv, width, d], of which a
   prompt's first `skip` are padding; own keys [place, kv, room / LANES, d, LANES], values [place, kv, room, d], `filled` of them present
   before the step. Row i has place[i] and belongs to prompt[i]. width_stride >= width + LANES; room is a multiple of LANES; scratch holds
   width + room + 2 LANES. */
void attend(float *mixed, const float *cos, const float *sin, const float *prefix_keys, const float *prefix_values,
            float *own_keys, float *own_values, const int64_t *place, const int64_t *prompt, const int64_t *skip, float *out, float *scratch,
            long rows, long heads, long kv, long d, long width, long width_stride, long room, long filled) {
#define ATTEND(D) attend_(mixed, cos, sin, prefix_keys, prefix_values, own_keys, own_values, place, prompt, skip, out, scratch, \
                          rows, heads, kv, width, width_stride, room, filled, D)
    switch (d) { /* a known size keeps sums in registers */
        case 32: ATTEND(32); break;
        case 64: ATTEND(64); break;
        case 128: ATTEND(128); break;
        default: ATTEND(d);
    }
}

/* y[j] += sum_c p[c * step] values[c, j] for c < n: as `mix`, with a column of p */
static inline __attribute__((always_inline)) void mix_column(
    const float *p, long step, const float *values, float *y, long n, const long d) {
    long j = 0;
    for (; j + LANES <= d; j += LANES) {
        const float *v = values + j, *q = p;
        sums s = {0};
        add(&s, 0, 1.0f, y + j);
        long c = 0;
        for (; c + WAYS - 1 < n; c += WAYS)
            for (int way = 0; way < WAYS; way++, v += d, q += step) add(&s, way, *q, v);
        for (; c < n; c++, v += d, q += step) add(&s, 0, *q, v);
        store_sum(y + j, &s);
    }
    for (; j < d; j++)
        for (long c = 0; c < n; c++) y[j] += p[c * step] * values[c * d + j];
}

static inline long whole_lanes(long n) { return (n + LANES - 1) / LANES * LANES; }

/* Pairs (j, j + d/2) of some heads of one token, turned by cos, sin [d/2]; sign -1 turns back. */
static inline void turn(float *x, const float *cos, const float *sin, long heads, long d, float sign) {
    const long half = d / 2;
    for (long h = 0; h < heads; h++, x += d) {
        SIMD(omp simd)
        for (long j = 0; j < half; j++) {
            const float a = x[j], b = x[j + half], s = sign * sin[j];
            x[j] = a * cos[j] - b * s;
            x[j + half] = b * cos[j] + a * s;
        }
    }
}

/* Columns of one head, n rows `stride` apart, behind one another, and (turned not NULL) turned [d, whole_lanes(n)] with zeros behind n */
static inline void take(const float *x, long stride, float *rows, float *turned, long n, long d) {
    const long wide = whole_lanes(n);
    if (turned) memset(turned, 0, wide * d * sizeof(float));
    for (long c = 0; c < n; c++, x += stride) {
        if (rows) memcpy(rows + c * d, x, d * sizeof(float));
        if (turned) for (long j = 0; j < d; j++) turned[j * wide + c] = x[j];
    }
}

static inline __attribute__((always_inline)) void text_attention_(
    float *qkv, const float *cos, const float *sin, const int64_t *lengths, float *probs, float *out, float *scratch,
    long texts, long heads, long kv, float factor, const long d) {
    const long group = heads / kv, stride = (heads + 2 * kv) * d, half = d / 2;
    for (long r = 0; r < texts; r++) {
        const long n = lengths[r], wide = whole_lanes(n);
        float *keys = scratch, *values = keys + wide * d, *q = values + wide * d;
        for (long i = 0; i < n; i++) turn(qkv + i * stride, cos + i * half, sin + i * half, heads + kv, d, 1.0f);
        for (long k = 0; k < kv; k++) {
            take(qkv + (heads + k) * d, stride, NULL, keys, n, d);
            take(qkv + (heads + kv + k) * d, stride, values, NULL, n, d);
            for (long h = k * group; h < (k + 1) * group; h++)
                for (long i = 0; i < n; i++, probs += wide) {
                    const float *from = qkv + i * stride + h * d;
                    float *y = out + (i * heads + h) * d;
                    const long full = whole_lanes(i + 1);
                    for (long j = 0; j < d; j++) q[j] = from[j] * factor;
                    scores(q, keys, wide, LANES, probs, i + 1, d);
                    for (long c = i + 1; c < full; c++) probs[c] = -INFINITY;
                    scale(probs, full, 1.0f / exp_sum(probs, full, max_of(probs, full, -INFINITY)));
                    memset(probs + i + 1, 0, (wide - i - 1) * sizeof(float));
                    memset(y, 0, d * sizeof(float));
                    mix(probs, values, y, i + 1, d);
                }
        }
        qkv += n * stride, cos += n * half, sin += n * half, out += n * heads * d;
    }
}

static inline __attribute__((always_inline)) void text_attention_backward_(
    const float *qkv, const float *cos, const float *sin, const int64_t *lengths, const float *probs, const float *dout,
    float *dqkv, float *scratch, long texts, long heads, long kv, float factor, const long d) {
    const long group = heads / kv, stride = (heads + 2 * kv) * d, half = d / 2;
    for (long r = 0; r < texts; r++) {
        const long n = lengths[r], wide = whole_lanes(n);
        float *values = scratch, *keys = values + wide * d, *q = keys + wide * d, *dy = q + wide * d, *ds = dy + wide * d;
        for (long i = 0; i < n; i++) memset(dqkv + i * stride + heads * d, 0, 2 * kv * d * sizeof(float));
        for (long k = 0; k < kv; k++) {
            take(qkv + (heads + k) * d, stride, keys, NULL, n, d);
            take(qkv + (heads + kv + k) * d, stride, NULL, values, n, d);
            for (long h = k * group; h < (k + 1) * group; h++, probs += n * wide) {
                take(qkv + h * d, stride, q, NULL, n, d);
                take(dout + h * d, heads * d, dy, NULL, n, d);
                for (long i = 0; i < n; i++) {
                    const long full = whole_lanes(i + 1);
                    const float *p = probs + i * wide;
                    float *s = ds + i * wide, *dq = dqkv + i * stride + h * d;
                    scores(dy + i * d, values, wide, LANES, s, i + 1, d);
                    const float c = dot(p, s, full); /* p is 0 behind i */
                    SIMD(omp simd)
                    for (long j = 0; j < full; j++) s[j] = p[j] * (s[j] - c) * factor;
                    memset(dq, 0, d * sizeof(float));
                    mix(s, keys, dq, i + 1, d);
                }
                for (long c = 0; c < n; c++) {
                    float *dk = dqkv + c * stride + (heads + k) * d;
                    mix_column(ds + c * wide + c, wide, q + c * d, dk, n - c, d);
                    mix_column(probs + c * wide + c, wide, dy + c * d, dk + kv * d, n - c, d);
                }
            }
        }
        for (long i = 0; i < n; i++) turn(dqkv + i * stride, cos + i * half, sin + i * half, heads + kv, d, -1.0f);
        qkv += n * stride, dqkv += n * stride, cos += n * half, sin += n * half, dout += n * heads * d;
    }
}

#define BY_SIZE(CALL) \
    switch (d) { \
        case 32: CALL(32); break; \
        case 64: CALL(64); break; \
        case 128: CALL(128); break; \
        default: CALL(d); \
    }

/* Causal attention within each of some texts, whose tokens lie behind one another: qkv [token, (heads + 2 kv) d], of which
   queries and keys are turned in place by cos, sin [token, d/2]; out [token, heads d]. probs, for the way back: for each text of n tokens
   [heads, n, n rounded up to LANES]. scratch: 3 rounded d floats of the longest text. */
void text_attention(float *qkv, const float *cos, const float *sin, const int64_t *lengths, float *probs, float *out,
                    float *scratch, long texts, long heads, long kv, long d, float factor) {
#define FORWARD(D) text_attention_(qkv, cos, sin, lengths, probs, out, scratch, texts, heads, kv, factor, D)
    BY_SIZE(FORWARD)
}

/* Its gradient, from the turned qkv. scratch: 4 rounded d + rounded^2 floats of the longest text. */
void text_attention_backward(const float *qkv, const float *cos, const float *sin, const int64_t *lengths, const float *probs,
                             const float *dout, float *dqkv, float *scratch, long texts, long heads, long kv, long d, float factor) {
#define BACKWARD(D) text_attention_backward_(qkv, cos, sin, lengths, probs, dout, dqkv, scratch, texts, heads, kv, factor, D)
    BY_SIZE(BACKWARD)
}
