"""Trains `demo/clip`, the embedded default model: `python -m demo.train`.

The model is open_clip's own CLIP, built from `embedding/assets/demo-clip.json`. The result is
`demo-clip.safetensors` beside it, which open_clip loads like any other checkpoint. Pictures are drawn once, encoded as
JPEG, resized by open_clip's own validation transform, and kept in memory as bytes. Captions are worded differently in
every step. Training and evaluation draw with seeds from ranges that do not overlap.

The file in the repository is from two runs. The second trains with pictures that the first still confuses:

    python -m demo.train
    python -m demo.train --start embedding/assets/demo-clip.safetensors --alike --seed 1 \\
        --steps 400 --warmup 30 --pictures 10000 --rate 6e-4
"""

from __future__ import annotations

import argparse
import io
import itertools
import math
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from open_clip import CLIP
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from safetensors.torch import save_file
from torchvision.transforms import Compose

from demo.pictures import EVALUATION_SEEDS, TRAINING_SEEDS, Scene, jpeg_bytes, scenes

CONFIG = Path(__file__).parent.parent / "embedding" / "assets" / "demo-clip.json"
GALLERY = 96  # pictures, each with its own caption, among which recall@1 is measured
GREATEST_LOGIT_SCALE = math.log(100.0)
SHIFT = 2  # pixels by which a training picture may be moved: the only augmentation, which keeps colours

Tokenizer = Callable[[list[str]], torch.Tensor]


@cache
def resizer(size: tuple[int, int]) -> Compose:
    """open_clip's validation transform without its last two steps, to tensor and normalise: PIL to PIL."""
    whole = image_transform_v2(PreprocessCfg(size=size), is_train=False)
    return Compose(whole.transforms[:-2])


def drawn(scene_and_seed: tuple[Scene, int], size: tuple[int, int]) -> np.ndarray:
    """One picture as the model's input: drawn, encoded as JPEG, decoded and resized, uint8 (*size, 3)."""
    scene, seed = scene_and_seed
    sent = Image.open(io.BytesIO(jpeg_bytes(scene.draw(seed))))
    return np.asarray(resizer(size)(sent))


def draw_all(shown: list[Scene], seeds: range, size: tuple[int, int]) -> torch.Tensor:
    """The scenes, each drawn with its own seed: uint8 (len(shown), 3, *size)."""
    jobs = zip(shown, seeds[: len(shown)], strict=True)
    with multiprocessing.get_context("spawn").Pool(os.cpu_count(), torch.set_num_threads, (1,)) as workers:
        pictures = workers.map(partial(drawn, size=size), jobs, chunksize=256)
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()


def normalised(pictures: torch.Tensor, cfg: PreprocessCfg) -> torch.Tensor:
    """uint8 (n, 3, h, w) to float32, as ToTensor and Normalize do."""
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (cfg.mean, cfg.std))
    return (pictures.float() / 255.0 - mean) / std


def shifted(pictures: torch.Tensor) -> torch.Tensor:
    """The batch moved by up to SHIFT pixels each way; its edge pixels are repeated."""
    size = pictures.shape[-1]
    padded = F.pad(pictures, (SHIFT, SHIFT, SHIFT, SHIFT), mode="replicate")
    top, left = (int(v) for v in torch.randint(0, 2 * SHIFT + 1, (2,)))
    return padded[..., top : top + size, left : left + size]


