"What is computed once: equal to what is computed live, noticed when it is out of date, whole whatever happens"
import os, shutil, signal, subprocess, time
from pathlib import Path
from unittest.mock import patch

import numpy as np, pytest, torch
from PIL import Image

from conftest import TINY, picture, run_fastbit, small_bit, write_folder
from forks import Fork
from fastbit.baseline import baseline
from fastbit.bodies import build_body, can_fold, fold_net, FoldedModel, run_stages, TransferModel
from fastbit.data import Features, frozen_features, image_dataloaders, read_image, square_image
from fastbit.data.features import FeatureDL
from fastbit.bodies.fold import FOLD_TOLERANCE
from fastbit.data.transforms import draft_size
from fastbit.training import transfer_learner
from fastbit.core.store import RowStore, clear_stores, file_key, list_stores, row_key
from fastbit.core.text import DataWarning

BODIES = ['test_efficientnet', 'small_bit']


def model_of(name):
    torch.manual_seed(0)
    model = TransferModel(small_bit() if name == 'small_bit' else build_body(name, 3, weights='random')).eval()
    for m in model.net.modules():   # statistics as a trained body has them, or a fold that forgets them would pass
        if isinstance(m, torch.nn.BatchNorm2d): m.running_mean.normal_(0, .1); m.running_var.uniform_(.5, 2.); m.weight.data.uniform_(.5, 1.5); m.bias.data.normal_(0, .1)
    torch.nn.init.normal_(model.net.get_classifier().weight, std=.1)
    return model


@pytest.fixture
def learn(folder):
    dls = image_dataloaders(folder, 'test_efficientnet', size=32, bs=8, num_workers=0, check=False)
    learn = transfer_learner(dls, **TINY)
    with learn.no_logging(), learn.no_bar(): yield learn


def live(learn, dl, n=None):
    "The body's output as training by epochs would compute it: unfolded, image by image as validation sees them"
    model, n = learn.model.eval(), len(learn.model.stages)-1 if n is None else n
    xs = torch.cat([b[0] for b in learn.dls.valid.new(dl.dataset, shuffle=False, drop_last=False, after_item=learn.dls.valid.after_item)])
    with torch.no_grad(): return run_stages(model.net, model.stages, model.normalized(xs), last=n)


def features(learn, **kwargs): return frozen_features(learn.model, learn.dls.valid.items, learn.dls.preprocess, **kwargs)
def of(f): return torch.from_numpy(np.array(f.rows[f.index[:, 0]]))


# Folding

@pytest.mark.parametrize('name', BODIES)
def test_folded_is_unfolded(name):
    model = model_of(name)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    folded, x = FoldedModel(model).eval(), torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad(): a, b = model(x), folded(x)
    assert (a-b).abs().max() <= FOLD_TOLERANCE*a.abs().max() and a.std() > 1e-3
    assert 0 <= folded.difference <= FOLD_TOLERANCE
    kinds = {type(m).__name__ for m in folded.net.modules()}
    assert not any('StdConv' in k or 'BatchNorm' in k for k in kinds), kinds
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_predictions_near_zero_are_no_reason_against_folding():
    "Of a model of numbers 0 is the mean: a difference is small against a standard deviation, not against what is left"
    model, x = model_of('test_efficientnet'), torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8).repeat(2, 1, 1, 1)
    with torch.no_grad(): model.net.get_classifier().bias -= model(x)[0]
    folded = FoldedModel(model).eval()
    with torch.no_grad(): a, b = model(x), folded(x)
    assert 0 < (a-b).abs().max() < 1e-5 and a.abs().max() < 1e-5
    assert folded.rejected is None and 0 <= folded.difference <= FOLD_TOLERANCE


@pytest.mark.parametrize('name', BODIES)
@pytest.mark.parametrize('last', [1, 3])
def test_folded_up_to_a_stage(name, last):
    model, x = model_of(name), torch.rand(2, 3, 64, 64)
    with torch.no_grad(): a, b = run_stages(model.net, model.stages, model.normalized(x), last=last), FoldedModel(model, last).eval()(x)
    assert (a-b).abs().max() <= FOLD_TOLERANCE*a.abs().max()


