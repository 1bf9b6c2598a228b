"""Peers of fastbit on the same images, split, size and weights

fastai's `fine_tune`; AutoGluon's settings, as published with AutoMM 1.5 for image classification: AdamW 1e-4, weight
decay 1e-3, layer decay 0.9, cosine with 10 % warm-up, gradients clipped at 1, 20 epochs with patience 10,
TrivialAugment, batches of 128, a greedy soup of the three best epochs, chosen on the validation images; timm's usual
fine-tuning: AdamW, cosine, RandAugment, label smoothing, random erasing; a linear probe.
"""
from copy import deepcopy
from math import cos, pi

import torch
import torch.nn.functional as F
from fastai.vision.all import (CategoryBlock, ColReader, ColSplitter, DataBlock, ImageBlock, Normalize, Resize,
                               accuracy, aug_transforms, set_seed, vision_learner)
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from timm.data import create_transform
from timm.optim import create_optimizer_v2
from torchvision.transforms import v2
from torchvision.transforms.functional import to_pil_image

from cases import timed
from fastbit.bodies import timm_name


# fastai

def fastai(epochs, tta=False):
    "`fine_tune` with `aug_transforms`, as in fastai's documentation"
    def recipe(case):
        def train():
            set_seed(case.seed)
            pp = case.preprocess
            table = case.table[case.table.split != 'test']   # it evaluates after each epoch, and chooses nothing
            table = table.assign(is_valid=table.split == 'valid')
            block = DataBlock(
                (ImageBlock, CategoryBlock(vocab=case.classes)),
                get_x=ColReader('path'),
                get_y=ColReader('label'),
                splitter=ColSplitter(),
                item_tfms=Resize(case.size, method='squish'),
                batch_tfms=[*aug_transforms(), Normalize.from_stats(pp.mean, pp.std)])
            dls = block.dataloaders(table, bs=case.bs, num_workers=0)
            learn = vision_learner(dls, timm_name(case.arch), pretrained=False, metrics=accuracy)
            body = case.net()
            body.reset_classifier(0)
            weights = body.state_dict()
            learn.model[0].model.load_state_dict({k: weights[k] for k in learn.model[0].model.state_dict()})
            learn.freeze()
            with learn.no_bar(), learn.no_logging(): learn.fine_tune(epochs-1)
            def predict():
                test = dls.test_dl(case.part('test'))
                with learn.no_bar(), learn.no_logging(): return (learn.tta if tta else learn.get_preds)(dl=test)[0]
            return predict
        return timed(train)
    return recipe


# Plain PyTorch

class Plain:
    "Pixels and model of a plain timm loop"
    def __init__(self, case):
        self.case, pp = case, case.preprocess
        self.net = case.net().to(memory_format=torch.channels_last)
        self.mean, self.std = (torch.tensor(o).view(1, 3, 1, 1) for o in (pp.mean, pp.std))
        self.x, self.y = case.pixels('train'), case.targets('train')

    def normalized(self, x): return ((x.float()/255 - self.mean)/self.std).contiguous(memory_format=torch.channels_last)

    @torch.no_grad()
    def probs(self, x):
        self.net.eval()
        return torch.cat([self.net(self.normalized(b)).softmax(1) for b in x.split(128)])

    def predict(self): return self.probs(self.case.pixels('test'))


def _cosine(step, total, warm_up) -> float:
    "The share of the peak rate: linear warm-up, then cosine"
    if step < warm_up: return step/warm_up
    return (1 + cos(pi*(step - warm_up)/(total - warm_up)))/2


