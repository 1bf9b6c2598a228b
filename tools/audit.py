"""What holds for timm's families: `python tools/audit.py` writes nbs/concepts/bodies.csv, for the page Bodies

A small model of each family is built with random weights, and `fastbit.bodies.audit` checks what fastbit relies on; here come two checks that need later rooms: an exported
folder opens in plain timm with the same logits, and class activation maps are exact, gradient-based or absent (`--cams`
checks these alone). Models of more than `MAX_MILLIONS` parameters are left out, with their family where it has no smaller one.
"""
import argparse, re, tempfile, time, warnings
from collections import defaultdict
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pandas as pd, timm, torch

from fastbit.bodies import body_preprocess
from fastbit.bodies.audit import Audit, audit_body, audit_model
from fastbit.bodies.heads import LinearHead
from fastbit.export.artifact import load_artifact, save_artifact
from fastbit.export.record import Artifact
from fastbit.report.gradient_map import activation_maps, find_map_method

ROOT = Path(__file__).parents[1]
TABLE = ROOT/'nbs'/'concepts'/'bodies.csv'
MAX_MILLIONS = 150
LARGE = re.compile(r'base|medium|large|huge|giant|3[38]4|336|448|512|518|gigantic|xlarge|so400m|so150m|_xl|_xxl|_l\d*$|_h\d*$|_b[4-8]|1[0-9]{2}d?_|enormous|7b|_e\d')
PASSED = ('yes', 'exact', 'gradient-based')
CHECKS = ('stages', 'frozen', 'parts', 'features', 'stages in cache', 'folding', 'normalization', 'weights', 'export', 'CAM')


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


@dataclass(frozen=True)
class FullAudit(Audit):
    "`Audit`, and how maps are made"
    cam: str = ''   # 'exact' or 'gradient-based'; '': not at all


def found_method(model, size: int) -> tuple: # (size, `MapMethod`)
    "The method at this size, or at twice this size, where a body reduces small images to one position"
    for side in (size, 2*size):
        try: method = find_map_method(model, side)
        except (AssertionError, RuntimeError): break   # a body of one size
        if method.kind != 'none': return side, method
    return size, find_map_method(model, size)


@torch.no_grad()
def cam_kind(model, size: int) -> str: # 'exact' or 'gradient-based'
    "Maps are finite and not zero; the mean of an exact one is the logit without its bias"
    size, method = found_method(model, size)
    x = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    maps, logits = activation_maps(model, x, [0, 1], method)
    assert maps.isfinite().all() and (maps != 0).any((1, 2)).all(), 'its maps are zero or not finite'
    if method.kind == 'gradient': return 'gradient-based'
    bias = LinearHead(model.net).bias[:2]
    torch.testing.assert_close(maps.mean((1, 2)) + bias, logits[[0, 1], [0, 1]], rtol=1e-3, atol=1e-4)
    return 'exact'


def cams_again(rows: list) -> list:
    "The rows of a table, their column CAM from new checks"
    made = []
    for r in rows:
        if r['verdict'] != 'refused':
            try: r = r | dict(CAM=cam_kind(audit_model(r['checked'], int(r['size'])), int(r['size'])))
            except Exception as e: r = r | dict(CAM=first_line(e))
            r['verdict'] = 'passes' if all(r[c] in PASSED for c in CHECKS) else 'passes partly'
        made.append(r)
    return made


def first_line(e) -> str: return (str(e).strip().splitlines() or [type(e).__name__])[0][:200]


def full_audit(name: str) -> FullAudit:
    "`audit_body`, and the checks of later rooms"
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')   # that a fold is not used is a result here
        found = audit_body(name)
        if found.refused: return FullAudit(**vars(found))
        model, failed, cam = audit_model(name, found.size), dict(found.failed), ''
        try: check_export(model, found.name, found.size)
        except Exception as e: failed['export'] = first_line(e)
        try: cam = cam_kind(model, found.size)
        except Exception as e: failed['CAM'] = first_line(e)
    refused = f'export: {failed["export"]}' if 'export' in failed else ''
    return FullAudit(**vars(found) | dict(failed=failed, refused=refused, cam=cam))


def row(module: str, fam: str, names: list, name: str) -> dict:
    found = full_audit(name)
    about = dict(module=module, family=fam, models=len(names), checked=name, params_m=round(millions(name), 1))
    checks = {c: found.failed.get(c, 'yes') for c in CHECKS} if found.failed or not found.refused else {}
    if found.cam: checks['CAM'] = found.cam
    return about | dict(size=found.size, verdict=found.verdict, reason=found.refused) | checks


def in_breadth(done: set) -> list:
    "Families that are not done, first those of modules of which none is"
    left = [(k, names) for k, names in families().items() if k not in done]
    seen = {module for module, _ in done}
    firsts = [(k, names) for i, (k, names) in enumerate(left) if k[0] not in seen and (not i or left[i-1][0][0] != k[0])]
    return [*firsts, *(o for o in left if o not in firsts)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--again', nargs='*', metavar='MODULE', help="modules of timm to check again, 'resnet'; without names all")
    parser.add_argument('--cams', action='store_true', help='check the class activation maps of the table again, and nothing else')
    parser.add_argument('--out', default=TABLE, type=Path)
    a = parser.parse_args()
    table = pd.read_csv(a.out).to_dict('records') if a.out.exists() else []
    known = {(r['module'], r['family']): r['checked'] for r in table}   # to count the parameters of all takes longer
    rows = [] if a.again == [] else [r for r in table if r['module'] not in (a.again or ())]
    if a.cams:
        rows = pd.read_csv(a.out, keep_default_na=False).to_dict('records')
        pd.DataFrame(cams_again(rows)).to_csv(a.out, index=False)
        return
    done = {(r['module'], r['family']) for r in rows}
    for (module, fam), names in in_breadth(done):
        start, name = time.perf_counter(), known.get((module, fam), '')
        if name not in names: name = smallest(names)
        if millions(name) > MAX_MILLIONS: continue
        rows.append(row(module, fam, names, name))
        print(f'{module:28} {name:44} {rows[-1]["verdict"]:14} {time.perf_counter()-start:5.1f} s  {rows[-1]["reason"]}', flush=True)
        pd.DataFrame(rows).sort_values(['module', 'family']).to_csv(a.out, index=False)


if __name__ == '__main__': main()
