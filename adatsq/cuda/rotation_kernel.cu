// Rotate one token, find the largest, round, cast: `activations.quantize` of bfloat16 rows, in CUDA C++.
// Before that, a prologue if there is one (`prologue.rows_of`).
//
// A thread block has one token, all of it in registers. A Hadamard transform of n = BLOCK values is made of
// log2(n) stages; in stage b, values whose indices differ in bit b become their sum and their difference:
//   bits 0 to 7     by tensor cores, in two products with a Hadamard matrix of 16 x 16 (`transform_256`)
//   bits above      sums and differences of the FAR parts of 256 values. Up to MOST_OWN of them, a warp has
//                   whole blocks, and a thread all that it needs; else they change places in shared memory
// Set at compile time: INPUTS; BLOCK = n; THREADS; MOST_OWN; E4M3 or not; PROLOGUE, its number in
// `prologue.KINDS`; FIRST, columns of x, of which the rest of a row is in `second` if PROLOGUE is CAT_GELU.
// Rows of x lie x_apart times 8 values apart, those of `second` second_apart times 8.
#define GELU 1
#define CAT_GELU 2
#define SWIGLU 3
#define EACH (INPUTS / THREADS)  // values of a thread, in chunks of 8 neighbours
#define CHUNKS (EACH / 8)
#define FAR (BLOCK / 256)
#define GROUPS (EACH / (2 * FAR))  // pairs of neighbours that a thread has of all parts, after the exchange

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

// Eight neighbours of a row, as they lie in memory. x and second: where their rows begin.
__device__ __forceinline__ uint4 loaded(const uint4* x, const uint4* second, int chunk) {
#if PROLOGUE == CAT_GELU
    if (chunk >= FIRST / 8) return second[chunk - FIRST / 8];
#endif
    return x[chunk];
}

// The activations that the prologue makes of them.
__device__ __forceinline__ uint4 eight_values(uint4 a, const uint4* second, int chunk) {
#if PROLOGUE == GELU
    return gelu_of_eight(a);
#elif PROLOGUE == CAT_GELU
    return chunk < FIRST / 8 ? a : gelu_of_eight(a);
#elif PROLOGUE == SWIGLU
    const uint4 b = second[chunk];
    return make_uint4(swiglu_of_two(a.x, b.x), swiglu_of_two(a.y, b.y), swiglu_of_two(a.z, b.z),
                      swiglu_of_two(a.w, b.w));
#else
    return a;
#endif
}

__device__ __forceinline__ void butterfly(float& a, float& b) {
    const float sum = a + b;
    b = a - b;
    a = sum;
}

// Signs of the Hadamard matrix H[m, k] = (-1)^(bits that m and k share), as a lane holds them in the first
// operand of mma.m16n8k16: m = lane / 4 (+ 8), k = lane % 4 * 2 (+ 1) (+ 8). Where both have the 8, -H.
__device__ __forceinline__ u32 hadamard_signs(int lane) {
    const int m = lane / 4, k = lane % 4 * 2;
    return 0x3f803f80u ^ (__popc(m & k) & 1) << 15 ^ (u32)(__popc(m & (k + 1)) & 1) << 31;
}

// sums (16 x 8) += H (16 x 16) times values (16 x 8). Of a lane: values with k = lane % 4 * 2 (+ 1 in a word's
// upper half, + 8 in the second word) and n = lane / 4; sums [m 8][n 1] with m = lane / 4 (+ 8 in the second
// two) and n = lane % 4 * 2 (+ 1 in each two). So the lanes' upper bits and lower bits change their parts.
__device__ __forceinline__ void add_product(float* sums, u32 signs, u32 first, u32 second) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %4, %4, %5}, {%6, %7}, "
        "{%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(signs), "r"(signs ^ 0x80008000u), "r"(first), "r"(second));
}

// A warp's 256 values, transformed. Of a lane: those with the indices 8 lane, 8 lane + 1, ..., before and after.
// The first product is over bits 0, 3, 4, 1 of the index (as bits of k), which are exact in bfloat16; the
// second over bits 5, 6, 7, 2, of sums: each as the sum of two bfloat16, off by 2^-17 of it at most.
__device__ __forceinline__ void transform_256(uint4 word, u32 signs, float* v) {
    float sums[2][4] = {};  // [bit 2][bit 1, bit 5]
    add_product(sums[0], signs, word.x, word.y);
    add_product(sums[1], signs, word.z, word.w);
#pragma unroll
    for (int one = 0; one < 2; one++) {  // bit 1
        u32 high[2], rest[2];
#pragma unroll
        for (int two = 0; two < 2; two++) {  // bit 2
            const float* pair = sums[two] + 2 * one;
            float rounded[2];
            high[two] = two_halves(pair[0], pair[1]);
            two_values(high[two], rounded);
            rest[two] = two_halves(pair[0] - rounded[0], pair[1] - rounded[1]);
        }
        float out[4] = {};  // [bit 2][bit 0]
        add_product(out, signs, rest[0], rest[1]);
        add_product(out, signs, high[0], high[1]);
        v[2 * one] = out[0], v[2 * one + 1] = out[1], v[4 + 2 * one] = out[2], v[4 + 2 * one + 1] = out[3];
    }
}

