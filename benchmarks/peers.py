"What the benchmarks share: the same split, weights and pixels for every peer, and a file of results"
import argparse, json, os, platform, statistics, tempfile, time, warnings

warnings.simplefilter('ignore')
import numpy as np, torch
from fastai.vision.all import (CategoryBlock, ColReader, DataBlock, ImageBlock, IndexSplitter, Normalize, Resize,
                               accuracy, set_seed, vision_learner)
from fastcore.xtras import ContextManagers

from fastbit.bodies import body_preprocess, build_body, timm_name
from fastbit.core.machine import this_machine
from fastbit.data import image_dataloaders, image_table, split_table
from fastbit.data.features import view_pixels
from fastbit.training import transfer_learner


def parser(doc, **defaults):
    "The options of every benchmark"
    p = argparse.ArgumentParser(description=doc.splitlines()[0])
    p.add_argument('--data', required=True, metavar='FOLDER', help='a folder of class folders')
    p.add_argument('--arch', default='tf_efficientnet_lite0')
    p.add_argument('--weights', default='auto',
                   help='as for `fastbit baseline`; random ones are drawn once, for all peers')
    p.add_argument('--size', type=int, default=128)
    p.add_argument('--bs', type=int, default=32)
    p.add_argument('--repeats', type=int, default=3)
    p.add_argument('--results', metavar='FILE', help='append the figures to this file, one JSON object per line')
    p.set_defaults(**defaults)
    return p


def prepare(args):
    "Set `args.folder`, with an empty cache, and `args.weights` and `args.state`, which all peers begin from"
    args.folder = tempfile.mkdtemp()
    os.environ['FASTBIT_CACHE'] = f'{args.folder}/cache'
    torch.manual_seed(0)
    args.state = {k: v.clone() for k, v in build_body(args.arch, 0, args.weights).state_dict().items()}
    if args.weights != 'random': return
    args.weights = f'{args.folder}/body.pth'
    torch.save(args.state, args.weights)


def split(args, seed=0): return split_table(image_table(args.data), .2, seed)


def fastai_loaders(table, args, batch_tfms=()):
    "As fastai's documentation does it: `Resize`, normalization in the loaders"
    pp = body_preprocess(args.arch)
    block = DataBlock(
        (ImageBlock, CategoryBlock),
        get_x=ColReader('path'),
        get_y=ColReader('label'),
        splitter=IndexSplitter(table.index[table.split == 'valid']),
        item_tfms=Resize(args.size),
        batch_tfms=[*batch_tfms, Normalize.from_stats(pp.mean, pp.std)])
    return block.dataloaders(table, bs=args.bs)


def fastai_learner(table, args, seed=0, batch_tfms=()):
    "A frozen `vision_learner` with the weights of `args.state`"
    set_seed(seed)
    dls = fastai_loaders(table, args, batch_tfms)
    learn = vision_learner(dls, timm_name(args.arch), pretrained=False, metrics=accuracy)
    learn.model[0].model.load_state_dict(args.state)
    learn.freeze()
    return learn


def fastbit_learner(table, args, seed=0, **kwargs):
    set_seed(seed)
    dls = image_dataloaders(table, args.arch, args.size, args.bs, seed=seed, check=False, **kwargs)
    return transfer_learner(dls, args.arch, args.weights)


def pixels_in_memory(paths, args):
    "Normalized, as the body takes them"
    pp = body_preprocess(args.arch, args.size)
    mean, std = (torch.tensor(o).view(1, 3, 1, 1) for o in (pp.mean, pp.std))
    pixels = np.stack([view_pixels(f, 0, pp) for f in paths])
    return (torch.from_numpy(pixels).float()/255 - mean)/std


def quiet(learn): return ContextManagers([learn.no_bar(), learn.no_logging()])


def seconds(f):
    start = time.perf_counter()
    f()
    return time.perf_counter() - start


def interleaved(peers, repeats):
    "Seconds of each peer, one run of each after the other, in an order that alternates: {name: [seconds]}"
    res = {name: [] for name in peers}
    for i in range(repeats):
        for name in (list(peers) if i % 2 == 0 else list(peers)[::-1]):
            res[name].append(peers[name]() or 0.)
            print(f'{name}: {res[name][-1]:.2f} s', flush=True)
    return res


def median(times): return {k: statistics.median(v) for k, v in times.items()}


def paired(times, a, b):
    "The median over the repeats of a's time over b's, each from one round"
    return statistics.median(x/y for x, y in zip(times[a], times[b]))


def spread(a, b=None, digits=2):
    "[smallest, largest] of some figures, or of the ratios of two rows of them"
    values = [x if b is None else x/y for x, y in zip(a, a if b is None else b)]
    return [round(min(values), digits), round(max(values), digits)]


def machine(device=None):
    "What a figure depends on besides its command: processor, vector instructions, threads, GPU"
    here = this_machine(device)
    gpu = here.gpu or ('CUDA' if torch.cuda.is_available() else 'no GPU')
    about = dict(machine=f'{os.cpu_count()} cores, {here.threads} threads, {here.capability}, {gpu}')
    about |= dict(cpu=here.cpu, capability=here.capability, threads=here.threads)
    if here.gpu: about['gpu'] = here.gpu
    if 'ATEN_CPU_CAPABILITY' in os.environ: about['emulated'] = True   # the processor has more
    return about


def note(args, question, value, goal='', **more):
    "Print a figure, and append it to the file of results"
    versions = dict(torch=torch.__version__, python=platform.python_version())
    made_with = machine(getattr(args, 'device', None)) | versions
    row = dict(question=question, value=value, goal=goal, arch=args.arch) | more | made_with
    wanted = f' (goal {goal})' if goal else ''
    print(f'{question}: {value}{wanted}', flush=True)
    if not args.results: return
    with open(args.results, 'a') as f: f.write(json.dumps(row) + '\n')
