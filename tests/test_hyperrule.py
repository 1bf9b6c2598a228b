"The BiT-HyperRule against the original: numbers, logits, gradients and whole runs"
import subprocess, sys

import matplotlib.pyplot as plt
import numpy as np, pandas as pd, pytest, timm, torch
from fastai.callback.core import Callback
from fastai.callback.training import GradientAccumulation
from torch.testing import assert_close

from fastbit.training import accumulate_step, transfer_learner
from fastbit.bodies import build_body, TransferModel
from fastbit.data import few_shot_table, image_dataloaders, image_table, mixup_draw, split_table, step_rows
from fastbit.hyperrule import BATCH_SIZE, HyperRule
from fastbit.data.steps import step_loader
from fastbit.core.text import DataWarning
from conftest import TINY, write_folder
from reference import BIT, inputs, npz_weights, plain_loop


@pytest.fixture(scope='module')
def npz(tmp_path_factory):
    "Seeded weights of R50x1 with a classifier of five, and the same without"
    root, w = tmp_path_factory.mktemp('npz'), npz_weights(5)
    np.savez(root/'BiT-M-R50x1.npz', **w)
    np.savez(root/'headless.npz', **{k: v for k, v in w.items() if '/head/' not in k})
    assert len(w) == BIT['n_weights'] and sorted(w)[:3] == BIT['keys_first']
    return root


@pytest.fixture
def dls(folder): return image_dataloaders(folder, 'test_efficientnet', size=32, bs=8, num_workers=0)


def quiet(learn): return learn.no_logging()


# The rule

@pytest.mark.parametrize('n', [int(k[3:]) for k in BIT if k.startswith('lr_')])
def test_rates_and_mixup_are_the_originals(n):
    rule = HyperRule.for_data(n, 32)
    for step, lr in BIT[f'lr_{n}'].items():
        got = rule.lr(int(step))
        assert (got is None) == (lr is None) and (lr is None or abs(got - lr) <= 1e-12), (step, got, lr)
    assert rule.mixup == BIT[f'mixup_{n}'] and rule.changed == ()


def test_the_reference_covers_thresholds_milestones_and_ends():
    "So that the test above means something"
    for n in (19_999, 20_000, 499_999, 500_000):
        listed, rule = {int(k) for k in BIT[f'lr_{n}']}, HyperRule.for_data(n, 32)
        assert {rule.warmup, *rule.milestones, *(m+1 for m in rule.milestones), rule.n_steps-1, rule.n_steps} <= listed


@pytest.mark.parametrize('size', list(BIT['resolution']))
def test_resolutions_are_the_originals(size):
    h, w = map(int, size.split('x'))
    rule = HyperRule.for_data(100, (h, w))
    assert [rule.resize, rule.crop] == BIT['resolution'][size]


@pytest.mark.parametrize('batch', [1, 8, 64, 256, 1024])
def test_linear_scaling_keeps_the_images_seen_in_each_phase(batch):
    "Rate, steps and milestones all three; the Keras example leaves the milestones"
    full, small = HyperRule.for_data(1000, 32), HyperRule.for_data(1000, 32, batch_size=batch)
    assert small.base_lr == pytest.approx(full.base_lr*batch/BATCH_SIZE)
    for a, b in zip((full.warmup, *full.milestones, full.n_steps), (small.warmup, *small.milestones, small.n_steps)): assert b*batch == pytest.approx(a*BATCH_SIZE, abs=batch)


def test_what_is_changed_is_said():
    text = str(HyperRule.for_data(524, (97, 113), batch_size=32, n_steps=20, stop_after=10, mixup=.2, size=64))
    for word in ('changed from 512', '0.003 · 32/512', 'changed from 500: n_steps=20', 'changed from 100, in proportion', 'changed from 200, 300, 400', 'after 10 steps', 'changed from 0', 'changed from 512, 480: size=64'): assert word in text, word
    assert max(map(len, text.splitlines())) < 100
    assert 'changed' not in str(HyperRule.for_data(524, (97, 85)))
    assert 'preset' in str(HyperRule.for_data(524, 32, scale='preset')) and 'with replacement' in str(HyperRule.for_data(100, 32))


