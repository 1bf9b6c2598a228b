"Fused training steps on a CPU: the same gradients, models and files, and where they are not taken"
from contextlib import nullcontext
from copy import deepcopy

import pytest, torch, torch.nn.functional as F
from fastai.callback.core import Callback
from timm.layers import GroupNormAct, StdConv2d
from timm.layers.conv2d_same import Conv2dSame
from torch import nn
from torch.nn.grad import conv2d_weight
from torch.testing import assert_close

from fastbit.bodies import build_body, fused, TransferModel
from fastbit.bodies.conv_grad import depthwise_conv2d, depthwise_weight_grad, has_slow_grad
from fastbit.bodies.fused import can_fuse, fused_steps
from fastbit.core import memory
from fastbit.data import image_dataloaders
from fastbit.training import transfer_learner
from fastbit.training.identity import describe_run
from conftest import TINY, small_bit

LAST = dict(memory_format=torch.channels_last)


def draw(*shape): return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape) + sum(shape)))


def relative(a, b): return ((a.double()-b).norm()/b.norm().clamp_min(1e-30)).item()


CASES = [   # images, channels, (height, width), (kernel height, width), stride, padding
    (n, 16, size, kernel, (s, s), (p, p))
    for n, size in [(1, (8, 8)), (5, (4, 7)), (3, (2, 2)), (2, (1, 1)), (2, (40, 33))]
    for kernel in [(3, 3), (5, 5), (7, 7), (3, 5), (5, 2)]
    for s, p in [(1, kernel[0]//2), (2, kernel[0]//2), (2, kernel[0]-1), (3, 2)]
    if all(o + 2*p >= k for o, k in zip(size, kernel))]


@pytest.mark.parametrize('case', [*CASES, (2, 8, (9, 6), (5, 5), (1, 2), (2, 1)), (65, 8, (8, 8), (5, 5), (1, 1), (0, 0))])
def test_weight_gradient_is_as_exact_as_torchs(case):
    n, c, size, kernel, stride, padding = case
    x = draw(n, c, *size).contiguous(**LAST)
    w = draw(c, 1, *kernel)
    g = draw(*F.conv2d(x, w, stride=stride, padding=padding, groups=c).shape).contiguous(**LAST)
    how = dict(stride=stride, padding=padding, groups=c)
    truth = conv2d_weight(x.double(), w.shape, g.double(), **how)
    ours = depthwise_weight_grad(x, g, kernel, stride, padding)
    assert ours.shape == w.shape
    assert relative(ours, truth) < 1e-6
    unreached = truth.abs().amax(0) == 0   # places of the kernel that meet padding only
    assert not ours[:, unreached].any()


@pytest.mark.parametrize('wants', [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1)])
def test_depthwise_convolution_gives_only_the_gradients_that_are_asked_for(wants):
    inputs = [draw(2, 8, 6, 6).contiguous(**LAST), draw(8, 1, 5, 5), draw(8)]
    for t, want in zip(inputs, wants): t.requires_grad_(bool(want))
    plain = [t.detach().clone().requires_grad_(t.requires_grad) for t in inputs]
    a, b = depthwise_conv2d(*inputs, (2, 2), (2, 2)), F.conv2d(*plain, 2, 2, groups=8)
    assert torch.equal(a, b)
    a.square().sum().backward()
    b.square().sum().backward()
    for ours, theirs in zip(inputs, plain):
        assert (ours.grad is None) == (theirs.grad is None)
        if ours.grad is not None: assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-5)


def test_per_image_gradients_through_torch_func():
    x, w = draw(3, 1, 8, 6, 6), draw(8, 1, 5, 5)
    def grads(conv): return torch.func.vmap(torch.func.grad(lambda w, x: conv(w, x).square().sum()), (None, 0))(w, x)
    ours = grads(lambda w, x: depthwise_conv2d(x, w, None, (1, 1), (2, 2)))
    assert_close(ours, grads(lambda w, x: F.conv2d(x, w, padding=2, groups=8)), rtol=1e-5, atol=1e-4)


