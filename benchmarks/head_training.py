"""How long does it take from image files to a classifier on a frozen body, how good is it, and what do views add?

    python benchmarks/head_training.py --data FOLDER [--arch tf_efficientnet_lite0] [--size 128] [--epochs 5 20]
        [--seeds 0 1 2 3 4] [--fastai-epochs N] [--no-tta]

fastai trains a frozen `vision_learner` with `Resize` and one-cycle; fastbit runs `fit_head`. Same weights, split, size,
batch size and number of epochs; both times run from the list of files to the trained classifier, data loaders and model
included. `cold` begins with an empty cache, `warm` finds the features of the run before. `forward` is the least that
any way of doing it needs: one pass of the plain timm model, in its better memory format, over the pixels in memory.
fastai's epochs are alike, so `--fastai-epochs` measures fewer of a long run and multiplies. TTA is each one's default:
five passes for fastai, two for fastbit. A seed is a split and a repeat; peers alternate within one process. Times are
medians over the seeds, accuracies means.
"""
import os, shutil

import pandas as pd, torch
from fastai.vision.all import accuracy

from fastbit.bodies import build_body
from peers import (fastai_learner, fastbit_learner, note, parser, pixels_in_memory, prepare, quiet, seconds, split,
                   spread)

FORMATS = (torch.channels_last, torch.contiguous_format)


def one_cycle(learn, epochs): learn.fit_one_cycle(epochs, 1e-2)
def fit_head(learn, epochs): learn.fit_head(epochs)


def trained(make, fit, table, args, seed, epochs, times=1.):
    "(learner, seconds from files to the trained head, its accuracy); those of the epochs count `times` times"
    made = []
    t = seconds(lambda: made.append(make(table, args, seed)))
    with quiet(made[0]): t += times*seconds(lambda: fit(made[0], epochs))
    return made[0], t, made[0].recorder.values[-1][-1]


def forward(net, pixels, args, format):
    with torch.inference_mode():
        for x in pixels.split(args.bs): net(x.contiguous(memory_format=format))


def tta(learn):
    res = []
    with quiet(learn): t = seconds(lambda: res.append(learn.tta()))
    preds, targs = res[0]
    return t, accuracy(preds, targs).item()


def one_seed(args, seed, net, rows):
    table = split(args, seed)
    pixels = pixels_in_memory(table.path, args)
    def record(peer, epochs, t, acc=None):
        rows.append(dict(peer=peer, epochs=epochs, seed=seed, seconds=t, accuracy=acc))
        print(rows[-1], flush=True)
    for format in FORMATS:
        net.to(memory_format=format)
        record(f'forward {str(format)[6:]}', 0, seconds(lambda: forward(net, pixels, args, format)))
    for i, epochs in enumerate(args.epochs):
        measured = min(epochs, args.fastai_epochs or epochs)
        def theirs():
            learn, t, acc = trained(fastai_learner, one_cycle, table, args, seed, measured, epochs/measured)
            record('fastai', epochs, t, acc if measured == epochs else None)
            if not i and not args.no_tta: record('fastai TTA', epochs, *tta(learn))
        def ours():
            shutil.rmtree(os.environ['FASTBIT_CACHE'], ignore_errors=True)
            learn, t, acc = trained(fastbit_learner, fit_head, table, args, seed, epochs)
            record('cold', epochs, t, acc)
            _, t, acc = trained(fastbit_learner, fit_head, table, args, seed, epochs)
            record('warm', epochs, t, acc)
            if not i and not args.no_tta: record('fastbit TTA', epochs, *tta(learn))
        for f in ((theirs, ours) if seed % 2 == 0 else (ours, theirs)):
            if f is ours or not i or not args.fastai_epochs: f()


def accuracy_note(args, question, means, accs, ours, theirs):
    "The accuracies of both, with their ranges over the seeds"
    value = f'{means[ours]:.4f}; {means[theirs]:.4f}'
    ranges = [spread(accs[k], digits=3) for k in (ours, theirs)]
    note(args, question, value, 'not lower', seeds=args.seeds, range=ranges)


def summarize(args, df, epochs, least, has_accuracy):
    "The figures of one number of epochs"
    is_lite = 'efficientnet' in args.arch
    rows = df[df.epochs == epochs].groupby('peer')
    every, accs = ({k: list(v) for k, v in rows[c]} for c in ('seconds', 'accuracy'))   # of each seed
    t, a = rows.seconds.median(), rows.accuracy.mean()
    per_epoch = df[df.peer == 'fastai'].seconds/args.epochs[0]
    theirs = every.get('fastai') or list(per_epoch*epochs)
    their = t.get('fastai', per_epoch.median()*epochs)
    more = dict(seeds=args.seeds, seconds={**t.round(2), 'fastai': round(their, 2)}, forward=round(least, 2))
    with_avx512 = 'AVX512' in torch.backends.cpu.get_cpu_capability()
    least_of_lite = '30' if with_avx512 else '20'
    goal = {5: least_of_lite if is_lite else '8', 20: '45' if is_lite else ''}.get(epochs, '')
    name = f'head training, {epochs} epochs'
    note(args, f'{name}, fastai / fastbit', round(their/t['cold'], 1), goal,
         range=spread(theirs, every['cold'], 1), **more)
    note(args, f'{name}, fastbit / one forward pass', round(t['cold']/least, 2), '1.35 at most', **more)
    note(args, f'{name}, second run / first', round(t['warm']/t['cold'], 2), '0.15 at most',
         range=spread(every['warm'], every['cold']), **more)
    if pd.notna(a.get('fastai')) and has_accuracy:
        accuracy_note(args, f'head accuracy after {epochs} epochs, fastbit; fastai', a, accs, 'cold', 'fastai')
    if 'fastai TTA' not in t: return
    note(args, 'default TTA, time, fastai / fastbit', round(t['fastai TTA']/t['fastbit TTA'], 2), '3',
         range=spread(every['fastai TTA'], every['fastbit TTA']))
    if has_accuracy:
        accuracy_note(args, 'default TTA, accuracy, fastbit; fastai', a, accs, 'fastbit TTA', 'fastai TTA')


def main():
    p = parser(__doc__)
    p.add_argument('--epochs', type=int, nargs='+', default=[5, 20])
    p.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    p.add_argument('--fastai-epochs', type=int)
    p.add_argument('--no-tta', action='store_true', help='skip the comparison of TTA')
    args = p.parse_args()
    has_accuracy = args.weights != 'random'   # times are those of trained weights, accuracies are meaningless
    prepare(args)
    net, rows = build_body(args.arch, 0, args.weights), []
    forward(net, torch.zeros(args.bs, 3, args.size, args.size), args, torch.contiguous_format)   # prepared once
    for seed in args.seeds: one_seed(args, seed, net, rows)
    df = pd.DataFrame(rows)
    least = df[df.peer.str.startswith('forward')].groupby('peer').seconds.median().min()
    print(f'\n{args.arch}, {args.size} px, {len(split(args))} images, batches of {args.bs}, seeds {args.seeds}; '
          f'one forward pass {least:.2f} s')
    for epochs in args.epochs: summarize(args, df, epochs, least, has_accuracy)


if __name__ == '__main__': main()