@pytest.mark.parametrize('n_steps', [1, 2, 3, 7, 20, 499])
def test_any_length_has_a_rate_for_every_step(n_steps):
    rule = HyperRule.for_data(1000, 32, n_steps=n_steps)
    rates = [rule.lr(s) for s in range(n_steps)]
    assert all(0 <= r <= .003 for r in rates) and rule.lr(n_steps) is None and len(set(rates)) > (n_steps > 2)


def test_the_rule_needs_the_standard_library_alone():
    code = "import sys; import fastbit.hyperrule as h; print(h.HyperRule.for_data(9, 9).lr(50)); print([m for m in sys.modules if m.split('.')[0] in ('torch', 'numpy', 'fastai', 'matplotlib', 'pandas', 'PIL')])"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.split('\n')[:2] == ['0.0015', '[]']


def test_the_plot_shows_every_step():
    rule = HyperRule.for_data(60_000, 32, stop_after=2000)
    ax = rule.plot(plt.figure().add_subplot())
    assert len(ax.lines[0].get_xdata()) == 2000 and [t.get_text() for t in ax.texts] == ['warm-up 500']
    plt.close('all')


# Published weights

@pytest.mark.parametrize('key', ['logits_64', 'logits_96x80'])
def test_logits_of_a_published_file_are_the_originals(npz, key):
    net = build_body('BiT-M-R50x1', weights=npz/'BiT-M-R50x1.npz')
    with torch.inference_mode(): assert_close(net(inputs()[key]), torch.tensor(BIT[key]), atol=2e-5, rtol=0)


def test_files_with_and_without_their_head(npz):
    kept, plain, bare = build_body('BiT-M-R50x1', None, npz/'BiT-M-R50x1.npz'), build_body('BiT-M-R50x1', 3, npz/'BiT-M-R50x1.npz'), build_body('BiT-M-R50x1', 3, npz/'headless.npz')
    assert kept.head.fc.weight.shape[0] == 5 and kept.head.fc.weight.any() and not plain.head.fc.weight.any()
    for k, v in plain.state_dict().items(): assert torch.equal(v, bare.state_dict()[k]), k
    with pytest.raises(ValueError, match='no classifier to keep'): build_body('BiT-M-R50x1', None, npz/'headless.npz')


def test_the_file_of_a_deeper_body_is_refused(npz, tmp_path):
    "timm would take the layers it knows, and leave the rest without a word"
    from reference import npz_shapes
    np.savez(tmp_path/'BiT-M-R101x1.npz', **{k: np.ones(s, np.float32) for k, s in npz_shapes(0, (3, 4, 23, 3)).items()})
    with pytest.raises(ValueError, match='another body'): build_body('BiT-M-R50x1', 3, tmp_path/'BiT-M-R101x1.npz')
    with torch.no_grad(): timm.create_model('resnetv2_50x1_bit', num_classes=0).load_pretrained(str(tmp_path/'BiT-M-R101x1.npz'))   # once timm refuses it, our count can go


# Whole runs

