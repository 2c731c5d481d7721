// A few rows times packed weights with scales, by tables of sums: `few_rows_kernel.multiply_few`, in CUDA C++.
//
// A nibble of a plane says which of four neighbouring inputs are to be added. There are 16 such sums: they are
// made once, and four weights' bits are then one look into a table (T-MAC, arXiv:2407.00088). With
// code = sum_p 2^p bit_p - QMAX, the 32 weights of a word of each plane, which share a scale, make
//     scale (sum_p 2^p (sum of 8 looks) - QMAX (sum of the 32 inputs)).
//
// A thread block has one row of x and its tables. A warp takes row after row of weights; lane l reads words l,
// l + 32, ... of it, and the tables for these words lie in bank l of the shared memory, so that the 32 lanes
// look at once, wherever they look. While a row is looked up, the next one is on its way from memory.
// Set at compile time: INPUTS, a multiple of 32; BITS; QMAX; GROUP, inputs that share a scale, a multiple of 32;
// THREADS; SCALE and BIAS, the types of scales and bias: float, or bf16.
typedef unsigned int u32;
typedef unsigned short bf16;

#define WORDS (INPUTS / 32)  // of a row, in one plane
#define CHUNKS ((WORDS + 31) / 32)

__device__ __forceinline__ float value(float v) { return v; }
__device__ __forceinline__ float value(bf16 v) { return __uint_as_float((u32)v << 16); }

struct Weights {  // a lane's share of a row
    u32 word[CHUNKS][BITS];
    float scale[CHUNKS];
};

__device__ __forceinline__ void read_row(Weights& row, const u32* planes, const SCALE* scale, int words, int n,
                                         int lane) {
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) {
        const int j = 32 * c + lane;
        const bool inside = j < WORDS;
#pragma unroll
        for (int p = 0; p < BITS; p++) row.word[c][p] = inside ? planes[p * words + n * WORDS + j] : 0;
        row.scale[c] = inside ? value(scale[n * (INPUTS / GROUP) + j * 32 / GROUP]) : 0.0f;
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) multiply_few(
    const uint2* __restrict__ x, const u32* __restrict__ planes, const SCALE* __restrict__ scale,
    const BIAS* __restrict__ bias, bf16* __restrict__ y, int* __restrict__ finite, int outputs, int words,
    int has_bias) {
    extern __shared__ float table[];             // [chunk][nibble of the word][sum][lane]
    float* totals = table + CHUNKS * 8 * 16 * 32;  // of a word's inputs: [chunk][lane]
    const int lane = threadIdx.x % 32, m = blockIdx.y;
    Weights now, next;
    int n = threadIdx.x / 32 * gridDim.x + blockIdx.x;  // each block has as many rows as any other, or one less
    if (n < outputs) read_row(now, planes, scale, words, n, lane);

    for (int i = threadIdx.x; i < CHUNKS * 8 * 32; i += THREADS) {
        const int j = i / 256 * 32 + lane, nibble = i / 32 % 8;
        const uint2 four = j < WORDS ? x[(m * WORDS + j) * 8 + nibble] : make_uint2(0, 0);
        float sums[16] = {0.0f};
        const float inputs[4] = {value((bf16)four.x), value((bf16)(four.x >> 16)), value((bf16)four.y),
                                 value((bf16)(four.y >> 16))};
#pragma unroll
        for (int b = 0; b < 4; b++) {
            if ((__float_as_uint(inputs[b]) & 0x7fffffffu) >= 0x7f800000u && blockIdx.x == 0) *finite = 0;
#pragma unroll
            for (int s = 0; s < 1 << b; s++) sums[s | 1 << b] = sums[s] + inputs[b];
        }
#pragma unroll
        for (int s = 0; s < 16; s++) table[(i / 32 * 16 + s) * 32 + lane] = sums[s];
    }
    __syncthreads();
    for (int i = threadIdx.x; i < CHUNKS * 32; i += THREADS) {
        float total = 0.0f;
        for (int nibble = 0; nibble < 8; nibble++) total += table[((i / 32 * 8 + nibble) * 16 + 15) * 32 + lane];
        totals[i] = total;
    }
    __syncthreads();
    float offset[CHUNKS];
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) offset[c] = QMAX * totals[32 * c + lane];

    const int step = THREADS / 32 * gridDim.x;
    for (; n < outputs; n += step) {
        if (n + step < outputs) read_row(next, planes, scale, words, n + step, lane);
        float sum = 0.0f;
#pragma unroll
        for (int c = 0; c < CHUNKS; c++) {
            float of_word = 0.0f;
#pragma unroll
            for (int p = BITS - 1; p >= 0; p--) {
                float looked = 0.0f;
#pragma unroll
                for (int nibble = 0; nibble < 8; nibble++) {
                    const u32 word = now.word[c][p];  // bits of the nibble, 7 places up: times 32 floats
                    const u32 at = nibble < 2 ? word << (7 - 4 * nibble) : word >> (4 * nibble - 7);
                    const char* base = (const char*)table + (8 * c + nibble) * 2048;
                    looked += *(const float*)(base + ((at & 0x780u) | (4 * lane)));
                }
                of_word = 2.0f * of_word + looked;
            }
            sum = fmaf(now.scale[c], of_word - offset[c], sum);
        }
#pragma unroll
        for (int bit = 1; bit < 32; bit *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, bit);
        if (lane == 0) {
            if (has_bias) sum += value(bias[n]);
            u32 word;
            asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(0.0f), "f"(sum));
            y[m * outputs + n] = (bf16)word;
        }
        now = next;
    }
}
