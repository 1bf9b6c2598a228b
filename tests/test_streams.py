"Data sets that do not fit: read by their own libraries, split by process, resumed at the image, in constant memory"
import io, json, tarfile, time

import pytest, torch

datasets = pytest.importorskip('datasets', reason='pip install datasets webdataset')
pytest.importorskip('webdataset', reason='pip install datasets webdataset')
from fastbit.training import transfer_learner
from fastbit.cli.launch import environment, unused_port
from fastbit.data import ImageStream, parquet_stream, stream_dataloaders, tar_stream
from fastbit.data.stream_dl import StreamDL
from fastbit.core.text import DataWarning
from conftest import picture
from forks import Fork

# webdataset 1.0 leaves its shards to the garbage collector
pytestmark = [pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning'), pytest.mark.filterwarnings('ignore::ResourceWarning')]
CLASSES = ['blue', 'green', 'red']
GN = dict(arch='test_efficientnet_gn', weights='random')


def encoded(i):
    buf = io.BytesIO()
    picture(i, i % 3).save(buf, 'PNG')
    return buf.getvalue()


def write(folder, n=48, shards=4):
    "The same images as Parquet and as tar shards"
    folder.mkdir()
    rows = [(encoded(i), CLASSES[i % 3]) for i in range(n)]
    for s in range(shards):
        part = rows[s::shards]
        datasets.Dataset.from_dict(dict(image=[r[0] for r in part], label=[r[1] for r in part])).to_parquet(folder/f'{s}.parquet')
        with tarfile.open(folder/f'{s}.tar', 'w') as t:
            for i, (img, label) in enumerate(part):
                for ext, data in (('png', img), ('cls', label.encode())):
                    info = tarfile.TarInfo(f'{i:04d}.{ext}'); info.size = len(data)
                    t.addfile(info, io.BytesIO(data))
    return rows


@pytest.fixture
def shards(tmp_path):
    return tmp_path/'shards', write(tmp_path/'shards')


def streams(folder, kind, **kw):
    if kind == 'parquet': return parquet_stream(folder, **kw)
    return tar_stream(sorted(folder.glob('*.tar')), n=48, **kw)


def loaders(folder, kind, **kw):
    return stream_dataloaders(streams(folder, kind), streams(folder, kind, buffer=0), CLASSES, GN['arch'], size=32, bs=8, image_size=(20, 24), device='cpu', **kw)


def learner(dls, **kw):
    torch.manual_seed(0)
    return transfer_learner(dls, **GN, **kw)


def fit(learn, **kw):
    with learn.no_logging(), learn.no_bar(): learn.fit_hyperrule(**dict(batch_size=12, n_steps=10, base_lr=.3, eval_every=4, mixup=.2, show=False) | kw)
    return learn


@pytest.mark.parametrize('kind', ['parquet', 'tar'])
@pytest.mark.parametrize('world', [1, 2, 3, 4, 7])
def test_a_pass_is_every_image_once_whatever_the_number_of_processes(shards, kind, world):
    folder, rows = shards
    stream = streams(folder, kind)
    for i in (0, 1):
        parts = [list(stream.open(i, r, world)) for r in range(world)]
        assert sorted(sum(parts, [])) == sorted(rows)
        assert max(map(len, parts)) - min(map(len, parts)) <= max(12, 48 % world)
    assert list(stream.open(0, 0, world)) == list(stream.open(0, 0, world)) != list(stream.open(1, 0, world))   # the same each time, another order each pass


def test_a_pass_has_no_naps(shards, monkeypatch):
    "datasets 5.2 sleeps at the end of a pass over interleaved shards; once it does not, `parquet_stream` need not see to it"
    if 'max_buffer_input_shards' not in __import__('inspect').signature(datasets.IterableDataset.shuffle).parameters: pytest.skip('an older datasets')
    naps = []
    monkeypatch.setattr(time, 'sleep', naps.append)
    list(streams(shards[0], 'parquet').open(0, 0, 1))
    assert not [n for n in naps if n >= 1]
    list(datasets.load_dataset('parquet', data_files=[str(f) for f in shards[0].glob('*.parquet')], split='train', streaming=True).shuffle(seed=0))
    assert [n for n in naps if n >= 1]


def test_a_table_of_datasets_with_images_and_class_numbers(shards):
    "What the hub has: a struct of bytes and path, and labels that are numbers with names"
    folder, rows = shards
    f = datasets.Features(dict(image=datasets.Image(), label=datasets.ClassLabel(names=CLASSES)))
    ds = datasets.Dataset.from_dict(dict(image=[dict(bytes=b, path=None) for b, _ in rows], label=[CLASSES.index(l) for _, l in rows]), features=f).to_iterable_dataset(num_shards=2)
    assert sorted(parquet_stream(ds, n=48).open(0, 0, 1)) == sorted(rows)


@pytest.mark.parametrize('kind', ['parquet', 'tar'])
def test_training_by_the_rule_and_going_on(shards, tmp_path, kind):
    "Stopped in the middle of a pass, and resumed at the image: the numbers of the run that nobody stopped"
    folder, _ = shards
    straight = fit(learner(loaders(folder, kind)))
    assert len(straight.history.epochs) == 3 and straight.history.steps.loss.iloc[-1] < straight.history.steps.loss.iloc[0]
    from fastai.callback.core import Callback
    class At(Callback):
        def after_batch(self):
            if self.training and self.rule_steps.done == 6: raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): fit(learner(loaders(folder, kind)), checkpoint=tmp_path/'run.safetensors', checkpoint_every=1, cbs=At())
    resumed = fit(learner(loaders(folder, kind)), checkpoint=tmp_path/'run.safetensors', checkpoint_every=1)
    assert all(torch.equal(a, b) for a, b in zip(straight.model.state_dict().values(), resumed.model.state_dict().values()))
    assert straight.evaluate(show=False).n == 48


