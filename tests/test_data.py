"Layouts, splits, and everything that cannot be right about a data set"
import os, shutil, warnings

import numpy as np, pandas as pd, pytest, torch
from fastai.callback.progress import ShowGraphCallback
from PIL import Image

from fastbit.baseline import baseline
from fastbit.data import image_dataloaders, image_table, split_table
from fastbit.data.folders import find_images
from fastbit.core.text import DataWarning
from fastbit.training import transfer_learner
from conftest import TINY, picture

small = dict(arch='test_efficientnet', size=32, num_workers=0)


def test_layouts_agree(folder, tmp_path):
    flat = image_table(folder)
    csv = tmp_path/'table.csv'
    flat.assign(path=[os.path.relpath(p, tmp_path) for p in flat.path])[['path', 'label']].to_csv(csv, index=False)
    assert image_table(csv).equals(flat) and image_table(flat).equals(flat)
    assert flat.label.value_counts().to_dict() == dict(blue=14, green=14, red=12)


@pytest.mark.parametrize('valid', ['valid', 'val', 'validation', 'Val'])
def test_train_and_valid_folders(make_folder, tmp_path, valid):
    make_folder(dict(a=4, b=3), 'data/train'); make_folder(dict(a=2, b=1), f'data/{valid}')
    table = image_table(tmp_path/'data')
    assert table.split.value_counts().to_dict() == dict(train=7, valid=3)
    dls = image_dataloaders(tmp_path/'data', bs=4, **small)
    assert (dls.train.n, dls.valid.n, list(dls.vocab)) == (7, 3, ['a', 'b'])


def test_a_test_folder_is_a_third_split(make_folder, tmp_path):
    for part, n in (('train', 4), ('valid', 2), ('test', 3)): make_folder(dict(a=n, b=n), f'data/{part}')
    table = image_table(tmp_path/'data')
    assert table.split.value_counts().to_dict() == dict(train=8, valid=4, test=6)
    dls = image_dataloaders(tmp_path/'data', bs=4, **small)
    assert [dl.n for dl in dls.loaders] == [8, 4, 6] and dls.image_set.split == 'the split of the data'
    x, y = next(iter(dls[2]))
    with Image.open(table.path[table.split == 'test'].iloc[0]) as img: mean = np.asarray(img.convert('RGB')).mean()/255
    assert x.max() <= 1 and abs(x[0].mean().item() - mean) < .02 and y[0] == 0   # as validation sees them, with labels
    rows = pd.DataFrame(dict(path=['1', '2', '3'], label=['a', 'b', 'c'], split=['train', 'valid', 'test']))
    assert image_table(rows).split.tolist() == ['train', 'valid', 'test']


def test_validation_is_drawn_from_training_where_there_is_only_a_test_set(make_folder, tmp_path):
    make_folder(dict(a=10, b=10), 'data/train'); make_folder(dict(a=3, b=3), 'data/test')
    dls = image_dataloaders(tmp_path/'data', bs=4, **small)
    assert [dl.n for dl in dls.loaders] == [16, 4, 6] and "the test set is the data's" in dls.image_set.split
    with pytest.raises(ValueError, match='already has a split'): image_dataloaders(tmp_path/'data', test_pct=.1, **small)
    rows = pd.DataFrame(dict(path=list(map(str, range(20))), label=['a', 'b']*10, split=['train']*14 + ['test']*6))
    assert image_table(rows).split.value_counts().to_dict() == {'': 14, 'test': 6}


def test_test_pct_draws_a_stratified_seeded_test_set(make_folder):
    table = image_table(make_folder(dict(a=50, b=20, lone=1)))
    one = split_table(table, .2, seed=1, test_pct=.1)
    assert pd.crosstab(one.split, one.label).to_dict('index') == dict(test=dict(a=5, b=2, lone=0), train=dict(a=35, b=14, lone=1), valid=dict(a=10, b=4, lone=0))
    assert one.equals(split_table(table, .2, seed=1, test_pct=.1))
    assert not (one.path[one.split == 'test'].tolist() == split_table(table, .2, seed=2, test_pct=.1).query("split == 'test'").path.tolist())
    for shares, message in (((.5, .5), 'leave no images to train on'), ((.2, 20), 'test_pct=20')):
        with pytest.raises(ValueError, match=message): split_table(table, shares[0], test_pct=shares[1])


