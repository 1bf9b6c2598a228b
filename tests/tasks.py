"One set of pictures answered by each task: what is the same for all of them is tested once, with a row per task"
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np, pandas as pd, torch
from PIL import Image

from conftest import TINY
from fastbit.baseline import baseline
from fastbit.bodies import body_preprocess, build_body
from fastbit.data import image_dataloaders
from fastbit.export import Artifact
from fastbit.training import transfer_learner

NAMES = ('<b>bold<script>alert(1)<', '\x1b[31mred', '=1+1')   # of labels: what pages, terminals and spreadsheets would run
NOTHING = '../x'                                             # of an image without any of them
NUMBER = '<i>level $\\frac{$<script>alert(2)<'            # of the column of numbers; matplotlib would set a formula, and fail
PX = dict(size=32, num_workers=0, flip=False, crop=False)


def bits(i) -> list: return [k for k in range(3) if i >> k & 1]
def level(i) -> float: return 20 + (37*i % 60) + .5


def picture(i) -> Image.Image:
    "A band for each bit of `i`, on a ground of its own brightness"
    px = np.random.default_rng(i).integers(0, 20, (30, 30, 3)) + int(level(i))
    for k in bits(i): px[10*k:10*k+10, :, k] += 150
    return Image.fromarray(px.astype(np.uint8))


@dataclass(frozen=True)
class Case:
    "One task: how its pictures are labeled, and what its artifacts have"
    key: str           # of the task
    label: Callable    # number of a picture -> cell of the table
    cells: tuple       # that are right in a file, for hostile tables; a dozen or more
    about: dict        # fields of a record
    column: str = 'label'

    def table(self, root:Path, n=60) -> pd.DataFrame:
        "Write the pictures"
        root.mkdir(parents=True, exist_ok=True)
        for i in range(n): picture(i).save(root/f'{i:02d}.png')
        paths = [str(root/f'{i:02d}.png') for i in range(n)]
        return pd.DataFrame({'path': paths, self.column: pd.Series([self.label(i) for i in range(n)], dtype=object)})

    def loaders(self, df, **kw):
        return image_dataloaders(df, TINY['arch'], task=self.key, label_col=self.column, check=False, **PX | dict(bs=8) | kw)

    def learner(self, df, **kw):
        "The same weights each time"
        torch.manual_seed(0)
        return transfer_learner(self.loaders(df, **kw), **TINY)

    def run(self, df, out):
        return baseline(df, **TINY, **PX, recipe='head', task=self.key, label_col=self.column, out=out, verbose=False, device='cpu')

    def artifact(self, **kw) -> tuple: # (network, record)
        torch.manual_seed(0)
        about = Artifact(TINY['arch'], preprocess=body_preprocess(TINY['arch'], 64), **self.about | dict(task=self.key) | kw)
        net = build_body(TINY['arch'], len(about.classes), 'random').eval()
        torch.nn.init.normal_(net.get_classifier().weight)
        return net, about


SCALE = dict(mean=50., std=10., low=20., high=90., within=12.)
CASES = {c.key: c for c in (
    Case('label', lambda i: NAMES[bits(i)[0]] if bits(i) else NOTHING, ('cat', 'dog')*7, dict(classes=('blue', 'green', 'red'))),
    Case('labels', lambda i: tuple(NAMES[k] for k in bits(i)) or (NOTHING,), ('cat;dog', 'cat', 'dog;hen', 'hen;cat')*4, dict(classes=('blue', 'green', 'red'), thresholds=(.1, .2, .3))),
    Case('number', level, tuple(f'{i*1.37:.2f}' for i in range(14)), dict(classes=('level',), number=SCALE), column=NUMBER))}


def equal(a, b) -> bool:
    "Are the weights of two learners the same, bit for bit, and their logs?"
    same = all(torch.equal(x, y) for x, y in zip(a.model.state_dict().values(), b.model.state_dict().values()))
    return same and a.history.steps.equals(b.history.steps) and a.recorder.losses == b.recorder.losses
