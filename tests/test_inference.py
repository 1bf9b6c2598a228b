"Faster inference on a CPU: the same outputs, really taken, the same for any number of threads, and left out where it does not fit"
from unittest.mock import patch

import numpy as np, pytest, torch
from torch import nn

from conftest import small_bit
from fastbit.bodies import FoldedModel, TransferModel, build_body
from fastbit.bodies import fold
from fastbit.bodies.inference import PackedConv2d
from fastbit.core import threads
from fastbit.data import digits_table, frozen_features
from fastbit.bodies.preprocess import body_preprocess


@pytest.fixture
def two_threads():
    n = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(n)


def model_of(name):
    torch.manual_seed(0)
    net = small_bit() if name == 'small_bit' else build_body(name, 3, weights='random')
    nn.init.normal_(net.get_classifier().weight, std=.1)
    return TransferModel(net).eval()


def kinds(folded): return {type(m).__name__ for m in folded.net.modules()}


@pytest.mark.parametrize('name, layer', [('test_efficientnet', 'PackedConv2d'), ('small_bit', 'PointwiseConv2d')])
def test_fast_layers_are_taken_and_equal(name, layer):
    model, x = model_of(name), torch.randint(0, 256, (40, 3, 64, 64), dtype=torch.uint8)
    fast, plain = FoldedModel(model).eval(), FoldedModel(model, fast=False).eval()
    a, b = fast(x), plain(x)
    assert layer in kinds(fast) and layer not in kinds(plain)
    assert fast.difference <= fold.FOLD_TOLERANCE and (a-b).abs().max() <= 2*fold.FOLD_TOLERANCE*b.abs().max()
    with torch.no_grad(): torch.testing.assert_close(a, model(x), rtol=1e-4, atol=1e-5)


def test_layers_that_compute_something_else_are_left_out(recwarn):
    def wrong(net, format):
        for m in net.modules():
            if isinstance(m, nn.Conv2d): m.bias = nn.Parameter(torch.ones(m.out_channels), requires_grad=False)
        return net
    model, x = model_of('test_efficientnet'), torch.rand(3, 3, 64, 64)
    plain = FoldedModel(model, fast=False).eval()(x)
    for broken in (wrong, lambda net, format: nn.Sequential()):   # another result, none at all
        with patch.object(fold, 'fast_net', side_effect=broken) as called: kept = FoldedModel(model).eval()(x)
        assert called.called and torch.equal(kept, plain)
    assert not recwarn.list


def test_packed_weights_are_not_used_in_other_precisions():
    conv, x = nn.Conv2d(8, 8, 1), torch.randn(2, 8, 5, 5)
    packed = PackedConv2d(conv, nn.ReLU6())
    with torch.inference_mode(), torch.autocast('cpu', torch.bfloat16): assert packed(x).dtype == torch.bfloat16
    assert packed.packed is None
    out = packed(x)
    assert out.requires_grad and packed.packed is None   # autograd records
    with torch.inference_mode(): torch.testing.assert_close(packed(x), out)
    assert packed.packed is not None


def test_features_do_not_depend_on_the_number_of_threads(two_threads):
    model, pp, files = model_of('test_efficientnet'), body_preprocess('test_efficientnet', 64), digits_table().path[:70]
    find = lambda: frozen_features(model, files, pp, bs=8, cache=False)
    n_threads = []
    run = FoldedModel.forward
    def counted(self, x):
        n_threads.append(torch.get_num_threads())
        return run(self, x)
    with patch.object(FoldedModel, 'forward', counted): several = find()
    assert n_threads == [2] + 8*[1]   # the first batch is checked
    assert torch.get_num_threads() == 2 and threads._blas_threads() <= 2
    torch.set_num_threads(1)
    assert np.array_equal(several.rows, find().rows)


def test_an_error_in_a_thread_is_raised(two_threads):
    model, pp, files = model_of('test_efficientnet'), body_preprocess('test_efficientnet', 64), digits_table().path[:40]
    def fails(self, net, x):
        if torch.get_num_threads() == 1: raise RuntimeError('out of memory')
        return torch.zeros(len(x), 24)
    with patch.object(FoldedModel, '_run', fails), patch.object(FoldedModel, 'check'):
        with pytest.raises(RuntimeError, match='out of memory'): frozen_features(model, files, pp, bs=8, cache=False)
    assert torch.get_num_threads() == 2
