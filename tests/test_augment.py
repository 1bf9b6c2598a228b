"`augment=`: levels and transforms of other packages, for images, batches, cached views and streams"
import dataclasses, json, random, sys, types

import numpy as np, pytest, torch
from fastai.data.transforms import Normalize
from fastai.torch_core import TensorImage, set_seed
from fastai.vision.augment import (Brightness, Flip, RandomResizedCropGPU, RandTransform, Rotate, Zoom, aug_transforms,
                                   setup_aug_tfms)
from PIL import Image
from torchvision.transforms import v2

from conftest import run_fastbit, write_folder
from fastbit.baseline import baseline
from fastbit.bodies import body_preprocess
from fastbit.core.text import DataWarning
from fastbit.data import image_dataloaders
from fastbit.data.augment import Augment, identity, resolve_augment
from fastbit.data.batches import _can_be_sent, choose_workers
from fastbit.data.features import frozen_features, view_pixels
from fastbit.data.transforms import train_image
from fastbit.training import transfer_learner

TINY = dict(arch='test_efficientnet', weights='random')


@pytest.fixture(scope='module')
def data(tmp_path_factory): return write_folder(tmp_path_factory.mktemp('augment')/'data', dict(a=10, b=10, c=10), size=(40, 36))


def loaders(data, workers=0, **how):
    return image_dataloaders(data, TINY['arch'], size=32, bs=8, seed=3, num_workers=workers, device='cpu', **how)


def learner(dls):
    set_seed(0)   # of the random weights
    return transfer_learner(dls, **TINY)


def pixels(dl): return torch.cat([x for x, *_ in dl]).as_subclass(torch.Tensor)


def quiet(learn, f, *args, **kwargs):
    with learn.no_bar(), learn.no_logging(): return f(*args, **kwargs)


OWN = [v2.RandomRotation(20), v2.ColorJitter(.3)]

@pytest.mark.parametrize('augment', ['strong', OWN], ids=['strong', 'own'])
def test_training_images_depend_on_the_seed_alone(data, augment):
    "With and without worker processes, whatever the global generators are; two passes differ"
    dls = loaders(data, augment=augment)
    first, second = pixels(dls.train), pixels(dls.train)
    assert (first != second).any()
    torch.manual_seed(7)
    before = torch.get_rng_state()
    again = loaders(data, workers=2, augment=augment)
    assert torch.equal(pixels(again.train), first) and torch.equal(pixels(again.train), second)
    assert torch.equal(before, torch.get_rng_state())
    light = loaders(data)
    assert (pixels(light.train) != first).any() and torch.equal(pixels(light.valid), pixels(dls.valid))


def test_none_trains_on_what_validation_sees(data):
    dls = loaders(data, augment='none')
    seen = {x.numpy().tobytes() for x in pixels(dls.train)}
    assert seen == {(torch.tensor(view_pixels(p, 0, dls.preprocess)).float()/255).numpy().tobytes() for p in dls.train.items}
    learn = learner(dls)
    quiet(learn, learn.fit_upper, 2, 4)
    assert learn.head_features[0].index.shape[1] == 1   # all views would be equal


def test_strong_does_not_change_what_it_may_not():
    grid = Image.fromarray(np.random.default_rng(0).integers(0, 255, (34, 34, 3), dtype=np.uint8))
    still = body_preprocess(TINY['arch'], size=32, train_size=34, crop=False, flip=False)
    small, rng = grid.resize((32, 32), Image.Resampling[still.interpolation.upper()]), random.Random(0)
    fixed = Augment('strong', jitter=False)
    assert all(np.array_equal(train_image(grid, still, rng, fixed), small) for _ in range(5))
    gray = Image.new('RGB', (34, 34), (100, 100, 100))
    shades = {train_image(gray, still, rng, Augment('strong')).getpixel((5, 5)) for _ in range(9)}
    assert len(shades) > 5 and all(79 <= r <= 121 and r == g == b for r, g, b in shades)