// The larger size, NaN if one is NaN.
__device__ __forceinline__ float larger(float top, float v) {
    asm("max.NaN.f32 %0, %0, %1;" : "+f"(top) : "f"(fabsf(v)));
    return top;
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
    const float least = MAGIC - (float)largest, most = MAGIC + (float)largest;
    const long long row = blockIdx.x;
    const int t = threadIdx.x;
    const int start = t / 32 * 32 * CHUNKS + t % 32;  // a warp's chunks are neighbours: of a lane, every 32nd
    const u32 h = hadamard_signs(t % 32);
    float z[EACH];

    x += row * x_apart;
    second += row * second_apart;
    uint4 words[CHUNKS];
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) words[c] = loaded(x, second, start + 32 * c);  // all on their way at once
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) {
        const int chunk = start + 32 * c;
        const uint4 word = eight_values(words[c], second, chunk);
        const uint4 sign = signs[chunk % (BLOCK / 8)];
        transform_256(make_uint4(word.x ^ sign.x, word.y ^ sign.y, word.z ^ sign.z, word.w ^ sign.w), h, z + 8 * c);
    }

#if FAR <= MOST_OWN
#pragma unroll
    for (int bit = 1; bit < FAR; bit *= 2)
#pragma unroll
        for (int i = 0; i < EACH; i++)
            if (!(i & 8 * bit)) butterfly(z[i], z[i | 8 * bit]);
#else
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) {
        float4* at = (float4*)(shared + 8 * (start + 32 * c));
        at[0] = make_float4(z[8 * c], z[8 * c + 1], z[8 * c + 2], z[8 * c + 3]);
        at[1] = make_float4(z[8 * c + 4], z[8 * c + 5], z[8 * c + 6], z[8 * c + 7]);
    }
    __syncthreads();
#pragma unroll
    for (int g = 0; g < GROUPS; g++) {
        const int place = (g * THREADS + t) * 2;  // among the INPUTS / FAR values of the blocks' first parts
        const float* from = shared + place / 256 * BLOCK + place % 256;
        float* v = z + g * 2 * FAR;
#pragma unroll
        for (int far = 0; far < FAR; far++) {
            const float2 pair = *(const float2*)(from + 256 * far);
            v[2 * far] = pair.x, v[2 * far + 1] = pair.y;
        }
#pragma unroll
        for (int bit = 2; bit < 2 * FAR; bit *= 2)
#pragma unroll
            for (int i = 0; i < 2 * FAR; i++)
                if (!(i & bit)) butterfly(v[i], v[i | bit]);
    }
#endif

    float most_here = 0.0f;
#pragma unroll
    for (int i = 0; i < EACH; i++) most_here = larger(most_here, z[i]);
    // As bits, sizes of floats are in the order of integers, infinity and then NaN on top: neither is lost.
    u32 top = __reduce_max_sync(0xffffffffu, __float_as_uint(most_here));
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
        z[i] = fminf(fmaxf(fmaf(z[i], inverse, MAGIC), least), most);

    unsigned char* out = codes + row * INPUTS;
#if FAR <= MOST_OWN
#pragma unroll
    for (int c = 0; c < CHUNKS; c++)
        *(uint2*)(out + 8 * (start + 32 * c)) = make_uint2(four_bytes(z + 8 * c), four_bytes(z + 8 * c + 4));
#else
#pragma unroll
    for (int g = 0; g < GROUPS; g++) {
        const int place = (g * THREADS + t) * 2;
        unsigned char* at = out + place / 256 * BLOCK + place % 256;
#pragma unroll
        for (int far = 0; far < FAR; far++)
            *(unsigned short*)(at + 256 * far) = (unsigned short)two_bytes(z[g * 2 * FAR + 2 * far], z[g * 2 * FAR + 2 * far + 1]);
    }
#endif
}