def test_slow_is_decided_by_shapes():
    x, w = torch.zeros(2, 16, 8, 8).contiguous(**LAST), torch.zeros(16, 1, 5, 5)
    assert has_slow_grad(x, w, (1, 1), (2, 2))
    assert not has_slow_grad(x.contiguous(), w, (1, 1), (2, 2))
    assert not has_slow_grad(x, w, (1, 1), (2, 2), dilation=(2, 2))
    assert not has_slow_grad(x.double(), w.double(), (1, 1), (2, 2))
    assert not has_slow_grad(x, w[..., :3], (1, 1), (2, 1))
    assert not has_slow_grad(x, torch.zeros(32, 1, 5, 5), (1, 1), (2, 2))
    assert not has_slow_grad(x, torch.zeros(16, 16, 5, 5), (1, 1), (2, 2))


def body(arch, bn='affine', size=32):
    "A model as after training, with BatchNorm fixed, and images"
    torch.manual_seed(0)
    model = TransferModel(build_body(arch, 3, weights='random'), bn).train()
    nn.init.normal_(model.stage_params()[-1][0])
    for m in model.modules():
        if not isinstance(m, nn.BatchNorm2d): continue
        nn.init.uniform_(m.running_mean, -.3, .3)
        nn.init.uniform_(m.running_var, .5, 2)
    return model, torch.rand(3, 3, size, size)


def gradients(model, x):
    model.zero_grad()
    model(x).square().mean().backward()
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize('arch', ['tf_efficientnet_b0', 'mobilenetv4_conv_small', 'mobilenetv3_small_050'])
def test_gradients_of_a_body_are_those_of_float64(arch):
    model, x = body(arch)
    state = deepcopy(model.state_dict())
    ours = gradients(model, x)
    model.fused = False
    plain, truth = gradients(model, x), gradients(deepcopy(model).double(), x.double())
    assert ours.keys() == truth.keys()
    whole = sum(g.square().sum() for g in truth.values()).sqrt()   # some are zero but for rounding
    def error(grads): return max(((grads[n].double()-g).norm()/(g.norm() + 1e-3*whole)).item() for n, g in truth.items())
    assert error(ours) < max(2e-6, 2*error(plain))
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_frozen_stages_stay_frozen_and_get_no_gradient():
    model, x = body('tf_efficientnet_b0')
    model.freeze_to(5)
    state = deepcopy(model.state_dict())
    grads = gradients(model, x)
    assert {n.removeprefix('net.') for n in grads} == {n for s in model.stages[5:] for n in s.params}
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_asymmetric_padding_is_fused():
    model, _ = body('tf_efficientnet_b0')
    same = [m for m in model.modules() if isinstance(m, Conv2dSame)]
    taken = {m for m, _ in fused._replacements(model.net)}
    assert same and taken.issuperset(same)


@pytest.fixture
def calls(monkeypatch):
    "Count the fused convolutions, and those with an own gradient"
    found = dict(convolutions=0, gradients=0)
    convolve, grad = fused._convolve, torch.nn.grad.conv2d_weight
    def counted(*args):
        found['convolutions'] += 1
        return convolve(*args)
    def counted_grad(*args, **kwargs):
        found['gradients'] += 1
        return grad(*args, **kwargs)
    monkeypatch.setattr(fused, '_convolve', counted)
    monkeypatch.setattr('fastbit.bodies.conv_grad.conv2d_weight', counted_grad)
    return found


def test_training_takes_the_fused_way_and_nothing_else_does(calls):
    model, x = body('efficientnet_b0')
    n = sum(isinstance(m, nn.Conv2d) for m in model.modules())
    gradients(model, x)
    assert calls['convolutions'] == n and calls['gradients'] >= 9   # it has nine 5 x 5 kernels
    calls.update(convolutions=0, gradients=0)
    with torch.no_grad(): model(x)
    model.eval()(x)
    model.train().fused = False
    gradients(model, x)
    assert calls == dict(convolutions=0, gradients=0)


