"""`make bench DATA=FOLDER`: run every benchmark on a folder of images, and write the figures for the documentation

    python benchmarks/all.py --data FOLDER [--only head fine_tuning …] [--results benchmarks/results.jsonl]

`--only` replaces the figures of the scripts that it names and keeps the others. BiT bodies begin from random weights
where none are installed: times do not depend on them, and accuracies are quoted for EfficientNet-Lite0 alone.
"""
import argparse, json, subprocess, sys
from pathlib import Path

HERE = Path(__file__).parent
BIT = ['--arch', 'BiT-M-R50x1', '--weights', 'random']
RUNS = dict(   # name: script and its options, after --data and --results
    head=['head_training.py', '--epochs', '5', '20', '--seeds', '0', '1', '2', '3', '4', '--fastai-epochs', '5'],
    head_bit=['head_training.py', *BIT, '--epochs', '5', '--seeds', '0', '--fastai-epochs', '2'],
    fine_tuning=['fine_tuning.py'],
    fine_tuning_bit=['fine_tuning.py', *BIT, '--repeats', '2'],
    evaluation=['evaluation.py'],
    evaluation_bit=['evaluation.py', *BIT, '--repeats', '2'],
    accuracy=['accuracy.py'],
    memory=['caching_memory.py'],
    startup=['startup.py'],
    reading=['reading.py'],
)


def read(path): return [json.loads(line) for line in path.read_text().splitlines()]


def measured(name, data, results):
    "The figures of one run, with the command that repeats it"
    script, *options = RUNS[name]
    new = results.with_suffix('.new')
    new.unlink(missing_ok=True)
    print(f'== {script} {" ".join(options)}', flush=True)
    subprocess.run([sys.executable, HERE/script, '--data', data, '--results', new, *options], check=True)
    command = f'python benchmarks/{script} --data FOLDER {" ".join(options)}'.rstrip()
    rows = [dict(run=name, command=command, **row) for row in read(new)]
    new.unlink()
    return rows


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--data', required=True)
    p.add_argument('--only', nargs='+', choices=RUNS, default=list(RUNS))
    p.add_argument('--results', type=Path, default=HERE/'results.jsonl')
    args = p.parse_args()
    kept = read(args.results) if args.results.exists() else []
    for name in args.only:
        kept = [r for r in kept if r['run'] != name] + measured(name, args.data, args.results)
        kept.sort(key=lambda r: list(RUNS).index(r['run']))
        # after each: an hour of others is not lost
        args.results.write_text(''.join(json.dumps(r) + '\n' for r in kept))


if __name__ == '__main__': main()
