// Rotate one token, find the largest, round, cast: `activations.quantize` of bfloat16 rows, in CUDA C++.
// Before that, a prologue if there is one (`prologue.rows_of`).
//
// A thread block has one token, all of it in registers. A Hadamard transform of n = LOW W values is made of
// log2(n) stages; in stage b, values whose indices differ in bit b become their sum and their difference:
//   bits 0 to 2             the 8 neighbours that a thread loads at once
//   bits 3 to log2(LOW) - 1 lanes of a warp
//   bits above              W values that lie LOW apart: exchanged once through shared memory
// Set at compile time: INPUTS; BLOCK = n; THREADS; LOW, up to 256; E4M3 or not; PROLOGUE, its number in
// `prologue.KINDS`; FIRST, columns of x, of which the rest of a row is in `second` if PROLOGUE is CAT_GELU.
// Rows of x lie x_apart times 8 values apart, those of `second` second_apart times 8.
#define GELU 1
#define CAT_GELU 2
#define SWIGLU 3
#define W (BLOCK / LOW)
#define EACH (INPUTS / THREADS)              // values of a thread
#define V (W >= 8 ? 2 : 4)                   // neighbours that a thread has after the exchange
#define GROUPS (EACH / (W * V))

typedef unsigned int u32;

// Of two bfloat16, each the upper half of a float32.
__device__ __forceinline__ void two_values(u32 word, float* v) {
    v[0] = __uint_as_float(word << 16);
    v[1] = __uint_as_float(word & 0xffff0000u);
}

// Rounded to two bfloat16.
__device__ __forceinline__ u32 two_halves(float low, float high) {
    u32 word;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return word;
}

// x / (1 + 2^y), to a few units in the last place.
__device__ __forceinline__ float over_one_plus_exp2(float x, float y) {
    float power, inverse;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(y));
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(1.0f + power));
    return x * inverse;
}

__device__ __forceinline__ float silu(float x) { return over_one_plus_exp2(x, -1.4426950409f * x); }

__device__ __forceinline__ float gelu(float x) {  // -2 log2(e) sqrt(2 / pi), and the same times 0.044715
    return over_one_plus_exp2(x, x * fmaf(-0.1029432397f, x * x, -2.3022081986f));
}

__device__ __forceinline__ u32 gelu_of_two(u32 word) {
    float v[2];
    two_values(word, v);
    return two_halves(gelu(v[0]), gelu(v[1]));
}

__device__ __forceinline__ u32 swiglu_of_two(u32 gate, u32 word) {
    float g[2], v[2];
    two_values(gate, g);
    two_values(two_halves(silu(g[0]), silu(g[1])), g);
    two_values(word, v);
    return two_halves(g[0] * v[0], g[1] * v[1]);
}

__device__ __forceinline__ uint4 gelu_of_eight(uint4 a) {
    return make_uint4(gelu_of_two(a.x), gelu_of_two(a.y), gelu_of_two(a.z), gelu_of_two(a.w));
}

// The values 8 chunk, 8 chunk + 1, ... of a row of activations. x and second: where their rows begin.
__device__ __forceinline__ uint4 eight_values(const uint4* x, const uint4* second, int chunk) {
#if PROLOGUE == CAT_GELU
    const int rest = chunk - FIRST / 8;
    return rest < 0 ? x[chunk] : gelu_of_eight(second[rest]);
#else
    const uint4 a = x[chunk];
#if PROLOGUE == GELU
    return gelu_of_eight(a);
#elif PROLOGUE == SWIGLU
    const uint4 b = second[chunk];
    return make_uint4(swiglu_of_two(a.x, b.x), swiglu_of_two(a.y, b.y), swiglu_of_two(a.z, b.z),
                      swiglu_of_two(a.w, b.w));
#else
    return a;
#endif
#endif
}

__device__ __forceinline__ void butterfly(float& a, float& b) {
    const float sum = a + b;
    b = a - b;
    a = sum;
}

#define MAGIC 12582912.0f  // 1.5 * 2^23, where floats are a whole 1 apart, and end in the bits of an int8

// Two codes, at least 12582912 each too large, as two bytes: int8 or e4m3.
__device__ __forceinline__ u32 two_bytes(float low, float high) {
#if E4M3
    unsigned short two;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(two) : "f"(high - MAGIC), "f"(low - MAGIC));
    return two;
#else
    return __byte_perm(__float_as_uint(low), __float_as_uint(high), 0x7740) & 0xffffu;
#endif
}

__device__ __forceinline__ u32 four_bytes(const float* v) {
    return two_bytes(v[0], v[1]) | two_bytes(v[2], v[3]) << 16;
}

