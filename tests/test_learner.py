"What a transfer learner promises, and fastai's traps that it stays out of"
import random

import matplotlib.pyplot as plt
import numpy as np, pytest, torch
from fastai.callback import schedule
from fastai.callback.core import Callback
from fastai.data.transforms import Normalize
from fastai.interpret import ClassificationInterpretation
from fastai.optimizer import ranger
from fastai.torch_core import TensorImage
from fastai.vision.augment import Resize
from fastai.vision.data import ImageDataLoaders
from fasttransform import Transform
from torch import nn
from torch.testing import assert_close

from fastbit.bodies import build_body, TransferModel
from fastbit.data import image_dataloaders
from fastbit.training import transfer_learner
from fastbit.training.learner import BODY_LR, HEAD_LR
from fastbit.core.text import DataWarning
from conftest import TINY

same = dict(rtol=0, atol=0)


@pytest.fixture
def dls(folder): return image_dataloaders(folder, 'test_efficientnet', size=32, bs=8, num_workers=0)


@pytest.fixture
def learn(dls):
    torch.manual_seed(0)
    learn = transfer_learner(dls, **TINY)
    with learn.no_logging(): yield learn
    plt.close('all')


def snapshot(learn): return {k: v.clone() for k, v in learn.model.state_dict().items()}


def changed(learn, before): return {k for k, v in learn.model.state_dict().items() if not torch.equal(v, before[k])}


def test_first_loss_is_ln_c(learn):
    assert_close(learn.evaluate().loss, float(np.log(3)))


def test_stages_get_rates_of_their_own(learn):
    "fastai gives a timm body one group and the head another, so a slice means two rates"
    learn.unfreeze()
    rates = learn.lr_table(slice(1e-5, 1e-2)).lr
    assert len(rates) == len(learn.model.stages) == 7
    ratios = rates[1:].values / rates[:-1].values
    assert ratios == pytest.approx(1000**(1/6)) and rates.iloc[[0, -1]].tolist() == pytest.approx([1e-5, 1e-2])
    learn.fit(1, slice(1e-5, 1e-2))
    assert [h['lr'] for h in learn.opt.hypers] == pytest.approx(rates.tolist())
    assert learn.lr_table(slice(1e-2)).lr.tolist() == pytest.approx([1e-3]*6 + [1e-2])


def test_lr_table_changes_nothing(learn):
    before = [dict(h) for h in learn.opt.hypers]
    learn.lr_table(slice(1e-6, 1))
    assert [dict(h) for h in learn.opt.hypers] == before
    assert learn.lr_table().lr.tolist()[:-1] == [0]*6


@pytest.mark.parametrize('n', [-1, 1, 3, 5])
def test_frozen_is_frozen(learn, n):
    "Parameters and BatchNorm buffers bit for bit; fastai's train_bn trains the norms of a frozen body"
    learn.freeze_to(n)
    before, frozen = snapshot(learn), {f'net.{p}' for s in learn.model.stages[:n] for p in s.params}
    learn.fit_one_cycle(2, 1e-2)
    after = changed(learn, before)
    assert after and not after & frozen and not any('running' in k or 'tracked' in k for k in after)
    names = dict(learn.model.net.named_modules())
    assert not any(names[m].training for s in learn.model.stages[:n] for m in s.modules)


@pytest.mark.parametrize('arch', ['test_efficientnet', 'test_efficientnet_gn', 'test_efficientnet_evos'])
def test_frozen_part_has_no_graph(arch):
    model = TransferModel(build_body(arch, 3, 'random')).train()
    model.freeze_to(len(model.stages)-1)
    assert not model.net.forward_features(torch.rand(2, 3, 32, 32)).requires_grad
    model.freeze_to(3)
    seen = []
    model.net.blocks[1].register_forward_hook(lambda m, i, o: seen.append((i[0].requires_grad, o.requires_grad)))
    model.net.blocks[2].register_forward_hook(lambda m, i, o: seen.append((i[0].requires_grad, o.requires_grad)))
    model(torch.rand(2, 3, 32, 32))
    assert seen == [(False, False), (False, True)]


