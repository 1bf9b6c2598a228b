"One loss for training, prediction, evaluation and export; what is not one label per image is refused before any work"
from functools import partial

import numpy as np, pytest, torch
import torch.nn.functional as F
import fastbit.training.head
from fastai.callback.mixup import MixUp
from fastai.data.block import CategoryBlock, DataBlock, RegressionBlock
from fastai.data.transforms import RandomSplitter, get_image_files
from fastai.imports import noop
from fastai.interpret import ClassificationInterpretation
from fastai.callback.core import Callback
from fastai.losses import (BCELossFlat, BCEWithLogitsLossFlat, CrossEntropyLossFlat, DiceLoss, FocalLoss, FocalLossFlat,
                           LabelSmoothingCrossEntropy, LabelSmoothingCrossEntropyFlat, MSELossFlat)
from fastai.vision.augment import Resize
from fastai.vision.data import BBoxBlock, BBoxLblBlock, ImageBlock, MaskBlock, PointBlock
from torch import nn
from torch.testing import assert_close

from fastbit.data import image_dataloaders
from fastbit.training import logistic_head, transfer_learner
from fastbit.export import load_predictor
from fastbit.metrics import SoftmaxLoss, resolve_loss
from fastbit.metrics.losses import describe_loss
from conftest import TINY

WEIGHTS = torch.tensor([1., 5., .2])


@pytest.fixture
def dls(folder): return image_dataloaders(folder, 'test_efficientnet', size=32, bs=8, num_workers=0)


def learner(dls, **kwargs):
    torch.manual_seed(0)
    learn = transfer_learner(dls, **TINY, **kwargs)
    learn.logger = noop   # no table of epochs
    nn.init.normal_(learn.model.net.classifier.weight, std=.5)
    return learn


def my_loss(pred, targ): return F.cross_entropy(pred, targ)
class MyLoss(nn.Module):
    def forward(self, pred, targ): return F.cross_entropy(pred, targ)


PLAIN = [nn.CrossEntropyLoss(), nn.CrossEntropyLoss, F.cross_entropy, nn.CrossEntropyLoss(weight=WEIGHTS.double()),
        nn.CrossEntropyLoss(label_smoothing=.1), my_loss, MyLoss(),
         partial(F.cross_entropy, weight=WEIGHTS, label_smoothing=.1), partial(my_loss), FocalLoss(),
         LabelSmoothingCrossEntropy(), FocalLossFlat(weight=WEIGHTS)]


@pytest.mark.parametrize('loss', PLAIN, ids=lambda o: describe_loss(o)[:30] if not isinstance(o, type) else o.__name__)
def test_every_way_to_predict_gives_the_same_probabilities(dls, tmp_path, loss):
    "A plain loss of torch has no activation for fastai: `get_preds` gave logits, and `predict` the classes ['cat', 'cat', 'cat']"
    learn = learner(dls, loss_func=loss)
    learn.fit(1, 1e-3)
    preds, targs = learn.get_preds()
    assert_close(preds.sum(1), torch.ones(len(preds)))
    word, number, probs = learn.predict(dls.valid_ds.items[0])
    assert word == dls.vocab[int(number)] == dls.vocab[int(preds[0].argmax())]
    assert_close(learn.tta(show=False).plain, preds)
    assert learn.evaluate(show=False).loss == pytest.approx(F.nll_loss(preds.log(), targs.long()).item(), abs=1e-5)
    learn.export(tmp_path/'model', evaluation=False)
    theirs = load_predictor(tmp_path/'model', 'cpu').predict(list(dls.valid_ds.items),
            probs=True).filter(like='p(').values
    np.testing.assert_allclose(theirs, preds.numpy(), atol=1e-5)
    assert ClassificationInterpretation.from_learner(learn).losses.shape == (len(preds),)