extern "C" __global__ void __launch_bounds__(THREADS) rotate_rows(
    const uint4* __restrict__ x, const uint4* __restrict__ second, const uint4* __restrict__ signs,
    unsigned char* __restrict__ codes, float* __restrict__ scales, int* __restrict__ finite, int x_apart,
    int second_apart, double largest, double ratio, double unit) {
    extern __shared__ float shared[];
    __shared__ u32 tops[32];
    const float largest_code = (float)largest;
    const long long row = blockIdx.x;
    const int t = threadIdx.x;
    float z[EACH];

#pragma unroll
    for (int c = 0; c < EACH / 8; c++) {
        const int chunk = c * THREADS + t;
        const uint4 word = eight_values(x + row * x_apart, second + row * second_apart, chunk);
        const uint4 sign = signs[chunk % (BLOCK / 8)];
        float* v = z + 8 * c;
        two_values(word.x ^ sign.x, v);
        two_values(word.y ^ sign.y, v + 2);
        two_values(word.z ^ sign.z, v + 4);
        two_values(word.w ^ sign.w, v + 6);
#pragma unroll
        for (int bit = 1; bit < 8; bit *= 2)
#pragma unroll
            for (int i = 0; i < 8; i++)
                if (!(i & bit)) butterfly(v[i], v[i | bit]);
#pragma unroll
        for (int bit = 1; bit < LOW / 8; bit *= 2) {
            const float own = t & bit ? -1.0f : 1.0f;
#pragma unroll
            for (int i = 0; i < 8; i++) v[i] = fmaf(own, v[i], __shfl_xor_sync(0xffffffffu, v[i], bit));
        }
    }

#if W > 1
#pragma unroll
    for (int c = 0; c < EACH / 8; c++) {
        float4* at = (float4*)(shared + 8 * (c * THREADS + t));
        at[0] = make_float4(z[8 * c], z[8 * c + 1], z[8 * c + 2], z[8 * c + 3]);
        at[1] = make_float4(z[8 * c + 4], z[8 * c + 5], z[8 * c + 6], z[8 * c + 7]);
    }
    __syncthreads();
#pragma unroll
    for (int g = 0; g < GROUPS; g++) {
        const int place = (g * THREADS + t) * V;  // among the INPUTS / W values whose upper bits are 0
        float* v = z + g * W * V;
#pragma unroll
        for (int w = 0; w < W; w++)
#pragma unroll
            for (int i = 0; i < V; i++) v[w * V + i] = shared[place / LOW * BLOCK + w * LOW + place % LOW + i];
#pragma unroll
        for (int bit = V; bit < W * V; bit *= 2)
#pragma unroll
            for (int i = 0; i < W * V; i++)
                if (!(i & bit)) butterfly(v[i], v[i | bit]);
    }
#endif

    // As bits, sizes of floats are in the order of integers, infinity and then NaN on top: neither is lost.
    u32 top = 0;
#pragma unroll
    for (int i = 0; i < EACH; i++) top = max(top, __float_as_uint(z[i]) & 0x7fffffffu);
    top = __reduce_max_sync(0xffffffffu, top);
    if (t % 32 == 0) tops[t / 32] = top;
    __syncthreads();
    top = __reduce_max_sync(0xffffffffu, t % 32 < THREADS / 32 ? tops[t % 32] : 0u);
    if (t == 0 && top >= 0x7f800000u) *finite = 0;
    const float norm = rsqrtf((float)BLOCK);
    const float scale = __uint_as_float(top) * (float)ratio;  // of z, which is still to be divided by sqrt(n)
    if (t == 0) scales[row] = (scale == 0.0f ? 1.0f : scale * norm) * (float)unit;
    const float inverse = scale == 0.0f ? 0.0f : 1.0f / scale;
#pragma unroll
    for (int i = 0; i < EACH; i++)  // rounds halves to even
        z[i] = fminf(fmaxf(z[i] * inverse, -largest_code), largest_code) + MAGIC;

    unsigned char* out = codes + row * INPUTS;
#if W > 1
#pragma unroll
    for (int g = 0; g < GROUPS; g++) {
        const int place = (g * THREADS + t) * V;
        const float* v = z + g * W * V;
#pragma unroll
        for (int w = 0; w < W; w++) {
            unsigned char* at = out + place / LOW * BLOCK + w * LOW + place % LOW;
#if V == 2
            *(unsigned short*)at = (unsigned short)two_bytes(v[w * V], v[w * V + 1]);
#else
            *(u32*)at = four_bytes(v + w * V);
#endif
        }
    }
#else
#pragma unroll
    for (int c = 0; c < EACH / 8; c++) {
        *(uint2*)(out + 8 * (c * THREADS + t)) = make_uint2(four_bytes(z + 8 * c), four_bytes(z + 8 * c + 4));
    }
#endif
}
