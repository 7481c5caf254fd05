"""Parameters and FLOPs against published and counted numbers."""

import pytest

from megatron_poro.config import ModelConfig, shapes
from megatron_poro.observe.flops import flops_per_token
from megatron_poro.planning.counts import hardware_flops, model_flops, rank_parameters, total_parameters
from megatron_poro.planning.endurance import BYTES_PER_PARAMETER
from megatron_poro.topology import Layout
from tests.planning.jobs import job, llama


def test_flops_of_70b_are_the_published_ones_in_both_conventions():
    # Megatron-LM since March 2025 and Megatron-Bridge print 449.2 GFLOP a token, dgxc-benchmarking and NeMo 24 481.4
    flops = model_flops(llama(), 8192)
    assert flops.causal / 1e9 == pytest.approx(449.2, abs=0.05)
    assert flops.full / 1e9 == pytest.approx(481.4, abs=0.05)


@pytest.mark.parametrize("name", shapes())
def test_flops_are_those_that_training_logs(name):
    model = ModelConfig(**shapes()[name])
    assert model_flops(llama(name), 2048) == flops_per_token(model, 2048)


def test_recomputation_counts_in_the_hardware_convention_alone():
    # Narayanan 2021: 96 / 72 for full recomputation of GPT's layers, a little less with the output layer
    shape = llama()
    assert hardware_flops(shape, 2048, "none") == model_flops(shape, 2048).full
    assert 1.3 < hardware_flops(shape, 2048, "full") / model_flops(shape, 2048).full < 4 / 3
    assert 1 < hardware_flops(shape, 2048, "selective") / model_flops(shape, 2048).full < 1.05


def test_ranks_of_the_70b_hold_what_was_counted_on_the_real_model():
    # docs/planning.md: counted on megatron-core's own model for TP8 x PP8
    assert [rank_parameters(job(), stage) for stage in (0, 3, 7)] == [1201045504, 1069711360, 1201053696]


def test_stages_add_up_to_the_model():
    # tensor 1, so no matrix is cut and no norm is held twice
    for layout in (Layout(), Layout(1, 2), Layout(1, 16)):
        whole = sum(rank_parameters(job(layout), stage) for stage in range(layout.pipeline))
        assert whole == total_parameters(llama())
    assert total_parameters(llama()) == pytest.approx(70.55e9, rel=1e-3)


def test_a_tied_output_layer_is_a_copy_on_the_last_stage_only_where_there_are_two():
    shape = llama("llama3.2-1b")
    vocabulary = shape.vocab_size * shape.hidden_size
    one = rank_parameters(job(Layout(), shape="llama3.2-1b"), 0)
    two = sum(rank_parameters(job(Layout(1, 2), shape="llama3.2-1b"), stage) for stage in (0, 1))
    assert (one, two) == (total_parameters(shape), total_parameters(shape) + vocabulary)


def test_checkpoint_of_the_70b_is_988_gb():
    assert BYTES_PER_PARAMETER * total_parameters(llama()) / 1e9 == pytest.approx(988, abs=1)
