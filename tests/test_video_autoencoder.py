"""How the video autoencoder is set up for its training: checked against its own forward pass."""

import pytest
import torch

from adatsq.world.video_autoencoder import (
    block_means_and_slopes,
    build_autoencoder,
    initialise,
    on_single_frames,
    videos,
)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = build_autoencoder(base_dim=8)
    initialise(model)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def clips():
    return videos(2, torch.Generator().manual_seed(0)).float()[:, :, :9]


def test_single_frames_are_coded_the_same_in_two_dimensions(model, clips):
    frames = clips[:, :, :1]
    z = model.encode(frames).latent_dist.mode()
    y = model.decode(z).sample
    with on_single_frames(model):
        assert torch.allclose(model.encode(frames).latent_dist.mode(), z, atol=1e-4)
        assert torch.allclose(model.decode(z).sample, y, atol=1e-4)
        with pytest.raises(ValueError, match="single frames"):
            model.encode(clips)
    assert model.encode(clips).latent_dist.mode().shape == (2, 16, 3, 8, 8)  # as before


def test_at_first_a_latent_frame_is_the_code_of_the_last_of_its_frames(model, clips):
    z = model.encode(clips).latent_dist.mode()
    for latent_frame, frame in enumerate((0, 4, 8)):
        alone = model.encode(clips[:, :, frame : frame + 1]).latent_dist.mode()
        assert torch.allclose(z[:, :, latent_frame], alone[:, :, 0], atol=1e-4)


def test_at_first_a_latent_frame_is_decoded_to_four_equal_frames(model, clips):
    z = model.encode(clips).latent_dist.mode()
    y = model.decode(z).sample
    for latent_frame, first, last in ((0, 0, 1), (1, 1, 5), (2, 5, 9)):
        alone = model.decode(z[:, :, latent_frame : latent_frame + 1]).sample
        assert torch.allclose(y[:, :, first:last], alone.expand(-1, -1, last - first, -1, -1), atol=1e-4)


def test_blocks_have_their_means_and_slopes():
    """A plane a + b x + c y in each colour: twice its mean, and its slopes on one common scale."""
    x = torch.arange(64) + 0.5
    plane = torch.stack(
        [a + b * x[None, :] + c * x[:, None] for a, b, c in ((0.1, 0, 0), (0, 0.01, 0), (0, 0, 0.02))]
    )
    found = block_means_and_slopes(plane[None])[0].unflatten(0, (3, 3))
    middle = 8 * torch.arange(8) + 4.0
    assert torch.allclose(found[0, 0], torch.full((8, 8), 0.2), atol=1e-5)
    assert torch.allclose(found[1, 0], 2 * 0.01 * middle.expand(8, 8), atol=1e-5)
    assert torch.allclose(found[2, 0], 2 * 0.02 * middle[:, None].expand(8, 8), atol=1e-5)
    assert found[0, 1:].abs().max() < 1e-5 and found[1, 2].abs().max() < 1e-5
    slope = found[1, 1] / 0.01
    assert torch.allclose(slope, slope[0, 0].expand(8, 8)) and torch.allclose(
        found[2, 2] / 0.02, slope, rtol=1e-4
    )