def test_switched_off_is_plain_bit_for_bit():
    model, x = body('efficientnet_b0')
    model.fused = False
    y = model.net(model.normalized(x))
    assert torch.equal(model(x), y)


@pytest.mark.parametrize('make', ['hook', 'autocast', 'compile', 'checkpointing', 'double', 'evaluation', 'no_grad'])
def test_falls_back(make, monkeypatch, calls):
    model, x = body('test_efficientnet')
    assert can_fuse(model.net)
    if make == 'hook': model.net.blocks.register_forward_hook(lambda *o: None)
    if make == 'compile': monkeypatch.setattr(torch.compiler, 'is_compiling', lambda: True)
    if make == 'checkpointing': model.net.set_grad_checkpointing(True)
    if make == 'double': model, x = model.double(), x.double()
    if make == 'evaluation': model.eval()
    within = dict(autocast=torch.autocast('cpu', torch.bfloat16), no_grad=torch.no_grad()).get(make, nullcontext())
    with within: model(x)
    assert not calls['convolutions']


def test_batchnorm_that_trains_is_not_folded():
    model, x = body('efficientnet_b0', bn='train')
    before = deepcopy(model.state_dict())
    folded = [m for m, _ in fused._replacements(model.net) if isinstance(m, nn.BatchNorm2d)]
    model(x)
    moved = [k for k, v in model.state_dict().items() if k.endswith('running_mean') and not torch.equal(v, before[k])]
    assert not folded and len(moved) == sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())


def test_modules_are_restored_after_an_error():
    model, x = body('test_efficientnet')
    with pytest.raises(RuntimeError, match='stop'), fused_steps(model.net): raise RuntimeError('stop')
    assert can_fuse(model.net)
    assert not any('forward' in vars(m) for m in model.modules())


# BiT

def bit(act=nn.Softplus):
    "A small BiT body; with a smooth activation, because ReLU's gradient may change with the last digit of its input"
    torch.manual_seed(0)
    model = TransferModel(small_bit()).train()
    for m in model.modules():
        if isinstance(m, GroupNormAct): m.act = act()
    nn.init.normal_(model.net.get_classifier().weight)
    return model, torch.rand(3, 3, 64, 64)


@pytest.fixture
def standardized(monkeypatch):
    "Count the convolutions with standardized weights that are fused"
    calls, own = [], fused._convolve_standardized
    monkeypatch.setattr(fused, '_convolve_standardized', lambda conv, x: calls.append(conv) or own(conv, x))
    return calls


def test_gradients_of_a_bit_body_are_those_of_float64(standardized):
    model, x = bit()
    state, n = deepcopy(model.state_dict()), sum(isinstance(m, StdConv2d) for m in model.modules())
    ours, again = gradients(model, x), gradients(model, x)
    assert len(standardized) == 2*n and all(torch.equal(g, again[k]) for k, g in ours.items())
    model.fused = False
    plain, truth = gradients(model, x), gradients(deepcopy(model).double(), x.double())
    assert len(standardized) == 2*n and ours.keys() == truth.keys()
    whole = sum(g.square().sum() for g in truth.values()).sqrt()
    def error(grads): return max(((grads[k].double()-g).norm()/(g.norm() + 1e-3*whole)).item() for k, g in truth.items())
    assert error(ours) < max(2e-6, 2*error(plain))
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize('shape, stride', [((8, 16, 1, 1), 1), ((8, 16, 1, 1), 2), ((8, 16, 1, 1), 3), ((8, 16, 3, 3), 2), ((16, 3, 7, 7), 2)])
def test_a_convolution_with_standardized_weights_is_as_exact_as_timms(shape, stride):
    n_out, n_in, size, _ = shape
    conv, x = StdConv2d(n_in, n_out, size, stride=stride), draw(2, n_in, 9, 8)
    with torch.no_grad(): conv.weight.add_(.1)
    def run(f, conv, x):
        conv.weight.grad, x = None, x.clone().requires_grad_()
        y = f(conv, x)
        y.square().sum().backward()
        return y.detach(), conv.weight.grad, x.grad
    truth = run(lambda c, x: c(x), deepcopy(conv).double(), x.double())
    for ours, t in zip(run(fused._convolve_standardized, conv, x), truth): assert relative(ours, t) < 1e-6