def test_an_image_that_cannot_be_read_is_passed_over_and_told(shards):
    good = [(encoded(i), CLASSES[i % 3]) for i in range(20)]
    stream = ImageStream(lambda i, r, w: iter(good[:5] + [(b'<html>', 'red')] + good[5:]), 21, 'a list')
    dls = stream_dataloaders(stream, stream, CLASSES, GN['arch'], size=32, bs=8, device='cpu')
    with pytest.warns(DataWarning, match='a list: an image cannot be read .*skipped'): x, y = dls.train.take(0, 20)
    assert len(x) == 20 and dls.train.left_out == 1
    odd = ImageStream(lambda i, r, w: iter([(encoded(0), 'violet')]), 1, 'a list')
    with pytest.raises(ValueError, match="label 'violet' is none of blue"): stream_dataloaders(odd, odd, CLASSES, GN['arch'], size=32, bs=8, device='cpu').train.take(0, 1)
    none = ImageStream(lambda i, r, w: iter([]), 1, 'a list')
    with pytest.raises(ValueError, match='has no images'): stream_dataloaders(none, none, CLASSES, GN['arch'], size=32, bs=8, device='cpu').train.take(0, 1)


def test_the_rule_knows_how_many_there_are(shards):
    folder, _ = shards
    dls = loaders(folder, 'parquet')
    learn = learner(dls)
    assert learn.hyperrule(batch_size=12).n_train == 48
    with pytest.raises(ValueError, match='Give n='): parquet_stream(datasets.load_dataset('parquet', data_files=str(folder/'0.parquet'), split='train', streaming=True))