def test_views_are_cached_by_what_was_done_to_them(data, tmp_path, monkeypatch):
    monkeypatch.setenv('FASTBIT_CACHE', str(tmp_path))
    def computed(augment):
        learn = learner(loaders(data, augment=augment))
        quiet(learn, learn.fit_head, 1, views=3)
        return learn.head_features[0].computed
    first, per_view = computed('light'), 24
    assert first == 3*per_view
    assert computed('light') == 0
    assert computed('strong') == 2*per_view and computed('strong') == 0          # view 0 is the same
    assert computed([v2.RandomRotation(20)]) == 2*per_view and computed([v2.RandomRotation(20)]) == 0
    assert computed([v2.RandomRotation(25)]) == 2*per_view
    for _ in range(2): assert computed([lambda img: img.transpose(Image.Transpose.ROTATE_90)]) == first   # not comparable: never cached
    strong = loaders(data, augment='strong')
    rows = frozen_features(learner(strong).model, strong.train.items, strong.preprocess, views=2,
                           seed=strong.train.seed, augment=strong.augment, cache=False)
    kept = frozen_features(learner(strong).model, strong.train.items, strong.preprocess, views=2,
                           seed=strong.train.seed, augment=strong.augment)
    assert kept.computed == 0 and np.allclose(rows.rows[rows.index], kept.rows[kept.index], rtol=1e-4, atol=1e-6)   # other batches


@pytest.mark.parametrize('how', [dict(augment=[Brightness(max_lighting=.5, p=1.)]), dict(batch_tfms=[Brightness(max_lighting=.5, p=1.)])],
                         ids=['augment', 'batch_tfms'])
def test_upper_stages_train_on_views_of_batch_transforms(data, how):
    "Drawn through the loader, the same each time, and without a draw from the global generators"
    def trained():
        learn = learner(loaders(data, **how))
        torch.manual_seed(1)
        before = torch.get_rng_state()
        quiet(learn, learn.fit_upper, 2, 6, views=4)
        f = learn.head_features[0]
        assert f.index.shape[1] == 4
        return f.rows[f.index], torch.equal(before, torch.get_rng_state()), {k: v.clone() for k, v in learn.model.state_dict().items()}
    rows, untouched, weights = trained()
    again, _, same = trained()
    assert np.array_equal(rows, again) and all(torch.equal(v, same[k]) for k, v in weights.items())
    flat = rows.reshape(*rows.shape[:2], -1)
    assert all((flat[:, i] != flat[:, j]).any(1).all() for i in range(4) for j in range(i))   # each image, each pair of views


def test_what_cannot_be_used_is_refused_in_the_words_typed(data, tmp_path):
    done = run_fastbit('baseline', data, '--augment', 'heavy', cwd=tmp_path)
    assert done.returncode == 2 and "'none', 'light', 'strong'" in done.stderr and '--augment' in done.stderr, done.stderr
    with pytest.raises(ValueError, match="augment='heavy'.*'strong', or a list"): baseline(data, augment='heavy')
    with pytest.raises(ValueError, match='RandomHorizontalFlip.*flip=False'): baseline(data, flip=False, size=32, augment=[v2.RandomHorizontalFlip()], **TINY)
    with pytest.raises(ValueError, match='jitter=False'): loaders(data, jitter=False, augment=aug_transforms())
    with pytest.raises(ValueError, match='normaliz'): loaders(data, augment=[v2.ToImage(), v2.Normalize([.5]*3, [.5]*3)])
    for big in ([v2.Resize(64)], aug_transforms(size=48), [RandomResizedCropGPU(24)]):
        with pytest.raises(ValueError, match='Images keep their size'): loaders(data, augment=big)
    with pytest.raises(ValueError, match='validation images, too'): loaders(data, augment=[Normalize.from_stats([.5]*3, [.5]*3, cuda=False)])
    with pytest.raises(ValueError, match='its own random generator'): loaders(data, augment=[Noise()])
    for hidden in (torch.nn.Sequential(v2.RandomHorizontalFlip(1.)), v2.RandomApply([v2.RandomHorizontalFlip()]), *setup_aug_tfms([Rotate(), Flip()])):
        with pytest.raises(ValueError, match='flip=False'): loaders(data, flip=False, augment=[hidden])
    with pytest.raises(ValueError, match='crop=False'): loaders(data, crop=False, augment=[Zoom()])
    rule = dict(augment=[v2.RandomResizedCrop(128)], arch='test_efficientnet', size='hyperrule', bs=4, num_workers=0)
    assert image_dataloaders(data, **rule).train.one_batch()[0].shape[-1] == 128   # checked at the rule's size
    with pytest.raises(ValueError, match='size=128'): image_dataloaders(data, **rule | dict(augment=[v2.RandomResizedCrop(160)]))


