"""Real low-bit inference on a CUDA device. In the order of reading:

    exact         when FP8 tensor cores compute the integer product
    packing       weights at 2 to 8 bits, unpacked layer by layer (`unpack_kernel`)
    activations   rotate or smooth, scale, round, cast in one pass (`activations_kernel`; bfloat16 rows
                  that are rotated: `rotation_kernel`)
    prologue      what comes before the rounding, in the same pass: an activation function
    sharing       one rounding for linears that read the same activations
    products      integers times integers, then the scales (`products_kernel`)
                  (`few_rows_kernel`, `few_rows_table`: few rows times weights that alone are quantized)
    linear        `PackedLinear`, all of it together as one operator that torch.compile keeps whole
    together      one product for linears that read the same activations
    norm_rope     query and key of Flux's attention, normed and rotated in one pass (`norm_rope_kernel`)
    flux_attention   the attention of Flux's blocks, which may have both
    fusing        modules that leave their work to these, and their activation function to a prologue
    accelerate    a quantized pipeline on packed weights
    graphs        a transformer's call launched at once
    devices       what a card can do; without CUDA, plain torch computes the same

    python -m adatsq.cuda.check                 equality with plain torch, and exactness, on this machine
    python -m adatsq.cuda.benchmark --shapes    milliseconds of each part
    python -m adatsq.cuda.benchmark --steps     of a whole transformer's step, beside other libraries
    python -m adatsq.cuda.agreement             pictures of the small models, packed against reference
    python -m adatsq.cuda.full_size             the whole method on a transformer of full size, random weights

The plain-torch code is the definition; the kernels equal it, and the tests hold them to it.
"""