def test_what_was_given_is_trained_with(dls):
    x, y = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])
    for loss, wanted in ((nn.CrossEntropyLoss(weight=WEIGHTS), F.cross_entropy(x, y, weight=WEIGHTS)),
            (nn.CrossEntropyLoss(ignore_index=1, reduction='sum'),
            F.cross_entropy(x, y, ignore_index=1, reduction='sum')),
                         (nn.CrossEntropyLoss(label_smoothing=.3), F.cross_entropy(x, y, label_smoothing=.3))):
        assert_close(torch.as_tensor(learner(dls, loss_func=loss).loss_func(x, y)).as_subclass(torch.Tensor), wanted)
    mine = FocalLossFlat(gamma=1.)
    assert learner(dls, loss_func=mine).loss_func is mine


@pytest.mark.parametrize('loss, words', [
    (nn.BCEWithLogitsLoss(), 'sigmoid'), (BCEWithLogitsLossFlat(), 'sigmoid'), (BCELossFlat(), 'sigmoid'),
    (F.binary_cross_entropy_with_logits, 'sigmoid'), (nn.NLLLoss(), 'log-probabilities'),
    (F.nll_loss, 'log-probabilities'), (nn.MSELoss(), 'for numbers'), (MSELossFlat(), 'for numbers'),
    (nn.MultiMarginLoss(), 'no class probabilities'),
    (lambda p, t: F.binary_cross_entropy_with_logits(p, F.one_hot(t, 3).float()), 'adding 3 to all logits'),
    (lambda p: p.sum(), 'not a loss of one label'),
    (nn.CrossEntropyLoss(reduction='none'), "reduction='mean'"),
    (nn.CrossEntropyLoss(weight=torch.ones(2)), '2 class weights, and there are 3 classes'),
    (nn.CrossEntropyLoss(weight=torch.tensor([1., -1., 1.])), 'finite, 0 or more'),
    (nn.CrossEntropyLoss(weight=torch.zeros(3)), 'not all 0')])
def test_other_losses_are_refused_when_the_learner_is_made_and_when_they_are_assigned(dls, loss, words):
    with pytest.raises(ValueError, match=words): transfer_learner(dls, **TINY, loss_func=loss)
    learn = learner(dls)
    with pytest.raises(ValueError, match=words): learn.loss_func = loss
    assert type(learn.loss_func) is CrossEntropyLossFlat
    with pytest.raises(TypeError, match='a loss or a function'): learn.loss_func = 'focal'


def test_a_loss_that_says_it_is_over_softmax_is_believed():
    class ZLoss(nn.Module):   # cross-entropy with a price on large logits
        def forward(self, pred, targ): return F.cross_entropy(pred, targ) + 1e-2*pred.logsumexp(1).square().mean()
        def activation(self, x): return x.softmax(1)
    assert isinstance(resolve_loss(ZLoss(), 3), SoftmaxLoss)
    del ZLoss.activation
    with pytest.raises(ValueError, match='give it a method `activation`'): resolve_loss(ZLoss(), 3)


def test_asking_a_loss_what_it_is_leaves_no_trace():
    class Counts(nn.Module):
        n = 0
        def forward(self, pred, targ): self.n += 1; torch.rand(3); return F.cross_entropy(pred, targ)
    loss, state = Counts(), torch.get_rng_state()
    resolve_loss(loss, 3)
    assert loss.n == 0 and torch.equal(state, torch.get_rng_state())


def test_a_plain_loss_can_be_assigned_later_and_callbacks_can_put_theirs_in(dls):
    learn = learner(dls)
    learn.loss_func = nn.CrossEntropyLoss(weight=WEIGHTS)
    kept = learn.loss_func
    assert type(kept) is CrossEntropyLossFlat and torch.equal(kept.func.weight, WEIGHTS)
    learn.fit(1, 1e-3, cbs=MixUp())
    assert learn.loss_func is kept
    learn.loss_func = my_loss
    learn.fit(1, 1e-3, cbs=MixUp())
    assert_close(learn.get_preds()[0].sum(1), torch.ones(dls.valid.n))


# --- logistic regression