def test_the_first_norm_is_as_exact_as_in_contiguous_memory():
    model, _ = bit(nn.ReLU)
    first = next(m for m in model.modules() if isinstance(m, nn.GroupNorm))
    taken = {m: f for m, f in fused._replacements(model.net) if isinstance(m, nn.GroupNorm) and f.func is fused._norm_contiguous}
    x = (draw(2, first.num_channels, 16, 16) + 3).contiguous(**LAST)   # far from zero, as after the stem
    assert list(taken) == [first] and torch.equal(taken[first](x), first(x.contiguous()))


def test_bit_bodies_train_the_plain_way_with_hooks(standardized):
    model, x = bit()
    model.net.stages.register_forward_hook(lambda *o: None)
    gradients(model, x)
    assert not standardized


def test_frozen_stages_of_a_bit_body_get_no_gradient(standardized):
    model, x = bit()
    model.freeze_to(3)
    grads = gradients(model, x)
    assert standardized and {n.removeprefix('net.') for n in grads} == {n for s in model.stages[3:] for n in s.params}


def train(folder, arch='test_efficientnet', **options):
    dls = image_dataloaders(folder, arch, size=32, bs=8, num_workers=0, seed=0)
    torch.manual_seed(0)
    learn = transfer_learner(dls, **{**TINY, 'arch': arch}, **options)
    learn.unfreeze()
    with learn.no_logging(), learn.no_bar(): learn.fit_one_cycle(1, 1e-3)
    return learn, {k: v.clone() for k, v in learn.model.state_dict().items()}


def test_a_fit_is_repeatable_and_equals_the_plain_one_to_rounding(folder):
    learn, first = train(folder)
    _, second = train(folder)
    plain, third = train(folder, fused=False)
    assert all(torch.equal(second[k], v) for k, v in first.items())
    assert_close(third, first, rtol=1e-3, atol=1e-4)   # Adam divides by the gradient's size
    assert list(third) == list(first)
    assert 'fused' not in describe_run(learn, {})['training']
    assert describe_run(plain, {})['training']['fused'] is False


# memory

class Libc:
    "glibc's calls, written down"
    def __init__(self): self.calls = []
    def mallopt(self, name, value): self.calls.append((name, value))
    def malloc_trim(self, pad): self.calls.append('trim')


@pytest.mark.parametrize('fails', [False, True])
def test_a_fit_keeps_memory_and_returns_it_at_the_end(folder, monkeypatch, fails):
    libc, during = Libc(), []
    monkeypatch.setattr(memory, '_glibc', lambda: libc)
    class Look(Callback):
        def after_batch(self):
            during.append(dict(libc.calls))
            if fails: raise ZeroDivisionError('stop')
    dls = image_dataloaders(folder, TINY['arch'], size=32, bs=8, num_workers=0)
    learn = transfer_learner(dls, **TINY)
    with learn.no_logging(), learn.no_bar(), pytest.raises(ZeroDivisionError) if fails else nullcontext():
        learn.fit_one_cycle(1, 1e-3, cbs=Look())
    kept = {memory._MMAP_THRESHOLD: memory._LARGEST, memory._TRIM_THRESHOLD: 2**31-1, memory._MMAP_MAX: 0}
    usual = kept | {memory._TRIM_THRESHOLD: 2*memory._LARGEST, memory._MMAP_MAX: memory._MMAPS}
    assert during and all(found == kept for found in during)   # in every batch, and set once
    assert libc.calls == [*kept.items(), *usual.items(), 'trim']


def test_memory_is_left_to_a_user_who_has_set_it(monkeypatch):
    monkeypatch.setenv('MALLOC_ARENA_MAX', '1')
    assert memory._glibc() is None