def test_frozen_again_stays_frozen(learn):
    "Gradients left over from an unfrozen fit are zeros that the optimizer goes on decaying and averaging"
    learn.unfreeze(); learn.fit_one_cycle(1, 1e-2)
    learn.freeze()
    before = snapshot(learn)
    learn.fit_one_cycle(2, 1e-2)
    assert changed(learn, before) == {'net.classifier.weight', 'net.classifier.bias'}


def test_dropout_and_drop_path_of_a_frozen_body_are_off(dls):
    learn = transfer_learner(dls, 'tf_efficientnet_lite0', 'random', drop_path_rate=.5, drop_rate=.5)   # the tiny body has no skip to drop
    learn.model.train()
    x = torch.rand(2, 3, 32, 32)
    assert_close(learn.model.net.forward_features(x), learn.model.net.forward_features(x), **same)
    nn.init.normal_(learn.model.net.classifier.weight)
    assert not torch.equal(learn.model(x), learn.model(x))   # the dropout before the classifier is on
    learn.unfreeze(); learn.model.train()
    assert not torch.equal(learn.model.net.forward_features(x), learn.model.net.forward_features(x))


@pytest.mark.parametrize('bn, norms, stats', [('frozen', False, False), ('affine', True, False), ('train', True, True)])
def test_batchnorm_modes_unfrozen(dls, bn, norms, stats):
    learn = transfer_learner(dls, **TINY, bn=bn)
    learn.unfreeze()
    before = snapshot(learn)
    with learn.no_logging(): learn.fit(1, 1e-2)
    after = changed(learn, before)
    assert any('bn1.weight' in k for k in after) == norms and any('running_mean' in k for k in after) == stats
    assert any('conv' in k for k in after)
    with pytest.raises(ValueError, match="'affine'"): transfer_learner(dls, **TINY, bn='off')


@pytest.mark.parametrize('arch', ['test_efficientnet', 'test_efficientnet_gn', 'test_efficientnet_evos'])
def test_weight_decay_spares_norms_and_biases(dls, arch):
    "fastai's list of norms has no GroupNorm"
    learn = transfer_learner(dls, arch, weights='random', bn='affine', wd=.5)
    learn.unfreeze()
    before = snapshot(learn)
    for p in learn.model.parameters(): p.grad = torch.zeros_like(p)
    learn.opt.set_hypers(lr=.1, wd=.5); learn.opt.step()
    named = {f'net.{n}': p for n, p in learn.model.net.named_parameters()}
    assert changed(learn, before) == {n for n, p in named.items() if p.ndim > 1 and before[n].any()}
    assert any(isinstance(m, nn.GroupNorm) for m in learn.model.modules()) == (arch == 'test_efficientnet_gn')


def test_two_bodies_on_the_same_loaders_keep_their_own_statistics(dls):
    "fastai puts the first body's normalisation into the loaders, and the second trains on it"
    imagenet, half = transfer_learner(dls, **TINY), transfer_learner(dls, 'tf_efficientnetv2_b0.in1k', 'random')
    assert not any(isinstance(f, Normalize) for f in dls.after_batch.fs)
    for learn in (imagenet, half):
        cfg = learn.model.net.pretrained_cfg
        assert learn.model.mean.flatten().tolist() == pytest.approx(cfg['mean']) and learn.model.std.flatten().tolist() == pytest.approx(cfg['std'])
    x, seen = torch.rand(2, 3, 32, 32), []
    half.model.net.register_forward_pre_hook(lambda m, i: seen.append(i[0]))
    half.model(x)
    mean, std = (torch.tensor(half.model.net.pretrained_cfg[k]).view(1, 3, 1, 1) for k in ('mean', 'std'))
    assert_close(seen[0], (x-mean)/std)


def test_loaders_that_normalize_are_refused(folder):
    def made(**kwargs): return image_dataloaders(folder, 'test_efficientnet', size=32, num_workers=0, check=False, **kwargs)
    with pytest.raises(ValueError, match='normalize already'): transfer_learner(made(batch_tfms=[Normalize.from_stats([.5]*3, [.5]*3)]), **TINY)
    class Scale(Transform):
        order = 20   # after the pixels are floats
        def encodes(self, x: TensorImage): return x*2 - 1
    with pytest.raises(ValueError, match='normalizes or scales'): transfer_learner(made(batch_tfms=[Scale()]), **TINY)
    foreign = ImageDataLoaders.from_folder(folder, valid_pct=.2, item_tfms=Resize(32), batch_tfms=Normalize.from_stats([.5]*3, [.5]*3), num_workers=0)
    with pytest.raises(ValueError, match='Remove it'): transfer_learner(foreign, **TINY)


