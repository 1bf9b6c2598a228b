"Each file is read once: the same verdicts, pixels and near-duplicates as a check and a separate decoding, whatever is in the files"
import importlib, io
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from unittest.mock import patch

import numpy as np, pandas as pd, pytest, torch
from PIL import Image

import corpus
from fastbit.baseline.recipes import make_recipe
from fastbit.bodies.preprocess import body_preprocess
from fastbit.config import Auto, BiTRule, HeadOnly, LoaderOptions, OneCycle
from fastbit.core.store import RowStore, list_stores
from fastbit.data import PixelCache, check_images, duplicate_groups, image_dataloaders
from fastbit.data import expected as expected_module
from fastbit.data.check import ExpectedSplits, _perceptual_hash, inspect_image, read_once
from fastbit.data.copies import _COLOR_SLACK
from fastbit.data.features import view_pixels
from fastbit.data.transforms import ImageFile

check = importlib.import_module('fastbit.data.check')
small = dict(arch='test_efficientnet', size=32, bs=4, num_workers=0)
PP = body_preprocess('test_efficientnet', size=32)


def verdict(o): return replace(o, look=b'', exact=True)


def photo(seed, size=(360, 260)):
    "Smooth at every scale, as photos are"
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)


def jpeg(img, **kwargs):
    buf = io.BytesIO()
    img.save(buf, 'JPEG', **kwargs)
    return buf.getvalue()


@pytest.fixture
def photos(tmp_path):
    "JPEGs of 360 x 260: a look takes every fourth pixel in each direction, squares of 32 pixels every second one"
    for label in 'ab':
        (tmp_path/'photos'/label).mkdir(parents=True)
        for i in range(10): photo(i + 100*(label == 'b')).save(tmp_path/'photos'/label/f'{i}.jpg', quality=90)
    return tmp_path/'photos'


def batches(dl): return [(x.as_subclass(torch.Tensor).clone(), y.as_subclass(torch.Tensor).clone()) for x, y in dl]
def same(a, b): return len(a) == len(b) and all(torch.equal(x, u) and torch.equal(y, v) for (x, y), (u, v) in zip(a, b))
def load(folder, **kwargs): return image_dataloaders(folder, **{**small, **kwargs})


@pytest.mark.filterwarnings('ignore')   # Pillow's, about what is odd in a file
@pytest.mark.parametrize('how', [dict(), dict(draft=False, resize='crop', max_value=4095)])
def test_hostile_files_have_the_same_verdict_and_the_same_pixels(tmp_path, how):
    "Digest, size and depth, too; reasons in the same words"
    pp, sound = replace(PP, **how), 0
    cases = corpus.write(tmp_path/'corpus')
    for path, case in cases.items():
        if 'megapixels' in case.name: continue   # takes seconds; test_hostile.py reads a large one
        plain, once = inspect_image(path), read_once(path, pp, [32, 35])
        assert verdict(plain) == verdict(once.found), case.name
        if plain.reason: assert not once.squares, case.name
        else:
            for square, usual in zip(once.squares.values(), ImageFile(path, pp).make([32, 35]), strict=True):
                assert np.array_equal(square, np.asarray(usual)), case.name
            assert not once.found.exact or once.found.look == plain.look, case.name
            sound += 1
    assert sound > 100