def test_8_steps_follow_a_plain_loop(npz, tmp_path):
    "R50x1 from seeded weights, no augmentation: one batch of 8, and two micro-batches of 4, against SGD as the paper has it; warm-up and every decay"
    write_folder(tmp_path/'data', {'0': 10, '1': 10, '2': 10}, (32, 32))
    args = dict(arch='BiT-M-R50x1', size=32, flip=False, crop=False, num_workers=0, check=False)
    rule = HyperRule.for_data(24, 32, batch_size=8, scale=None, n_steps=8)
    dls = image_dataloaders(tmp_path/'data', **args, bs=8)
    ordered = list(dls.train.new(shuffle=False, bs=24))[0]
    batches = [(ordered[0].as_subclass(torch.Tensor)[rows], ordered[1].as_subclass(torch.Tensor)[rows]) for rows in (step_rows(s, 24, 8, 0) for s in range(8))]
    plain = plain_loop(build_body('BiT-M-R50x1', 3, npz/'BiT-M-R50x1.npz'), batches, rule.lr)
    assert plain[:2] == pytest.approx([np.log(3)]*2, abs=1e-6)   # a classifier of zeros, and a first update at rate 0
    assert plain[-1] < .9*plain[0]   # it learns, so that there is something to follow
    for bs in (8, 4):
        learn = transfer_learner(image_dataloaders(tmp_path/'data', **args, bs=bs), 'BiT-M-R50x1', npz/'BiT-M-R50x1.npz')
        with quiet(learn): learn.fit_hyperrule(batch_size=8, scale=None, n_steps=8, eval_every=8)
        assert learn.micro_batch == bs and len(learn.history.steps) == 8
        assert np.abs(learn.history.steps.loss.values - plain).max() < 1e-3, (bs, learn.history.steps.loss.values - plain)


def test_the_first_update_changes_nothing_and_the_last_is_not_lost(dls):
    learn = transfer_learner(dls, **TINY)
    before = {k: v.clone() for k, v in learn.model.state_dict().items()}
    with quiet(learn): learn.fit_hyperrule(batch_size=12, stop_after=1, show=False)
    assert all(torch.equal(v, before[k]) for k, v in learn.model.state_dict().items())
    with quiet(learn): learn.fit_hyperrule(batch_size=12, stop_after=2, show=False)
    assert not torch.equal(learn.model.net.conv_stem.weight, before['net.conv_stem.weight']) or learn.model.net.classifier.weight.any()


def test_all_layers_train_without_weight_decay(dls):
    "A layer without gradient would shrink under decay"
    learn = transfer_learner(dls, **TINY, bn='affine', wd=.5)
    learn.freeze()
    seen = []
    class Look(Callback):
        def before_step(self): seen.append([(h['wd'], h['mom'], h['lr']) for h in self.opt.hypers])
        def after_step(self): assert all(p.grad is not None for p in self.model.parameters() if p.requires_grad)
    with quiet(learn): learn.fit_hyperrule(batch_size=16, n_steps=6, show=False, cbs=Look())
    rule = learn.hyperrule(batch_size=16, n_steps=6)
    assert seen == [[(0., .9, rule.lr(s))]*7 for s in range(6)]
    assert learn.model.n_frozen == 0 and all(p.requires_grad for p in learn.model.parameters())
    assert learn.opt is None and learn.opt_func.__name__ == 'FusedAdam'   # the next fit is not SGD's
    with quiet(learn): learn.fit_one_cycle(1, 1e-3)


def test_a_trained_classifier_is_zeroed_aloud(dls):
    learn = transfer_learner(dls, **TINY)
    with quiet(learn): learn.fit(1, 1e-2)
    trained = learn.model.net.classifier.weight.clone()
    with quiet(learn): learn.fit_hyperrule(batch_size=8, stop_after=1, show=False, zero_head=False)
    assert torch.equal(learn.model.net.classifier.weight, trained)
    with quiet(learn), pytest.warns(DataWarning, match='zero_head=False'): learn.fit_hyperrule(batch_size=8, stop_after=1, show=False)
    assert not learn.model.net.classifier.weight.any()


# Accumulation

def whole_and_pieces(arch, micro, mixup, n=20, batch=13):
    "The gradient of a batch in one piece, and as `accumulate_step` has it, in double precision"
    torch.manual_seed(0)
    model = TransferModel(build_body(arch, 3, 'random')).double().train()
    torch.nn.init.normal_(model.stage_params()[-1][0], std=.1)
    class Double:   # what a learner has, in float64, without an optimizer
        dls, micro_batch, loss_func = type('dls', (), dict(device=torch.device('cpu'))), micro, torch.nn.CrossEntropyLoss()
        def __init__(self): self.model, self.steps = model, []
        def __call__(self, event): pass
        def _split(self, b): self.xb, self.yb = (b[0].double(),), (b[1].as_subclass(torch.Tensor),)
        def _set_device(self, b): return b
        def _backward(self): self.loss_grad.backward()
        def _step(self): self.steps.append([p.grad.clone() for p in model.parameters()])
        def _with_events(self, f, *args): f()
    return model, Double()