def test_copies_of_training_images_in_the_test_set_are_said(make_folder, tmp_path):
    train = make_folder(dict(a=4, b=4), 'data/train'); make_folder(dict(a=2, b=2), 'data/valid'); test = make_folder(dict(a=2, b=2), 'data/test')
    shutil.copy(train/'a'/'000.png', test/'a'/'copy.png')
    with pytest.warns(DataWarning, match=r'(?s)1 of 5 test images are byte for byte in training.*copy\.png'): image_dataloaders(tmp_path/'data', **small)


def test_only_train_folder_is_split(make_folder, tmp_path):
    make_folder(dict(a=5, b=5), 'data/train')
    assert set(image_table(tmp_path/'data').split) == {''}


def test_table_columns(folder):
    df = image_table(folder)[['path', 'label']].rename(columns=dict(path='file', label='kind')).assign(is_valid=lambda d: d.index % 4 == 0)
    table = image_table(df, path_col='file', label_col='kind')
    assert table.split.value_counts().to_dict() == dict(train=30, valid=10)
    for bad, message in ((dict(path_col='nope'), "no column 'nope'"), (dict(split_col='kind'), 'there is no column of labels'), (dict(label_col='kind', split_col='file'), 'A split can be')):
        with pytest.raises(ValueError, match=message): image_table(df, **bad)
    with pytest.raises(ValueError, match='no path or no label'): image_table(df.assign(kind=''))
    with pytest.raises(ValueError, match='some are empty'): image_table(df[['file', 'kind']].assign(split=['train', '']*20))
    with pytest.raises(ValueError, match='two labels'): image_table(pd.DataFrame(dict(path=['x.png']*2, label=['a', 'b'])))


def test_hidden_files_links_and_loops(folder):
    (folder/'blue'/'.hidden.png').write_bytes(b'x'); (folder/'blue'/'notes.txt').write_text('x')
    (folder/'__MACOSX').mkdir(); (folder/'.git').mkdir(); (folder/'blue'/'loop').symlink_to(folder/'blue')
    (folder/'blue'/'deep').mkdir(); picture(99, 0).save(folder/'blue'/'deep'/'x.PNG')
    assert len(find_images(folder/'blue')) == 15
    assert sorted(set(image_table(folder).label)) == ['blue', 'green', 'red']


def test_split_is_stratified_and_seeded(make_folder):
    table = image_table(make_folder(dict(a=50, b=20, c=5, lone=1)))
    one, other = split_table(table, .2, seed=1), split_table(table, .2, seed=2)
    assert one.equals(split_table(table, .2, seed=1)) and not one.equals(other)
    held = one[one.split == 'valid'].label.value_counts().to_dict()
    assert held == dict(a=10, b=4, c=1)   # the class of one is never held out
    torch.manual_seed(5); np.random.seed(5)
    assert one.equals(split_table(table, .2, seed=1))
    with pytest.raises(ValueError, match='too few'): split_table(image_table(make_folder(dict(a=1, b=1), 'two')))
    with pytest.raises(ValueError, match='between 0 and 1'): split_table(table, 20)


def test_what_is_no_data_set(tmp_path, folder):
    (tmp_path/'empty').mkdir(); (tmp_path/'file.txt').write_text('x')
    with pytest.raises(FileNotFoundError, match='nowhere'): image_table(tmp_path/'nowhere')
    with pytest.raises(ValueError, match='No images'): image_table(tmp_path/'empty')
    with pytest.raises(ValueError, match='neither a folder'): image_table(tmp_path/'file.txt')
    with pytest.raises(ValueError, match='14 images and no class folders'): image_table(folder/'blue')   # one folder too low


