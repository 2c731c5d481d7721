import pytest

from adatsq.evaluate import generate


@pytest.mark.parametrize(
    "prompts, seeds, message",
    [
        ([], [], "list is empty"),
        (["a star", 7], [0, 1], "prompt 1 is 7, it must be a string"),
        ([None], [0], "prompt 0 is None, it must be a string"),
        (["a star", " "], [0, 1], "prompt 1 is empty"),
        (["a star"], [0, 1], "1 prompts but 2 seeds"),
    ],
)
def test_bad_input_is_named(tiny_pipe, prompts, seeds, message):
    with pytest.raises(ValueError, match=message):
        generate(tiny_pipe, prompts, seeds, progress=False)


@pytest.mark.parametrize(
    "call, message",
    [
        ({"batch_size": 0}, "batch_size is 0, it must be at least 1"),
        ({"prompt": "a ring"}, r"generate sets \['prompt'\] itself"),
        ({"num_images_per_prompt": 2}, r"generate sets \['num_images_per_prompt'\] itself"),
    ],
)
def test_bad_settings_are_named(tiny_pipe, call, message):
    with pytest.raises(ValueError, match=message):
        generate(tiny_pipe, ["a star"], [0], progress=False, **call)


def test_a_single_prompt_needs_no_list(tiny_pipe):
    settings = {"progress": False, "num_inference_steps": 1}
    assert (
        generate(tiny_pipe, "a star", [3], **settings) == generate(tiny_pipe, ["a star"], [3], **settings)
    ).all()