@pytest.mark.parametrize('arch, micro, mixup', [('BiT-M-R50x1', 5, 0.), ('BiT-M-R50x1', 4, .4), *[('test_efficientnet_gn', m, a) for m in (1, 5, 13) for a in (0., .4)]])
def test_the_gradient_is_the_whole_batchs(folder, arch, micro, mixup):
    dls = image_dataloaders(folder, arch, size=32, bs=8, num_workers=0)
    model, learn = whole_and_pieces(arch, micro, mixup)
    (batch, again), lam = (next(iter(step_loader(dls.train, 13, m, 3, 4, mixup))) for m in (micro, 13)), 1.
    accumulate_step(learn, batch)
    (x, y), y2, lam, share = next(again.micro_batches(13, lambda b: b))
    assert share == 1 and (y2 is None) == (not mixup) and (not mixup or 0 < lam < 1)
    loss = torch.nn.functional.cross_entropy
    out = model(x.as_subclass(torch.Tensor).double()); y = y.as_subclass(torch.Tensor)
    want = loss(out, y) if y2 is None else lam*loss(out, y) + (1-lam)*loss(out, y2.as_subclass(torch.Tensor))
    for a, b in zip(learn.steps[0], torch.autograd.grad(want, list(model.parameters())), strict=True): assert (a-b).norm() <= 1e-10*b.norm().clamp_min(1e-12)
    assert abs(learn.loss.item() - want.item()) < 1e-10 and len(learn.steps) == 1
    assert all(p.grad is None for p in model.parameters())   # nothing is carried over


@pytest.mark.parametrize('bs', [3, 8, 50])
def test_micro_batches_do_not_matter(dls, folder, bs):
    "The same run, loaded 3, 8 or 50 at a time, with augmentation and mixup"
    def run(bs, workers=0):
        learn = transfer_learner(image_dataloaders(folder, 'test_efficientnet', size=32, bs=bs, num_workers=workers, check=False), TINY['arch'], weights=weights)
        with quiet(learn): learn.fit_hyperrule(batch_size=20, n_steps=6, base_lr=.1, mixup=.5, show=False)
        return learn.history
    weights = folder/'start.pth'
    torch.manual_seed(1); torch.save(build_body('test_efficientnet', 0, 'random').state_dict(), weights)
    a, b = run(20), run(bs, workers=2 if bs == 8 else 0)
    assert_close(torch.tensor(a.steps.loss.values), torch.tensor(b.steps.loss.values), atol=1e-5, rtol=0)
    assert_close(torch.tensor(a.epochs.valid_loss.values), torch.tensor(b.epochs.valid_loss.values), atol=1e-5, rtol=0)


def test_what_is_not_exact_is_refused(dls):
    for kwargs, message in ((dict(bn='train'), "bn='frozen'"), (dict(loss_func=torch.nn.CrossEntropyLoss(weight=torch.ones(3))), 'weights its classes')):
        learn = transfer_learner(dls, **TINY, **kwargs)
        with pytest.raises(ValueError, match=message): learn.fit_hyperrule(batch_size=16, show=False)
        assert learn.model.n_frozen == 6   # as it was
    with pytest.raises(ValueError, match='GradientAccumulation'): transfer_learner(dls, **TINY).fit_hyperrule(batch_size=16, show=False, cbs=GradientAccumulation(4))
    learn = transfer_learner(dls, **TINY, bn='train')   # whole batches are fine
    with quiet(learn): learn.fit_hyperrule(batch_size=8, stop_after=2, show=False)