def test_one_class(make_folder):
    with pytest.raises(ValueError, match='Only one class'): image_dataloaders(make_folder(dict(a=5)), **small)


def test_empty_class_folder(folder):
    (folder/'violet').mkdir()
    with pytest.warns(DataWarning, match='violet'): dls = image_dataloaders(folder, **small)
    assert list(dls.vocab) == ['blue', 'green', 'red']


def test_fewer_training_images_than_classes():
    from fastbit.data import check_table
    table = pd.DataFrame(dict(path=list('123456'), label=list('abcabc'), split=['train']*2 + ['valid']*4))
    with pytest.warns(DataWarning, match=r'Fewer training images \(2\) than classes \(3\)'): check_table(table)


def test_class_without_validation_image(make_folder, tmp_path):
    make_folder(dict(a=3, b=3), 'data/train'); make_folder(dict(a=2), 'data/valid')
    with pytest.warns(DataWarning, match='no validation image'): image_dataloaders(tmp_path/'data', **small)


def test_the_same_file_in_both_splits(folder):
    table = split_table(image_table(folder))
    twice = pd.concat([table, table[table.split == 'valid'].assign(split='train')])
    with pytest.raises(ValueError, match='in two splits'): image_dataloaders(twice, **small)


def test_the_same_bytes_in_both_splits(make_folder, tmp_path):
    train, valid = make_folder(dict(a=4, b=4), 'data/train'), make_folder(dict(a=2, b=2), 'data/valid')
    shutil.copy(train/'a'/'000.png', valid/'a'/'copy.png')
    with pytest.warns(DataWarning, match=r'(?s)1 of 5 validation images.*copy\.png'): image_dataloaders(tmp_path/'data', **small)


def test_unreadable_files_are_left_out_aloud_and_kept(folder):
    bad = {'cut.png': (folder/'red'/'000.png').read_bytes()[:200], 'page.jpg': b'<html>', 'nothing.gif': b''}
    for name, data in bad.items(): (folder/'red'/name).write_bytes(data)
    with pytest.warns(DataWarning, match='3 of 43 images cannot be read') as told: dls = image_dataloaders(folder, **small)
    assert all(name in str(told[0].message) for name in bad)
    assert {os.path.basename(p) for p in dls.left_out.path} == set(bad) and all(dls.left_out.reason)
    assert all((folder/'red'/name).read_bytes() == data for name, data in bad.items())
    assert dls.train.n + dls.valid.n == 40
    for i in range(12): (folder/'red'/f'{i:03d}.png').write_bytes(b'')
    with pytest.raises(ValueError, match='None of the'): image_dataloaders(pd.DataFrame(dict(path=[str(folder/'red'/'000.png')]*1 + [str(folder/'red'/'001.png')], label=['a', 'b'])), **small)


def test_missing_files_of_a_table_are_unreadable(folder):
    df = pd.concat([image_table(folder), pd.DataFrame(dict(path=['gone.png'], label=['red'], split=['']))])
    with pytest.warns(DataWarning, match='No such file'): image_dataloaders(df, **small)


