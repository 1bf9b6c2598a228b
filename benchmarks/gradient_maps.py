"""Do gradient-based maps point at what the model uses? Deletion curves of a small vision transformer

    python benchmarks/gradient_maps.py [--steps 1000] [--seeds 0 1 2]

Trains timm's `test_vit` from scratch on shapes drawn on noise, then replaces the positions of 200 new images by noise,
the most important first: by `activation_maps`, by Grad-CAM at the same layer, and at random. Prints the probability of
the true class, the mean over 3 to 30% of the positions: the lower, the better the order.
"""
import argparse, warnings

warnings.simplefilter('ignore')
import numpy as np, torch, torch.nn.functional as F
from PIL import Image, ImageDraw

from fastbit.bodies import TransferModel, build_body
from fastbit.report.gradient_map import activation_maps, find_map_method

SIDE, PATCH, CLASSES = 128, 16, 3
SHARES = np.linspace(.03, .3, 10)


def draw(rng, n) -> tuple:
    "Disks, squares and triangles of a random gray at a random place"
    x, y = rng.integers(0, 256, (n, SIDE, SIDE, 3), np.uint8), rng.integers(0, CLASSES, n)
    for i in range(n):
        img = Image.fromarray(x[i])
        r, (a, b) = int(rng.integers(14, 22)), rng.integers(24, SIDE - 24, 2)
        pen, fill = ImageDraw.Draw(img), tuple(rng.integers(90, 256, 3).tolist())
        if y[i] == 0: pen.ellipse((a-r, b-r, a+r, b+r), fill)
        elif y[i] == 1: pen.rectangle((a-r, b-r, a+r, b+r), fill)
        else: pen.polygon([(a, b-r), (a-r, b+r), (a+r, b+r)], fill)
        x[i] = np.asarray(img)
    return torch.tensor(x).permute(0, 3, 1, 2).float()/255, torch.tensor(y)


def train(seed, steps) -> TransferModel:
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model = TransferModel(build_body('test_vit', CLASSES, 'random', size=SIDE)).train()
    opt = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(opt, 1e-3, steps)
    for _ in range(steps):
        x, y = draw(rng, 64)
        loss = F.cross_entropy(model(x), y)
        opt.zero_grad(); loss.backward(); opt.step(); schedule.step()
    return model.eval()


def grad_cam(model, x, y, layer) -> torch.Tensor:
    "Gradients averaged over the positions, times activations"
    kept = {}
    hook = model.net.get_submodule(layer.path).register_forward_hook(lambda m, args, out: kept.update(a=out))
    logits = model(x)
    hook.remove()
    grad, = torch.autograd.grad(logits[torch.arange(len(y)), y].sum(), kept['a'])
    product = (kept['a']*grad.mean(1, keepdim=True)).sum(-1).detach()
    return product[:, -(SIDE//PATCH)**2:]   # without the class token


def probability(model, x, y, order, rng) -> float:
    "Of the true class, while the first positions of `order` are replaced by noise"
    per_side, found = SIDE//PATCH, []
    for share in SHARES:
        changed = x.clone()
        for i, first in enumerate(order[:, :max(1, round(share*per_side**2))]):
            for p in first.tolist():
                a, b = PATCH*(p//per_side), PATCH*(p % per_side)
                changed[i, :, a:a+PATCH, b:b+PATCH] = torch.tensor(rng.random((3, PATCH, PATCH)), dtype=torch.float32)
        with torch.inference_mode(): found.append(model(changed).softmax(-1)[torch.arange(len(y)), y].mean().item())
    return float(np.mean(found))


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--steps', type=int, default=1000)
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    options = parser.parse_args()
    for seed in options.seeds:
        model, rng = train(seed, options.steps), np.random.default_rng(1000 + seed)
        x, y = draw(rng, 200)
        method = find_map_method(model, SIDE)
        ours = activation_maps(model, x, y, method)[0].flatten(1)
        theirs = grad_cam(model, x, y, method.layer)
        orders = {'activation_maps': ours.argsort(1, descending=True), 'Grad-CAM': theirs.argsort(1, descending=True),
                  'random': torch.tensor(rng.random(ours.shape)).argsort(1)}
        with torch.inference_mode(): accuracy = (model(x).argmax(1) == y).double().mean()
        means = ', '.join(f'{name} {probability(model, x, y, o, rng):.2f}' for name, o in orders.items())
        print(f'seed {seed}, accuracy {accuracy:.1%}, probability of the true class: {means}')


if __name__ == '__main__': main()
