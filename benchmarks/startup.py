"""How long until a million files are listed, split and ready for training, and how much memory does that take?

    python benchmarks/startup.py --data ANY [--files 1000000] [--classes 1000]

Makes class folders of files with an image's extension, nearly all of them empty, since only names count, in a temporary
folder, and lists, splits and makes loaders of them, each time in a new process. Not a race: there is no peer that does
the same.
"""
import json, os, subprocess, sys, tempfile
from pathlib import Path

from PIL import Image

from peers import note, parser

STEPS = '''
import json, sys, time
start = time.perf_counter()
from fastbit.data import check_table, image_table, split_table
def memory():   # GB; `ru_maxrss` begins with the value of the process that started this one
    with open('/proc/self/status') as f: return next(int(line.split()[1]) for line in f if line.startswith('VmHWM'))/2**20
res = dict(imports=(time.perf_counter()-start, memory()))
def step(name, f):
    start = time.perf_counter()
    out = f()
    res[name] = (time.perf_counter()-start, memory())
    return out
table = step('listed', lambda: image_table(sys.argv[1]))
table = step('split', lambda: split_table(table, .2, 0))
step('checked', lambda: check_table(table))
if len(sys.argv) > 2:
    from fastbit.bodies import body_preprocess
    from fastbit.data import table_dataloaders   # which imports PyTorch
    pp = body_preprocess('tf_efficientnet_lite0')
    step('loaders', lambda: table_dataloaders(table, pp, bs=32, num_workers=0, cache=False))
print(json.dumps(res))
'''


def make_files(root, n_files, n_classes):
    per_class = -(-n_files//n_classes)
    for c in range(n_classes):
        name = f'n{c:08d}'
        folder = root/name
        folder.mkdir()
        Image.new('RGB', (8, 8)).save(folder/f'{name}_00000.JPEG')   # loaders look at one
        for i in range(1, min(per_class, n_files-c*per_class)):
            os.close(os.open(f'{folder}/{name}_{i:05d}.JPEG', os.O_CREAT))
    print('files made', flush=True)


def measured(root, *words):
    "The steps' seconds and memory; `None` if they failed"
    out = subprocess.run([sys.executable, '-c', STEPS, root, *words], capture_output=True, text=True)
    if out.returncode:
        print(out.stderr[-2000:])
        return None
    res = json.loads(out.stdout.splitlines()[-1])
    print({k: f'{s:.1f} s, {gb:.2f} GB so far' for k, (s, gb) in res.items()}, flush=True)
    return res


def main():
    p = parser(__doc__)
    p.add_argument('--files', type=int, default=1_000_000)
    p.add_argument('--classes', type=int, default=1000)
    args = p.parse_args()
    with tempfile.TemporaryDirectory() as tmp:
        make_files(Path(tmp), args.files, args.classes)
        first = measured(tmp)
        if first is None: raise SystemExit(1)
        whole = measured(tmp, 'loaders')
    files = f'{args.files:,} files'
    note(args, f'{files} listed and split, seconds', round(first['listed'][0]+first['split'][0], 1), '4')
    note(args, f'{files} listed and split, peak memory in GB', round(first['split'][1], 2), '0.8')
    if whole is None: return   # the error is printed
    total = sum(s for k, (s, _) in whole.items() if k != 'imports')
    note(args, f'{files}, loaders as well, seconds', round(total, 1))


if __name__ == '__main__': main()