def test_other_interpolation_is_said(folder):
    dls = image_dataloaders(folder, 'BiT-M-R50x1', size=32, num_workers=0)
    with pytest.warns(DataWarning, match='bilinear'): transfer_learner(dls, **TINY)


def test_fastais_own_loaders_work(folder):
    dls = ImageDataLoaders.from_folder(folder, valid_pct=.2, seed=1, item_tfms=Resize(32), bs=8, num_workers=0)
    learn = transfer_learner(dls, **TINY)
    with learn.no_logging(): learn.fine_tune(1)
    assert learn.evaluate().n == 8
    one, plain = learn.tta(views=['identity'], show=False), learn.get_preds()
    assert_close(one[0], plain[0], **same)
    with pytest.raises(ValueError, match='fastbit did not make'): learn.tta(views='five_crops')


def test_a_loader_without_batches_is_refused(folder):
    dls = ImageDataLoaders.from_folder(folder, valid_pct=.2, item_tfms=Resize(32), bs=64, num_workers=0)   # drops the last batch
    learn = transfer_learner(dls, **TINY)
    for f in (lambda: learn.fit_one_cycle(1), lambda: learn.lr_find()):
        with pytest.raises(ValueError, match='no batches'): f()


# --- lr_find

def everything(learn):
    opt = [(k, v) for p in learn.model.parameters() for k, v in sorted(learn.opt.state[p].items())]
    return dict(weights=snapshot(learn), opt=[(k, v.clone() if isinstance(v, torch.Tensor) else v) for k, v in opt], hypers=[dict(h) for h in learn.opt.hypers],
                rng=(random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()), loader=learn.dls.train.rng.getstate(),
                modes=[m.training for m in learn.model.modules()], grads=[p.requires_grad for p in learn.model.parameters()], frozen=learn.opt.frozen_idx)


def assert_same(a, b):
    assert all(torch.equal(v, b['weights'][k]) for k, v in a['weights'].items())
    assert len(a['opt']) == len(b['opt']) and all(k == k2 and (torch.equal(v, v2) if isinstance(v, torch.Tensor) else v == v2) for (k, v), (k2, v2) in zip(a['opt'], b['opt']))
    assert (a['rng'][0], a['rng'][1].tolist(), a['rng'][2].tolist()) == (b['rng'][0], b['rng'][1].tolist(), b['rng'][2].tolist())
    assert all(a[k] == b[k] for k in ('hypers', 'loader', 'modes', 'grads', 'frozen'))


class Interrupt(Callback):
    "Presses Ctrl-C in the fifth step"
    def after_batch(self):
        if self.training and self.train_iter == 5: raise KeyboardInterrupt


@pytest.mark.parametrize('bn', ['frozen', 'train'])
@pytest.mark.parametrize('trained', [False, True])
def test_lr_find_leaves_no_trace(dls, tmp_path, monkeypatch, bn, trained):
    (tmp_path/'here').mkdir(); monkeypatch.chdir(tmp_path/'here')
    learn = transfer_learner(dls, **TINY, bn=bn)
    with learn.no_logging():
        learn.unfreeze()
        if trained: learn.fit(1, 1e-3)
        before, rows = everything(learn), len(learn.history.rows)
        learn.lr_find(num_it=25)
        assert_same(before, everything(learn))
        learn.add_cb(Interrupt())
        with pytest.raises(KeyboardInterrupt): learn.lr_find(num_it=25)
        learn.remove_cb(Interrupt)
        assert_same(before, everything(learn))
        assert len(learn.history.rows) == rows and learn.logger is not None
    assert not list((tmp_path/'here').iterdir())
    plt.close('all')


