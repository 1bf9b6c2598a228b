"""How fast is fastbit on a GPU, next to bare PyTorch on tensors in its memory, and next to fastai?

    python benchmarks/gpu.py [--results benchmarks/results.jsonl] [--only training compile …] [--minutes 7.5]
    python benchmarks/gpu.py --device cpu --small                  # tries the script itself, where there is no GPU

Draws its images, and begins from random weights: nothing is downloaded, and times depend on neither. Peers of a question
run in turns within this process, and a figure is the median over at least five rounds, unless a question's time ran out
before. A question that fails prints why, and the next one follows. The bare peers are timm's model in channels_last on
images that are normalized and on the device already: in training with bf16 autocast, BatchNorm frozen like fastbit's and
torch's fused AdamW; in evaluation in float32, which fastbit's evaluation is, too.
"""
import argparse, os, signal, statistics, tempfile, time, traceback
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import numpy as np, torch, torch.nn.functional as F
from PIL import Image
from fastai.callback.core import Callback, CancelValidException
from fastai.vision.all import ImageDataLoaders, Resize, accuracy, vision_learner

from fastbit.bodies import TransferModel, build_body
from fastbit.core.device import wait_for
from fastbit.data import image_dataloaders
from fastbit.training import transfer_learner
from fastbit.training.compiled import CompileTimes, first_call
from peers import note, quiet, spread

BODIES = ('tf_efficientnet_lite0', 'efficientnet_b0')
ROUNDS = 5


# Images

def draw(path, seed, label):
    "A smooth picture with some noise, whose file is about as large as a photo's of that size"
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8)).resize((320, 240), Image.BICUBIC)
    pixels = np.asarray(coarse).astype(np.int16) + rng.integers(-12, 13, (240, 320, 3))
    pixels[..., label % 3] += 20
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=90)


def draw_folder(root, n, classes=10):
    "Class folders of `n` drawn images"
    for c in range(classes): (root/f'class{c}').mkdir(parents=True)
    files = [root/f'class{i % classes}'/f'{i:05d}.jpg' for i in range(n)]
    with ThreadPoolExecutor() as ex: list(ex.map(draw, files, range(n), [i % classes for i in range(n)]))


# Time

class EpochClock(Callback):
    "Seconds of training in each epoch, with all that the device had to compute"
    order = 90
    def before_fit(self): self.seconds = []
    def before_train(self): self.start = now(self.learn.dls.device)
    def after_train(self): self.seconds.append(now(self.learn.dls.device) - self.start)
    def before_validate(self): raise CancelValidException


class TimeIsUp(Exception):
    "A question took too long; no `TimeoutError`, which a fit takes for a dead worker process"


def now(device):
    wait_for(device)
    return time.perf_counter()


def timed(device, f):
    start = now(device)
    f()
    return now(device) - start


def rounds(peers, until):
    "{peer: [seconds of each round]}: in turns, in an order that alternates, `ROUNDS` times or until the time is over"
    for f in peers.values(): f()   # caches filled, algorithms chosen
    times = {name: [] for name in peers}
    try:
        for i in range(ROUNDS):
            if i and time.monotonic() > until: break
            for name in (list(peers) if i % 2 == 0 else list(peers)[::-1]): times[name].append(peers[name]())
    except TimeIsUp:
        n = min(map(len, times.values()))   # whole rounds
        if not n: raise
        times = {name: ts[:n] for name, ts in times.items()}
    print({name: [round(t, 4) for t in ts] for name, ts in times.items()}, flush=True)
    return times


def ratio(times, a, b): return round(statistics.median(x/y for x, y in zip(times[a], times[b])), 2)
def per_second(n, times): return {name: round(n/statistics.median(ts), 1) for name, ts in times.items()}


# Peers