@pytest.mark.parametrize('kind', [dict(), dict(progressive=True), dict(subsampling=0, restart_marker_rows=2)])
@pytest.mark.parametrize('mode', ['RGB', 'L', 'CMYK'])
def test_a_cut_jpeg_is_found_at_every_scale(tmp_path, kind, mode):
    "Wherever a download broke off"
    data, path = jpeg(photo(0, (400, 300)).convert(mode), **kind), tmp_path/'cut.jpg'
    fates = Counter()
    for at in [*range(2, len(data), len(data)//40), len(data)-2, len(data)-1, len(data)]:
        path.write_bytes(data[:at])
        plain = inspect_image(path)
        for size, draft in ((32, True), (96, True), (32, False)):   # a quarter, half and all of the pixels
            once = read_once(path, body_preprocess('test_efficientnet', size=size, draft=draft), [size])
            assert verdict(once.found) == verdict(plain), at
            assert bool(once.squares) == (not plain.reason)
        fates[plain.reason] += 1
    assert fates[''] and sum(fates.values()) - fates[''] >= 40


def test_a_file_is_opened_and_decoded_once(photos):
    opened, real = Counter(), check.open_image
    def count(file): opened['n'] += 1; return real(file)
    with patch.object(check, 'open_image', count), patch('fastbit.data.transforms.ImageFile.make', side_effect=AssertionError('decoded twice')), \
         patch.object(check, 'inspect_image', side_effect=AssertionError('read twice')):
        dls = load(photos)
        got = [*batches(dls.train), *batches(dls.valid)]
    assert opened['n'] == 20 and not dls.report.exact.any()
    plain = load(photos, cache=False)
    assert same(got, [*batches(plain.train), *batches(plain.valid)])
    with patch.object(check, 'read_once', side_effect=AssertionError('read again')): again = load(photos)
    pd.testing.assert_frame_equal(again.report, dls.report)


decoded_again = lambda: patch('fastbit.data.transforms.ImageFile.make', side_effect=AssertionError('decoded again'))
def stored(dls): return {size: len(s) for size, s in dls.train.pixels.stores.items()}
def split_of(dls): return dict(zip(dls.table.path, dls.table.split))


@pytest.mark.parametrize('how', [
    dict(), dict(test_pct=.2), dict(folds=4), dict(crop=False), dict(k_per_class=3), dict(group=r'(\d)'), dict(train_squares='plain'), dict(train_squares='both')])
def test_one_square_is_made_of_each_image_by_its_split(photos, how):
    "However it is split, which is drawn once; the split and the pixels are those without a cache"
    with patch.object(expected_module, 'draw_split', wraps=expected_module.draw_split) as draw: dls = load(photos, **how)
    n_train, n_plain, squares = dls.train.n, len(dls.table) - dls.train.n, how.get('train_squares')
    wanted = {32: n_plain + n_train*(squares is not None or 'crop' in how), 35: n_train*(squares != 'plain')}
    assert draw.call_count == 1 and stored(dls) == (wanted if 'crop' not in how else {32: 20})
    plain = load(photos, cache=False, **how)
    assert split_of(dls) == split_of(plain)
    with decoded_again() if squares != 'plain' else nullcontext(): got = [*batches(dls.train), *batches(dls.valid)]
    assert same(got, [*batches(plain.train), *batches(plain.valid)])


def test_recipes_ask_for_the_squares_that_they_need(photos):
    "Features of training images are those of the plain image, then of augmentations"
    squares = lambda options: make_recipe(options, LoaderOptions()).loading(32, {}).get('train_squares', 'augmented')
    asked = [HeadOnly(), HeadOnly(views=2), OneCycle(epochs=1), OneCycle(), Auto(), BiTRule()]
    assert [squares(o) for o in asked] == ['plain', 'both', 'plain', 'both', 'both', 'augmented']
    for kind, views in (('plain', [0]), ('both', [0, 1])):
        for p in photos.rglob('*.jpg'): p.touch()   # so that they are read
        dls = load(photos, train_squares=kind)
        with decoded_again(): [view_pixels(p, v, dls.preprocess, pixels=dls.train.pixels) for p in dls.train.items for v in views]
    with pytest.raises(ValueError, match='choose from augmented, plain, both'): load(photos, train_squares='all')


@pytest.mark.parametrize('what', ['unreadable', 'copy'])
def test_a_split_that_is_not_the_expected_one(photos, what):
    "Is that without a cache; files after the one that shows it get both squares, and those before it are read again if they changed sides"
    if what == 'unreadable': (photos/'a'/'3.jpg').write_bytes(b'no image')
    else: (photos/'a'/'3.jpg').write_bytes((photos/'a'/'1.jpg').read_bytes())
    with patch.object(check, '_PARTS', check._MANY), pytest.warns() if what == 'unreadable' else nullcontext(): dls = load(photos)
    before = sum(stored(dls).values())
    with pytest.warns() if what == 'unreadable' else nullcontext(): plain = load(photos, cache=False)
    assert split_of(dls) == split_of(plain) and 20 < before < 40
    with patch('fastbit.data.transforms.ImageFile.make', autospec=True, side_effect=ImageFile.make) as again:
        assert same([*batches(dls.train), *batches(dls.valid)], [*batches(plain.train), *batches(plain.valid)])
    n_again = sum(c.args[0].pixels is not None for c in again.call_args_list)
    assert n_again <= 6   # of the first files


def test_what_makes_an_expected_split_doubtful():
    found = lambda look, reason='': check.Inspected(reason, look=look)
    for by_files, by_copies in ((True, True), (True, False), (False, False)):
        expected, looks = ExpectedSplits(['train'], by_files, by_copies), set()
        assert not expected.doubted_by(found(b'12345678abc'), looks) and not expected.doubted_by(found(b'12345670abc'), looks)
        assert expected.doubted_by(found(b'12345678xyz'), looks) == by_copies
        assert expected.doubted_by(found(b'', 'empty file'), looks) == by_files


def test_the_rule_reads_each_file_once(tmp_path):
    "Its size is predicted from the headers; where the prediction is wrong, the squares are made later"
    for label in 'ab':
        (tmp_path/'small'/label).mkdir(parents=True)
        for i in range(6): photo(i + 10*(label == 'b'), (90, 80)).save(tmp_path/'small'/label/f'{i}.png')
    sized = dict(size='hyperrule', bs=4)
    dls = load(tmp_path/'small', **sized)
    assert stored(dls) == {128: 2, 160: 10}
    with decoded_again(): got = [*batches(dls.train), *batches(dls.valid)]
    plain = load(tmp_path/'small', cache=False, **sized)
    assert same(got, [*batches(plain.train), *batches(plain.valid)]) and dls.image_size == plain.image_size == (80, 90)
    for p in (tmp_path/'small').rglob('*.png'): p.touch()
    with patch('fastbit.data.loaders.probable_size', lambda paths: (500, 500)), patch('fastbit.data.pixels.make_room', return_value=0):
        assert load(tmp_path/'small', **sized).preprocess == plain.preprocess


def test_hashes_are_those_of_imagehash():
    imagehash = pytest.importorskip('imagehash')   # a requirement of cleanvision
    rng = np.random.default_rng(0)
    flat = [Image.new('RGB', (40, 50), int(v)) for v in rng.integers(0, 2**24, 5)]
    stripes = [Image.fromarray(np.tile((np.arange(64) % k < k/2)[:, None, None]*np.uint8(200), (1, 50, 3))) for k in range(2, 30)]
    for img in [*(photo(i, size) for i in range(40) for size in ((33, 90), (200, 150))), *flat, *stripes]:
        assert _perceptual_hash(img) == np.packbits(imagehash.phash(img).hash).tobytes()


def test_near_duplicates_do_not_depend_on_the_scale_or_on_the_cache(photos):
    "A look made from more pixels is made from the usual ones where another image is close"
    for i in range(4): photo(i).resize((500, 367)).save(photos/'b'/f'again_{i}.jpg', quality=60)
    paths = sorted(map(str, photos.rglob('*.jpg')))
    plain = check_images(paths, cache=False)
    groups = duplicate_groups(plain)
    assert len(groups) == 4
    for size in (32, 96, 224):   # the second and the third find in the cache what the first has found
        pp = body_preprocess('test_efficientnet', size=size)
        report = check_images(paths, pixels=PixelCache(pp, pd.DataFrame(dict(path=paths, split=''))))
        assert duplicate_groups(report) == groups
        near = report.path.isin([p for g in groups for p in g])
        assert report.exact[near].all() and report.look[near].tolist() == plain.look[near].tolist() and not report.exact.all()
    tables = [load(photos, size=size, cache=cache, allow_copies=False).table for size, cache in ((32, True), (96, True), (32, False))]
    assert all(o.equals(tables[0]) for o in tables)


def test_colors_hardly_depend_on_the_scale():
    "What `similar_rows` relies on: of two images, both may be off by half of its slack"
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:140, :130]
    stripes = np.stack([(x//2 % 2)*255, 0*x, 255-(x//2 % 2)*255], -1).astype(np.uint8)
    noise = rng.integers(0, 2, (375, 500, 1), dtype=np.uint8).repeat(3, 2)*255
    for img in (photo(0, (640, 480)), photo(1, (129, 900)), Image.fromarray(stripes), Image.fromarray(noise)):
        for quality in (10, 95):
            data = jpeg(img, quality=quality)
            looks = [check._read_bytes(data, replace(PP, draft=draft), sizes).found.look for draft, sizes in ((True, ()), (True, (32,)), (False, (32,)))]
            usual, *others = (np.frombuffer(o, np.uint8)[8:].astype(int) for o in looks)
            for o in others: assert np.abs(o - usual).mean() <= _COLOR_SLACK/2


def test_pillow_drafts_at_the_expected_scale():
    for size in ((64, 64), (127, 300), (128, 128), (511, 800), (512, 512), (3000, 4000), (63, 63), (277, 900)):
        for side in (64, 70, 274, 478):
            with Image.open(io.BytesIO(jpeg(Image.new('RGB', size)))) as img:
                img.draft('RGB', (side, side))
                k = check._draft_scale(size, side)
                assert img.size == tuple(-(-s//k) for s in size)


def test_an_interrupted_check_continues(photos):
    real, read = check.read_once, []
    def stop(path, *args):
        read.append(path)
        if len(read) > 13: raise KeyboardInterrupt
        return real(path, *args)
    with patch.object(check, '_MANY', 4), patch.object(check, 'read_once', stop), pytest.raises(KeyboardInterrupt): load(photos)
    read.clear()
    def count(path, *args): read.append(path); return real(path, *args)
    with patch.object(check, 'read_once', count): dls = load(photos)
    assert 1 <= len(read) <= 12
    with patch('fastbit.data.transforms.ImageFile.make', side_effect=AssertionError('decoded again')): got = batches(dls.valid)
    assert same(got, batches(load(photos, cache=False).valid))


def test_a_full_disk_costs_time_only(photos):
    real, calls = RowStore._write, []
    def full(file, at, data):
        calls.append(1)
        if len(calls) > 3: real(file, at, data[:len(data)//2]); raise OSError(28, 'No space left on device')
        return real(file, at, data)
    with patch.object(check, '_MANY', 4), patch.object(RowStore, '_write', staticmethod(full)):
        dls = load(photos)
        got = [*batches(dls.train), *batches(dls.valid)]
    plain = load(photos, cache=False)
    assert len(calls) > 3 and same(got, [*batches(plain.train), *batches(plain.valid)])
    assert dls.table.equals(plain.table) and (dls.report.reason == '').all()


def test_no_cache_and_small_caches(photos):
    plain = load(photos, cache=False)
    assert plain.report.exact.all() and not len(list_stores()) and plain.train.pixels is None
    row = 32*32*3 + 35*35*3 + 32
    few = load(photos, cache_gb=6.5*row/2**30)
    assert sum(map(len, few.train.pixels.stores.values())) in range(6, 14)
    assert same(batches(few.valid), batches(plain.valid)) and same(batches(few.train), batches(plain.train))


def test_several_processes_fill_one_cache(photos):
    "Stand-ins: threads, each with caches that were opened before the others wrote"
    paths = sorted(map(str, photos.rglob('*.jpg')))
    caches = [PixelCache(PP, pd.DataFrame(dict(path=paths, split=''))) for _ in range(3)]
    with patch.object(check, '_MANY', 4), ThreadPoolExecutor(3) as ex: reports = list(ex.map(lambda o: check_images(paths, 1, pixels=o), caches))
    # whoever finds the squares of another makes the usual look
    for o in reports: assert o.drop(columns=['look', 'exact']).equals(reports[0].drop(columns=['look', 'exact'])) and not duplicate_groups(o)
    fresh = PixelCache(PP, pd.DataFrame(dict(path=paths, split='')))
    with patch('fastbit.data.transforms.ImageFile.make', side_effect=AssertionError('decoded again')):
        for p in paths:
            for size, square in zip((32, 35), fresh.squares(ImageFile(p, PP, fresh), [32, 35])):
                assert np.array_equal(square, read_once(p, PP, [size]).squares[size])


def test_what_is_wrong_with_a_call_is_found_before_a_file_is_read(photos):
    with patch.object(check, 'read_once', side_effect=AssertionError('read')):
        for wrong, message in ((dict(bs=0), 'bs=0'), (dict(size=8), 'size=8'), (dict(group=r'(nothing)'), 'nothing'), (dict(folds=1), 'folds=1')):
            with pytest.raises(ValueError, match=message): load(photos, **wrong)
    assert not len(list_stores())
