"""hqq: weights of 4, 3 and 2 bits by half-quadratic splitting, without data; scale and zero point for groups
of 64 weights (`stored.group_of` for rows that these do not divide). A layer whose number of groups is no
multiple of 8 cannot be packed at all bits, and stays in 16 bit."""

from adatsq.peers.stored import group_of, replace


def hqq(pipe, layers, w_bits: int, a_bits: int, trace) -> None:
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

    for layer in layers:
        linear = pipe.transformer.get_submodule(layer.name)
        bits = w_bits if layer.role == "act" else max(4, w_bits)
        group = group_of(64, layer.in_features)
        if layer.out_features * layer.in_features // group % 8:
            continue
        group = None if group == layer.in_features else group  # hqq's word for the whole row
        config = BaseQuantizeConfig(nbits=bits, group_size=group, axis=1)
        options = {"compute_dtype": linear.weight.dtype, "device": str(linear.weight.device)}
        replace(pipe.transformer, layer.name, HQQLinear(linear, config, **options))