class Bench:
    "What the questions share: images, options, and learners made once"
    def __init__(self, args, root):
        self.args, self.root, self.device = args, root, torch.device(args.device)
        self.learners = {}
        draw_folder(root, args.images)

    def learner(self, arch):
        "fastbit's, with all layers unfrozen, its pixels cached"
        if arch not in self.learners:
            a = self.args
            dls = image_dataloaders(self.root, arch, a.size, a.bs, check=False, device=str(self.device))
            self.learners[arch] = transfer_learner(dls, arch, 'random')
            for dl in dls.loaders[:2]:
                for _ in dl: pass
        learn = self.learners[arch]
        learn.unfreeze()
        return learn

    def n_train(self, arch): return self.learner(arch).dls.train.n

    @cached_property
    def pixels(self):
        "Normalized images on the device, as many as an epoch has"
        n = self.n_train(self.args.bodies[0])
        some = torch.randn(min(n, 512), 3, self.args.size, self.args.size, device=self.device)
        return some.repeat(-(-n//len(some)), 1, 1, 1)[:n].contiguous(memory_format=torch.channels_last)

    @cached_property
    def targets(self): return torch.arange(len(self.pixels), device=self.device) % 10

    def model(self, arch, format=torch.channels_last):
        "timm's model with frozen BatchNorm, as fastbit trains it"
        return TransferModel(build_body(arch, 10, 'random')).to(self.device).to(memory_format=format).train()

    def step(self, arch, net=None, half=True, format=torch.channels_last):
        "A bare training step, as a function of images and targets"
        model = self.model(arch, format)
        net = model.net if net is None else net(model.net)
        opt = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-4, fused=True)
        def step(x, y):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=half): loss = F.cross_entropy(net(x), y)
            loss.backward()
            opt.step()
            opt.zero_grad()
        return step

    def bare_epoch(self, arch):
        step = self.step(arch)
        def epoch():
            for rows in torch.randperm(len(self.pixels), device=self.device).split(self.args.bs):
                step(self.pixels[rows].contiguous(memory_format=torch.channels_last), self.targets[rows])
        return lambda: timed(self.device, epoch)

    def epochs(self, learn, n=2):
        "Seconds of training in the last epoch of a fit of `n`"
        clock = EpochClock()
        with quiet(learn): learn.fit_one_cycle(n, 1e-4, cbs=clock)
        return clock.seconds[-1]

    def fastai_learner(self, arch):
        "As its documentation does it, in mixed precision"
        dls = ImageDataLoaders.from_folder(
            self.root, valid_pct=.2, seed=0, item_tfms=Resize(self.args.size), bs=self.args.bs, device=self.device,
            num_workers=min(16, os.cpu_count() or 1) if not self.args.small else 0)
        learn = vision_learner(dls, arch, pretrained=False, metrics=accuracy)
        learn.unfreeze()
        return learn.to_fp16() if self.device.type == 'cuda' else learn


# Questions: functions of (bench, time until which rounds may begin, function that notes a figure)

def training(bench, until, tell):
    "Images per second of training all layers"
    for k, arch in enumerate(bench.args.bodies, 1):
        part = time.monotonic() + (until - time.monotonic())*k/len(bench.args.bodies)
        learn, bare = bench.learner(arch), bench.bare_epoch(arch)
        times = rounds({'bare loop': bare, 'fastbit': lambda: bench.epochs(learn)}, part)
        tell('GPU, training all layers, images per second, fastbit / bare bf16 loop on tensors on the GPU',
             ratio(times, 'bare loop', 'fastbit'), '0.9', arch=arch, range=spread(times['bare loop'], times['fastbit']),
             images_per_second=per_second(bench.n_train(arch), times), precision=learn.precision)


def fastai_epoch(bench, until, tell):
    "A training epoch from files, the second one on"
    arch = bench.args.bodies[0]
    learn, theirs = bench.learner(arch), bench.fastai_learner(arch)
    times = rounds({'fastai': lambda: bench.epochs(theirs), 'fastbit': lambda: bench.epochs(learn)}, until)
    tell('GPU, a training epoch from files, second epoch on, fastai / fastbit', ratio(times, 'fastai', 'fastbit'), '5',
         arch=arch, range=spread(times['fastai'], times['fastbit']),
         images_per_second=per_second(bench.n_train(arch), times))


