"""torchao: int8 or int4 weights, alone or with int8 activations, scaled per token as they come.

int8 weights have a scale per row; int4 weights one per group of 128, with int8 activations of 32, as torchao
chooses (`stored.group_of` for rows that these do not divide). The int4 integers are kept in its unpacked
layout, a byte each, and effective bits count that byte: its packed ones need CUDA, bfloat16 and rows of 1024
values (tinygemm), or a kernel library of its own.

Its products of int8 weights and int8 activations need inputs and outputs in multiples of 8; all others it
takes to the CPU, in int32, at every call. Such layers have int8 weights alone here.

torch.compile's settings are left as they are, for the process and its other models: those that torchao would
make try every direction of every kernel's tiles, and Flux was not compiled after five minutes of it.
"""

from adatsq.peers.stored import average_bits, group_of


def torchao(pipe, layers, w_bits: int, a_bits: int, trace) -> float | None:
    import torch
    from torchao import quantization as library
    from torchao.quantization.granularity import PerGroup

    def on_cpu(layer) -> bool:
        return (w_bits, a_bits) == (8, 8) and bool(layer.in_features % 8 or layer.out_features % 8)

    def config(layer):
        alone = a_bits == 16 or layer.role == "weight" or on_cpu(layer)
        if w_bits == 8:
            both = library.Int8DynamicActivationInt8WeightConfig
            return (library.Int8WeightOnlyConfig if alone else both)(set_inductor_config=False)
        group = PerGroup(group_of(128 if alone else 32, layer.in_features))
        if alone:
            return library.IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=group)
        return library.Int8DynamicActivationIntxWeightConfig(
            weight_dtype=torch.int4, weight_granularity=group
        )

    for layer in layers:
        library.quantize_(pipe.transformer, config(layer), lambda _, name, wanted=layer.name: name == wanted)
    return average_bits(layers, a_bits, on_cpu)