def test_running_out_of_memory_halves_and_goes_on(folder, capsys):
    "With the numbers of a run that began with the smaller pieces, dropout included"
    def run(limit, bs):
        torch.manual_seed(0)
        learn = transfer_learner(image_dataloaders(folder, 'test_efficientnet', size=32, bs=bs, num_workers=0, check=False), **TINY, drop_rate=.5)
        forward = learn.model.forward
        def small(x):
            if len(x) > limit and learn.model.training:
                torch.rand(1)   # an attempt that fails has drawn random numbers
                raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB')
            return forward(x)
        learn.model.forward = small
        with learn.no_bar(), quiet(learn): learn.fit_hyperrule(batch_size=8, n_steps=4, base_lr=10., show=False)
        return learn
    halved, small = run(4, 8), run(4, 4)
    assert halved.micro_batch == small.micro_batch == 4 and halved.history.steps.loss.tolist() == small.history.steps.loss.tolist()
    assert capsys.readouterr().out.count('continuing with micro-batches of 4') == 1
    with pytest.raises(RuntimeError, match='Use a smaller size'): run(0.5, 8)


def test_memory_running_out_changes_no_number(dls, capsys):
    "In the second piece of a step, when the first has left its gradient"
    def run(at):
        torch.manual_seed(0)
        learn = transfer_learner(dls, **TINY)
        forward, calls = learn.model.forward, []
        def small(x):
            if learn.model.training: calls.append(len(x))
            if learn.model.training and len(calls) == at: raise torch.OutOfMemoryError('CUDA out of memory')
            return forward(x)
        learn.model.forward = small
        with quiet(learn): learn.fit_hyperrule(batch_size=16, n_steps=5, base_lr=10., show=False)
        return torch.tensor(learn.history.steps.loss.values), calls
    (halved, calls), (plain, _) = run(6), run(0)
    assert calls == [8]*6 + [4]*12 and 'in step 2' in capsys.readouterr().out
    assert_close(halved, plain, atol=1e-5, rtol=0)
    assert (plain[3:] - np.log(3)).abs().min() > .003   # something is learnt in these steps


def test_autocast_does_not_stay_on_when_memory_runs_out(dls):
    "fastai 2.8's MixedPrecision enters it before the forward pass and leaves it after the loss, which a pass that fails does not reach"
    class Mixed(Callback):   # fastai's own wants CUDA
        order, autocast, failed = 10, torch.autocast('cpu', torch.bfloat16), False
        def before_batch(self): self.autocast.__enter__()
        def after_pred(self):
            if self.training and not self.failed: self.failed = True; raise torch.OutOfMemoryError('CUDA out of memory')
            self.learn.pred = self.pred.float()
        def after_loss(self): self.autocast.__exit__(None, None, None)
    learn = transfer_learner(dls, **TINY)
    with learn.no_bar(), quiet(learn): learn.fit_hyperrule(batch_size=8, n_steps=2, show=False, cbs=Mixed())
    assert learn.micro_batch == 4 and not torch.is_autocast_enabled('cpu')


# Batches and mixup

def test_every_image_once_a_pass_and_with_replacement_when_few():
    stream = np.concatenate([step_rows(s, 37, 8, 5) for s in range(37)])
    passes = [tuple(stream[i*37:(i+1)*37]) for i in range(8)]
    assert all(sorted(p) == list(range(37)) for p in passes) and len(set(passes)) == 8
    few = np.concatenate([step_rows(s, 5, 8, 5) for s in range(50)])
    assert set(few) == set(range(5)) and any(len(set(few[i*8:i*8+5])) < 5 for i in range(50)) and not np.array_equal(few[:8], few[8:16])


def test_an_image_is_cropped_and_flipped_anew_each_time(folder):
    dls = image_dataloaders(folder, 'test_efficientnet', size=32, bs=8, num_workers=0)
    n, seen = dls.train.n, {}
    for batch in step_loader(dls.train, n, n, 0, 12):
        (x, _), *_ = next(batch.micro_batches(n, lambda b: b))
        for row, img in zip(step_rows(batch.step, n, n, 0), x): seen.setdefault(int(row), set()).add(img.numpy().tobytes())
    assert len(seen) == n and all(len(v) > 6 for v in seen.values())   # of 32 crops and flips


