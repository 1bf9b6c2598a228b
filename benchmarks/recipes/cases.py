"""What every recipe of the laboratory gets, and what it gives back: the same images, split, size, weights and scores"""
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np, pandas as pd, torch
from fastai.torch_core import set_seed
from PIL import Image
from sklearn.metrics import f1_score
from sklearn.model_selection import StratifiedKFold

from fastbit.bodies import body_preprocess, build_body
from fastbit.data import image_dataloaders, image_table
from fastbit.data.features import view_pixels
from fastbit.data.transforms import square_image
from fastbit.metrics import evaluate_probs, fit_temperature
from fastbit.training import transfer_learner

MEASURED = 700   # images at most that a trained model is measured on


@dataclass(frozen=True)
class Case:
    "A set of images, a draw of its training images, and what trains on them"
    folder: Path   # class folders
    k: int         # training images per class at most; 0: four fifths of the set
    seed: int      # of the draw and of everything random; 100 and above choose recipes, those below report
    size: int      # side of the images, pixels
    arch: str      # body
    weights: str   # its weights, as for `fastbit baseline`
    bs: int = 32

    @cached_property
    def table(self) -> pd.DataFrame:
        "Training images drawn class by class; of the others some are 'valid', for choices, and up to `MEASURED` 'test'"
        found = image_table(self.folder)
        draw = lambda rows: rows.sample(min(int(.8*len(rows)), self.k or len(rows)), random_state=self.seed).index
        train = [i for _, rows in found.groupby('label') for i in draw(rows)]
        others = found.drop(train).sample(frac=1, random_state=self.seed)
        n_train = found.loc[train].label.value_counts()
        # as many as a split of 80/20 has, if there are enough
        n_valid = lambda rows, label: min(max(1, n_train[label]//4), len(rows)//2)
        valid = [i for label, rows in others.groupby('label') for i in rows.index[:n_valid(rows, label)]]
        test = others.index.difference(valid, sort=False)[:MEASURED]
        for part, rows in dict(train=train, valid=valid, test=test).items(): found.loc[rows, 'split'] = part
        return found.loc[sorted([*train, *valid, *test])].reset_index(drop=True)

    @cached_property
    def classes(self) -> list: return sorted(self.table.label.unique())

    def part(self, name) -> pd.DataFrame: return self.table[self.table.split == name]
    def targets(self, name) -> torch.Tensor: return torch.tensor([self.classes.index(o) for o in self.part(name).label])

    def learner(self, augment='light', **kwargs):
        "A fastbit learner of this case, its body frozen"
        set_seed(self.seed)
        dls = image_dataloaders(
            self.table, self.arch, self.size, self.bs, seed=self.seed, check=False, augment=augment)
        return transfer_learner(dls, self.arch, self.weights, **kwargs)

    def net(self):
        "A plain timm model with the same weights and a new classifier"
        set_seed(self.seed)
        return build_body(self.arch, len(self.classes), self.weights)

    @cached_property
    def preprocess(self): return body_preprocess(self.arch, self.size)

    def pixels(self, part, larger=False) -> torch.Tensor:
        "The images of a part as uint8, at the size that the body gets, or that training crops from"
        pp, paths = self.preprocess, self.part(part).path
        if not larger: return torch.from_numpy(np.stack([view_pixels(p, 0, pp) for p in paths]))
        squares = (square_image(Image.open(p).convert('RGB'), pp.train_size, pp) for p in paths)
        return torch.from_numpy(np.stack([np.asarray(o).transpose(2, 0, 1) for o in squares]))


@dataclass
class Outcome:
    "What a recipe gave"
    probs: torch.Tensor # of the measured images
    seconds: float      # of training, from files to a trained model

    def scores(self, targets) -> dict:
        "Accuracy, macro-F1, loss, calibration error before and after temperature, seconds"
        probs = self.probs.float().clamp_min(1e-12)
        found, scaled = evaluate_probs(probs, targets), evaluate_probs(scaled_probs(probs, targets), targets)
        return dict(
            accuracy=found.accuracy,
            macro_f1=f1_score(targets, probs.argmax(1), average='macro'),
            loss=found.loss,
            ece=found.ece,
            ece_scaled=scaled.ece,
            loss_scaled=scaled.loss,
            seconds=round(self.seconds, 2),
            n=len(targets))


def scaled_probs(probs, targets) -> torch.Tensor:
    "Probabilities by temperature; each half of the images gets the temperature that the other half chose"
    logits, scaled = probs.log(), torch.empty_like(probs)
    halves = StratifiedKFold(2, shuffle=True, random_state=0)
    for chosen_on, measured in halves.split(logits, targets):
        t = fit_temperature(logits[chosen_on], targets[chosen_on])
        scaled[measured] = (logits[measured]/t).softmax(1)
    return scaled


def timed(train):
    "The outcome of a function that returns a function: training is timed, prediction is not"
    start = time.perf_counter()
    predict = train()
    seconds = time.perf_counter() - start
    return Outcome(predict(), seconds)
