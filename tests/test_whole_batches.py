"Batches that are cut whole out of cached squares: the pixels, targets and types of batches that are made image by image"
import os, random, shutil, threading
from unittest.mock import patch

import pytest, torch
from fastai.data import load
from fastai.vision.augment import Brightness
from fasttransform import Transform

from conftest import write_folder
from fastbit.core.store import RowStore
from fastbit.data import image_dataloaders
from fastbit.data.batches import ImageDL
from fastbit.data.cuts import Squares
from fastbit.data.shared import rank_loader, shared_outputs
from fastbit.data.steps import step_loader
from fastbit.data.transforms import ImageFile
from fastbit.data.views import VIEWS, SquaresImage
from tasks import CASES

SMALL = dict(arch='test_efficientnet', size=32, bs=8, num_workers=0, check=False, device='cpu')


@pytest.fixture(scope='module')
def colors(tmp_path_factory): return write_folder(tmp_path_factory.mktemp('whole')/'data', dict(blue=11, green=8, red=6))


@pytest.fixture(autouse=True, scope='module')
def _one_cache(tmp_path_factory):
    "Filled by the first test that needs it"
    return tmp_path_factory.mktemp('cached')


@pytest.fixture(autouse=True)
def _cache(_one_cache, _own_places, monkeypatch): monkeypatch.setenv('FASTBIT_CACHE', str(_one_cache))


def item_by_item():
    "What loaders do where they cannot cut: the way of all images before"
    return patch.object(ImageDL, '_cutter', lambda self, split_idx: None)


def bits(batches) -> list:
    "All that a batch is: type, attributes, memory layout and numbers"
    return [[(type(o), vars(o) if hasattr(o, '__dict__') else {}, o.stride(), o.as_subclass(torch.Tensor).clone()) for o in b] for b in batches]


def equal(a, b) -> bool:
    same = lambda x, y: x[:3] == y[:3] and x[3].dtype == y[3].dtype and torch.equal(x[3], y[3])
    return len(a) == len(b) > 0 and all(type(x) is type(y) and len(x) == len(y) and all(map(same, x, y)) for x, y in zip(a, b))


def counted(): return patch.object(Squares, 'cut', autospec=True, side_effect=Squares.cut)


def two_passes(load, batches) -> tuple: # (batches, states of the global random generators)
    random.seed(0)
    torch.manual_seed(0)
    made = load()
    found = [o for _ in range(2) for o in bits(batches(made))]
    return found, (random.getstate(), torch.get_rng_state().tolist())


def check_both(load, batches, whole=True):
    "The same batches, cut and image by image, and the same random numbers afterwards; `whole`: are they cut?"
    with item_by_item(): expected, states = two_passes(load, batches)
    with counted() as cut: got, after = two_passes(load, batches)
    assert equal(expected, got) and after == states
    assert bool(cut.call_count) == whole


LOADERS = dict(
    light={}, crop=dict(flip=False), flip=dict(crop=False), none=dict(augment='none'), no_room=dict(train_size=32),
    much_room=dict(train_size=60), odd=dict(size=33), one=dict(bs=1), all_at_once=dict(bs=64), padded=dict(resize='pad'),
    balanced=dict(balance='batches', seed=3), batch_tfms=dict(batch_tfms=[Brightness(p=1.)]), partly=dict(cache_gb=4e-5))


@pytest.mark.parametrize('how', LOADERS)
def test_training_and_validation(colors, how):
    passes = lambda dls: [*dls.train, *dls.train.new(shuffle=False), *dls.valid, dls.train.one_batch()]
    check_both(lambda: image_dataloaders(colors, **SMALL | LOADERS[how]), passes)


@pytest.mark.parametrize('key', CASES)
def test_targets_of_every_task(key, tmp_path):
    case = CASES[key]
    df = case.table(tmp_path/'data', 40)
    pairs = list(zip(df.path, df[case.column]))[:10]
    new = lambda dls: [*dls.test_dl(pairs, with_labels=True), *dls.test_dl(df.path[:10].tolist())]
    check_both(lambda: case.loaders(df), lambda dls: [*dls.train, *dls.valid, *new(dls)])


