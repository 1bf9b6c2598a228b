"""What the tests of the BiT rule compare with: figures of the original implementation, and weights and a training loop made without fastbit

`bit_reference.json` was computed with the authors' PyTorch code (google-research/big_transfer at 140de6e, torch 2.14.1, float32, CPU): rates by step,
mixup and resolution of `bit_hyperrule.py`, and logits of R50x1 for `npz_weights(5)` and `inputs()`.
"""
import json
from pathlib import Path

import numpy as np, torch, torch.nn.functional as F

BIT = json.loads((Path(__file__).parent/'bit_reference.json').read_text())


def npz_shapes(num_classes: int, units=(3, 4, 6, 3)) -> dict:
    "Name -> shape of the arrays of a published BiT x1 file; kernels are HWIO"
    shapes = {'resnet/root_block/standardized_conv2d/kernel': (7, 7, 3, 64), 'resnet/group_norm/gamma': (2048,), 'resnet/group_norm/beta': (2048,)}
    if num_classes: shapes |= {'resnet/head/conv2d/kernel': (1, 1, 2048, num_classes), 'resnet/head/conv2d/bias': (num_classes,)}
    width = 64
    for i, n in enumerate(units):
        mid = 64 * 2**i
        for j in range(n):
            unit = f'resnet/block{i+1}/unit{j+1:02d}/'
            kernels = dict(a=(1, 1, width, mid), b=(3, 3, mid, mid), c=(1, 1, mid, 4*mid))
            for letter, kernel in kernels.items():
                shapes[f'{unit}{letter}/standardized_conv2d/kernel'] = kernel
                for o in ('gamma', 'beta'): shapes[f'{unit}{letter}/group_norm/{o}'] = kernel[2:3]
            if j == 0: shapes[f'{unit}a/proj/standardized_conv2d/kernel'] = (1, 1, width, 4*mid)
            width = 4*mid
    return shapes


def npz_weights(num_classes: int = 5, seed: int = 0) -> dict:
    "Seeded arrays, drawn in the sorted order of their names"
    rng, out = np.random.RandomState(seed), {}
    for name, shape in sorted(npz_shapes(num_classes).items()):
        w = rng.standard_normal(shape).astype(np.float32)
        kind = name.split('/')[-1]
        out[name] = 1 + .1*w if kind == 'gamma' else .1*w if kind in ('beta', 'bias') else .02*w if '/head/' in name else w
    return out


def inputs(seed: int = 1) -> dict:
    "Batches for which there are logits, NCHW, normalised already"
    rng = np.random.RandomState(seed)
    return {k: torch.from_numpy(rng.uniform(-1, 1, shape).astype(np.float32)) for k, shape in (('logits_64', (4, 3, 64, 64)), ('logits_96x80', (2, 3, 96, 80)))}


def plain_loop(net, batches, lr, momentum=.9) -> list:
    "Fine-tuning as the paper has it, in plain PyTorch: the loss of every step"
    for p in net.get_classifier().parameters(): torch.nn.init.zeros_(p)
    net.train()
    opt, losses = torch.optim.SGD(net.parameters(), lr=0., momentum=momentum), []
    for step, (x, y) in enumerate(batches):
        opt.param_groups[0]['lr'] = lr(step)
        loss = F.cross_entropy(net((x - .5)/.5), y)
        opt.zero_grad(); loss.backward(); opt.step()
        losses.append(loss.item())
    return losses