@pytest.mark.parametrize('n', [2, 3, 4, 5])
def test_never_zero_batches(make_folder, tmp_path, n):
    "fastai drops the last partial batch: with fewer images than a batch, nothing is trained, silently. Here bs = 4"
    from fastbit.training import transfer_learner
    make_folder(dict(a=(n+1)//2, b=n//2), 'data/train'); make_folder(dict(a=2, b=2), 'data/valid')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', DataWarning)
        dls = image_dataloaders(tmp_path/'data', bs=4, **small)
    assert sum(len(y) for _, y in dls.train) == n and len(dls.train) == -(-n//4)
    learn = transfer_learner(dls, **TINY)
    before = learn.model.net.classifier.weight.clone()
    with learn.no_logging(): learn.fit_one_cycle(1, 1e-2)
    assert not torch.equal(before, learn.model.net.classifier.weight)
    assert learn.lr_find(num_it=20, show_plot=False).valley > 0


@pytest.mark.parametrize('workers', [0, 1, 2])
def test_batches_depend_on_the_seed_alone(folder, workers):
    "fastai draws from the global generators: the pixels change with the number of workers and whatever ran before"
    def draw(n, noise):
        np.random.seed(noise); torch.manual_seed(noise)
        dl = image_dataloaders(folder, 'test_efficientnet', size=32, bs=8, seed=3, num_workers=n, check=False).train
        return [b for _ in range(2) for b in dl]
    for (x, y), (x2, y2) in zip(draw(0, 0), draw(workers, 7), strict=True): assert torch.equal(x, x2) and torch.equal(y, y2)


def test_order_changes_from_epoch_to_epoch(folder):
    dl = image_dataloaders(folder, bs=32, **small).train
    first, second = dl.one_batch()[0], dl.one_batch()[0]
    assert not torch.equal(first, second)


def test_pixels_are_not_normalised(folder):
    x = image_dataloaders(folder, bs=32, **small).train.one_batch()[0]
    assert x.dtype == torch.float32 and 0 <= x.min() and x.max() <= 1 and x.max() > .5


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    from fastbit.data import read_image
    ramp = (np.arange(256, dtype=np.uint16)*257)[None].repeat(8, 0)
    for name in ('ramp.png', 'ramp.tif'):
        Image.fromarray(ramp).save(tmp_path/name)
        assert (np.asarray(read_image(tmp_path/name))[0, :, 0] == np.arange(256)).all()
    Image.fromarray(np.full((4, 4), 70000, np.int32)).save(tmp_path/'32bit.tif'); Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path/'float.tif')
    for name in ('32bit.tif', 'float.tif'):
        with pytest.raises(ValueError, match='convert it'): read_image(tmp_path/name)


@pytest.mark.parametrize('orientation', range(1, 9))
def test_exif_orientation(tmp_path, orientation):
    from fastbit.data import read_image
    img = Image.new('RGB', (40, 24), (0, 0, 255)); img.paste((255, 0, 0), (0, 0, 20, 12))
    exif = Image.Exif(); exif[0x0112] = orientation
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}   # PIL transposes whose picture, viewed by `orientation`, is `img`
    stored = img if orientation == 1 else img.transpose(undo[orientation])
    stored.save(tmp_path/'x.png', exif=exif)
    assert read_image(tmp_path/'x.png').size == (40, 24)
    assert np.array_equal(np.asarray(read_image(tmp_path/'x.png')), np.asarray(img))


def _warned_from(f) -> set:
    "Files that the data warnings of a call name"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        f()
    return {w.filename for w in caught if issubclass(w.category, DataWarning)}


def test_warnings_name_the_line_that_called_fastbit(make_folder, tmp_path):
    "However many calls lie between: of fastbit, of its `with_options`, of fastai's loop and its callbacks"
    root = make_folder(dict(a=11, b=10))
    (root/'empty').mkdir()
    (root/'b'/'broken.png').write_bytes(b'hello')
    common = dict(size=32, num_workers=0)
    learn = transfer_learner(image_dataloaders(make_folder(dict(a=6, b=6), 'fine'), bs=4, **small), **TINY)
    learn.add_cb(ShowGraphCallback())
    calls = [lambda: image_table(root),
             lambda: image_dataloaders(root, bs=4, **small),
             lambda: baseline(root, **TINY, **common, recipe='head', bs=4, epochs=1, verbose=False),
             lambda: baseline(root, **TINY, **common, bs=4, recipe='head', dry_run=True, verbose=False),
             lambda: learn.fit_one_cycle(1)]
    with learn.no_logging(), learn.no_bar():
        assert [_warned_from(call) for call in calls] == [{__file__}]*len(calls)