def test_logistic_regression_has_the_weights_of_the_loss(dls):
    "Class weights gave the identical classifier"
    plain, weighted = learner(dls), learner(dls, loss_func=nn.CrossEntropyLoss(weight=WEIGHTS))
    for learn in (plain, weighted): learn.fit_head(solver='lbfgs')
    assert not torch.equal(plain.model.net.classifier.weight, weighted.model.net.classifier.weight)
    mean = lambda learn: learn.get_preds()[0].mean(0)
    assert mean(weighted)[1] > mean(plain)[1] and mean(weighted)[2] < mean(plain)[2]
    even = learner(dls, loss_func=CrossEntropyLossFlat(weight=torch.full((3,), 7.)))
    even.fit_head(solver='lbfgs')
    assert torch.equal(plain.model.net.classifier.weight,
            even.model.net.classifier.weight)   # only ratios count, as in the mean of torch


def test_the_weighted_optimum_is_that_of_repeated_rows():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 4)), np.arange(60) % 3
    x[:, 0] += y
    weight, bias, C, _ = logistic_head(x, y, 3, weights=np.array([.75, .75, 1.5]))   # with mean 1
    loss = lambda w, b: -np.mean(np.array([1, 1, 2])[y]*(lambda z: z[np.arange(60),
            y] - np.log(np.exp(z).sum(1)))(x@w.T + b))
    flat = logistic_head(x, y, 3)
    assert loss(weight, bias) < loss(*flat[:2])
    _, bias, _, _ = logistic_head(x, y, 3, weights=np.array([1.5, 0, 1.5]))
    assert bias[1] < bias[[0, 2]].min() - 20   # a class of weight 0 is not answered


def test_cross_validation_scores_with_the_weights(monkeypatch):
    import fastbit.training.head as m
    seen, real = [], m.best_strength
    monkeypatch.setattr(m, 'best_strength', lambda *a, **k: seen.append(k['weights']) or real(*a, **k))
    x, y = np.random.default_rng(0).normal(size=(30, 3)), np.arange(30) % 2
    logistic_head(x, y, 2); logistic_head(x, y, 2, weights=np.array([.5, 1.5]))
    assert seen[0] is None and seen[1].tolist() == [.5, 1.5]


@pytest.mark.parametrize('loss, words', [(FocalLossFlat(), 'FocalLossFlat'),
    (LabelSmoothingCrossEntropyFlat(), 'smoothing 0.1'), (nn.CrossEntropyLoss(label_smoothing=.1), 'smoothing 0.1'),
    (my_loss, 'my_loss')])
def test_logistic_regression_refuses_other_losses_before_any_work(dls, loss, words, monkeypatch):
    learn = learner(dls, loss_func=loss)
    monkeypatch.setattr(fastbit.training.head, '_features', lambda *a: pytest.fail('worked'))
    with pytest.raises(ValueError, match=f"(?s){words}.*solver='sgd'"): learn.fit_head(solver='lbfgs')


def test_label_smoothing_of_nothing_is_cross_entropy(dls):
    learn = learner(dls, loss_func=LabelSmoothingCrossEntropyFlat(eps=0.))
    learn.fit_head(solver='lbfgs')


def test_pieces_of_a_batch_need_a_plain_mean(dls):
    learn = learner(dls, loss_func=nn.CrossEntropyLoss(ignore_index=2))
    with pytest.raises(ValueError, match='ignores class 2'): learn.fit_hyperrule(batch_size=16, show=False)
    learn = learner(dls, loss_func=partial(F.cross_entropy, weight=WEIGHTS))
    with pytest.raises(ValueError, match='weights its classes'): learn.fit_hyperrule(batch_size=16, show=False)


# --- checkpoints