def contrastive_loss(images: torch.Tensor, texts: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """CLIP's symmetric loss of float32 (n, d) unit rows, of which the i-th image belongs to the i-th text."""
    logits = scale * images @ texts.T
    pairs = torch.arange(len(logits))
    return (F.cross_entropy(logits, pairs) + F.cross_entropy(logits.T, pairs)) / 2


def optimizer(model: torch.nn.Module, rate: float) -> torch.optim.AdamW:
    """AdamW with weight decay for matrices only: not for gains, biases, or the logit scale."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), eps=1e-6, fused=True)


def learning_rate(step: int, steps: int, warmup: int) -> float:
    """The factor of the highest rate in one step: a linear rise, then half a cosine down to zero."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def worded(shown: list[Scene], rng: np.random.Generator) -> list[str]:
    """A text for every scene: its full caption, or half of the time a paraphrase."""
    return [scene.paraphrase(rng) if rng.random() < 0.5 else scene.caption for scene in shown]


def look(scene: Scene) -> str:
    """Background and colour: scenes that have both in common are easily confused."""
    return f"{scene.background} {scene.thing.colour}"


def batches(shown: list[Scene], size: int, alike: bool, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Endless int64 (size,) rows of distinct indices of scenes; every epoch has a new order.

    With `alike`, every second row is of scenes with (nearly) one background and one colour. Among 96 random scenes
    almost all differ in colour, so the model learns shapes late. In such a row only shapes differ.
    """
    looks = np.array([look(scene) for scene in shown])
    whole = len(shown) // size * size
    while True:
        order = rng.permutation(len(shown))
        rows = order[:whole].reshape(-1, size)
        if alike:
            by_look = order[np.argsort(looks[order], kind="stable")]
            rows = rng.permutation(np.concatenate([rows, by_look[:whole].reshape(-1, size)]))
        yield from rows


def train(
    model: CLIP,
    tokenizer: Tokenizer,
    shown: list[Scene],
    pictures: torch.Tensor,
    args: argparse.Namespace,
) -> None:
    """Trains the model in place on uint8 pictures (n, 3, size, size) of the n distinct scenes."""
    cfg = PreprocessCfg(**model.visual.preprocess_cfg)
    rng = np.random.default_rng(args.seed)
    tuner = optimizer(model, args.rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(tuner, lambda step: learning_rate(step, args.steps, args.warmup))
    started = time.perf_counter()
    model.train()
    chosen_batches = itertools.islice(batches(shown, args.batch, args.alike, rng), args.steps)
    for step, chosen in enumerate(chosen_batches, start=1):
        tokens = tokenizer(worded([shown[i] for i in chosen], rng))
        loss = contrastive_loss(*model(normalised(shifted(pictures[chosen]), cfg), tokens))
        tuner.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        tuner.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0.0, GREATEST_LOGIT_SCALE)
        if step % 100 == 0 or step == args.steps:
            print(f"step {step:5d}  loss {loss.item():.3f}  {time.perf_counter() - started:4.0f} s", flush=True)
    model.eval()


@torch.inference_mode()
def recall_at_1(model: CLIP, tokens: torch.Tensor, images: torch.Tensor) -> float:
    """The share of texts, int64 (n, context), whose own image, float32 (n, 3, h, w), is nearest to them."""
    texts = model.encode_text(tokens, normalize=True)
    nearest = (texts @ model.encode_image(images, normalize=True).T).argmax(dim=1)
    return float((nearest == torch.arange(len(nearest))).float().mean())


def evaluate(model: CLIP, tokenizer: Tokenizer, draws: int) -> list[float]:
    """recall@1 among GALLERY captions, for each of `draws` sets of scenes and pictures never trained on."""
    cfg = PreprocessCfg(**model.visual.preprocess_cfg)
    size = cfg.size
    galleries = [scenes(GALLERY, EVALUATION_SEEDS[draw]) for draw in range(draws)]
    pictures = draw_all([scene for gallery in galleries for scene in gallery], EVALUATION_SEEDS, size)
    return [
        recall_at_1(model, tokenizer([scene.caption for scene in gallery]), normalised(part, cfg))
        for gallery, part in zip(galleries, torch.split(pictures, GALLERY), strict=True)
    ]


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Trains the embedded demo/clip on generated pictures.")
    parser.add_argument("--config", type=Path, default=CONFIG, help="open_clip model config; the weights go beside it")
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--batch", type=int, default=96, help="pictures per step")
    parser.add_argument("--pictures", type=int, default=20_000, help="distinct scenes to train on")
    parser.add_argument("--rate", type=float, default=1e-3, help="highest learning rate")
    parser.add_argument("--warmup", type=int, default=100, help="steps until the highest learning rate")
    parser.add_argument("--start", type=Path, help="weights to start with instead of random ones")
    parser.add_argument("--alike", action="store_true", help="half of the batches of one background and colour")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--draws", type=int, default=20, help="sets of 96 held-out pictures to measure on")
    return parser.parse_args()


def main() -> None:
    """Draws, trains, writes the weights, and measures recall."""
    args = arguments()
    started = time.perf_counter()
    torch.manual_seed(args.seed)
    open_clip.add_model_config(args.config)
    model = open_clip.create_model(args.config.stem, pretrained=args.start and str(args.start))
    tokenizer = open_clip.get_tokenizer(args.config.stem)
    shown = scenes(args.pictures, TRAINING_SEEDS[args.seed])
    pictures = draw_all(shown, TRAINING_SEEDS, model.visual.preprocess_cfg["size"])
    print(f"drew {len(shown)} pictures in {time.perf_counter() - started:.0f} s", flush=True)
    train(model, tokenizer, shown, pictures, args)
    weights = args.config.with_suffix(".safetensors")
    unfinished = weights.with_suffix(".unfinished")  # a server may be reading the old file
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, unfinished)
    unfinished.replace(weights)
    recalls = evaluate(model, tokenizer, args.draws)
    print(f"recall@1 over {len(recalls)} draws: mean {np.mean(recalls):.4f}, least {min(recalls):.4f}")
    print(f"{weights.name}: {weights.stat().st_size:,} bytes, {time.perf_counter() - started:.0f} s in all")


if __name__ == "__main__":
    main()
