"""What else can be made of one training after the head? Means of its weights, larger images, two models in one

    python benchmarks/recipes/averages.py FOLDER --sets oxygen terrain --k 16 --seeds 100 101
    python benchmarks/recipes/averages.py FOLDER --phase 'all layers' --seeds 100 101 102 103
    python benchmarks/recipes/averages.py --show

Every variant is measured on the same training: moving averages of the weights (EMA), the mean of the last third, the
weights between those before and after (WiSE-FT), evaluation at larger sizes (FixRes), and the mean of the head's and
the trained model's probabilities, which no single network has. Seeds from 100 on: these rows are for choosing.
"""
import argparse, json
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import torch
from fastai.callback.core import Callback

from cases import Case
from fastbit.baseline import onecycle_phases
from fastbit.bodies import zero_classifier
from fastbit.metrics import evaluate_probs

RESULTS = Path(__file__).parent/'averages.jsonl'
DECAYS = (.95, .98)           # of the moving averages, per optimizer step
SHARES = (.25, .5, .75)       # of the trained weights in the mean with those before
SCALES = (9/8, 5/4)           # of the side of images in evaluation


def floats(model) -> dict: return {k: v.detach().clone() for k, v in model.state_dict().items() if v.is_floating_point()}
def mean(a, b, share) -> dict: return {k: v.lerp(b[k], share) for k, v in a.items()}


class Averages(Callback):
    "Averages of the weights, of running statistics, too"
    def before_fit(self):
        self.n_steps, self.step, self.ema, self.last, self.n_last = self.n_epoch*len(self.dls.train), 0, {}, None, 0

    def after_batch(self):
        if not self.training: return
        self.step += 1
        now = floats(self.learn.model)
        for decay in DECAYS:
            warm = min(decay, self.step/(self.step + 10))
            self.ema[decay] = mean(self.ema[decay], now, 1-warm) if decay in self.ema else now
        if self.step <= self.n_steps*2/3: return
        self.n_last += 1
        self.last = now if self.last is None else mean(self.last, now, 1/self.n_last)


class Measured:
    "Probabilities of the measured images, by variant"
    def __init__(self, case, model):
        self.case, self.model, self.probs = case, model, {}

    def note(self, variant, weights=None, size=None):
        if weights is not None: self.model.load_state_dict({**self.model.state_dict(), **weights})
        case = self.case if size is None else replace(self.case, size=size)
        self.model.eval()
        with torch.no_grad():
            self.probs[variant] = torch.cat([self.model(x).softmax(1) for x in case.pixels('test').split(128)])

    def rows(self, about):
        targets = self.case.targets('test')
        for variant, probs in self.probs.items():
            found = evaluate_probs(probs, targets)
            yield about | dict(variant=variant, accuracy=found.accuracy, loss=found.loss)


def all_layers(case) -> Measured:
    "Fine-tune all layers from the head, as `onecycle` does, and measure what lies between"
    learn = case.learner()
    measured, model = Measured(case, learn.model), learn.model
    head, everything = onecycle_phases(cache=False)
    with learn.no_bar(), learn.no_logging():
        head.fit(learn)
        measured.note('head')
        before = floats(model)
        everything.fit(learn)
    after = floats(model)
    measured.note('trained')
    for share in SHARES: measured.note(f'{share:.0%} of the way from the head', mean(before, after, share))
    return measured


def upper_stages(case) -> Measured:
    "Train the upper stages once, and measure every variant"
    learn, averages = case.learner(), Averages()
    measured, model = Measured(case, learn.model), learn.model
    with learn.no_bar(), learn.no_logging():
        learn.fit_head(solver='lbfgs', cache=False)
        measured.note('head')
        before = floats(model)
        zero_classifier(model.net)
        learn.fit_upper(cache=False, cbs=averages)
    after = floats(model)
    measured.note('trained')
    for scale in SCALES: measured.note(f'evaluated at {scale:.2f} of the size', size=round(case.size*scale))
    for decay, weights in averages.ema.items(): measured.note(f'moving average, {decay}', weights)
    measured.note('mean of the last third', averages.last)
    for share in SHARES: measured.note(f'{share:.0%} of the way from the head', mean(before, after, share))
    both = measured.probs['head'] + measured.probs['trained']
    measured.probs['mean with the head, two models'] = both/2
    return measured


PHASES = {'upper stages': upper_stages, 'all layers': all_layers}


def read() -> list: return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def work(args):
    draw = ('phase', 'set', 'k', 'seed', 'size')
    done = {tuple(r[k] for k in draw) for r in read()}
    for seed in args.seeds:
        for name in args.sets:
            about = dict(phase=args.phase, set=name, k=args.k, seed=seed, size=args.size)
            if tuple(about.values()) in done: continue
            measured = PHASES[args.phase](Case(args.folder/name, args.k, seed, args.size, args.arch, args.weights))
            with open(RESULTS, 'a') as f: f.writelines(json.dumps(row) + '\n' for row in measured.rows(about))
            print(*measured.rows(about), sep='\n', flush=True)


def show():
    "Print the mean difference of each variant to the trained model"
    import pandas as pd
    draws = ['phase', 'set', 'k', 'seed', 'size']
    df = pd.DataFrame(read()).set_index([*draws, 'variant'])[['accuracy', 'loss']]
    change = (df - df.xs('trained', level='variant')).groupby(['phase', 'variant'], sort=False)
    print(change.agg(['mean', 'sem', 'count']).round(3).to_string())


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('folder', type=Path, nargs='?', help='where sets.py put the sets')
    p.add_argument('--sets', nargs='+', default=['clipart', 'oxygen', 'terrain', 'units', 'stamps', 'digits'])
    p.add_argument('--phase', choices=PHASES, default='upper stages', help='what trains after the head')
    p.add_argument('--k', type=int, default=16, help='training images per class')
    p.add_argument('--seeds', type=int, nargs='+', default=[100, 101])
    p.add_argument('--size', type=int, default=64)
    p.add_argument('--arch', default='tf_efficientnet_lite0')
    p.add_argument('--weights', default='auto')
    p.add_argument('--show', action='store_true', help='print what the rows say')
    args = p.parse_args()
    if args.show: return show()
    if args.folder is None: p.error('where are the sets? `python benchmarks/recipes/sets.py FOLDER` makes them')
    work(args)


if __name__ == '__main__': main()