def _train(plain, ids, opt, epochs, bs, augment, clip=None, smoothing=0., after_epoch=lambda: False):
    "Epochs of a plain loop; `after_epoch` returns True to stop"
    g = torch.Generator().manual_seed(plain.case.seed)
    base = [group['lr'] for group in opt.param_groups]
    n_batches = -(-len(ids)//bs)
    total = epochs*n_batches
    for epoch in range(epochs):
        plain.net.train()
        for i, batch in enumerate(ids[torch.randperm(len(ids), generator=g)].split(bs)):
            if len(batch) == 1: continue   # BatchNorm needs two
            factor = _cosine(epoch*n_batches + i, total, max(1, total//10))
            for lr, group in zip(base, opt.param_groups): group['lr'] = lr*factor
            out = plain.net(plain.normalized(augment(plain.x[batch])))
            loss = F.cross_entropy(out, plain.y[batch], label_smoothing=smoothing)
            opt.zero_grad(set_to_none=True)
            loss.backward()
            if clip: torch.nn.utils.clip_grad_norm_(plain.net.parameters(), clip)
            opt.step()
        if after_epoch(): return


class Soup:
    "The best epochs, and the greedy soup of them: a state joins while the mean does not lose"
    def __init__(self, plain, x, y, keep=3, patience=10):
        self.plain, self.x, self.y, self.keep, self.patience = plain, x, y, keep, patience
        self.best, self.since = [], 0

    def score(self): return accuracy(self.plain.probs(self.x), self.y).item()

    def after_epoch(self) -> bool:
        found = self.score()
        self.since = 0 if not self.best or found > self.best[0][0] else self.since + 1
        here = (found, deepcopy(self.plain.net.state_dict()))
        self.best = sorted([*self.best, here], key=lambda o: -o[0])[:self.keep]
        return self.since >= self.patience

    def cook(self):
        best, states = self.best[0][0], [self.best[0][1]]
        for _, state in self.best[1:]:
            self.plain.net.load_state_dict(_mean([*states, state]))
            found = self.score()
            if found >= best: best, states = found, [*states, state]
        self.plain.net.load_state_dict(_mean(states))


def _mean(states) -> dict:
    "The mean of some models' weights and buffers"
    return {k: torch.stack([s[k].float() for s in states]).mean(0).to(v.dtype) for k, v in states[0].items()}


def autogluon(epochs=20):
    "AutoGluon's settings on a plain timm loop"
    trivial = v2.TrivialAugmentWide()
    def recipe(case):
        def train():
            plain = Plain(case)
            opt = create_optimizer_v2(plain.net, 'adamw', lr=1e-4, weight_decay=1e-3, layer_decay=.9)
            for group in opt.param_groups: group['lr'] *= group.get('lr_scale', 1.)
            soup = Soup(plain, case.pixels('valid'), case.targets('valid'))
            augment = lambda x: torch.stack([trivial(o) for o in x])
            _train(plain, torch.arange(len(plain.y)), opt, epochs, 128, augment, clip=1., after_epoch=soup.after_epoch)
            soup.cook()
            return plain.predict
        return timed(train)
    return recipe


def timm_usual(epochs=20):
    "timm's usual fine-tuning: RandAugment, random erasing, label smoothing, AdamW by cosine"
    def recipe(case):
        def train():
            plain = Plain(case)
            # at magnitude 9 timm 1.0.31 asks now and then for pictures of 0 bits, which Pillow 13 refuses
            tfm = create_transform(
                case.size, is_training=True, scale=(.35, 1.), auto_augment='rand-m7-mstd0.5-inc1', re_prob=.25,
                mean=(0., 0., 0.), std=(1., 1., 1.))
            augment = lambda x: torch.stack([tfm(to_pil_image(o)) for o in x])*255
            opt = create_optimizer_v2(plain.net, 'adamw', lr=5e-4, weight_decay=.05)
            _train(plain, torch.arange(len(plain.y)), opt, epochs, case.bs, augment, smoothing=.1)
            return plain.predict
        return timed(train)
    return recipe


def linear_probe(case):
    "scikit-learn's logistic regression on the body's features"
    def train():
        plain = Plain(case)
        @torch.no_grad()
        def features(x):
            plain.net.eval()
            passes = (plain.net.forward_features(plain.normalized(b)) for b in x.split(128))
            return torch.cat([plain.net.forward_head(o, pre_logits=True) for o in passes]).numpy()
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        strengths = dict(logisticregression__C=[1e-4, 1e-3, 1e-2, .1, 1.])
        probe = GridSearchCV(model, strengths, cv=3, scoring='neg_log_loss')
        probe.fit(features(plain.x), plain.y.numpy())
        return lambda: torch.from_numpy(probe.predict_proba(features(case.pixels('test'))))
    return timed(train)


PEERS = dict(
    fastai=fastai(7),
    fastai_tta=fastai(7, tta=True),
    fastai_20=fastai(20),
    fastai_20_tta=fastai(20, tta=True),
    autogluon=autogluon(),
    timm=timm_usual(),
    linear_probe=linear_probe,
)