def test_the_stages_are_the_network():
    for name in BODIES:
        model, x = model_of(name), torch.rand(2, 3, 64, 64)
        x = model.normalized(x)
        with torch.no_grad():
            for n in range(len(model.stages)+1): assert torch.equal(run_stages(model.net, model.stages, run_stages(model.net, model.stages, x, last=n), n), model.net(x))


def test_evaluation_and_predictions_run_folded(learn):
    learn.unfreeze(); learn.fit_one_cycle(1, 1e-2)
    calls = []
    with patch('fastbit.bodies.fold.fold_net', side_effect=lambda net: calls.append(1) or fold_net(net)):
        preds, _ = learn.get_preds()
        tta, ev = learn.tta(show=False), learn.evaluate(show=False)
    assert len(calls) == 3 and learn.fold_difference <= FOLD_TOLERANCE
    learn.model.eval()
    with torch.no_grad(): plain = torch.cat([learn.model(b[0]) for b in learn.dls.valid]).softmax(1)
    torch.testing.assert_close(preds, plain, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(tta.plain, plain, rtol=1e-4, atol=1e-6)
    assert ev.accuracy == (plain.argmax(1) == learn.get_preds()[1]).float().mean().item()


def test_hooks_hear_the_network_itself(learn):
    heard = []
    hook = learn.model.net.conv_stem.register_forward_hook(lambda *o: heard.append(1))
    learn.get_preds()
    assert heard and not can_fold(learn.model)
    hook.remove()
    assert can_fold(learn.model)


# Features

@pytest.mark.parametrize('bs', [1, 3, 64])
def test_cached_features_are_live_features(learn, bs):
    f = features(learn, bs=bs)
    a, b = live(learn, learn.dls.valid), of(f)
    assert (a-b).abs().max() <= 1e-6*a.abs().max().clamp_min(1) and f.computed == len(learn.dls.valid.items)
    again = features(learn, bs=bs)
    assert again.computed == 0 and torch.equal(of(again), b)


def test_training_on_features_is_training_on_images(folder):
    "The same classifier, within rounding: full batches, so the order does not matter"
    dls = image_dataloaders(folder, 'test_efficientnet', size=32, bs=64, num_workers=0, check=False, crop=False, flip=False)
    made = []
    for cached in (True, False):
        torch.manual_seed(0)
        learn = transfer_learner(dls, **TINY)
        with learn.no_logging(), learn.no_bar(): learn.fit_head(4, 1e-2) if cached else learn.fit_one_cycle(4, 1e-2)
        made.append((learn.model.net.classifier.weight.detach().clone(), learn.history.epochs))
    (a, ha), (b, hb) = made
    torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-6)
    np.testing.assert_allclose(ha.valid_loss, hb.valid_loss, rtol=1e-4)
    assert (ha.step == hb.step).all() and (a != 0).any()


def test_the_frozen_body_stays(learn):
    before = {k: v.clone() for k, v in learn.model.state_dict().items() if 'classifier' not in k}
    learn.fit_head(2)
    after = learn.model.state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items()) and learn.model.net.classifier.weight.abs().sum() > 0


def test_a_stage_freeze_caches_at_its_depth(learn):
    learn.freeze_to(-2)
    n = learn.model.n_frozen
    learn.fit_head(1, 1e-3)
    f = learn.head_features[1]
    assert f.rows.ndim == 4 and (live(learn, learn.dls.valid, n) - of(f)).abs().max() <= 1e-5
    with pytest.raises(ValueError, match='Freeze more stages'): learn.fit_head(1, cache_gb=1e-6)


def test_unfreezing_puts_it_out_of_use(learn):
    learn.fit_head(1)
    assert learn.model.starts_at == 0 and learn.dls.train.one_batch()[0].ndim == 4
    learn.unfreeze()
    with pytest.raises(ValueError, match='learn.freeze'): learn.fit_head(1)
    learn.fit_one_cycle(1, 1e-2)   # the body moves ...
    learn.freeze(); learn.fit_head(1)
    assert [f.computed for f in learn.head_features] == [len(dl.items) for dl in learn.dls.loaders]   # ... and is run again


