"""What holds for timm's families: `python tools/audit.py` writes nbs/concepts/bodies.csv, for the page Bodies

A small model of each family is built with random weights, and `fastbit.bodies.audit` checks what fastbit relies on; here come two checks that need later rooms: an exported
folder opens in plain timm with the same logits, and a class activation map is exact. Models of more than `MAX_MILLIONS` parameters are left out, with their family where it has no smaller one.
"""
import argparse, re, tempfile, time, warnings
from collections import defaultdict
from dataclasses import replace
from functools import cache
from pathlib import Path

import pandas as pd, timm, torch

from fastbit.bodies import body_preprocess
from fastbit.bodies.audit import Audit, audit_body, audit_model
from fastbit.bodies.load import classifier_layer
from fastbit.export.artifact import load_artifact, save_artifact
from fastbit.export.record import Artifact
from fastbit.report.cam import class_activation

ROOT = Path(__file__).parents[1]
TABLE = ROOT/'nbs'/'concepts'/'bodies.csv'
MAX_MILLIONS = 150
LARGE = re.compile(r'base|medium|large|huge|giant|3[38]4|336|448|512|518|gigantic|xlarge|so400m|so150m|_xl|_xxl|_l\d*$|_h\d*$|_b[4-8]|1[0-9]{2}d?_|enormous|7b|_e\d')
CHECKS = ('stages', 'frozen', 'parts', 'features', 'stages in cache', 'folding', 'normalization', 'export', 'CAM')


def family(name: str) -> str:
    "The first word of a name, with its version: resnet, convnextv2, regnety, vit"
    return re.match(r'[a-z]+(?:v\d+|\d+(?=[a-z]))?', name)[0]


@cache
def families() -> dict:
    "(module, family) -> timm's architectures"
    found = defaultdict(list)
    for module in timm.list_modules():
        for name in timm.list_models(module=module): found[module, family(name)].append(name)
    return dict(found)


@cache
def millions(name: str) -> float:
    "Parameters, counted without memory"
    try:
        with torch.device('meta'): net = timm.create_model(name)
    except Exception: return float('inf')
    return sum(p.numel() for p in net.parameters())/1e6


def smallest(names: list) -> str:
    "The smallest of a family; names that promise large models are built only where there are no others"
    small = [n for n in names if not n.startswith('test_')] or names
    small = [n for n in small if not LARGE.search(n)] or small
    return min(small, key=millions)


@torch.inference_mode()
def check_export(model, name: str, size: int):
    "A saved folder opens in plain timm, and in fastbit, with the same logits"
    x = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    plain, pp = model.net(x), replace(body_preprocess(name), size=size, train_size=None)
    with tempfile.TemporaryDirectory() as tmp:
        arch = model.net.pretrained_cfg['architecture']
        save_artifact(f'{tmp}/model', model.net, Artifact(arch=arch, classes=('a', 'b', 'c'), preprocess=pp))
        for net in (timm.create_model(f'local-dir:{tmp}/model', pretrained=True), load_artifact(f'{tmp}/model').net):
            worst = (net.eval()(x) - plain).abs().max()/plain.abs().max()   # in another memory format
            assert worst < 1e-4, f'an exported model gives other logits, by {worst:.1e}'


@torch.inference_mode()
def check_cam(model, name: str, size: int):
    "The mean of a map is the logit without its bias"
    x = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    maps, logits = class_activation(model, x, [0, 1])
    bias = classifier_layer(model.net).bias[:2]
    torch.testing.assert_close(maps.mean((1, 2)) + bias, logits[[0, 1], [0, 1]], rtol=1e-3, atol=1e-4)


def full_audit(name: str) -> Audit:
    "`audit_body`, and the checks of later rooms"
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')   # that a fold is not used is a result here
        found = audit_body(name)
        if found.refused: return found
        model, failed = audit_model(name, found.size), dict(found.failed)
        for what, check in dict(export=check_export, CAM=check_cam).items():
            try: check(model, found.name, found.size)
            except Exception as e: failed[what] = (str(e).strip().splitlines() or [type(e).__name__])[0][:200]
    refused = f'export: {failed["export"]}' if 'export' in failed else ''
    return replace(found, failed=failed, refused=refused)


def row(module: str, fam: str, names: list, name: str) -> dict:
    found = full_audit(name)
    about = dict(module=module, family=fam, models=len(names), checked=name, params_m=round(millions(name), 1))
    checks = {c: found.failed.get(c, 'yes') for c in CHECKS} if found.failed or not found.refused else {}
    return about | dict(size=found.size, verdict=found.verdict, reason=found.refused) | checks


def in_breadth(done: set) -> list:
    "Families that are not done, first those of modules of which none is"
    left = [(k, names) for k, names in families().items() if k not in done]
    seen = {module for module, _ in done}
    firsts = [(k, names) for i, (k, names) in enumerate(left) if k[0] not in seen and (not i or left[i-1][0][0] != k[0])]
    return [*firsts, *(o for o in left if o not in firsts)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--again', action='store_true', help='check families that are in the table again')
    parser.add_argument('--out', default=TABLE, type=Path)
    a = parser.parse_args()
    rows = pd.read_csv(a.out).to_dict('records') if a.out.exists() and not a.again else []
    done = {(r['module'], r['family']) for r in rows}
    for (module, fam), names in in_breadth(done):
        start, name = time.perf_counter(), smallest(names)
        if millions(name) > MAX_MILLIONS: continue
        rows.append(row(module, fam, names, name))
        print(f'{module:28} {name:44} {rows[-1]["verdict"]:14} {time.perf_counter()-start:5.1f} s  {rows[-1]["reason"]}', flush=True)
        pd.DataFrame(rows).sort_values(['module', 'family']).to_csv(a.out, index=False)


if __name__ == '__main__': main()
