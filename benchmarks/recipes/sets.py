"""Image sets to compare recipes on, far from photographs and near: python benchmarks/recipes/sets.py FOLDER [SET ...]

Sets out of Debian's packages need `apt-get` and `dpkg`, and nothing is installed: `clipart` (openclipart-png), `oxygen`
(icons), `terrain` and `units` (Wesnoth's pictures; units.csv has a column `group`, frames of one unit), and `stamps`
(Tux Paint's photographs and drawings). `digits` comes with scikit-learn. `pets`, `flowers`, `imagewoof`, `cifar`,
`eurosat` and `dogs` are downloaded by fastai and torchvision. Without names: everything that needs no download beyond
Debian's. Each becomes FOLDER/SET, a folder of class folders; one that is there already is left as it is.
"""
import argparse, csv, random, shutil, subprocess, warnings
from pathlib import Path

import numpy as np
from PIL import Image

MOST = 150   # images of a class
SIDE = 256   # pixels, the longer side at most
LARGEST = 4e6   # pixels of a picture that is taken
CLIPART = 'animals buildings electronics food geography office people plants tools transportation'.split()
TERRAIN = ('castle cave chasm embellishments flat forest grass hills interior mountains sand village walls '
           'water').split()
STAMPS = 'animals clothes food household plants symbols town vehicles'.split()


# Pictures

# posters of a hundred megapixels are looked at as far as their header
warnings.simplefilter('ignore', Image.DecompressionBombWarning)

def on_white(path):
    "An RGB picture on white; `None` for what Pillow cannot read and for posters"
    try:
        with Image.open(path) as img:
            if img.width*img.height > LARGEST: return None
            img = img.convert('RGBA')
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError): return None
    page = Image.new('RGBA', img.size, 'white')
    page.alpha_composite(img)
    return page.convert('RGB')


def save(files, folder, seed=0, most=MOST) -> list:
    "Write a seeded draw of pictures as PNG files; return (file, source) of each"
    files = sorted(f for f in files if f.is_file() and not f.is_symlink())
    random.Random(seed).shuffle(files)
    rows = []
    for source in files:
        if len(rows) == most: break
        img = on_white(source)
        if img is None: continue
        img.thumbnail((SIDE, SIDE))
        folder.mkdir(parents=True, exist_ok=True)
        target = folder/f'{len(rows):04d}.png'
        img.save(target)
        rows.append((target, source))
    return rows


# Debian's packages

def package(name, out) -> Path:
    "The files of a Debian package, not installed"
    at = out/'packages'/name
    if at.exists(): return at
    at.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(['apt-get', 'download', '-q', name], cwd=at.parent, check=True, capture_output=True)
    deb = next(at.parent.glob(f'{name}_*.deb'))
    part = at.with_name(f'{name}.part')
    subprocess.run(['dpkg', '-x', deb, part], check=True)
    part.rename(at)
    deb.unlink()
    return at


def clipart(out):
    root = package('openclipart-png', out)/'usr/share/openclipart/png'
    for name in CLIPART: save((root/name).rglob('*.png'), out/'clipart'/name)


def oxygen(out):
    root = package('oxygen-icon-theme', out)/'usr/share/icons/oxygen/base/128x128'
    for folder in sorted(p for p in root.iterdir() if p.is_dir()):
        if sum(not f.is_symlink() for f in folder.rglob('*.png')) >= 30:
            save(folder.rglob('*.png'), out/'oxygen'/folder.name)


def _wesnoth(out): return next(package('wesnoth-1.16-data', out).rglob('core/images'))


def terrain(out):
    root = _wesnoth(out)/'terrain'
    for name in TERRAIN: save((root/name).rglob('*.png'), out/'terrain'/name)


def units(out):
    rows = []
    for folder in sorted(p for p in (_wesnoth(out)/'units').iterdir() if p.is_dir()):
        if len(list(folder.rglob('*.png'))) < 50: continue
        for path, source in save(folder.rglob('*.png'), out/'units'/folder.name):
            unit = source.stem.split('-')[0].split('+')[0]
            rows.append((path.relative_to(out/'units'), folder.name, f'{folder.name}/{unit}'))
    with open(out/'units'/'units.csv', 'w', newline='') as f:
        writer = csv.writer(f)
        writer.writerow(['path', 'label', 'group'])
        writer.writerows(rows)


def stamps(out):
    root = next(package('tuxpaint-stamps-default', out).rglob('stamps'))
    for name in STAMPS: save((root/name).rglob('*.png'), out/'stamps'/name)


# Others

def digits(out):
    from sklearn.datasets import load_digits
    found = load_digits()
    for i, (image, y) in enumerate(zip(found.images, found.target)):
        folder = out/'digits'/str(y)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.uint8(image*255/16)).save(folder/f'{i:04d}.png')


def from_fastai(name):
    "A set of fastai's that is a folder of class folders"
    def make(out):
        from fastai.data.external import URLs, untar_data
        shutil.copytree(untar_data(getattr(URLs, name)), out/name.lower().split('_')[0])
    return make


def dogs(out):
    "Stanford Dogs, a folder for each breed"
    from torchvision.datasets.utils import download_and_extract_archive
    host = 'http://vision.stanford.edu/aditya86/ImageNetDogs'
    download_and_extract_archive(f'{host}/images.tar', out/'packages', out/'packages'/'dogs')
    for breed in sorted((out/'packages'/'dogs'/'Images').iterdir()):
        save(breed.glob('*.jpg'), out/'dogs'/breed.name.partition('-')[2])


def from_torchvision(name, set_name, **how):
    "A set of torchvision's, drawn as the others"
    def make(out):
        from torchvision import datasets
        found = getattr(datasets, name)(out/'packages', download=True, **how)
        left = {}
        for i in np.random.RandomState(0).permutation(len(found)):
            img, y = found[int(i)]
            if left.setdefault(y, MOST) == 0: continue
            left[y] -= 1
            folder = out/set_name/(found.classes[y] if hasattr(found, 'classes') else f'{y:03d}')
            folder.mkdir(parents=True, exist_ok=True)
            img = img.convert('RGB')
            img.thumbnail((SIDE, SIDE))
            img.save(folder/f'{MOST - left[y] - 1:04d}.png')
    return make


LOCAL = dict(clipart=clipart, oxygen=oxygen, terrain=terrain, units=units, stamps=stamps, digits=digits)
DOWNLOADED = dict(
    pets=from_torchvision('OxfordIIITPet', 'pets'),
    flowers=from_torchvision('Flowers102', 'flowers'),
    cifar=from_torchvision('CIFAR10', 'cifar'),
    eurosat=from_torchvision('EuroSAT', 'eurosat'),
    imagewoof=from_fastai('IMAGEWOOF_160'),
    dogs=dogs)
SETS = LOCAL | DOWNLOADED


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('folder', type=Path)
    p.add_argument('sets', nargs='*', metavar='SET', help=f'one of {", ".join(SETS)}')
    args = p.parse_args()
    unknown = [name for name in args.sets if name not in SETS]
    if unknown: p.error(f'unknown set {unknown[0]!r}: choose from {", ".join(SETS)}')
    for name in args.sets or LOCAL:
        folder = args.folder.resolve()/name
        if not folder.exists(): SETS[name](args.folder.resolve())
        classes = [d for d in folder.iterdir() if d.is_dir()]
        n = len([p for p in folder.rglob('*') if p.suffix.lower() in ('.png', '.jpg', '.jpeg')])
        print(f'{name}: {n} images, {len(classes)} classes')


if __name__ == '__main__': main()