@pytest.mark.parametrize('what', ['file', 'weights', 'size', 'buffer'])
def test_what_changes_is_computed_again(learn, what, folder):
    n, before = len(learn.dls.valid.items), features(learn)
    pp = learn.dls.preprocess
    if what == 'file': picture(99, 1).save(learn.dls.valid.items[0])
    if what == 'weights': learn.model.net.conv_stem.weight.data[0, 0, 0, 0] += 1e-3
    if what == 'buffer': learn.model.net.bn1.running_var[0] += 1e-3
    if what == 'size': pp = image_dataloaders(folder, 'test_efficientnet', size=48, check=False).preprocess
    after = frozen_features(learn.model, learn.dls.valid.items, pp)
    assert before.computed == n and after.computed == (1 if what == 'file' else n)
    if what == 'file': assert not torch.equal(of(after)[0], of(before)[0]) and torch.equal(of(after)[1:], of(before)[1:])


def test_views_are_seeded_augmentations(learn):
    one = features(learn, views=3, seed=1)
    two = features(learn, views=3, seed=1, cache=False)
    other = features(learn, views=3, seed=2, cache=False)
    get = lambda f, v: torch.from_numpy(np.array(f.rows[f.index[:, v]]))
    assert torch.equal(get(one, 0), of(features(learn)))
    for v in range(3): torch.testing.assert_close(get(one, v), get(two, v), rtol=0, atol=1e-6)
    assert torch.equal(get(two, 0), get(other, 0)) and not torch.equal(get(two, 1), get(other, 1)) and not torch.equal(get(two, 1), get(two, 2))