def test_loaders_by_the_rule(folder):
    pp = image_dataloaders(folder, 'BiT-M-R50x1', size='hyperrule', num_workers=0).preprocess
    assert (pp.train_size, pp.size, pp.resize, pp.crop, pp.flip, pp.interpolation) == (160, 128, 'squash', True, True, 'bilinear')
    assert image_dataloaders(folder, size=64, train_size='hyperrule', num_workers=0).preprocess.train_size == 80


def test_fewer_images_than_a_batch_train(make_folder):
    learn = transfer_learner(image_dataloaders(make_folder(dict(a=3, b=3)), 'test_efficientnet', size=32, bs=4, num_workers=0), **TINY)
    with quiet(learn): learn.fit_hyperrule(batch_size=64, n_steps=5, scale=None, show=False)
    assert len(learn.history.steps) == 5 and learn.history.steps.loss.notna().all()


def test_mixup_is_one_lambda_a_step_over_the_whole_batch():
    draws = [mixup_draw(s, 64, .1, 0) for s in range(300)]
    assert len({lam for lam, _ in draws}) > 280 and all(sorted(p) == list(range(64)) for _, p in draws)
    assert (np.array([p for _, p in draws]) // 16 != np.arange(64) // 16).mean() > .7   # partners come from other micro-batches
    lams = np.array([mixup_draw(s, 2, .1, 1)[0] for s in range(4000)])
    assert lams.mean() == pytest.approx(.5, abs=.03) and lams.var() == pytest.approx(1/(4*1.2), abs=.01)   # Beta(a, a): 1/(4(2a+1))


def test_only_training_sees_mixup(folder):
    seen = dict(train=[], other=[])
    class Look(Callback):
        def before_batch(self): seen['train' if self.training else 'other'].append(self.xb[0].clone())
    dls = image_dataloaders(folder, 'test_efficientnet', size=32, bs=40, num_workers=0)
    learn = transfer_learner(dls, **TINY, cbs=Look())
    with quiet(learn):
        learn.fit_hyperrule(batch_size=24, n_steps=2, mixup=5., show=False)
        learn.validate(); learn.get_preds(); learn.evaluate(show=False)
    plain = dls.valid.one_batch()[0]
    as_loaded = lambda x: x.as_subclass(torch.Tensor).reshape(-1, *plain.shape[1:])   # evaluate() loads flat squares, to cut views from
    assert len(seen['other']) >= 3 and all(torch.equal(as_loaded(x), plain.as_subclass(torch.Tensor)) for x in seen['other'])
    whole = lambda alpha: next(next(iter(step_loader(dls.train, 24, 24, 0, 1, alpha))).micro_batches(24, lambda b: b))[0][0].as_subclass(torch.Tensor)
    assert torch.equal(seen['train'][0].as_subclass(torch.Tensor), whole(5.)) and not torch.equal(whole(5.), whole(0.))
    seen['train'].clear()
    learn.lr_find(num_it=20, show_plot=False, suggest_funcs=None)
    on_a_grid = lambda x: torch.equal((x*255).round()/255, x)   # of bytes; mixtures are not
    assert all(on_a_grid(x.as_subclass(torch.Tensor)) for x in seen['train']) and not on_a_grid(whole(5.))


def test_loaders_that_fastbit_did_not_make(folder, capsys):
    from fastai.vision.augment import RandomResizedCrop
    from fastai.vision.data import ImageDataLoaders
    dls = ImageDataLoaders.from_folder(folder, valid_pct=.3, item_tfms=RandomResizedCrop(32), bs=8, num_workers=0, seed=0)
    learn = transfer_learner(dls, **TINY)
    learn.fit_hyperrule(batch_size=16, n_steps=3)
    text = capsys.readouterr().out
    assert "not fastbit's" in text and 'training images of 20 x 24 pixels' in text and len(learn.history.steps) == 3
    dls.train = dls.train.new(drop_last=True, bs=1000)   # fastai would train on nothing
    learn = transfer_learner(dls, **TINY)
    with quiet(learn): learn.fit_hyperrule(batch_size=16, n_steps=3, show=False)
    assert len(learn.history.steps) == 3


def test_what_differs_is_said(folder, capsys):
    dls = image_dataloaders(folder, 'test_efficientnet', size=32, bs=8, num_workers=0, crop=False, flip=False, resize='pad')
    transfer_learner(dls, **TINY).fit_hyperrule(batch_size=16, n_steps=2)
    text = capsys.readouterr().out
    for word in ('made for BiT', "bn='frozen'", "resize='pad'", 'no random crops', 'no horizontal flips', 'micro-batches of 8', 'changed from 160, 128: size=32'): assert word in text, word
    assert len([o for o in text.splitlines() if o.split()[0].isdigit()]) == 2 and 'step' in text.splitlines()[-3].split()[0]   # one row an evaluation


def test_the_size_comes_from_headers_alone(folder, monkeypatch):
    from PIL import ImageFile
    from fastbit.data.check import header_sizes, median_size
    def no(*args, **kwargs): raise AssertionError('decoded')
    monkeypatch.setattr(ImageFile.ImageFile, 'load', no)
    assert median_size(header_sizes(image_table(folder).path)) == (20, 24)


# Few-shot

def test_draws_are_nested_and_leave_the_held_out_images(folder):
    split = split_table(image_table(folder))
    draws = {k: few_shot_table(split, k, 3) for k in (1, 2, 5)}
    train = {k: set(d.path[d.split == 'train']) for k, d in draws.items()}
    assert train[1] < train[2] < train[5] < set(split.path[split.split == 'train'])
    for k, d in draws.items():
        assert (d[d.split == 'train'].label.value_counts() == k).all() and set(d.path[d.split == 'valid']) == set(split.path[split.split == 'valid'])
    assert train[1] != set(few_shot_table(split, 1, 4).query("split == 'train'").path)
    one_class_less = few_shot_table(split[split.label != 'green'], 2, 3)
    assert set(one_class_less.path) == {p for p, l in zip(draws[2].path, draws[2].label) if l != 'green'}
    with pytest.warns(DataWarning, match='fewer than 100'): assert len(few_shot_table(split, 100)) == len(split)


def test_training_metrics_are_refused(dls):
    learn = transfer_learner(dls, **TINY)
    learn.recorder.train_metrics = True
    with pytest.raises(ValueError, match='train_metrics'): learn.fit_hyperrule(batch_size=16, show=False)


def test_a_curve_over_nested_draws(folder, tmp_path, capsys):
    from fastbit.studies import few_shot_curve
    args = dict(ks=(1, 3, None), repeats=2, arch='test_efficientnet', weights='random', size=32, batch_size=8, n_steps=3, num_workers=0, seed=4)
    df, fig = few_shot_curve(folder, **args, out=tmp_path/'curve.csv')
    assert list(df) == ['k', 'repeat', 'accuracy', 'low', 'high'] and df.k.tolist() == [1, 1, 3, 3, 'all', 'all'] and df.repeat.tolist() == [0, 1]*3 and df.accuracy.between(0, 1).all()
    assert pd.read_csv(tmp_path/'curve.csv').accuracy.tolist() == df.accuracy.tolist()
    ax, = fig.axes
    assert [t.get_text() for t in ax.get_xticklabels()] == ['1', '3', 'all'] and ax.lines[0].get_ydata().tolist() == df.groupby('k', sort=False).accuracy.median().tolist()
    assert 'on 8 held-out images' in ax.get_ylabel() and 'k = all, repeat 2 of 2' in capsys.readouterr().out
    again, _ = few_shot_curve(folder, **args, verbose=False)
    assert again.equals(df) and capsys.readouterr().out == ''
