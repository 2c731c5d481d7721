"""Diffusers' own loading of a transformer that `adatsq.save` wrote: `from_pretrained` of its folder.

    import adatsq
    transformer = FluxTransformer2DModel.from_pretrained("saved/transformer", torch_dtype=torch.bfloat16)

Its config.json says `"quantization_config": {"quant_method": "adatsq", ...}`, and this module teaches
diffusers the name. Layers have the activation bits that they had without a policy: the policy, and a check of
every file, come with `adatsq.load`. With a CUDA device weights stay packed, without one they are unpacked.
"""

from enum import Enum

import torch
from diffusers.quantizers import auto
from diffusers.quantizers.base import DiffusersQuantizer
from diffusers.quantizers.quantization_config import QuantizationConfigMixin
from torch import Tensor, nn

from adatsq.cuda import devices
from adatsq.stored_layers import FORMAT_VERSION, check_layer, check_version, finish, layer_of


class Method(str, Enum):
    """Diffusers wants the name as a member of an enumeration."""

    ADATSQ = "adatsq"


class AdatsqConfig(QuantizationConfigMixin):
    """layers: {name: `stored_layers.description`}. format_version: of the files, ValueError for a newer
    one, and without layers."""

    def __init__(
        self, layers: dict | None = None, format_version: int = FORMAT_VERSION, **kwargs: object
    ) -> None:
        check_version(format_version, "this transformer's config.json")
        if not isinstance(layers, dict):
            raise ValueError("the quantization_config of this transformer's config.json names no layers")
        self.quant_method = Method.ADATSQ
        self.format_version, self.layers = format_version, layers

    def to_dict(self) -> dict:
        return to_config(self.layers, self.format_version)

    def to_diff_dict(self) -> dict:
        """For `print`."""
        return {**self.to_dict(), "layers": len(self.layers)}


def to_config(layers: dict, format_version: int = FORMAT_VERSION) -> dict:
    """The `quantization_config` of config.json."""
    return {"quant_method": Method.ADATSQ.value, "format_version": format_version, "layers": layers}


class AdatsqQuantizer(DiffusersQuantizer):
    """Takes the tensors of quantized layers as they are in the file, and makes layers of them at the end."""

    use_keep_in_fp32_modules = True
    requires_calibration = True  # that is, such a model can be loaded, not made, this way

    def maybe_update_loaded_keys(self, loaded_keys: list[str], checkpoint_files: list[str]) -> list[str]:
        self.keys = list(loaded_keys)
        return loaded_keys

    def _process_model_before_weight_loading(self, model: nn.Module, **kwargs) -> None:
        """An empty module in the place of each quantized linear, with a buffer for each of its tensors."""
        self.holders = {}
        for name, said in self.quantization_config.layers.items():
            check_layer(name, said, model, self.keys)
            model.set_submodule(name, nn.Module())
            self.holders[name] = model.get_submodule(name)
        there = set(self.keys)
        missing = [key for key in model.state_dict() if key not in there]
        if missing:  # diffusers would leave them random
            raise ValueError(
                f"the files are incomplete: {len(missing)} of the transformer's tensors are in none of them, "
                f"the first is {missing[0]}: copy them again from where they were saved"
            )
        for key in self.keys:
            name, _, part = key.rpartition(".")
            if name in self.holders:
                self.holders[name].register_buffer(part, torch.empty(0, device="meta"))

    def check_if_quantized_param(
        self, model: nn.Module, param_value: Tensor, param_name: str, state_dict: dict, **kwargs
    ) -> bool:
        return param_name.rpartition(".")[0] in self.holders

    def create_quantized_param(
        self,
        model: nn.Module,
        param_value: Tensor,
        param_name: str,
        target_device: torch.device,
        state_dict: dict,
        *args,
        **kwargs,
    ) -> None:
        """Biases in the dtype that was asked for; integers, and scales in float32, whatever that is."""
        name, _, part = param_name.rpartition(".")
        tensor = param_value
        if part != "bias":
            tensor = state_dict[param_name]
            tensor = tensor.float() if part in ("scale", "smoothing") else tensor
        self.holders[name].register_buffer(part, tensor.to(target_device))

    def _process_model_after_weight_loading(self, model: nn.Module, **kwargs) -> nn.Module:
        for name, said in self.quantization_config.layers.items():
            parts = dict(self.holders.pop(name).named_buffers())
            layer = layer_of(name, said, parts, torch.cuda.is_available())
            model.set_submodule(name, layer)
            devices.tell(layer.scale.device)
        return finish(model)

    @property
    def is_trainable(self) -> bool:
        return False

    @property
    def is_serializable(self) -> bool:
        """Not by `save_pretrained`: `adatsq.save` packs."""
        return False

    @property
    def is_compileable(self) -> bool:
        return True


auto.AUTO_QUANTIZER_MAPPING[Method.ADATSQ.value] = AdatsqQuantizer
auto.AUTO_QUANTIZATION_CONFIG_MAPPING[Method.ADATSQ.value] = AdatsqConfig
