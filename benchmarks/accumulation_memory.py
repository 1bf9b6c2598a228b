"""How much memory does an optimizer step of 512 images take, compared with one of a single micro-batch?

    python benchmarks/accumulation_memory.py --data FOLDER [--arch BiT-M-R50x1] [--size 128] [--micro 16] [--batch 512]
        [--mixup 0] [--repeats 3]

Each measurement runs in a separate process, which makes a learner and takes one step by `fit_hyperrule`, with or
without accumulation. "step" is the peak of that process above what it held before the step (weights, libraries);
"process" is its total peak. On a GPU both are the allocator's. Goal: step ratio at most 1.25.
"""
import argparse, json, resource, statistics, subprocess, sys, warnings

warnings.simplefilter('ignore')
MIB = 1024*1024


def peak(device):
    import torch
    if device.type == 'cuda': return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == 'darwin' else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def now(device):
    import torch
    if device.type == 'cuda': return torch.cuda.memory_allocated(device)
    with open('/proc/self/statm') as f: return int(f.read().split()[1]) * resource.getpagesize()


def child(args, batch):
    from fastbit.data import image_dataloaders
    from fastbit.training import transfer_learner
    dls = image_dataloaders(args.data, args.arch, args.size, args.micro, num_workers=0, check=False)
    learn = transfer_learner(dls, args.arch, 'random')
    device = dls.device
    before = now(device)
    with learn.no_logging(): learn.fit_hyperrule(batch_size=batch, stop_after=1, mixup=args.mixup, show=False)
    print(json.dumps(dict(process=peak(device), step=peak(device)-before)))


def options():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--data', required=True)
    p.add_argument('--arch', default='BiT-M-R50x1')
    p.add_argument('--size', type=int, default=128)
    p.add_argument('--micro', type=int, default=16)
    p.add_argument('--batch', type=int, default=512)
    p.add_argument('--mixup', type=float, default=0.)
    p.add_argument('--repeats', type=int, default=3)
    p.add_argument('--child', type=int, help=argparse.SUPPRESS)
    return p.parse_args()


def measured(batch):
    "The figures of one process"
    command = [sys.executable, __file__, *sys.argv[1:], '--child', str(batch)]
    out = subprocess.run(command, capture_output=True, text=True)
    if out.returncode: sys.exit(out.stderr)
    return json.loads(out.stdout.splitlines()[-1])


def main():
    args = options()
    if args.child: return child(args, args.child)
    found = {args.micro: [], args.batch: []}
    for i in range(args.repeats):
        order = list(found) if i % 2 == 0 else list(found)[::-1]
        for batch in order: found[batch].append(measured(batch))
    def middle(rows): return {k: statistics.median(o[k] for o in rows) for k in ('step', 'process')}
    median = {batch: middle(rows) for batch, rows in found.items()}
    print(f'{args.arch}, {args.size} px, micro-batches of {args.micro}, mixup {args.mixup:g}, '
          f'medians of {args.repeats}')
    for b, m in median.items():
        step, process = m['step']/MIB, m['process']/MIB
        print(f'  step of {b:4} images: {step:7.0f} MiB above what was there, process {process:7.0f} MiB')
    one, many = median[args.micro], median[args.batch]
    step, process = many['step']/one['step'], many['process']/one['process']
    print(f'  ratio: step {step:.3f}, process {process:.3f} (goal: at most 1.25)')


if __name__ == '__main__': main()