def test_views_steps_and_shares(colors):
    load = lambda: image_dataloaders(colors, **SMALL)
    views = [v for v in VIEWS if v != 'identity']
    check_both(load, lambda dls: dls.valid.new(after_item=[SquaresImage(('identity', *views), dls.preprocess)]))
    check_both(load, lambda dls: dls.valid.new(after_item=[SquaresImage(views[1:3], dls.preprocess)]))
    check_both(load, lambda dls: [tuple(b.rows) for b in step_loader(dls.train, 6, 4, 1, 4, mixup=.2) if b.finish() is None])
    check_both(load, lambda dls: [b.b for b in rank_loader(dls.train)])
    check_both(load, lambda dls: list(shared_outputs(dls.valid, lambda b: b)))
    with patch('fastbit.data.steps.rank_range', lambda n: range(n//2)), patch('fastbit.data.steps.world', lambda: 2):
        check_both(load, lambda dls: [tuple(b.rows) for b in step_loader(dls.train, 6, 4, 0, 2, mixup=.2) if b.finish() is None])


def test_a_resumed_pass(colors):
    def rest(dls):
        dls.train.first = 1
        return list(dls.train)
    check_both(lambda: image_dataloaders(colors, **SMALL), rest)
    a, b = (image_dataloaders(colors, **SMALL).train for _ in range(2))
    list(a)
    b.set_order_state(a.order_state())
    assert equal(bits(a), bits(b))


# Images that are cut by something else

class OtherDL(ImageDL):
    def create_item(self, s): return super().create_item(s)


OTHERS = dict(
    strong=lambda f: image_dataloaders(f, **SMALL, augment='strong').train,
    item_tfms=lambda f: image_dataloaders(f, **SMALL, augment=[_darker]).train,
    subclass=lambda f: image_dataloaders(f, **SMALL).train.new(cls=OtherDL),
    argument=lambda f: image_dataloaders(f, **SMALL).train.new(create_item=_first_again(image_dataloaders(f, **SMALL).train)),
    before_batch=lambda f: image_dataloaders(f, **SMALL).train.new(before_batch=[lambda b: b]),
    no_cache=lambda f: image_dataloaders(f, **SMALL, cache=False).train,
    bytes=lambda f: (dls := image_dataloaders(f, **SMALL)).test_dl([dls.train.items[0].read_bytes(), dls.train.items[1]]))


def _darker(img): return img.point(lambda v: v//2)
def _first_again(dl): return lambda s: dl.create_item(0)


@pytest.mark.parametrize('what', OTHERS)
def test_other_transforms_and_loaders_take_images_one_by_one(colors, what):
    check_both(lambda: OTHERS[what](colors), list, whole=False)


def test_the_label_of_somebody_else(colors):
    "Its transforms may draw, so they are called for every image"
    def load():
        dls = image_dataloaders(colors, **SMALL)
        dls.train.dataset.tls[1].tfms.add(Transform(lambda y: y))
        return dls.train
    check_both(load, list, whole=False)


# The cache

def cached(colors, **how):
    "Loaders whose squares are all cached"
    dls = image_dataloaders(colors, **SMALL | how)
    for dl in dls.loaders: list(dl)
    dls.train.set_order_state(image_dataloaders(colors, **SMALL).train.order_state())
    return dls


def test_damaged_changed_and_lost_squares_are_read_again(colors, tmp_path, monkeypatch):
    monkeypatch.setenv('FASTBIT_CACHE', str(tmp_path/'cache'))
    data = shutil.copytree(colors, tmp_path/'data')
    dls = cached(data)
    store, = (s for s in dls.train.pixels.stores.values() if len(s) > 10)
    expected = bits(dls.valid)
    order = dls.train.order_state()
    def again():
        dls.train.set_order_state(order)
        return bits(dls.train)
    before = again()
    data_of = bytearray(store.rows_file.read_bytes())
    flipped = data_of.copy()
    flipped[5*store.row_bytes + 7] ^= 255
    for damaged in (flipped, data_of[:-100], b''):
        store.rows_file.write_bytes(damaged)
        with patch.object(ImageFile, 'make', autospec=True, side_effect=ImageFile.make) as made:
            assert equal(before, again()) and made.call_count
    shutil.rmtree(store.folder)
    assert equal(before, again()) and equal(expected, bits(dls.valid))
    dls.train.items[0].unlink()
    with pytest.raises(FileNotFoundError, match='moved or deleted since'): again()


def test_each_square_is_checked_once_until_the_file_changes(colors, tmp_path, monkeypatch):
    monkeypatch.setenv('FASTBIT_CACHE', str(tmp_path))
    dls = cached(colors)
    store, = (s for s in dls.train.pixels.stores.values() if len(s) > 10)
    os.utime(store.rows_file, (1e9, 1e9))   # a file that was just written is not trusted
    with patch.object(RowStore, '_check', side_effect=RowStore._check) as check:
        for n in (20, 20): assert list(dls.train) and check.call_count == n
        os.utime(store.rows_file, (2e9, 1e9 + 1))
        assert list(dls.train) and check.call_count == 40


def test_workers_start_only_while_squares_are_missing(colors, tmp_path, monkeypatch):
    monkeypatch.setenv('FASTBIT_CACHE', str(tmp_path))
    alone, dls = (image_dataloaders(colors, **SMALL | dict(num_workers=n)) for n in (0, 2))
    started = []
    with_workers, here = load._loaders
    with patch.object(load, '_loaders', (lambda fake: started.append(fake) or with_workers(fake), here)):
        for _ in range(3): assert equal(bits(dls.train), bits(alone.train)) and len(started) <= 1
    assert started and dls.train.fake_l.num_workers == 2


# Accelerators

def test_an_accelerator_gets_bytes_and_cuts_itself(colors):
    "The way of a GPU, on the CPU: squares travel, a thread reads ahead, and batch transforms follow"
    before = threading.active_count()
    dls = lambda: image_dataloaders(colors, **SMALL)
    two_views = lambda dls: dls.valid.new(after_item=[SquaresImage(('identity', 'crop_center'), dls.preprocess)])
    for of in (lambda dls: dls.train, lambda dls: dls.valid, two_views):
        expected, other = bits(of(dls())), of(dls())
        with patch('fastbit.data.batches._cuts_on', lambda device: True), counted() as cut:
            assert equal(expected, bits(other))
            next(iter(other))   # a pass that is not finished leaves no thread behind
        assert not cut.called
    assert threading.active_count() == before


def test_batches_are_shown_and_decoded(colors):
    dls = cached(colors)
    with counted() as cut:
        b = dls.train.one_batch()
        assert cut.call_count == 1
        shown = dls.train.decode_batch(b, max_n=3)
        dls.train.show_batch(b, max_n=2)
        dls.valid.show_batch(max_n=2)
    assert [type(o).__name__ for o in shown[0]] == ['TensorImage', 'Category'] and shown[0][1] in dls.vocab
