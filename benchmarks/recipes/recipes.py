"""Recipes of fastbit, each a small function: a case -> an outcome

The first ones are what `fastbit baseline` does. The others are candidates for its default; `lab.py` measures them side
by side.
"""
from dataclasses import replace
from math import ceil

from fastai.losses import LabelSmoothingCrossEntropyFlat
from fastai.metrics import accuracy

from cases import timed
from fastbit.baseline import Auto, head_phases, onecycle_phases
from fastbit.baseline.recipes import make_recipe
from fastbit.config import LoaderOptions


def _probs(learn):
    def predict():
        with learn.no_bar(): return learn.get_preds(dl=learn.dls[2])[0]
    return predict


def phases_of(case, phases, **kwargs):
    "Train a fastbit learner by the phases of a recipe"
    def train():
        learn = case.learner(**kwargs)
        with learn.no_bar(), learn.no_logging():
            for phase in phases: phase.fit(learn)
        return _probs(learn)
    return timed(train)


def _uncached(phases): return [replace(p, cache=False) if hasattr(p, 'cache') else p for p in phases]

def onecycle(case):
    "The recipe `onecycle`, once the default: the head by one-cycle, then everything at low rates, BatchNorm frozen"
    return phases_of(case, _uncached(onecycle_phases()))

def head(case):
    "What `head` was before: ten epochs of one-cycle on features"
    return phases_of(case, _uncached(head_phases(10)))


def logistic(views=1):
    "The recipe `head`: logistic regression on features, its strength by cross-validation on the training images"
    def recipe(case):
        def train():
            learn = case.learner()
            with learn.no_bar(), learn.no_logging(): learn.fit_head(views=views, solver='lbfgs', cache=False)
            return _probs(learn)
        return timed(train)
    return recipe


def tuned(steps=300, lr=4e-3, spread=10, bn='train', smoothing=.1, freeze_to=0, views=0, head_first=False):
    "Stages from `freeze_to` on, together with a zero classifier (or after logistic regression), for a number of steps"
    def recipe(case):
        def train():
            learn = case.learner(bn=bn, loss_func=LabelSmoothingCrossEntropyFlat(eps=smoothing))
            with learn.no_bar(), learn.no_logging():
                if head_first: learn.fit_head(solver='lbfgs', cache=False)
                learn.freeze_to(freeze_to)
                rates = slice(lr/spread, lr) if spread > 1 else lr
                n_epoch = ceil(steps*case.bs/learn.dls.train.n)   # an epoch sees one view of each image
                if views: learn.fit_head(n_epoch, rates, views=views, cache=False)
                else: learn.fit_one_cycle(n_epoch, rates)
            return _probs(learn)
        return timed(train)
    return recipe


def auto(**options):
    "The recipe `auto`, which keeps the better of two on the validation images"
    def recipe(case):
        def train():
            learn = case.learner(metrics=accuracy)
            made = make_recipe(Auto(**options), LoaderOptions(cache=False))
            with learn.no_bar(), learn.no_logging():
                for phase in made.phases(learn): phase.fit(learn)
            return _probs(learn)
        return timed(train)
    return recipe


def upper(freeze_to=4, augment='light', **how):
    "The upper stages on cached activations of augmented images"
    def recipe(case):
        def train():
            learn = case.learner(augment)
            with learn.no_bar(), learn.no_logging(): learn.fit_upper(freeze_to, cache=False, **how)
            return _probs(learn)
        return timed(train)
    return recipe


RECIPES = dict(
    auto=auto(),
    onecycle=onecycle,
    head=head,
    logistic=logistic(),
    logistic_views=logistic(4),
    tuned=tuned(),
    tuned_600=tuned(600),
    tuned_low=tuned(lr=5e-4),
    tuned_frozen_norm=tuned(bn='frozen'),
    tuned_after_head=tuned(head_first=True),
    tuned_hard=tuned(smoothing=0.),
    upper=upper(),
    upper_3=upper(3),
    upper_5=upper(5),
    upper_2e3=upper(lr=2e-3),
    upper_8e3=upper(lr=8e-3),
    upper_600=upper(n_steps=600),
    upper_150=upper(n_steps=150),
    upper_strong=upper(augment='strong'),
    upper_16_views=upper(views=16),
    upper_mix=upper(mixup=.4),
    upper_hard=upper(label_smoothing=0.),
    upper_spread=upper(lr=slice(4e-4, 4e-3)),
    upper_affine=upper(bn='affine'),
    upper_frozen_norm=upper(bn='frozen'),
)