def test_a_checkpoint_knows_the_numbers_of_the_loss(dls, tmp_path):
    "Its class alone was compared"
    file = tmp_path/'run.safetensors'
    learn = learner(dls, loss_func=nn.CrossEntropyLoss(weight=WEIGHTS))
    learn.fit_one_cycle(1, 1e-3, checkpoint=file)
    for other in (nn.CrossEntropyLoss(), nn.CrossEntropyLoss(weight=WEIGHTS.flip(0)),
            nn.CrossEntropyLoss(weight=WEIGHTS, label_smoothing=.1), FocalLossFlat()):
        with pytest.raises(ValueError, match='training: loss .*there.*here'): learner(dls,
                loss_func=other).fit_one_cycle(1, 1e-3, checkpoint=file)
    learner(dls, loss_func=CrossEntropyLossFlat(weight=WEIGHTS)).fit_one_cycle(1, 1e-3,
            checkpoint=file)   # the same in other words


def test_losses_in_words():
    make = lambda k: lambda p, t: k*F.cross_entropy(p, t)
    losses = [CrossEntropyLossFlat(), CrossEntropyLossFlat(weight=WEIGHTS), CrossEntropyLossFlat(ignore_index=1),
            FocalLossFlat(), FocalLossFlat(gamma=3.), LabelSmoothingCrossEntropyFlat(),
            LabelSmoothingCrossEntropyFlat(eps=.2),
              my_loss, make(1), make(2), MyLoss()]
    words = [describe_loss(resolve_loss(o, 3)) for o in losses]
    assert len({*words}) == len(losses) and words == [describe_loss(resolve_loss(o,
            3)) for o in losses] and words[0] == 'CrossEntropyLossFlat'
    assert describe_loss(make(2)) == describe_loss(make(2))


def test_the_report_names_another_loss(dls):
    from fastbit.report import plot_losses
    learn = learner(dls, loss_func=FocalLossFlat())
    learn.fit(1, 1e-3)
    assert plot_losses(learn.history.epochs, learn.history.steps,
            'loss: FocalLossFlat').axes[0].get_ylabel() == 'loss: FocalLossFlat'
    assert 'cross-entropy, nats; bootstrap' in str(learn.report())   # what the table has is always that


# --- one label per image

def block(folder, *blocks, **kwargs):
    return DataBlock(blocks, get_items=get_image_files, splitter=RandomSplitter(seed=0), item_tfms=Resize(32),
            **kwargs).dataloaders(folder, bs=8, num_workers=0, device='cpu')


def box(p): return [[1, 1, 9, 9]]


@pytest.mark.parametrize('blocks, kwargs, words', [
    ((ImageBlock, RegressionBlock), dict(get_y=lambda p: float(p.stem)), 'one output'),
    ((ImageBlock, RegressionBlock(n_out=2)), dict(get_y=lambda p: [1.5, 2.5]), 'numbers to predict'),
    ((ImageBlock, RegressionBlock(n_out=2)), dict(get_y=lambda p: (1.5, 2.5)), 'targets of type tuple'),
    ((ImageBlock, MaskBlock), dict(get_y=lambda p: np.zeros((20, 24), np.uint8)), 'masks'),
    ((ImageBlock, PointBlock), dict(get_y=lambda p: [[3., 4.]]), 'coordinates'),
    ((ImageBlock, BBoxBlock, BBoxLblBlock), dict(get_y=[box, lambda p: [p.parent.name]], n_inp=1), '2 targets'),
    ((ImageBlock, ImageBlock, CategoryBlock), dict(get_x=[lambda p: p, lambda p: p], get_y=lambda p: p.parent.name,
    n_inp=2), '2 inputs'),
    ((ImageBlock,), {}, 'no labels')], ids=lambda o: o if isinstance(o, str) else '')
def test_what_no_task_has_is_refused_when_the_learner_is_made(folder, blocks, kwargs, words):
    "It failed in training, with torch's error about shapes"
    with pytest.raises(ValueError, match=words): transfer_learner(block(folder, *blocks, **kwargs), **TINY, n_out=3)


def test_a_wrong_number_of_outputs_is_refused(dls):
    with pytest.raises(ValueError, match='n_out=5, and the DataLoaders have 3 classes'): transfer_learner(dls, **TINY,
            n_out=5)


# --- losses of single images