def bare_head(bench, n_features, graphed):
    "Epochs of a linear classifier on features on the device; `graphed`: each step is one CUDA graph"
    n, bs, device = len(bench.pixels), bench.args.bs, bench.device
    x, y = torch.randn(n, n_features, device=device), bench.targets
    head = torch.nn.Linear(n_features, 10, device=device)
    opt = torch.optim.AdamW(head.parameters(), 1e-3, fused=True, capturable=graphed)
    def step(x, y):
        F.cross_entropy(head(x), y).backward()
        opt.step()
        opt.zero_grad(set_to_none=not graphed)
    run = step
    if graphed:
        static_x, static_y = x[:bs].clone(), y[:bs].clone()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3): step(static_x, static_y)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph): step(static_x, static_y)
        def run(x, y):
            static_x.copy_(x)
            static_y.copy_(y)
            graph.replay()
    def epochs():
        for _ in range(bench.args.head_epochs):
            for rows in torch.randperm(n, device=device)[:n//bs*bs].split(bs): run(x[rows], y[rows])
    return lambda: timed(device, epochs)


def head(bench, until, tell):
    "The classifier on cached features: what fastai's loop costs, and what a CUDA graph could save"
    arch, epochs = bench.args.bodies[0], bench.args.head_epochs
    learn = bench.learner(arch)
    learn.freeze()
    n_features = learn.model.net.num_features
    def ours():
        with quiet(learn): return timed(bench.device, lambda: learn.fit_head(epochs))
    peers = {'bare': bare_head(bench, n_features, graphed=False), 'fastbit': ours}
    if bench.device.type == 'cuda': peers['graph'] = bare_head(bench, n_features, graphed=True)
    times = rounds(peers, until)
    for name in [k for k in peers if k != 'fastbit']:
        words = dict(bare='bare loop', graph='bare loop in CUDA graphs')[name]
        tell(f'GPU, head training, {epochs} epochs on cached features, fastbit / {words}', ratio(times, 'fastbit', name),
             arch=arch, range=spread(times['fastbit'], times[name]))


def forward(bench, arch, views=1):
    "Bare passes in evaluation, in float32"
    model = bench.model(arch).eval()
    def run():
        with torch.inference_mode():
            for x in bench.pixels.split(bench.args.bs):
                for i in range(views): model.net(x.flip(-1) if i else x)
    return lambda: timed(bench.device, run)


def evaluation(bench, until, tell):
    "Features, plain predictions and TTA of images whose pixels are cached, in images per second"
    arch = bench.args.bodies[0]
    learn, n = bench.learner(arch), len(bench.pixels)
    dl = learn.dls.train.new(shuffle=False, drop_last=False)
    def of(f):
        with quiet(learn): return timed(bench.device, f)
    def features():
        learn.freeze()
        return of(lambda: learn.fit_head(1, cache=False))
    peers = {
        'one pass': forward(bench, arch), 'two passes': forward(bench, arch, views=2),
        'get_preds': lambda: of(lambda: learn.get_preds(dl=dl)),
        'tta': lambda: of(lambda: learn.tta(dl=dl, views=('identity', 'hflip'), show=False)),
        'features': features}
    times = rounds(peers, until)
    for name, least, what in (('get_preds', 'one pass', 'evaluation'), ('tta', 'two passes', 'TTA, two views'),
                              ('features', 'one pass', 'features and one epoch of head training')):
        tell(f'GPU, {what}, images per second, fastbit / bare float32 passes over tensors on the GPU',
             ratio(times, least, name), arch=arch, range=spread(times[least], times[name]),
             images_per_second=per_second(n, {k: times[k] for k in (least, name)}))


def precision(bench, until, tell):
    "Is bf16 faster than float32 with TF32?"
    arch, bs = bench.args.bodies[0], bench.args.bs
    x, y = bench.pixels[:bs], bench.targets[:bs]
    def steps(step): return lambda: timed(bench.device, lambda: [step(x, y) for _ in range(bench.args.steps)])
    times = rounds({'float32': steps(bench.step(arch, half=False)), 'bf16': steps(bench.step(arch))}, until)
    tell('GPU, training step, float32 with TF32 / bf16', ratio(times, 'float32', 'bf16'), 'above 1', arch=arch,
         range=spread(times['float32'], times['bf16']))


def bit_format(bench, until, tell):
    "Is channels_last right for BiT on a GPU?"
    arch, bs, n = bench.args.bit, max(1, bench.args.bs//4), bench.args.steps
    x, y = bench.pixels[:bs], bench.targets[:bs]
    peers = {}
    for name, format in dict(contiguous=torch.contiguous_format, channels_last=torch.channels_last).items():
        step, images = bench.step(arch, format=format), x.contiguous(memory_format=format)
        peers[name] = lambda step=step, images=images: timed(bench.device, lambda: [step(images, y) for _ in range(n)])
    times = rounds(peers, until)
    tell('GPU, training step in bf16, contiguous / channels_last', ratio(times, 'contiguous', 'channels_last'),
         arch=arch, range=spread(times['contiguous'], times['channels_last']))


def compiled(bench, until, tell):
    "What torch.compile gains, and how long it takes: `first_call` is what a fit of fastbit does"
    arch, bs, n = bench.args.bodies[-1], bench.args.bs, bench.args.steps
    x, y, found = bench.pixels[:bs], bench.targets[:bs], {}
    def net(plain):
        fast = torch.compile(plain, dynamic=False)
        with torch.autocast(bench.device.type, torch.bfloat16): found['seconds'] = first_call(plain, fast, x)
        return fast
    peers = dict(plain=bench.step(arch), compiled=bench.step(arch, net))
    run = lambda step: timed(bench.device, lambda: [step(x, y) for _ in range(n)])
    times = rounds({k: lambda step=step: run(step) for k, step in peers.items()}, until)
    took = {k: statistics.median(v)/n for k, v in times.items()}
    print(CompileTimes(took['plain'], took['compiled'], found['seconds'], 10_000), flush=True)
    tell('GPU, training step in bf16, plain / torch.compile', ratio(times, 'plain', 'compiled'), arch=arch,
         range=spread(times['plain'], times['compiled']), compile_seconds=round(found['seconds'], 1))


QUESTIONS = dict(   # in the order of their weight: the last ones may find no time left
    training=training, fastai=fastai_epoch, evaluation=evaluation, head=head, precision=precision, compile=compiled,
    bit=bit_format)
SHARES = dict(training=.35, fastai=.2, evaluation=.15, head=.08, precision=.04, compile=.12, bit=.06)   # of the time


@contextmanager
def at_most(seconds):
    "Raise `TimeIsUp` in what takes longer"
    def stop(signum, frame): raise TimeIsUp(f'more than {seconds:.0f} s')
    if hasattr(signal, 'SIGALRM'):   # not on Windows
        signal.signal(signal.SIGALRM, stop)
        signal.setitimer(signal.ITIMER_REAL, seconds)
    try: yield
    finally:
        if hasattr(signal, 'SIGALRM'): signal.setitimer(signal.ITIMER_REAL, 0)


def ask(name, bench, seconds, left, tell):
    "Answer a question in about `seconds`, or print why there is no answer"
    print(f'== {name}: {QUESTIONS[name].__doc__}', flush=True)
    until = time.monotonic() + seconds
    try:
        with at_most(min(left, 2*seconds)): QUESTIONS[name](bench, until, tell)
    except Exception as e:
        where = traceback.extract_tb(e.__traceback__)[-1]
        line = str(e).strip().splitlines()[:1]
        print(f'{name} failed: {type(e).__name__} in {Path(where.filename).name}, line {where.lineno}: '
              f'{line[0] if line else ""}', flush=True)
        return f'failed: {type(e).__name__}'
    finally:
        if torch.cuda.is_available(): torch.cuda.empty_cache()
    return ''


def options():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--device', default='cuda')
    p.add_argument('--small', action='store_true', help='few, small images and a small body: tries the script itself')
    p.add_argument('--only', nargs='+', choices=QUESTIONS, default=list(QUESTIONS))
    p.add_argument('--minutes', type=float, default=7.5, help='for everything; what finds no time is left out')
    p.add_argument('--size', type=int, default=224)
    p.add_argument('--bs', type=int, default=128)
    p.add_argument('--images', type=int, default=5120, help='to draw; a fifth is held out')
    p.add_argument('--results', metavar='FILE', help='append the figures to this file, one JSON object per line')
    p.add_argument('--data', help='ignored: the images are drawn')   # `all.py` gives it to every script
    args = p.parse_args()
    args.bodies, args.bit, args.steps, args.head_epochs = BODIES, 'BiT-M-R50x1', 20, 5
    if args.small:
        args.bodies, args.bit, args.steps, args.head_epochs = ('test_efficientnet',), 'test_efficientnet', 2, 2
        args.size, args.bs, args.images = 32, 8, 60
    return args


@contextmanager
def own_cache():
    "A temporary folder for images and cache"
    with tempfile.TemporaryDirectory() as tmp:
        os.environ['FASTBIT_CACHE'] = f'{tmp}/cache'
        yield Path(tmp)/'images'


def main():
    args = options()
    if args.device.startswith('cuda') and not torch.cuda.is_available():
        print('No GPU here, so nothing was measured. To try the script: python benchmarks/gpu.py --device cpu --small')
        return
    torch.backends.cudnn.benchmark = True   # for all peers: batches have one size
    end, table = time.monotonic() + 60*args.minutes, []
    def tell(question, value, goal='', **more):
        table.append((question, more['arch'], value, goal))
        args.arch = more.pop('arch')
        note(args, question, value, goal, run='gpu', command='python benchmarks/gpu.py', **more)
    with own_cache() as root:
        bench = Bench(args, root)
        for name in args.only:
            left = end - time.monotonic()
            if left < 10: table.append((f'{name}: no time left', '', '', ''))
            elif why := ask(name, bench, min(left, 60*args.minutes*SHARES[name]), left, tell):
                table.append((f'{name}: {why}', '', '', ''))
    print('\n' + '\n'.join(f'{q:<110} {arch:<24} {v!s:>6} {goal:>8}' for q, arch, v, goal in table))


if __name__ == '__main__': main()
