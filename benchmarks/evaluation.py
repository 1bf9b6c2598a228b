"""How long does evaluation take, plain and with five views of each image?

    python benchmarks/evaluation.py --data FOLDER [--arch BiT-M-R50x1 --weights random] [--size 128] [--repeats 3]

Plain: timm's model as it is, in its better memory format, against fastbit's `get_preds`, which folds first; both over
the same loader. TTA: fastai's `tta(n=4)`, which is five passes, against fastbit's `tta(views='five_crops')`, also five.
"""
import torch

from fastbit.bodies import build_body
from peers import (fastai_learner, fastbit_learner, interleaved, median, note, paired, parser, prepare, quiet, seconds,
                   split, spread)

FORMATS = (torch.channels_last, torch.contiguous_format)


def quietly(learn, f):
    with quiet(learn): return seconds(f)


def timm_peers(args, ours, loader, n_classes):
    "timm's model in both memory formats, over the loader of fastbit's learner"
    model = ours.model.eval()
    net = build_body(args.arch, n_classes, args.weights).eval()
    def one_pass(format):
        with torch.inference_mode():
            for x, in loader:
                x = (x.as_subclass(torch.Tensor)-model.mean)/model.std
                net(x.contiguous(memory_format=format))
    def timed(format):
        net.to(memory_format=format)
        return seconds(lambda: one_pass(format))
    return {f'timm {str(format)[6:]}': lambda format=format: timed(format) for format in FORMATS}


def main():
    args = parser(__doc__).parse_args()
    prepare(args)
    table = split(args)
    theirs, ours = fastai_learner(table, args), fastbit_learner(table, args)
    everything = ours.dls.test_dl(list(table.path), num_workers=0, bs=args.bs)
    peers = timm_peers(args, ours, everything, table.label.nunique())
    peers['fastbit'] = lambda: quietly(ours, lambda: ours.get_preds(dl=everything))
    peers['fastai TTA'] = lambda: quietly(theirs, lambda: theirs.tta(n=4))
    peers['fastbit TTA'] = lambda: quietly(ours, lambda: ours.tta(views='five_crops', show=False))
    for f in peers.values(): f()   # decoded, prepared
    times = interleaved(peers, args.repeats)
    t = median(times)
    best = min((k for k in t if k.startswith('timm')), key=t.get)
    is_bit = 'efficientnet' not in args.arch
    n_valid = int((table.split == 'valid').sum())
    print(f'\n{args.arch}, {args.size} px, batches of {args.bs}, {args.repeats} repeats; plain on {len(table)} images, '
          f'TTA on {n_valid}: ' + ', '.join(f'{k} {v:.2f} s' for k, v in t.items()))
    ratio = round(paired(times, best, 'fastbit'), 2)
    note(args, f'evaluation, unfolded timm ({best[5:]}) / fastbit', ratio, '1.0',
         seconds=t, range=spread(times[best], times['fastbit']), difference=ours.fold_difference)
    ratio = round(paired(times, 'fastai TTA', 'fastbit TTA'), 2)
    note(args, 'TTA, five passes, fastai / fastbit', ratio, '1.35' if is_bit else '1.5',
         seconds=t, range=spread(times['fastai TTA'], times['fastbit TTA']))


if __name__ == '__main__': main()
