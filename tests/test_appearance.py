"Odd images are found by cleanvision's measures and thresholds, read as fastbit reads, and each file once"
import contextlib, io, warnings

import numpy as np, pytest
from PIL import ExifTags, Image

from fastbit.core.store import clear_stores
from fastbit.data.check import header_size
from fastbit.studies import appearance, check_data
from fastbit.studies.appearance import JUDGED_SIDE, ODD_KINDS, appearance_issues, appearance_measures, judged_image, measure_appearance
from conftest import picture


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    "Forty pictures of every kind that cleanvision reads itself"
    folder, rng = tmp_path_factory.mktemp('images'), np.random.default_rng(0)
    files = []
    for i in range(40):
        img = picture(i, i % 3, (40 + i, 60))
        if i % 5 == 1: img = img.point(lambda v: v//6)
        if i % 5 == 2: img = img.point(lambda v: 246 + v//29)
        if i % 5 == 3: img = Image.new('RGB', (64, 64), (i, 2*i, 99))
        if i % 4 == 3: img = img.convert('L')
        if i == 39: img = img.resize((700, 600))
        files.append(str(folder/f'{i}.{("png", "jpg")[i % 2]}'))
        img.save(files[-1])
    return files


def sizes(files): return [header_size(f)[::-1] for f in files]


def test_cleanvision_itself_finds_the_same(images):
    from cleanvision import Imagelab
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter('ignore')
        lab = Imagelab(filepaths=images)
        lab.find_issues({k: {} for k in ODD_KINDS}, n_jobs=1, verbose=False)
    theirs = lab.issues.loc[images]
    found = appearance_issues(appearance_measures(images), sizes(images))
    for kind in ODD_KINDS: assert found[kind].tolist() == theirs[f'is_{kind}_issue'].tolist(), kind
    for kind in ('dark', 'light', 'low_information', 'odd_size'): assert found[kind].any() and not found[kind].all(), kind


def test_large_images_are_judged_at_a_reduced_scale(tmp_path):
    scene = Image.fromarray(np.random.default_rng(0).integers(0, 255, (24, 32, 3), np.uint8)).resize((3200, 2400), Image.Resampling.BICUBIC)
    for name, most in (('a.jpg', 2*JUDGED_SIDE), ('a.png', 2*JUDGED_SIDE), ('a.webp', 2*JUDGED_SIDE)):
        scene.save(tmp_path/name)
        assert JUDGED_SIDE <= max(judged_image(tmp_path/name).image.size) < most
        scene.resize((800, 600), Image.Resampling.BOX).save(tmp_path/'small.png')
        assert np.allclose(measure_appearance(tmp_path/name), measure_appearance(tmp_path/'small.png'), rtol=.05, atol=.01), name
    Image.new('RGB', (3, 9000), 'red').save(tmp_path/'thin.png')
    assert min(judged_image(tmp_path/'thin.png').image.size) >= 1
    for side in (JUDGED_SIDE, 2*JUDGED_SIDE - 1):   # read as they are
        Image.new('L', (side, 7)).save(tmp_path/'plain.jpg')
        assert judged_image(tmp_path/'plain.jpg').image.size == (side, 7) and judged_image(tmp_path/'plain.jpg').image.mode == 'L'


@pytest.mark.parametrize('name, mode', [('a.jpg', 'RGB'), ('a.png', 'RGB'), ('a.png', 'RGBA'), ('a.png', 'P'), ('a.webp', 'RGB'), ('a.tif', 'RGB')])
def test_the_orientation_is_read_with_the_pixels(tmp_path, name, mode):
    for orientation in (1, 6):
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        picture(0, 0).convert(mode).save(tmp_path/name, exif=exif)
        assert judged_image(tmp_path/name).orientation == orientation == measure_appearance(tmp_path/name)[-1]


def test_each_file_is_measured_once(images, tmp_path, monkeypatch):
    seen, real = [], appearance.measure_appearance
    monkeypatch.setattr(appearance, 'measure_appearance', lambda path, *args: seen.append(path) or real(path, *args))
    monkeypatch.setattr(appearance, '_KEPT', 16)
    first = appearance_measures(images[:20])
    assert sorted(seen) == sorted(images[:20])
    assert appearance_measures(images)[:20].equals(first) and len(seen) == 40   # only the others
    assert appearance_measures(images, cache=False)[:20].equals(first) and len(seen) == 80
    assert appearance_measures(images[:2], max_value=4095).equals(first[:2]) and len(seen) == 82   # 16-bit images would differ
    clear_stores()
    assert appearance_measures(images[:20]).equals(first) and len(seen) == 102


def test_an_interrupted_check_continues(images, monkeypatch):
    real = appearance.measure_appearance
    def stopped(path, *args):
        if path == images[30]: raise KeyboardInterrupt
        return real(path, *args)
    monkeypatch.setattr(appearance, '_KEPT', 8)
    monkeypatch.setattr(appearance, 'measure_appearance', stopped)
    with pytest.raises(KeyboardInterrupt): appearance_measures(images)
    seen = []
    monkeypatch.setattr(appearance, 'measure_appearance', lambda path, *args: seen.append(path) or real(path, *args))
    appearance_measures(images)
    assert 10 <= len(seen) <= 32, len(seen)


def test_the_check_measures_once_and_says_the_same(make_folder, monkeypatch):
    folder = make_folder(dict(blue=8, red=8))
    Image.new('RGB', (40, 40)).save(folder/'red'/'black.png')
    first = check_data(folder, labels=False, verbose=False)
    def fail(*args): raise AssertionError('measured again')
    monkeypatch.setattr(appearance, 'measure_appearance', fail)
    assert check_data(folder, labels=False, verbose=False).rows.equals(first.rows) and {'dark', 'low_information'} <= set(first.rows.kind)
    with pytest.raises(AssertionError, match='measured again'): check_data(folder, labels=False, verbose=False, cache=False)
