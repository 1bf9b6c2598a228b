"What makes a training step fast, and leaves its numbers alone"
import inspect, sys, warnings
from types import SimpleNamespace
from unittest.mock import patch

import pytest, torch
from fastai.callback.core import Callback
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.progress import ProgressCallback
from fastai.learner import AvgSmoothLoss
from fastai.optimizer import SGD, Adam
from fastcore.docments import docments
from fastprogress.fastprogress import ConsoleMasterBar, NBMasterBar

from conftest import TINY
from fastbit.training.callbacks import RarelyProgress
from fastbit.data import image_dataloaders
from fastbit.training import ForeachSGD, FusedAdam, History, TransferLearner, transfer_learner
from fastbit.training.precision import fast_precision


@pytest.fixture
def dls(folder): return image_dataloaders(folder, 'test_efficientnet', size=32, bs=8, num_workers=0, check=False)


def trained(dls, opt_func, freeze_to=0, epochs=2, cbs=None, wd=.1, **kwargs):
    torch.manual_seed(0)
    learn = transfer_learner(dls, **TINY, opt_func=opt_func, cbs=cbs, **kwargs)
    dls.train.rng.seed(0)
    with learn.no_logging(), learn.no_bar():
        learn.fit_one_cycle(1, 1e-2)
        learn.freeze_to(freeze_to)
        learn.fit_one_cycle(epochs, slice(1e-4, 1e-3), wd=wd)
    return learn


def flat(learn): return torch.cat([p.detach().ravel() for p in learn.model.parameters()])


@pytest.mark.parametrize('theirs, ours', [(Adam, FusedAdam), (lambda ps, lr, **k: SGD(ps, lr, mom=.9), lambda ps, lr, **k: ForeachSGD(ps, lr, mom=.9))])
@pytest.mark.parametrize('freeze_to', [0, 3])
def test_steps_are_those_of_fastai(dls, theirs, ours, freeze_to):
    "With groups at different rates, frozen ones, norms and biases that do not decay, state from an earlier fit"
    a, b = (trained(dls, f, freeze_to, wd=20., bn='affine') for f in (theirs, ours))   # so much that a norm's weight that decays, or a kernel that does not, is seen
    torch.testing.assert_close(flat(b), flat(a), rtol=1e-3, atol=2e-5)
    assert b.recorder.losses[-1] == pytest.approx(float(a.recorder.losses[-1]), rel=1e-3)


@pytest.mark.filterwarnings('ignore:numpy.core')
def test_saved_state_goes_on(dls, tmp_path):
    "Of the optimizer, ours and fastai's Adam alike"
    for first in (FusedAdam, Adam):
        a = trained(dls, first)
        a.save(tmp_path/'state')
        b = transfer_learner(dls, **TINY)
        b.unfreeze(); b.create_opt(); b.opt.set_hypers(lr=1e-3)
        b.load(tmp_path/'state')
        for learn in (a, b):
            dls.train.rng.seed(1)
            with learn.no_logging(), learn.no_bar(): learn.fit(1, 1e-3)
        torch.testing.assert_close(flat(b), flat(a), rtol=1e-4, atol=1e-6)


def test_a_step_waits_for_nothing(dls):
    "No number is asked for while it trains: on an accelerator, each would make Python wait"
    asked, training = [], []
    class Watch(Callback):
        order = -100
        def before_train(self): training.append(1)
        def after_train(self): training.clear()
    def watch(name):
        plain = getattr(torch.Tensor, name)
        def f(self, *args, **kwargs):
            by = sys._getframe(1).f_code.co_filename
            if training and self.is_floating_point() and self.numel() == 1 and not by.endswith('schedule.py'): asked.append((name, by))   # a schedule's position is a number on the CPU
            return plain(self, *args, **kwargs)
        return patch.object(torch.Tensor, name, f)
    with watch('item'), watch('cpu'), watch('tolist'), watch('__float__'), watch('__bool__'): learn = trained(dls, FusedAdam, cbs=Watch())
    assert asked == [] and len(learn.history.steps) == 3*len(dls.train)


def test_the_smoothed_loss_is_fastais(dls):
    with_ours = trained(dls, FusedAdam)
    torch.manual_seed(0)
    learn = transfer_learner(dls, **TINY)
    learn.recorder.smooth_loss = AvgSmoothLoss()
    dls.train.rng.seed(0)
    with learn.no_logging(), learn.no_bar():
        learn.fit_one_cycle(1, 1e-2); learn.freeze_to(0); learn.fit_one_cycle(2, slice(1e-4, 1e-3), wd=.1)
    assert [float(o) for o in learn.recorder.losses] == [float(o) for o in with_ours.recorder.losses]
    assert learn.recorder.values == with_ours.recorder.values


@pytest.mark.parametrize('kind', [ConsoleMasterBar, NBMasterBar])
def test_the_bar_of_a_resumed_fit_begins_later(kind, capsys, monkeypatch):
    "In a terminal and in a notebook; the last line fails when fastprogress needs no help any more"
    if kind is NBMasterBar: pytest.importorskip('IPython')
    if kind is NBMasterBar: monkeypatch.setattr('IPython.display.display', lambda *args, **kwargs: SimpleNamespace(update=lambda o: None))
    cb = RarelyProgress()
    cb.learn, cb.mbar = SimpleNamespace(epoch=2), kind(list(range(4)))
    cb.before_epoch()
    cb.learn.epoch = 3
    cb.before_epoch()
    assert cb.mbar.main_bar.last_v == 3
    with pytest.raises(AttributeError, match='start_t'): kind(list(range(4))).update(2)


