"""Recipes of fastbit, each a small function: a case -> an outcome

The first ones are what `fastbit baseline` does. The others are candidates for its default; `lab.py` measures them side
by side.
"""
from dataclasses import replace
from math import ceil

from fastai.losses import LabelSmoothingCrossEntropyFlat

from cases import timed
from fastbit.baseline import head_phases, onecycle_phases


def _probs(learn):
    def predict():
        with learn.no_bar(): return learn.get_preds()[0]
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
    "The recipe `onecycle`: the head by one-cycle, then everything at low rates, BatchNorm frozen"
    return phases_of(case, _uncached(onecycle_phases()))

def head(case):
    "The recipe `head`: ten epochs of one-cycle on features"
    return phases_of(case, _uncached(head_phases()))


def logistic(views=1):
    "Logistic regression on standardized features, its strength by cross-validation on the training images"
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


RECIPES = dict(
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
    upper=tuned(freeze_to=4, spread=1, views=8),
    upper_3=tuned(freeze_to=3, spread=1, views=8),
)
