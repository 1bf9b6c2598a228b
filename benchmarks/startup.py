"""How long until a million files are listed, split and ready to be trained on, and how much memory does that take?

    python benchmarks/startup.py --data ANY [--files 1000000] [--classes 1000]

Makes class folders of files with an image's extension, nearly all of them empty, since only names count, in a temporary folder, and lists, splits and makes loaders of them in a new process each. Not a race: there is no peer that does the same.
"""
import json, os, subprocess, sys, tempfile
from pathlib import Path

from PIL import Image

from peers import note, parser

STEPS = '''
import json, resource, sys, time
start = time.perf_counter()
import fastbit.data.tables, fastbit.data.loaders
from fastbit.bodies import body_preprocess
memory = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/2**20
res = dict(imports=(time.perf_counter()-start, memory()))
def step(name, f):
    start = time.perf_counter(); out = f()
    res[name] = (time.perf_counter()-start, memory())
    return out
table = step('listed', lambda: fastbit.data.tables.image_table(sys.argv[1]))
table = step('split', lambda: fastbit.data.split.split_table(table, .2, 0))
step('checked', lambda: fastbit.data.split.check_table(table))
dls = step('loaders', lambda: fastbit.data.loaders.table_dataloaders(table, body_preprocess('tf_efficientnet_lite0'), bs=32, num_workers=0, cache=False)) if len(sys.argv) > 2 else None
print(json.dumps(res))
'''


def main():
    p = parser(__doc__)
    p.add_argument('--files', type=int, default=1_000_000); p.add_argument('--classes', type=int, default=1000)
    args = p.parse_args()
    with tempfile.TemporaryDirectory() as tmp:
        per = -(-args.files//args.classes)
        for c in range(args.classes):
            folder = Path(tmp)/f'n{c:08d}'; folder.mkdir()
            Image.new('RGB', (8, 8)).save(folder/f'n{c:08d}_00000.JPEG')   # loaders look at one
            for i in range(1, min(per, args.files-c*per)): os.close(os.open(f'{folder}/n{c:08d}_{i:05d}.JPEG', os.O_CREAT))
        print('files made', flush=True)
        for loaders in ([], ['loaders']):
            out = subprocess.run([sys.executable, '-c', STEPS, tmp, *loaders], capture_output=True, text=True)
            if out.returncode and not loaders: raise SystemExit(out.stderr)
            if out.returncode: print(out.stderr[-2000:]); continue
            res = json.loads(out.stdout.splitlines()[-1])
            print({k: f'{s:.1f} s, {gb:.2f} GB so far' for k, (s, gb) in res.items()}, flush=True)
            if not loaders: first = res
    note(args, f'{args.files:,} files listed and split, seconds', round(first['listed'][0]+first['split'][0], 1), '20')
    note(args, f'{args.files:,} files listed and split, peak memory in GB', round(first['split'][1], 2), '1')
    note(args, f'{args.files:,} files, loaders as well, seconds', round(sum(v[0] for k, v in res.items() if k != 'imports'), 1))


if __name__ == '__main__': main()