def test_every_row_is_trained_on_once_an_epoch():
    rows = np.arange(14, dtype=np.float32).reshape(14, 1)
    dl = FeatureDL(Features(rows, np.arange(14).reshape(7, 2), 0, 0., None, ''), torch.arange(7), 3, shuffle=True, seed=3)
    epochs = [[(x.ravel().tolist(), y.tolist()) for x, y in dl] for _ in range(2)]
    for e in epochs:
        xs, ys = sum([x for x, _ in e], []), sum([y for _, y in e], [])
        assert sorted(ys) == list(range(7)) and all(int(x)//2 == y for x, y in zip(xs, ys))   # either view of its own image
    assert epochs[0] != epochs[1]


def test_lbfgs_finds_the_optimum(folder):
    dls = image_dataloaders(folder, 'test_efficientnet', size=32, bs=8, num_workers=0, check=False)
    learn = transfer_learner(dls, **TINY)
    with learn.no_logging(), learn.no_bar():
        learn.fit_head(solver='lbfgs')
        assert learn.evaluate(show=False).accuracy == pytest.approx(learn.history.epochs.accuracy.iloc[-1])
        a = learn.model.net.classifier.weight.detach().clone()
        learn.fit_head(solver='lbfgs')
    assert torch.equal(a, learn.model.net.classifier.weight)   # from wherever it starts, the same


# Interruption, disks, processes

SLOW = '''
import sys, time
import fastbit.data.features as f
from fastbit.data import image_dataloaders
from fastbit.training import transfer_learner
plain = f.view_pixels
def slow(*args): time.sleep(.05); return plain(*args)
if {slow}: f.view_pixels = slow
dls = image_dataloaders({folder!r}, 'test_efficientnet', size=32, bs=8, num_workers=0, check=False, cache=False)
import torch; torch.manual_seed(0)
learn = transfer_learner(dls, arch='test_efficientnet', weights='random')
paths = sorted(dls.train.items + dls.valid.items)
print('ready', flush=True)
res = f.frozen_features(learn.model, paths, dls.preprocess, bs=4)
print('computed', res.computed, 'of', len(paths), float(res.rows[res.index[:, 0]].sum()), flush=True)
'''


def start(folder, slow=False): return Fork(SLOW.format(folder=str(folder), slow=slow))


def rows_kept():
    df = list_stores()
    return int(df[df.kind == 'features'].rows.sum())


def test_killed_half_way(make_folder):
    folder = make_folder(dict(blue=40, green=40), 'many')
    run = start(folder, slow=True)
    deadline = time.monotonic() + 120
    while rows_kept() < 8 and time.monotonic() < deadline and run.poll() is None: time.sleep(.02)
    run.send_signal(signal.SIGKILL); run.communicate()
    kept = rows_kept()
    assert 8 <= kept < 80
    out, err = start(folder).communicate(timeout=300)
    words = out.split()
    assert words[1:5] == ['computed', str(80-kept), 'of', '80'], (out, err)
    clear_stores()
    fresh, _ = start(folder).communicate(timeout=300)
    assert fresh.split()[2] == '80' and float(fresh.split()[-1]) == pytest.approx(float(words[-1]), rel=1e-5)


def test_an_interrupt_keeps_what_is_whole(learn):
    from fastbit.data import features as module
    plain, seen = module.view_pixels, []
    def stops(*args):
        seen.append(1)
        if len(seen) > 4: raise KeyboardInterrupt
        return plain(*args)
    with patch.object(module, 'view_pixels', stops), pytest.raises(KeyboardInterrupt): features(learn, bs=2)
    f = features(learn, bs=2)
    assert 0 < f.computed < len(learn.dls.valid.items)
    assert (live(learn, learn.dls.valid) - of(f)).abs().max() <= 1e-6


def test_removed_in_the_middle(learn):
    live_, real, calls = live(learn, learn.dls.valid), RowStore.add, []
    def add(self, keys, rows):
        real(self, keys, rows)
        calls.append(1)
        if len(calls) == 2: clear_stores()
    with patch.object(RowStore, 'add', add), pytest.warns(DataWarning, match='was removed'): f = features(learn, bs=2)
    assert (live_ - of(f)).abs().max() <= 1e-6 and rows_kept() == 0


def test_two_processes_share_one_store(make_folder):
    folder = make_folder(dict(blue=40, green=40), 'many')
    runs = [start(folder, slow=True) for _ in range(2)]
    outs = [run.communicate(timeout=300) for run in runs]
    sums = [float(out.split()[-1]) for out, _ in outs]
    assert sums[0] == pytest.approx(sums[1], rel=1e-6), outs
    again, _ = start(folder).communicate(timeout=300)
    assert again.split()[2] == '0' and float(again.split()[-1]) == pytest.approx(sums[0], rel=1e-6)


def test_a_full_disk(learn):
    n, live_ = len(learn.dls.valid.items), live(learn, learn.dls.valid)
    real, calls = RowStore._write, []
    def full(file, at, data):
        calls.append(1)
        if len(calls) > 4: real(file, at, data[:len(data)//2]); raise OSError(28, 'No space left on device')   # half of it arrives
        return real(file, at, data)
    with patch.object(RowStore, '_write', staticmethod(full)), pytest.warns(DataWarning, match='No space left on device.*continues in memory'): f = features(learn, bs=2)
    assert f.where == '' and (live_ - of(f)).abs().max() <= 1e-6
    after = features(learn, bs=2)
    assert after.computed == n-4 and (live_ - of(after)).abs().max() <= 1e-6   # two batches were whole


def test_a_real_full_disk(tmp_path, learn):
    "A file system of 64 kB, where one may be mounted"
    disk = tmp_path/'disk'; disk.mkdir()
    if subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=64k', 'tmpfs', str(disk)], capture_output=True).returncode: pytest.skip('needs the right to mount a tmpfs')
    try:
        with patch.dict(os.environ, FASTBIT_CACHE=str(disk)):
            with pytest.warns(DataWarning, match='No space left'): f = features(learn, bs=2, views=40)
            assert f.index.shape[1] == 40
            assert 0 < rows_kept() < f.index.size
            plain = live(learn, learn.dls.valid)
            assert (plain - of(f)).abs().max() <= 1e-6
    finally: subprocess.run(['umount', str(disk)], check=True)


@pytest.mark.parametrize('kind', ['file in the way', 'read only'])
def test_no_place_for_the_cache(folder, tmp_path, kind):
    place = tmp_path/'place'
    if kind == 'file in the way': place.write_text('no folder')
    else:
        place.mkdir(); place.chmod(0o500)
        if os.access(place, os.W_OK):   # root writes everywhere, but not where the system is read-only
            place.rmdir(); place = Path('/proc/fastbit')
    with patch.dict(os.environ, FASTBIT_CACHE=str(place)):
        with pytest.warns(DataWarning, match='FASTBIT_CACHE=FOLDER'): dls = image_dataloaders(folder, 'test_efficientnet', size=32, bs=8, num_workers=0)
        learn = transfer_learner(dls, **TINY)
        with learn.no_logging(), learn.no_bar(), pytest.warns(DataWarning, match='cannot be used'): learn.fit_head(2)
        assert len(learn.history.epochs) == 2 and learn.head_features[0].where == ''


def test_a_readable_cache_that_may_not_be_written_to(learn):
    features(learn)
    clear = lambda *a, **k: (_ for _ in ()).throw(PermissionError(13, 'Permission denied'))
    with patch.object(RowStore, 'add', clear): assert features(learn).computed == 0   # nothing is missing, nothing is written
    picture(99, 1).save(learn.dls.valid.items[0])
    with patch.object(RowStore, 'add', clear), pytest.warns(DataWarning, match='continues in memory'): f = features(learn)
    assert f.computed == 1 and (live(learn, learn.dls.valid) - of(f)).abs().max() <= 1e-6


def test_memory_is_bounded_by_the_batch(tmp_path):
    "Rows of 40 MB in all are computed and read, and not held"
    store = RowStore(tmp_path/'big', (1000,))
    import psutil
    me, keys = psutil.Process(), [row_key(i) for i in range(10_000)]
    before = me.memory_info().rss
    for i in range(0, len(keys), 100): store.add(keys[i:i+100], np.full((100, 1000), i, np.float32))
    assert (store.find(keys) >= 0).all()
    assert me.memory_info().rss - before < 15*2**20


# Pixels

@pytest.fixture
def jpegs(tmp_path):
    rng = np.random.default_rng(0)
    for label in 'ab':
        (tmp_path/'jpegs'/label).mkdir(parents=True)
        for i in range(6):
            small = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
            small.resize((640, 480), Image.Resampling.BICUBIC).save(tmp_path/'jpegs'/label/f'{i}.jpg', quality=92)
    return tmp_path/'jpegs'


def batches(dl): return [(x.as_subclass(torch.Tensor).clone(), y.as_subclass(torch.Tensor).clone()) for x, y in dl]
def same(a, b): return len(a) == len(b) and all(torch.equal(x, u) and torch.equal(y, v) for (x, y), (u, v) in zip(a, b))


@pytest.mark.parametrize('resize', ['squash', 'crop', 'pad'])
@pytest.mark.parametrize('workers', [0, 2])
def test_cached_pixels_are_decoded_pixels(jpegs, resize, workers):
    make = lambda cache: image_dataloaders(jpegs, 'test_efficientnet', size=64, bs=4, resize=resize, num_workers=workers, cache=cache)
    a, b = make(False), make(True)
    for _ in range(3): assert same(batches(a.train), batches(b.train)) and same(batches(a.valid), batches(b.valid))
    with patch('fastbit.data.transforms.ImageFile.make', side_effect=AssertionError('decoded again')): warm = batches(make(True).train) + batches(b.train) + batches(b.valid)
    assert same(warm[:len(b.train)], batches(make(False).train))


def test_training_by_steps_uses_the_same_pixels(jpegs):
    ends = []
    for cache in (False, True, True):
        learn = transfer_learner(image_dataloaders(jpegs, 'test_efficientnet', size=32, bs=4, num_workers=0, cache=cache), **TINY, cbs=[])
        torch.manual_seed(0)
        learn.model.load_state_dict(torch.load(jpegs.parent/'start.pt')) if (jpegs.parent/'start.pt').exists() else torch.save(learn.model.state_dict(), jpegs.parent/'start.pt')
        with learn.no_logging(), learn.no_bar(): learn.fit_hyperrule(batch_size=6, n_steps=3, show=False)
        ends.append(torch.cat([p.detach().ravel() for p in learn.model.parameters()]))
    assert torch.equal(ends[0], ends[1]) and torch.equal(ends[0], ends[2])


def test_a_changed_or_damaged_image_is_read_again(jpegs):
    dls = image_dataloaders(jpegs, 'test_efficientnet', size=64, bs=4, num_workers=0)
    before = batches(dls.valid)
    path = dls.valid.items[0]
    Image.new('RGB', (300, 200), (250, 10, 10)).save(path)
    changed = batches(dls.valid)
    assert not same(before, changed) and same(changed, batches(image_dataloaders(jpegs, 'test_efficientnet', size=64, bs=4, num_workers=0, cache=False).valid))
    store = dls.valid.pixels.stores[64]
    data = bytearray(store.rows_file.read_bytes()); data[100] ^= 255; data[-100] ^= 255; store.rows_file.write_bytes(data)
    assert same(changed, batches(dls.valid))
    clear_stores()   # in the middle of a run
    assert same(changed, batches(dls.valid)) and not store.rows_file.exists()


def test_pixels_stay_within_their_allowance(jpegs):
    "Room for some of the images: the rest is decoded as ever"
    row = 64*64*3 + 16
    dls = image_dataloaders(jpegs, 'test_efficientnet', size=64, bs=4, num_workers=0, crop=False, cache_gb=5.5*row/2**30)
    plain = image_dataloaders(jpegs, 'test_efficientnet', size=64, bs=4, num_workers=0, crop=False, cache=False)
    for _ in range(2): assert same(batches(dls.train), batches(plain.train)) and same(batches(dls.valid), batches(plain.valid))
    assert 3 <= len(dls.train.pixels.stores[64]) <= 5 and list_stores().mb.sum()*2**20 <= 5.5*row + 4096


def test_other_transforms_go_the_plain_way(jpegs):
    "Something of one's own before the resize sees whole images, as without a cache"
    from fasttransform import Transform
    from fastai.vision.core import PILImage
    class Invert(Transform):
        order = -1
        def encodes(self, x:PILImage): return PILImage.create(255 - np.asarray(x))
    dls, plain = (image_dataloaders(jpegs, 'test_efficientnet', size=64, bs=4, num_workers=0, cache=c) for c in (True, False))
    usual = batches(dls.valid)
    for d in (dls, plain): d.valid.after_item.add(Invert())
    assert same(batches(dls.valid), batches(plain.valid)) and not same(batches(dls.valid), usual)
    assert dls.train_ds[0][0].size == (320, 240)   # the data set itself gives images: of 640 x 480, more than twice 69 pixels each way


def test_large_jpegs_are_decoded_at_a_reduced_scale(jpegs):
    path = next(jpegs.rglob('*.jpg'))
    dls = image_dataloaders(jpegs, 'test_efficientnet', size=32, bs=4, num_workers=0, check=False)
    pp = dls.preprocess
    assert draft_size(pp) == 2*pp.train_size and read_image(path, draft_size(pp)).size == (160, 120) and read_image(path).size == (640, 480)
    full, reduced = (np.asarray(square_image(read_image(path, d), 32, pp)).astype(int) for d in (None, draft_size(pp)))
    assert 0 < np.abs(full-reduced).mean() < 2   # of 255
    exact = image_dataloaders(jpegs, 'test_efficientnet', size=32, bs=4, num_workers=0, check=False, draft=False)
    assert torch.equal(exact.test_dl([path]).one_batch()[0].as_subclass(torch.Tensor)[0],
                       torch.from_numpy(full).permute(2, 0, 1).float()/255)
    assert torch.equal(dls.test_dl([path]).one_batch()[0].as_subclass(torch.Tensor)[0], torch.from_numpy(reduced).permute(2, 0, 1).float()/255)


def test_files_are_checked_once(folder):
    (folder/'red'/'broken.png').write_text('no picture')
    with pytest.warns(DataWarning, match='are skipped'): first = image_dataloaders(folder, 'test_efficientnet', size=32)
    from fastbit.data import check
    asked = []
    with patch.object(check, 'read_once', side_effect=lambda p, *how: asked.append(p) or check.Reading(check.Inspected('no image'))), pytest.warns(DataWarning, match='are skipped'):
        again = image_dataloaders(folder, 'test_efficientnet', size=32)
    assert [Path(p).name for p in asked] == ['broken.png']   # what could not be read is tried again
    good = lambda dls: dls.report[dls.report.reason == ''].reset_index(drop=True)
    assert good(again).equals(good(first))


# The command

def test_the_second_run_finds_everything(tmp_path):
    write_folder(tmp_path/'data', dict(blue=12, green=12))
    args = ('baseline', tmp_path/'data', '--arch', 'tf_efficientnet_lite0', '--size', 32, '--recipe', 'head', '--epochs', 2, '--workers', 0)
    runs = [run_fastbit(*args, '--out', tmp_path/f'run{i}', cwd=tmp_path) for i in range(2)]
    off = run_fastbit(*args, '--no-cache', '--out', tmp_path/'off', cwd=tmp_path)
    assert all('features of 19 images,' in run.stdout for run in (runs[0], off)), runs[0].stderr
    assert 'features of 19 images (19 cached),' in runs[1].stdout
    texts = [(tmp_path/f/'predictions.csv').read_text() for f in ('run0', 'run1', 'off')]
    assert texts[0] == texts[1] == texts[2]
    shown = run_fastbit('cache', cwd=tmp_path)
    assert 'features' in shown.stdout and 'pixels' in shown.stdout and '--clear' in shown.stdout
    assert 'MB removed' in run_fastbit('cache', '--clear', cwd=tmp_path).stdout and 'Nothing is stored' in run_fastbit('cache', cwd=tmp_path).stdout
    wrong = run_fastbit('baseline', tmp_path/'data', '--cache-gb', -1, cwd=tmp_path)
    assert wrong.returncode == 2 and '--cache-gb -1.0' in wrong.stderr and wrong.stderr.count('\n') == 1


def test_the_head_of_a_bit_body(folder):
    "With weight standardisation and GroupNorm, from random weights"
    dls = image_dataloaders(folder, 'BiT-M-R50x1', size=32, bs=16, num_workers=0, check=False)
    learn = transfer_learner(dls, 'BiT-M-R50x1', 'random')
    with learn.no_logging(), learn.no_bar():
        learn.fit_head(2)
        f = learn.head_features[1]
        assert torch.equal(live(learn, dls.valid), of(f)) or (live(learn, dls.valid) - of(f)).abs().max() <= 1e-6*of(f).abs().max()


def test_the_recipe_head(folder, tmp_path):
    res = baseline(folder, 'test_efficientnet', 'random', 'head', size=32, epochs=3, num_workers=0, verbose=False, out=tmp_path/'run', views=2)
    assert 'fitted on the same images; only 8, so it is shrunk towards 1' in str(res)
    assert res.epochs.phase.tolist() == ['head']*3 and res.learn.head_features[0].index.shape[1] == 2
    assert res.fold_difference is not None and '"fold_difference"' in (tmp_path/'run'/'results.json').read_text()
    with pytest.raises(ValueError, match='n_steps applies to the auto and hyperrule recipes only'): baseline(folder, recipe='head', n_steps=3)


# Replaced files

def overwrite(new: Path, path: Path): shutil.copy2(new, path)   # `cp -p`, rsync --inplace: the same inode
def rename(new: Path, path: Path): new.replace(path)            # unzip, rsync, `mv`: another inode


@pytest.mark.parametrize('replace', [overwrite, rename])
def test_a_replaced_file_of_the_same_size_and_time_is_read_again(tmp_path, replace):
    "Pixels, findings and features"
    for label in 'ab':
        (tmp_path/'data'/label).mkdir(parents=True)
        for i in range(6): picture(i, 'ab'.index(label)).save(tmp_path/'data'/label/f'{i}.bmp')
    load = lambda **kwargs: image_dataloaders(tmp_path/'data', 'test_efficientnet', size=32, bs=4, num_workers=0, **kwargs)
    dls, model = load(), model_of('test_efficientnet')
    first = batches(dls.valid)
    features = lambda: frozen_features(model, dls.valid.items, dls.preprocess)
    features()
    path, new = Path(dls.valid.items[0]), tmp_path/'new.bmp'
    old = path.stat()
    picture(9, 2).save(new)
    os.utime(new, ns=(old.st_atime_ns, old.st_mtime_ns))
    replace(new, path)
    assert path.stat().st_size == old.st_size and path.stat().st_mtime_ns == old.st_mtime_ns
    again = load()
    assert not same(first, batches(dls.valid)) and same(batches(again.valid), batches(load(cache=False).valid))
    digest = lambda d: dict(zip(d.report.path, d.report.digest))
    assert [p for p in digest(dls) if digest(dls)[p] != digest(again)[p]] == [str(path)]
    assert features().computed == 1 and features().computed == 0


def test_a_file_of_the_data_that_is_linked_elsewhere_is_only_computed_again(tmp_path):
    "A hard link changes the file's time of change: the cache misses once, and hits from then on"
    path, store = tmp_path/'a.png', RowStore(tmp_path/'store', (2,))
    picture(0, 0).save(path)
    keys = [file_key(path)]
    os.link(path, tmp_path/'link.png')
    keys += [file_key(path), file_key(path), file_key(tmp_path/'link.png')]
    store.add(keys[1:2], np.ones((1, 2)))
    assert store.find(keys).tolist()[1:] == [0, 0, -1]
