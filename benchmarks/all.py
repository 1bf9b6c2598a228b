"""`make bench DATA=FOLDER`: run every benchmark on a folder of images, and write the figures for the documentation

    python benchmarks/all.py --data FOLDER [--only head fine_tuning …] [--without-avx512]
        [--results benchmarks/results.jsonl]

`--only` replaces the figures of the scripts that it names and keeps the others. `--without-avx512` measures as on a
processor that has AVX2 alone (by two variables of PyTorch and oneDNN); those figures stand next to the others. BiT bodies begin from random weights
where none are installed: times do not depend on them, and accuracies are quoted for EfficientNet-Lite0 alone.
"""
import argparse, json, os, subprocess, sys
from pathlib import Path

HERE = Path(__file__).parent
# in the environment: a processor with AVX-512 computes as one without it
WITHOUT_AVX512 = dict(ATEN_CPU_CAPABILITY='avx2', ONEDNN_MAX_CPU_ISA='AVX2')
BIT = ['--arch', 'BiT-M-R50x1', '--weights', 'random']
STEP = ['training_step.py', '--threads', '1']
RUNS = dict(   # name: script and its options, after --data and --results
    head=['head_training.py', '--epochs', '5', '20', '--seeds', '0', '1', '2', '3', '4', '--fastai-epochs', '5'],
    head_bit=['head_training.py', *BIT, '--epochs', '5', '--seeds', '0', '--fastai-epochs', '2'],
    fine_tuning=['fine_tuning.py'],
    fine_tuning_bit=['fine_tuning.py', *BIT, '--repeats', '2'],
    step_64=[*STEP, '--size', '64'],
    step_128=[*STEP, '--size', '128', '--images', '128'],
    step_bit=[*STEP, *BIT, '--size', '128', '--images', '64'],
    evaluation=['evaluation.py', '--repeats', '5'],
    evaluation_bit=['evaluation.py', *BIT, '--repeats', '5'],
    batches=['batches.py'],
    accuracy=['accuracy.py'],
    memory=['caching_memory.py'],
    callbacks=['callbacks.py'],
    startup=['startup.py'],
    reading=['reading.py'],
    command_start=['command_start.py'],
    probe_strength=['probe_strength.py'],
    gpu=['gpu.py'],
    two_at_once=['two_at_once.py'],
)


def read(path): return [json.loads(line) for line in path.read_text().splitlines()]


def measured(name, data, results, env):
    "The figures of one run, with the command that repeats it"
    script, *options = RUNS[name]
    new = results.with_suffix('.new')
    new.unlink(missing_ok=True)
    print(f'== {script} {" ".join(options)}', flush=True)
    command = [sys.executable, HERE/script, '--data', data, '--results', new, *options]
    subprocess.run(command, check=True, env=os.environ | env)
    typed = [*(f'{k}={v}' for k, v in env.items()), 'python', f'benchmarks/{script}', '--data', 'FOLDER', *options]
    rows = read(new) if new.exists() else []   # of a GPU that is not there
    new.unlink(missing_ok=True)
    return [dict(run=name, command=' '.join(typed)) | row for row in rows]


def kind(row):
    "Figures of the same run and instruction set replace each other"
    words = row.get('machine', '').split(', ')   # older rows have the instructions in these words alone
    return row['run'], row.get('capability') or next((w for w in words if w.startswith('AVX')), '')


def place(row):
    "Where the figures of a run stand in the file: those of other scripts come last"
    names = list(RUNS)
    return names.index(row['run']) if row['run'] in RUNS else len(names)


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--data', required=True)
    p.add_argument('--only', nargs='+', choices=RUNS, default=list(RUNS))
    p.add_argument('--without-avx512', action='store_true', help='measure as on a processor with AVX2 alone')
    p.add_argument('--results', type=Path, default=HERE/'results.jsonl')
    args = p.parse_args()
    env = WITHOUT_AVX512 if args.without_avx512 else {}
    rows = read(args.results) if args.results.exists() else []
    for name in args.only:
        new = measured(name, args.data, args.results, env)
        replaced = set(map(kind, new))
        rows = sorted([r for r in rows if kind(r) not in replaced] + new, key=place)
        # after each: an hour of others is not lost
        args.results.write_text(''.join(json.dumps(r) + '\n' for r in rows))


if __name__ == '__main__': main()