@pytest.mark.parametrize('trained', [False, True])
@pytest.mark.parametrize('options', [{}, dict(opt_func=ranger)], ids=['adam', 'ranger'])   # ranger is a Lookahead around RAdam, with slow weights
def test_training_after_lr_find_is_training_without_it(folder, options, trained):
    def run(find):
        random.seed(1); torch.manual_seed(1)
        dls = image_dataloaders(folder, 'test_efficientnet', size=32, bs=8, num_workers=0)
        learn = transfer_learner(dls, **TINY, **options)
        with learn.no_logging():
            if trained: learn.fit(2, 1e-2)
            if find: learn.lr_find(num_it=20, show_plot=False)
            if find: learn.lr_table(1.)
            learn.fit_one_cycle(2, 1e-2)
        return snapshot(learn), list(learn.recorder.lrs)
    (one, rates), (two, rates_after) = run(False), run(True)
    assert all(torch.equal(v, two[k]) for k, v in one.items())
    assert rates == rates_after and len(set(rates)) > 3


def test_lr_find_in_a_directory_that_takes_no_files(dls):
    learn = transfer_learner(dls, **TINY, path='/proc/1/nowhere')
    with learn.no_logging(): assert learn.lr_find(num_it=20, show_plot=False).valley > 0


def test_all_suggestion_rules(dls):
    learn = transfer_learner(dls)   # real weights, for a curve with a minimum
    learn.unfreeze()
    rates = learn.lr_find(num_it=40, suggest_funcs=(schedule.minimum, schedule.steep, schedule.valley, schedule.slide))
    assert rates._fields == ('minimum', 'steep', 'valley', 'slide') and all(1e-8 < r < 10 for r in rates)
    assert len(plt.gca().get_legend().get_texts()) == 4
    assert learn.lr_find(num_it=20, suggest_funcs=None, show_plot=False) is None


def test_no_clear_minimum_is_said(learn, capsys):
    rates = learn.lr_find(num_it=20, end_lr=1e-6, show_plot=False, suggest_funcs=(schedule.valley, schedule.minimum))
    assert 'no clear minimum' in capsys.readouterr().out and rates == (HEAD_LR, HEAD_LR)
    learn.unfreeze()
    assert learn.lr_find(num_it=20, end_lr=1e-6, show_plot=False).valley == BODY_LR


# --- predictions

def test_tta_identity_is_plain_prediction(learn):
    learn.unfreeze(); learn.fit_one_cycle(1, 1e-2)
    plain, targs = learn.get_preds()
    res = learn.tta(views=['identity'], show=False)
    assert_close(res[0], plain, **same); assert torch.equal(torch.as_tensor(res[1]), torch.as_tensor(targs))
    assert_close(learn.tta(show=False).plain, plain, **same)
    assert isinstance(res, tuple) and len(res) == 2


def test_tta_is_deterministic_and_decodes_once(learn, monkeypatch):
    "fastai draws n=4 random augmentations and decodes every image five times"
    learn.fit(1, 1e-2)
    from PIL import Image
    opened, real = [], Image.open
    monkeypatch.setattr(Image, 'open', lambda f, *a, **k: opened.append(f) or real(f, *a, **k))
    one = learn.tta(views=['identity', 'hflip', 'five_crops'], show=False)
    assert len(opened) == len(set(opened)) == learn.dls.valid.n   # crops are cut from the larger squares, which the check makes of training images
    opened.clear()
    learn.tta(views=['identity', 'hflip', 'five_crops'], show=False)
    assert not opened
    learn.dls.valid.pixels = None
    assert_close(learn.tta(views=['identity', 'hflip', 'five_crops'], show=False)[0], one[0], **same)
    assert len(opened) == learn.dls.valid.n
    two = learn.tta(views=['identity', 'hflip', 'five_crops'], show=False)
    assert_close(one[0], two[0], **same)
    each = torch.stack([learn.tta(views=[v], show=False)[0] for v in ('identity', 'hflip', 'crop_top_left', 'crop_top_right', 'crop_bottom_left', 'crop_bottom_right', 'crop_center')])
    assert_close(one[0], each.mean(0), rtol=1e-6, atol=1e-7)


def test_no_flip_where_the_data_was_made_without(folder):
    learn = transfer_learner(image_dataloaders(folder, 'test_efficientnet', size=32, flip=False, num_workers=0), **TINY)
    assert learn.tta(show=False).report.views['TTA'] == 6
    with pytest.raises(ValueError, match='made without it'): learn.tta(views=['identity', 'hflip'])
    with pytest.raises(ValueError, match='empty'): learn.tta(views=[])