def weighted(pred, targ): return F.cross_entropy(pred, targ, weight=WEIGHTS)
def summed(pred, targ): return F.cross_entropy(pred, targ, reduction='sum')
class Holds(nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.ce = nn.CrossEntropyLoss(weight=weight)
    def forward(self, pred, targ): return self.ce(pred, targ)


@pytest.mark.parametrize('loss', [weighted, summed, Holds(WEIGHTS)], ids=['function', 'sum', 'module'])
def test_a_loss_of_the_whole_batch_is_not_taken_apart(dls, loss):
    "The class weights cancelled within one image: MixUp trained without them"
    learn = learner(dls, loss_func=loss)
    with pytest.raises(ValueError, match='CrossEntropyLossFlat.weight='): learn.fit(1, 1e-3, cbs=MixUp())
    with pytest.raises(ValueError, match='CrossEntropyLossFlat.weight='): learn.get_preds(with_loss=True)
    with pytest.raises(ValueError, match='not the mean over its images'): learn.fit_hyperrule(batch_size=16, show=False)
    assert learn.logger is noop
    learn.fit(1, 1e-3)
    assert_close(learn.get_preds()[0].sum(1), torch.ones(dls.valid.n))


def test_losses_that_are_means_can_be_taken_apart():
    def noisy(p, t): return F.cross_entropy(p + .1*torch.randn_like(p), t)
    for n_out in (2, 3, 5, 150):
        for loss in (my_loss, MyLoss(), noisy): assert resolve_loss(loss, n_out).by_image
        assert not resolve_loss(lambda p, t: F.cross_entropy(p, t, weight=torch.arange(1., n_out+1)), n_out).by_image


def test_a_module_goes_to_the_device_and_says_which_numbers_it_needs():
    class Moved(MyLoss):
        def to(self, *args): self.where = args; return super().to(*args)
    assert resolve_loss(Moved(), 3).func.where == ('cpu',)
    with pytest.raises(ValueError, match='dtype=torch.float32'): resolve_loss(Holds(WEIGHTS.double()), 3)


def test_weights_of_other_types_and_other_losses_with_weight():
    for make in (FocalLossFlat, LabelSmoothingCrossEntropyFlat):
        for given in (WEIGHTS.numpy().astype(float), WEIGHTS.tolist()):
            loss = resolve_loss(make(weight=given), 3)
            assert_close(loss.func.weight, WEIGHTS)
            assert loss(torch.randn(4, 3), torch.tensor([0, 1, 2, 0])).isfinite()
    with pytest.raises(TypeError, match='one number per class'): resolve_loss(FocalLossFlat(weight='balanced'), 3)
    class Times(MyLoss):
        def __init__(self): super().__init__(); self.weight = torch.tensor(2.)
        def forward(self, pred, targ): return self.weight*super().forward(pred, targ)
    assert resolve_loss(Times(), 3).by_image
    with pytest.raises(ValueError, match='for masks'): resolve_loss(DiceLoss(), 3)


@pytest.mark.parametrize('error', [KeyboardInterrupt, ValueError])
def test_an_interrupted_mixup_leaves_the_loss(dls, error):
    class Stop(Callback):
        def after_pred(self): raise error('stop')
    learn = learner(dls)
    kept = learn.loss_func
    with pytest.raises(error): learn.fit(1, 1e-3, cbs=[MixUp(), Stop()])
    assert learn.loss_func is kept
    learn.fit(1, 1e-3, cbs=MixUp())


def test_evaluation_of_training_images_is_not_augmented(folder):
    from fastai.vision.augment import RandomResizedCrop, aug_transforms
    from fastai.vision.data import ImageDataLoaders
    other = ImageDataLoaders.from_folder(folder, valid_pct=.3, item_tfms=RandomResizedCrop(32, min_scale=.3), seed=0,
                                         batch_tfms=aug_transforms(), bs=8, num_workers=0, device='cpu')
    learn = learner(other)
    assert learn.evaluate(0, show=False).loss == learn.evaluate(0, show=False).loss