def test_the_bar_reads_the_loss_rarely():
    class Loss:
        def __init__(self): self.n = 0
        def item(self): self.n += 1; return 1.
    class Bar:
        def update(self, i): pass
    cb = RarelyProgress()
    cb.pbar, cb.iter, cb.smooth_loss = Bar(), 0, Loss()
    for _ in range(1000): cb.after_batch()
    assert 1 <= cb.smooth_loss.n < 100 and isinstance(cb, ProgressCallback) and cb.name == 'progress'


def test_bf16_on_a_cpu(dls):
    kinds = set()
    class Look(Callback):
        def after_pred(self):
            if self.training: kinds.add(seen[-1])
    seen = []
    torch.manual_seed(0)
    learn = transfer_learner(dls, **TINY, precision='bf16', cbs=Look())
    hook = learn.model.net.conv_head.register_forward_hook(lambda m, i, o: seen.append(o.dtype))
    learn.unfreeze()
    with learn.no_logging(), learn.no_bar(): learn.fit_one_cycle(1, 1e-3)
    hook.remove()
    assert kinds == {torch.bfloat16} and all(p.dtype == torch.float32 for p in learn.model.parameters())
    with pytest.raises(ValueError, match="'bf16'"): transfer_learner(dls, **TINY, precision='half')
    assert fast_precision('cpu') in ('float32', 'bf16')


def test_fastais_mixed_precision_still_names_cuda(dls):
    "fastai 2.8.12; when this fails, `DevicePrecision` is no longer needed"
    seen = []
    learn = transfer_learner(dls, **TINY, cbs=MixedPrecision('bf16'))
    hook = learn.model.net.conv_head.register_forward_hook(lambda m, i, o: seen.append(o.dtype))
    with learn.no_logging(), learn.no_bar(), warnings.catch_warnings(): warnings.simplefilter('ignore'); learn.fit(1, 1e-3)
    hook.remove()
    assert set(seen) == {torch.float32}


def test_checkpointing_changes_no_gradient(dls):
    grads = []
    for on in (False, True):
        torch.manual_seed(0)
        learn = transfer_learner(dls, **TINY, grad_checkpointing=on)
        learn.unfreeze(); learn.model.train()
        torch.nn.init.normal_(learn.model.net.classifier.weight, generator=torch.manual_seed(1))
        calls = []
        hook = learn.model.net.blocks[0][0].register_forward_pre_hook(lambda *o: calls.append(1))
        x, y = dls.valid.one_batch()
        learn.loss_func(learn.model(x), y).backward()
        hook.remove()
        grads.append(torch.cat([p.grad.ravel() for p in learn.model.parameters() if p.grad is not None]))
        assert len(calls) == 1 + on   # once more on the way back
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-5, atol=1e-7)


def test_workers_where_they_help(monkeypatch):
    from fastbit.data import batches
    for cores, device, n, wanted in ((2, 'cpu', 1000, 0), (16, 'cpu', 1000, 16), (2, 'cuda', 1000, 2), (64, 'cuda', 1000, 16), (16, 'cpu', 100, 0)):
        monkeypatch.setattr(batches.os, 'cpu_count', lambda cores=cores: cores)
        assert batches.default_workers(n, torch.device(device)) == wanted


def test_patched_methods_keep_their_signatures():
    options = dict(inspect.signature(TransferLearner.fit_one_cycle).parameters)
    assert list(options)[1:4] == ['n_epoch', 'lr_max', 'div'] and {'checkpoint', 'checkpoint_every', 'before'} < set(options) and 'kwargs' not in options
    assert {'cbs', 'wd', 'moms', 'checkpoint'} < set(inspect.signature(TransferLearner.fine_tune).parameters)
    assert {'lr', 'wd', 'moms', 'cbs', 'path', 'model_dir'} < set(inspect.signature(transfer_learner).parameters)
    for f in (TransferLearner.fit_one_cycle, TransferLearner.fine_tune, TransferLearner.fit_hyperrule, transfer_learner):
        told = docments(f, returns=False)
        assert all(told.get(n) for n in inspect.signature(f).parameters if n not in ('self', 'start_epoch')), (f, told)


def test_a_misspelt_option_of_a_fit_is_named(dls):
    learn = transfer_learner(dls, **TINY)
    with pytest.raises(TypeError, match='no argument pct_strt. Did you mean pct_start'): learn.fit_one_cycle(1, pct_strt=.1)
    with pytest.raises(TypeError, match='no argument wdd'): learn.fine_tune(1, wdd=.1)
    with pytest.raises(TypeError, match='eval_evry'): learn.fit_hyperrule(eval_evry=3)
    with pytest.raises(TypeError, match='Did you mean model_dir'): transfer_learner(dls, model_dirs='x', **TINY)


def test_a_history_of_version_0_1_0_is_read():
    "It called the phase of a row its stage"
    tensors = {k: torch.tensor([.5, .25]) for k in ('loss', 'lr_first', 'lr_last')}
    values = dict(rows=[dict(stage='head', epoch=0, valid_loss=1., step=2)], stages=['head'])
    history = History()
    history.load_checkpoint_state(values, tensors | dict(epoch=torch.zeros(2), stage=torch.zeros(2, dtype=torch.int64)))
    assert history.epochs.phase.tolist() == ['head'] and history.steps.phase.tolist() == ['head']*2 and history.steps.loss.tolist() == [.5, .25]
    again = History()
    again.load_checkpoint_state(*history.checkpoint_state())
    assert again.rows == history.rows and again.step_rows == history.step_rows
