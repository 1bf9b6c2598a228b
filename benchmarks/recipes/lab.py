"""Which recipe is the best that its time can buy, on whose images? fastbit's recipes and its peers, paired over seeds

    python benchmarks/recipes/sets.py FOLDER
    python benchmarks/recipes/lab.py FOLDER --sets clipart oxygen --recipes onecycle tuned fastai --seeds 100 101
    python benchmarks/recipes/lab.py --show [--against onecycle]

A seed draws the training images, up to `--k` per class, and everything that is random in training. Of the other images
a quarter as many are for choices (early stopping, the better of two), and up to 700 are measured. Seeds from 100 on
are for choosing a recipe, those below for reporting one. A row is written when a run ends, and a run that has a row is
not repeated, so a night of it can be stopped at any time.
"""
import argparse, json, os, platform, sys, traceback, warnings
from pathlib import Path

warnings.simplefilter('ignore')
os.environ.setdefault('HF_HUB_OFFLINE', '1')

HERE = Path(__file__).parent
RESULTS = HERE/'results.jsonl'
KEY = ('set', 'k', 'seed', 'size', 'arch', 'recipe')
DEFAULTS = ['onecycle', 'head', 'logistic', 'tuned', 'upper_3', 'fastai', 'fastai_20_tta', 'autogluon', 'timm']
MEASURES = dict(accuracy='{:+.1%}', loss='{:+.2f}', ece='{:+.3f}', seconds='{:+.0f}')


def read(path) -> list:
    if not path.exists(): return []
    return [json.loads(line) for line in path.read_text().splitlines()]


def key(row) -> tuple: return tuple(row[k] for k in KEY)


def machine() -> dict:
    import torch
    info = Path('/proc/cpuinfo')
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')]
    capability = torch.backends.cpu.get_cpu_capability()
    return dict(cpu=names[0] if names else platform.processor(), capability=capability, threads=torch.get_num_threads(),
                load=round(os.getloadavg()[0], 1), torch=torch.__version__)   # seconds of a busy machine say little


def run(case, about, recipe) -> dict:
    "The row of one run; one that fails says why, and is tried again next time"
    try: return about | recipe(case).scores(case.targets('test')) | machine()
    except Exception as e:
        traceback.print_exc()
        return about | dict(error=f'{type(e).__name__}: {e}'[:200])


def keep(row, results):
    "Print a row, and write it unless it is an error"
    words = row['error'] if 'error' in row else f"{row['accuracy']:.1%}, loss {row['loss']:.2f}, {row['seconds']:.0f} s"
    print(f"{row['set']}, {row['k']} images per class, seed {row['seed']}, {row['recipe']}: {words}", flush=True)
    if 'error' in row: return
    with open(results, 'a') as f: f.write(json.dumps(row) + '\n')


def work(args):
    from cases import Case
    from others import PEERS
    from recipes import RECIPES
    known = RECIPES | PEERS
    unknown = [name for name in args.recipes if name not in known]
    if unknown: sys.exit(f'unknown recipe {unknown[0]!r}: choose from {", ".join(known)}')
    done = {key(row) for row in read(args.results) if 'error' not in row}
    for seed in args.seeds:
        for k in args.k:
            for name in args.sets:
                case = Case(args.folder/name, k, seed, args.size, args.arch, args.weights)
                for recipe in args.recipes:
                    about = dict(zip(KEY, (name, k, seed, args.size, args.arch, recipe)))
                    if key(about) in done: continue
                    row = run(case, about, known[recipe])
                    keep(row, args.results)


# What the rows say

def means(rows):
    "Mean of each measure, by recipe and set"
    import pandas as pd
    df = pd.DataFrame(rows)
    df['set'] = df['set'] + ' ' + df.k.astype(str)
    return df.pivot_table(index='recipe', columns='set', values=list(MEASURES), aggfunc='mean', sort=False)


def paired(rows, against):
    "Difference to another recipe on the same draws: the mean over sets, its 95% interval over sets, and where it loses"
    import pandas as pd
    from scipy.stats import t
    df = pd.DataFrame(rows)
    draws = [k for k in KEY if k != 'recipe']
    base = df[df.recipe == against]
    found = []
    for name, own in df.groupby('recipe', sort=False):
        both = own.merge(base, on=draws, suffixes=('', '_base')).set_index(draws)
        if name == against or both.empty: continue
        row = dict(recipe=name, runs=len(both))
        for measure, form in MEASURES.items():
            by_set = (both[measure] - both[f'{measure}_base']).groupby(level=['set', 'k']).mean()
            half = t.ppf(.975, len(by_set) - 1)*by_set.sem() if len(by_set) > 1 else float('nan')
            row[measure] = f'{form.format(by_set.mean())} ± {form.format(half).lstrip("+")}'
            if measure != 'accuracy': continue
            row['loses on'] = ', '.join(f'{s} {k} ({v:+.1%})' for (s, k), v in by_set.items() if v < 0)
        row['time'] = f"{(both.seconds/both.seconds_base).median():.2f}x"
        found.append(row)
    return pd.DataFrame(found)


def show(args):
    import pandas as pd
    rows = [r for r in read(args.results) if args.all_seeds or (r['seed'] >= 100) == args.choosing]
    if not rows: sys.exit(f'no rows in {args.results}')
    pd.set_option('display.width', 250, 'display.max_columns', 50, 'display.max_colwidth', 120)
    table = means(rows)
    for measure in MEASURES: print(f'\n{measure}\n{table[measure].round(3)}')
    compared = paired(rows, args.against).to_string(index=False)
    print(f'\nagainst {args.against}, paired; intervals over sets\n{compared}')


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('folder', type=Path, nargs='?', help='where sets.py put the sets')
    p.add_argument('--sets', nargs='+', default=['clipart', 'oxygen', 'terrain', 'units', 'stamps', 'digits'])
    p.add_argument('--recipes', nargs='+', default=DEFAULTS)
    p.add_argument('--k', type=int, nargs='+', default=[16, 48], help='training images per class; 0: four fifths')
    p.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2, 3, 4])
    p.add_argument('--size', type=int, default=64)
    p.add_argument('--arch', default='tf_efficientnet_lite0')
    p.add_argument('--weights', default='auto')
    p.add_argument('--results', type=Path, default=RESULTS)
    p.add_argument('--show', action='store_true', help='print what the rows say')
    p.add_argument('--against', default='onecycle')
    p.add_argument('--choosing', action='store_true', help='with --show: the seeds from 100 on')
    p.add_argument('--all-seeds', action='store_true')
    args = p.parse_args()
    if args.show: return show(args)
    if args.folder is None: p.error('where are the sets? `python benchmarks/recipes/sets.py FOLDER` makes them')
    work(args)


if __name__ == '__main__': main()
