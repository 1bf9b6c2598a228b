"""How long does it take from image files to a classifier on a frozen body, and how good is it?

    python benchmarks/head_training.py --data FOLDER [--arch tf_efficientnet_lite0] [--size 128] [--epochs 5] [--repeats 3] [--seeds 0] [--fastai-epochs N]

fastai trains a frozen `vision_learner` with `Resize` and one-cycle; fastbit runs `fit_head`. Same weights, split, size, batch size and number of epochs; both times run from the list of files to the trained
classifier, data loaders and network included. `cold` begins with an empty cache, `warm` finds the features of the run before. `forward` is the least that any way of doing it needs: one pass of the plain timm network, in its better
memory format, over the same pixels when they are in memory already. fastai's epochs are alike, so for a long run `--fastai-epochs` measures fewer and multiplies.
Peers alternate within one process; times are medians over the repeats, accuracies means over the seeds.
"""
import argparse, os, shutil, statistics, tempfile, time, warnings

warnings.simplefilter('ignore')
import numpy as np, pandas as pd, torch
from fastai.vision.all import CategoryBlock, ColReader, DataBlock, ImageBlock, IndexSplitter, Normalize, Resize, accuracy, set_seed, vision_learner

from fastbit.bodies import body_preprocess, build_body
from fastbit.data import image_dataloaders
from fastbit.features import view_pixels
from fastbit.learner import transfer_learner
from fastbit.tables import image_table, split_table


def run_fastai(table, args, seed, epochs, state):
    pp = body_preprocess(args.arch)
    set_seed(seed)
    start = time.perf_counter()
    block = DataBlock((ImageBlock, CategoryBlock), get_x=ColReader('path'), get_y=ColReader('label'), splitter=IndexSplitter(table.index[table.split == 'valid']),
                      item_tfms=Resize(args.size), batch_tfms=[Normalize.from_stats(pp.mean, pp.std)])
    learn = vision_learner(block.dataloaders(table, bs=args.bs), args.arch, pretrained=False, metrics=accuracy)
    learn.model[0].model.load_state_dict(state)
    learn.freeze()
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(epochs, 1e-2)
    return time.perf_counter() - start, learn.recorder.values[-1][-1]


def run_fastbit(table, args, seed, epochs):
    set_seed(seed)
    start = time.perf_counter()
    learn = transfer_learner(image_dataloaders(table, args.arch, args.size, args.bs, seed=seed, check=False), args.arch, args.weights)
    with learn.no_bar(), learn.no_logging(): learn.fit_head(epochs)
    return time.perf_counter() - start, learn.recorder.values[-1][-1]


def run_forward(net, pixels, args, format):
    start = time.perf_counter()
    with torch.inference_mode():
        for x in pixels.split(args.bs): net(x.contiguous(memory_format=format))
    return time.perf_counter() - start


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--data', required=True); p.add_argument('--arch', default='tf_efficientnet_lite0'); p.add_argument('--weights', default='auto'); p.add_argument('--size', type=int, default=128)
    p.add_argument('--epochs', type=int, nargs='+', default=[5, 20]); p.add_argument('--bs', type=int, default=32); p.add_argument('--repeats', type=int, default=3)
    p.add_argument('--seeds', type=int, nargs='+', default=[0]); p.add_argument('--fastai-epochs', type=int)
    args = p.parse_args()
    os.environ['FASTBIT_CACHE'] = folder = tempfile.mkdtemp()
    pp = body_preprocess(args.arch, args.size)
    torch.manual_seed(0)
    net = build_body(args.arch, 0, args.weights)
    state = {k: v.clone() for k, v in net.state_dict().items()}
    if args.weights == 'random':   # both begin from the same ones
        torch.save(state, f'{folder}/body.pth'); args.weights = f'{folder}/body.pth'
    table = split_table(image_table(args.data), .2, 0)
    mean, std = (torch.tensor(o).view(1, 3, 1, 1) for o in (pp.mean, pp.std))
    pixels = (torch.from_numpy(np.stack([view_pixels(f, 0, pp) for f in table.path])).float()/255 - mean)/std
    rows = []
    def note(peer, epochs, seed, seconds, acc=None): rows.append(dict(peer=peer, epochs=epochs, seed=seed, seconds=seconds, accuracy=acc)); print(rows[-1], flush=True)
    for format in (torch.channels_last, torch.contiguous_format): run_forward(net.to(memory_format=format), pixels[:args.bs], args, format)
    for repeat in range(args.repeats):
        for format in (torch.channels_last, torch.contiguous_format): note(f'forward {str(format)[6:]}', 0, 0, run_forward(net.to(memory_format=format), pixels, args, format))
        for seed in args.seeds:
            table = split_table(image_table(args.data), .2, seed)
            for epochs in args.epochs:
                shutil.rmtree(f'{folder}/cache', ignore_errors=True); os.environ['FASTBIT_CACHE'] = f'{folder}/cache'
                note('fastbit cold', epochs, seed, *run_fastbit(table, args, seed, epochs))
                note('fastbit warm', epochs, seed, *run_fastbit(table, args, seed, epochs))
                if repeat and len(args.seeds) > 1: continue   # its accuracy is known, and its time from one seed each
                measured = min(epochs, args.fastai_epochs or epochs)
                seconds, acc = run_fastai(table, args, seed, measured, state)
                note('fastai', epochs, seed, seconds*epochs/measured, acc if measured == epochs else None)
    df = pd.DataFrame(rows)
    forward = df[df.peer.str.startswith('forward')].groupby('peer').seconds.median().min()
    print(f'\n{args.arch}, {args.size} px, {len(table)} images ({(table.split == "train").sum()} to train), batches of {args.bs}, seeds {args.seeds}, {args.repeats} repeats, {torch.get_num_threads()} threads, one forward pass {forward:.2f} s')
    for epochs in args.epochs:
        part = df[df.epochs == epochs]
        t, a = part.groupby('peer').seconds.median(), part.groupby('peer').accuracy.mean()
        cold, warm, peer = t['fastbit cold'], t['fastbit warm'], t['fastai']
        print(f'{epochs} epochs: fastai {peer:.2f} s, fastbit {cold:.2f} s, ratio {peer/cold:.1f}; again {warm:.2f} s, {warm/cold:.2f} of the first; fastbit / forward {cold/forward:.2f}; '
              f'accuracy fastbit {a["fastbit cold"]:.4f}, fastai {a["fastai"]:.4f}', flush=True)


if __name__ == '__main__': main()
