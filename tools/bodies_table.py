"""fastbit/core/timm_models.csv: what is published about timm's models, from a clone of timm's repository and the installed timm

`python tools/bodies_table.py CLONE` reads CLONE/results, in a few minutes. Parameters are counted on the meta device; multiply-adds are
timm's, scaled by the area where it has measured another size, else counted by PyTorch.
"""
import csv, subprocess, sys
from collections import defaultdict
from pathlib import Path

import timm, torch
from timm.models._registry import _model_to_module
from torch.utils.flop_counter import FlopCounterMode

from fastbit.bodies.names import has_linear_classifier

TABLE = Path(__file__).parents[1]/'fastbit/core/timm_models.csv'
COLUMNS = ('name', 'family', 'size', 'params', 'gmacs', 'top1', 'license', 'repo')
HEAD = """\
# Models of timm {version}: accuracy on the ImageNet-1k validation set (top1, percent) and multiply-adds of an image (gmacs, billions), from
# results/ of https://github.com/huggingface/pytorch-image-models at {commit} ({date}); Copyright Ross Wightman, Apache License 2.0.
# params: without classifier; the first tag of an architecture is timm's default; repo '=': timm/NAME. Made by tools/bodies_table.py.
"""


def git(clone, *words) -> str: return subprocess.run(['git', '-C', str(clone), *words], check=True, capture_output=True, text=True).stdout.strip()


def read(clone, pattern) -> list:
    "Rows of the CSV files that match; the newest benchmarks last"
    names = [n for n in git(clone, 'ls-tree', '--name-only', 'HEAD', 'results/').splitlines() if Path(n).match(pattern)]
    return [row for n in sorted(names) for row in csv.DictReader(git(clone, 'show', f'HEAD:{n}').splitlines())]


def accuracies(clone) -> dict:
    "name -> {size: top-1}"
    found = defaultdict(dict)
    for r in read(clone, 'results-imagenet.csv'): found[r['model']][int(r['img_size'])] = float(r['top1'])
    return found


def measured_costs(clone) -> dict:
    "architecture -> {size: GMACs}"
    found = defaultdict(dict)
    for r in read(clone, 'benchmark-infer-*.csv'):
        if r.get('infer_gmacs'): found[r['model'].partition('.')[0]][int(r['infer_img_size'])] = float(r['infer_gmacs'])
    return found


def counted(arch, size, cost) -> tuple:
    "(parameters without classifier, GMACs or `None`), on the meta device; GMACs if `cost`"
    with torch.device('meta'):
        net = timm.create_model(arch, num_classes=0).eval()
        n = sum(p.numel() for p in net.parameters())
    if not cost: return n, None
    try:
        with torch.device('meta'), torch.no_grad(), FlopCounterMode(display=False) as counter: net(torch.empty(1, 3, size, size))
        return n, counter.get_total_flops()/2e9
    except Exception: return n, None   # what a few do has no meaning on the meta device


def names() -> list:
    "(name, its architecture), the default tag first; without models that fastbit cannot train"
    tags = defaultdict(list)
    for name in timm.list_pretrained(): tags[name.partition('.')[0]].append(name)
    found = []
    for arch in filter(has_linear_classifier, timm.list_models()):
        default = f'{arch}.{timm.get_pretrained_cfg(arch).tag}'
        found += [(n, arch) for n in sorted(tags[arch], key=lambda n: n != default)] or [(arch, arch)]
    return found


def main(clone):
    top1, costs, counts, rows = accuracies(clone), measured_costs(clone), {}, []
    for name, arch in names():
        cfg = timm.get_pretrained_cfg(name)
        size = cfg.input_size[-1]
        known, accuracy = costs.get(arch, {}), top1.get(name, {})
        if arch not in counts: counts[arch] = counted(arch, size, cost=not known)
        params, gmacs = counts[arch]
        at = lambda d: d[size] if size in d else d[min(d, key=lambda s: (abs(s - size), s))] if d else None
        if size in known: gmacs = known[size]
        elif gmacs is None and known: gmacs = at(known)*(size/min(known, key=lambda s: (abs(s - size), s)))**2
        repo = cfg.hf_hub_id or ''
        rows.append((name, _model_to_module[arch], size, params, '' if gmacs is None else f'{gmacs:.3g}', '' if at(accuracy) is None else f'{at(accuracy):.3f}',
                     cfg.license or '', '=' if repo == f'timm/{name}' else repo if '.' in name else ''))
    with TABLE.open('w', newline='') as f:
        f.write(HEAD.format(version=timm.__version__, commit=git(clone, 'rev-parse', '--short=12', 'HEAD'), date=git(clone, 'log', '-1', '--format=%cs')))
        out = csv.writer(f, lineterminator='\n')
        out.writerow(COLUMNS)
        out.writerows(rows)
    print(f'{TABLE}: {len(rows)} rows, {sum(r[5] != "" for r in rows)} with accuracy, {sum(r[4] == "" for r in rows)} without cost')


if __name__ == '__main__': main(Path(sys.argv[1]))
