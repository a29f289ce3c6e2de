import pytest

from tests.adapters.loras import SDXL_BLOCKS
from unziplora_cli.adapters.layer_names import diffusers_layer, ldm_layer, to_ldm
from unziplora_cli.method.inject import adapted_projections
from unziplora_cli.sdxl.meta import meta_unet


def test_names_of_all_projections_round_trip() -> None:
    layers = list(adapted_projections(meta_unet(SDXL_BLOCKS)))
    assert len(layers) == 560
    for layer in layers:
        assert diffusers_layer(layer) == diffusers_layer(layer.replace(".", "_")) == layer
        assert ldm_layer(to_ldm(layer)) == ldm_layer(to_ldm(layer).replace(".", "_")) == layer


@pytest.mark.parametrize(
    "name",
    [
        "input_blocks.3.1.transformer_blocks.0.attn1.to_q",  # a downsampler
        "input_blocks.0.1.transformer_blocks.0.attn1.to_q",
        "input_blocks.4.0.transformer_blocks.0.attn1.to_q",
        "input_blocks.4.1.transformer_blocks.0.ff.net.0.proj",
        "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out",
        "down_blocks.1.attentions.0.proj_in",
        "",
    ],
)
def test_other_names_have_no_layer(name: str) -> None:
    assert ldm_layer(name) is None
    assert diffusers_layer(name) is None