class Noise:
    "A transform with a private generator, which every worker process copies"
    def __init__(self): self.rng = np.random.default_rng(0)
    def __call__(self, img): return img.rotate(self.rng.uniform(-90, 90))


class Turned(torch.nn.Module):
    def __init__(self, degrees):
        super().__init__()
        self.degrees = degrees
    def forward(self, img): return img.rotate(self.degrees)


def test_the_identity_of_a_transform_is_all_of_it():
    "torchvision's texts leave parameters out"
    crop = lambda mode: v2.RandomCrop(32, padding=8, padding_mode=mode)
    kinds = [crop('constant'), crop('reflect'), v2.RandomApply([v2.RandomRotation(9)], p=.1), v2.RandomApply([v2.RandomRotation(9)], p=.9),
             v2.RandomPerspective(.1), v2.RandomPerspective(.6), v2.RandomAffine(9, fill={Image.Image: 3}), v2.RandomAffine(9, fill={Image.Image: 4}),
             v2.TrivialAugmentWide(), v2.RandAugment(magnitude=3), v2.RandAugment(magnitude=4)]
    keys = [Augment(items=(f,)).key for f in kinds]
    assert None not in keys and len(set(keys)) == len(kinds)
    assert keys[:2] == [Augment(items=(crop(mode),)).key for mode in ('constant', 'reflect')]
    foreign = [v2.Compose([Turned(10)]), v2.Compose([Turned(90)]), Turned(10), lambda img: img.rotate(3), lambda img: img.rotate(4), Noise()]
    assert {Augment(items=(f,)).key for f in foreign} == {None}   # never cached
    assert len({identity(f).digest for f in foreign}) == len(foreign) and identity(Turned(10)) == identity(Turned(10))
    batches = [Augment(batches=tuple(aug_transforms(max_rotate=d))).description(body_preprocess('test_efficientnet', size=32)) for d in (5, 5, 45)]
    assert batches[0] == batches[1] != batches[2]


def test_a_transform_of_tensors_is_for_batches():
    class Dark(RandTransform):
        def encodes(self, x:TensorImage): return x/2
    made = resolve_augment([Dark(p=1.), v2.RandomRotation(5)], body_preprocess('test_efficientnet', size=32))
    assert [type(f).__name__ for f in made.batches] == ['Dark'] and len(made.items) == 1


def test_streams_have_levels_only(tmp_path):
    from fastbit.data import stream_dataloaders
    with pytest.raises(ValueError, match="streams have the levels 'none', 'light' and 'strong'"):
        stream_dataloaders(None, None, ['a', 'b'], size=32, augment=OWN)


def test_a_transform_that_fails_later_names_itself():
    pp = body_preprocess('test_efficientnet', size=32)
    seldom = Augment(items=(v2.RandomApply([v2.RandomCrop(20)], p=.5),))
    with pytest.raises(ValueError, match='RandomApply makes 20 x 20'):
        for i in range(50): train_image(Image.new('RGB', (64, 64)), pp, random.Random(i), seldom)


@dataclasses.dataclass
class Rotated:
    degrees: float
    def __call__(self, img): return img.rotate(self.degrees)


