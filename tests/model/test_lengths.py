"""How many tokens a model takes, and the lengths past which it computes otherwise."""

import pytest
from tiny import tiny_adapter, tiny_base
from torch import nn

from bayesrm_fast import InputError
from bayesrm_fast.model.lengths import check_length, most_tokens, switches, table_positions, windows

ROPE = dict(rope_theta=1e4, factor=2.0)
DYNAMIC = dict(rope_parameters=ROPE | dict(rope_type="dynamic"), max_position_embeddings=32)
SPARSE = dict(attention_type="block_sparse", block_size=2, num_random_blocks=1)
LONGROPE = dict(
    rope_parameters=ROPE | dict(rope_type="longrope", short_factor=[1.0] * 4, long_factor=[2.0] * 4),
    original_max_position_embeddings=16,
)


@pytest.mark.parametrize(
    ("architecture", "options", "tokens"),
    [
        ("llama", {}, 64),
        ("llama", DYNAMIC, 32),
        ("bert", {}, 64),
        ("roberta", dict(pad_token_id=1), 64),  # of 66 positions
        ("xlm-roberta", dict(max_position_embeddings=66, pad_token_id=1), 64),
        ("opt", {}, 64),
        ("big_bird", SPARSE, 14),
        ("bloom", dict(max_position_embeddings=None), None),
    ],
)
def test_the_longest_row_that_a_model_takes(architecture, options, tokens):
    assert most_tokens(tiny_base(architecture, **options)) == tokens


def test_a_table_with_fewer_positions_than_the_configuration_says_counts():
    model = tiny_adapter("bert")
    model.config.max_position_embeddings = 512
    assert table_positions(model) == most_tokens(model) == 64
    with pytest.raises(InputError, match="max_length is 65, and the model has embeddings for 64 positions"):
        check_length(model, 65)
    check_length(model, 64)


def test_a_length_past_which_rewards_depend_on_earlier_rows_is_refused():
    with pytest.raises(InputError, match=r"past 14 tokens .* take max_length=14 or less"):
        check_length(tiny_base("big_bird", **SPARSE), 15)
    check_length(tiny_base("big_bird", attention_type="original_full"), 64)


def test_what_is_inside_a_model_without_a_configuration_counts():
    assert windows(nn.Sequential(tiny_base("mistral", sliding_window=9))) == (9,)
    assert switches(nn.Sequential(tiny_base("llama", **LONGROPE))) == (16,)
    dynamic = nn.Sequential(tiny_base("llama", **DYNAMIC))
    assert most_tokens(dynamic) == 32
    with pytest.raises(InputError, match="take max_length=32 or less"):
        check_length(dynamic, 33)


def test_switches_and_windows_are_those_of_the_configuration():
    assert switches(tiny_base("llama", **LONGROPE)) == (16,)
    assert switches(tiny_base("llama", **DYNAMIC)) == ()
    assert windows(tiny_base("mistral", sliding_window=8)) == (8,)
    assert windows(tiny_base("modernbert", local_attention=8)) == (4, 8)
    assert windows(tiny_base("llama")) == windows(nn.Linear(2, 2)) == switches(nn.Linear(2, 2)) == ()