MEMORY = '''
import io, resource, sys, warnings
warnings.simplefilter('ignore')
import datasets, torch
from test_streams import CLASSES, GN, encoded, learner, fit
from fastbit.data import parquet_stream, stream_dataloaders
n = int(sys.argv[1])
some = [encoded(i) for i in range(30)]
def simulated():
    for i in range(n): yield dict(image=some[i % 30], label=CLASSES[i % 3])
make = lambda buffer: parquet_stream(datasets.IterableDataset.from_generator(simulated), n=n, buffer=buffer)
dls = stream_dataloaders(make(1000), make(0), CLASSES, GN['arch'], size=32, bs=8, device='cpu')
learn = learner(dls)
assert learn.hyperrule(batch_size=16).n_train == n
for k in range(3): dls.train.take(k*16, 16)
dls.train.take(n - 40, 16)        # to the end of the first pass, and over it
for k in range(4): x, y = dls.train.take(n - 24 + k*16, 16)
assert len(x) == 16
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024)
'''


@pytest.mark.slow
def test_memory_does_not_grow_with_the_data():
    "From ten thousand to a million simulated images, read to the end"
    def megabytes(n):
        with Fork(MEMORY, n) as done: out, err = done.communicate(timeout=900)
        assert done.returncode == 0, err[-2000:]
        return float(out.splitlines()[-1])
    small, large = megabytes(10_000), megabytes(1_000_000)
    print(f'{small:.0f} MB with 10,000 images, {large:.0f} MB with 1,000,000')
    assert large < small + 60   # a label alone for each would be 50 MB, an encoded image 1.5 GB


TOGETHER = '''
import hashlib, json, os, sys, warnings
warnings.simplefilter('ignore')
from pathlib import Path
from fastbit.core.processes import join_processes, leave_processes, rank
from fastbit.data.stream_dl import StreamDL
join_processes('cpu')
from test_streams import fit, learner, loaders, with_bad_images
learn = fit(learner(loaders(Path(sys.argv[1]), sys.argv[2])))
pixels, seen = StreamDL._pixels, []
def counted(self, item): seen.append(1); return pixels(self, item)
StreamDL._pixels = counted
ev = learn.evaluate(show=False)
decoded, bad = len(seen), with_bad_images(learn.dls.valid)
of_bad, left_out = learn.evaluate(dl=bad, show=False), bad.left_out
leave_processes()   # and now each alone
alone = [learn.evaluate(show=False), learn.evaluate(dl=bad, show=False)]
assert bad.left_out == left_out
print(json.dumps(dict(rank=rank(), n=ev.n, accuracy=ev.accuracy, decoded=decoded, losses=[ev.loss, of_bad.loss], alone=[o.loss for o in alone], bad=[of_bad.n, alone[1].n, left_out], weights=hashlib.sha256(b''.join(v.numpy().tobytes() for v in learn.model.state_dict().values())).hexdigest(), loss=learn.history.steps.loss.tolist())))
'''


def with_bad_images(dl):
    "The loader with two unreadable images in the second batch, and a third batch of nothing else"
    rows = list(dl.stream.open(0, 0, 1))
    bad = (b'<html>', CLASSES[0])
    rows = rows[:dl.bs] + [bad]*2 + rows[dl.bs:2*dl.bs-2] + [bad]*dl.bs + rows[2*dl.bs-2:]
    return StreamDL(ImageStream(lambda i, r, w: iter(rows), len(rows), 'a list'), dl.vocab, dl.pp, dl.bs, False, device='cpu')


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['parquet', 'tar'])
def test_two_processes_read_different_parts_and_have_one_network(shards, kind):
    pytest.importorskip('accelerate')
    port = unused_port()
    ps = [Fork(TOGETHER, shards[0], kind, env=environment(r, 2, port)) for r in range(2)]
    outs = [p.communicate(timeout=300) for p in ps]
    assert all(p.returncode == 0 for p in ps), outs[0][1][-2000:] + outs[1][1][-2000:]
    a, b = (json.loads(o.splitlines()[-1]) for o, _ in outs)
    assert a['weights'] == b['weights'] and a['loss'] == b['loss'] and a['n'] == b['n'] == 48 and a['accuracy'] == b['accuracy']
    assert a['losses'] == b['losses'] == pytest.approx(a['alone'], rel=1e-5) and a['bad'] == b['bad'] == [48, 48, 10]
    assert (a['decoded'], b['decoded']) == (24, 24)   # each decodes and evaluates a half