def test_a_run_with_a_function_resumes(data, tmp_path):
    "Its name has no address of the process"
    run = dict(augment=[Rotated(10)], size=32, bs=8, recipe='onecycle', epochs=2, num_workers=0, device='cpu', verbose=False, **TINY)
    done = baseline(data, out=tmp_path/'run', **run)
    assert 'Rotated(degrees=10)' in json.loads((tmp_path/'run/results.json').read_text())['settings']['augment']
    assert ' at 0x' not in (tmp_path/'run/results.json').read_text() and 'Rotated' in str(done.plan)


def test_plan_results_and_checkpoints_say_how_images_were_changed(data, tmp_path):
    run = dict(size=32, bs=8, recipe='onecycle', epochs=2, num_workers=0, device='cpu', verbose=False, **TINY)
    strong = baseline(data, augment='strong', out=tmp_path/'strong', **run)
    assert 'rotations of up to 10 degrees' in str(strong.plan) and 'saturation by up to 20%' in str(strong.plan)
    assert json.loads((tmp_path/'strong/results.json').read_text())['settings']['augment'] == 'strong'
    own = baseline(data, augment=OWN, out=tmp_path/'own', **run)
    assert 'horizontal flips, RandomRotation and ColorJitter' in str(own.plan)
    assert 'RandomRotation(degrees=[-20.0, 20.0]' in json.loads((tmp_path/'own/results.json').read_text())['settings']['augment']
    plain = baseline(data, augment='none', **run)
    assert 'no augmentation' in str(plain.plan)


def test_a_checkpoint_of_another_augmentation_is_refused(data, tmp_path):
    file = tmp_path/'run.safetensors'
    learn = learner(loaders(data, augment='strong'))
    quiet(learn, learn.fit_upper, 2, 4, checkpoint=file, checkpoint_every=1)
    other = learner(loaders(data))
    with pytest.raises(ValueError, match='augment'): quiet(other, other.fit_upper, 2, 4, checkpoint=file, checkpoint_every=1)


@pytest.mark.parametrize('method', ['spawn', 'forkserver'])
def test_a_transform_that_workers_cannot_have(data, monkeypatch, method):
    "Workers that are not forked get transforms by pickle: a lambda failed in them, at the first batch"
    monkeypatch.setattr('fastbit.data.batches.start_method', lambda: method)
    unsent = dict(augment=[v2.RandomHorizontalFlip(), lambda img: img])
    with pytest.raises(ValueError, match=r'num_workers=2: .*<lambda> in augment= cannot be sent.*num_workers=0'):
        loaders(data, workers=2, **unsent)
    monkeypatch.setattr('fastbit.data.batches.default_workers', lambda n_images, device: 2)
    with pytest.warns(DataWarning, match='<lambda> cannot be sent to worker processes, so images are loaded in this one'):
        assert loaders(data, workers=None, **unsent).train.fake_l.num_workers == 0
    assert loaders(data, workers=None, augment=[v2.RandomHorizontalFlip()]).train.fake_l.num_workers == 2
    class Local(Brightness): 'of a batch: it stays in the training process'
    dl = loaders(data, workers=2, augment=[Local()]).train
    assert dl.fake_l.num_workers == 2 and not dl.after_item.fs[0].augment.batches and _can_be_sent(dl.after_item)
    monkeypatch.setattr('fastbit.data.batches.start_method', lambda: 'fork')
    assert loaders(data, workers=2, **unsent).train.fake_l.num_workers == 2
    assert choose_workers(2, 10, None, [lambda img: img]) == 2


def test_a_function_of_a_notebook_is_not_sent(monkeypatch):
    "Such a function pickles by its name in `__main__`, which a new process does not have"
    defined = types.FunctionType((lambda img: img).__code__, {}, 'defined')
    defined.__module__, defined.__qualname__ = '__main__', 'defined'
    main = types.ModuleType('__main__')
    main.defined = defined
    monkeypatch.setitem(sys.modules, '__main__', main)
    assert not _can_be_sent(defined)
    main.__file__ = 'train.py'
    assert _can_be_sent(defined)