def test_evaluate_is_the_whole_set_and_any_batch_size(learn, folder):
    learn.unfreeze(); learn.fit_one_cycle(1, 1e-2)
    ev = learn.evaluate()
    preds, targs = learn.get_preds()
    assert ev.n == learn.dls.valid.n == 8 and ev.accuracy == (preds.argmax(1) == targs).float().mean().item()
    assert_close(ev.loss, nn.functional.nll_loss(preds.log(), torch.as_tensor(targs)).item())
    for bs in (1, 3, 64):
        dl = learn.dls.valid.new(bs=bs)
        assert_close(learn.get_preds(dl=dl)[0], preds, rtol=1e-5, atol=1e-6)
        assert learn.evaluate(dl=dl).accuracy == ev.accuracy
    train = learn.evaluate(0)
    assert train.n == 32 and train == learn.evaluate(0)   # not on augmented images


def test_evaluate_prints_n_and_interval(learn, capsys):
    capsys.readouterr()
    ev = learn.evaluate()
    assert capsys.readouterr().out == f'{ev}\n' and f'n = {ev.n})' in str(ev) and '95% CI' in str(ev)


def test_evaluate_without_labels(learn, folder):
    dl = learn.dls.test_dl(learn.dls.valid_ds.items)
    with pytest.raises(ValueError, match='with_labels=True'): learn.evaluate(dl=dl)
    assert learn.tta(dl=dl)[1] is None
    labelled = learn.dls.test_dl(learn.dls.valid_ds.items, with_labels=True)
    assert learn.evaluate(dl=labelled) == learn.evaluate()


def test_predict_on_a_path_is_its_row_in_validation(learn):
    learn.fit(1, 1e-2)
    preds, _ = learn.get_preds()
    for i, p in enumerate(learn.dls.valid_ds.items[:3]):
        for form in (p, str(p)): assert_close(torch.as_tensor(learn.predict(form)[2]), preds[i], rtol=1e-5, atol=1e-6)


def test_fastais_tools_keep_working(learn, capsys):
    learn.fine_tune(1); learn.fit_flat_cos(1)
    learn.show_results(max_n=2); learn.dls.show_batch(max_n=2)
    interp = ClassificationInterpretation.from_learner(learn)
    assert interp.confusion_matrix().sum() == 8
    interp.plot_confusion_matrix(); interp.plot_top_losses(2); interp.print_classification_report()
    learn.recorder.plot_loss()
    learn.show_training_loop()


def test_the_saved_network_opens_in_plain_timm(learn, tmp_path):
    import timm
    learn.unfreeze(); learn.fit(1, 1e-2)
    torch.save(learn.model.net.state_dict(), tmp_path/'w.pth')
    net = timm.create_model('test_efficientnet', num_classes=3, checkpoint_path=tmp_path/'w.pth').eval()
    x = torch.rand(2, 3, 32, 32)
    assert_close(net((x-learn.model.mean)/learn.model.std), learn.model.eval()(x), rtol=1e-5, atol=1e-5)
    learn.path, learn.model_dir = tmp_path, '.'
    saved = learn.save('mine', with_opt=False)
    again = transfer_learner(learn.dls, 'test_efficientnet', weights=saved)
    assert torch.equal(again.model.net.conv_stem.weight, learn.model.net.conv_stem.weight)


def test_wrong_arguments(learn, dls):
    for n in (7, -8):
        with pytest.raises(ValueError, match='7 stages'): learn.freeze_to(n)
    with pytest.raises(ValueError, match='20 steps'): learn.lr_find(num_it=5)
    with pytest.raises(TypeError): transfer_learner(dls, **TINY, metric=None)


def test_history_keeps_all_stages(learn):
    learn.fit(1); learn.fit(1)
    learn.unfreeze(); learn.fit_one_cycle(2, slice(1e-4, 1e-3))
    learn.evaluate(); learn.tta(show=False); learn.get_preds()
    assert learn.history.epochs[['phase', 'epoch']].values.tolist() == [['head', 0], ['head', 0], ['all layers', 0], ['all layers', 1]]
    assert len(learn.history.steps) == 16 and learn.history.epochs.step.tolist() == [4, 8, 12, 16] and set(learn.history.epochs) >= {'train_loss', 'valid_loss', 'accuracy', 'lr', 'seconds'}
