"""Trains the microworld's model: ``python3 atelier.py train-demo [--share S] [--device D] [--folder F]``.

Stages: pictures are rendered; the codec learns them; the UNet learns to denoise their latents in v-prediction; a
student learns to reach the end of the teacher's trajectory in one call (few-step consistency sampling); the decoder
learns to restore pictures from what the student predicts; readouts are trained for the measurements; everything is packed
into one safetensors file, and figures and sheets of held-out people are written beside it. Each stage leaves its result in
the folder and is skipped when that is there; one that was interrupted goes on where it last saved itself. Steps are
counted, not minutes, so that a run on a busy computer ends the same.
"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path

import torch

from ...training.stage import run_stages, share_work, writes
from ..checkpoint import save
from . import codec, decoder, denoiser, judges, pictures, student

log = logging.getLogger("portrait_atelier")


def main() -> None:
    parser = argparse.ArgumentParser(prog="atelier.py train-demo", description=__doc__.split("\n\n")[0])
    parser.add_argument("--share", type=float, default=1., help="how many times the steps of the shipped model's recipe (default 1)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1, help="of a CPU (default 1: more only help on an idle one)")
    parser.add_argument("--processes", type=int, default=1, help="that train together (default 1; on an idle CPU one for each core)")
    root = Path(__file__).resolve().parents[2]
    parser.add_argument("--folder", type=Path, default=root / ".atelier" / "train-demo", help="where stages leave their results")
    parser.add_argument("--identities", type=int, default=1200, help="people to render, five styles each (default 1200)")
    parser.add_argument("--faces", action="store_true", help="train the recognisers and the face adapter instead, on what an "
                        "earlier run left in --folder; --output is a folder then")
    parser.add_argument("--pairs", type=int, default=27, help="held-out pairs of the report's SEAC table (default 27)")
    parser.add_argument("--output", type=Path, help="the packed file (default: microworld.safetensors in --folder; "
                        "copy it into demo/ when it is better)")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    args.folder.mkdir(parents=True, exist_ok=True)
    if args.device == "cpu":
        torch.set_num_threads(args.threads)
    share_work(args.folder, args.processes)
    if args.faces:
        from .faces import run as run_faces      # which builds on this package
        return run_faces(args)
    run_stages(args.folder, {
        "pictures.npy": lambda: pictures.render(args.folder, args.identities, args.device),
        "codec.pt": lambda: codec.train(args.folder, args.share, args.device),
        "latents.pt": lambda: denoiser.encode_pictures(args.folder, args.device),
        "unet.pt": lambda: denoiser.train(args.folder, args.share, args.device),
        "student.pt": lambda: student.train(args.folder, args.share, args.device),
        "decoder.pt": lambda: decoder.train(args.folder, args.share, args.device),
        "labelled.pt": lambda: judges.render_labelled(args.folder, args.device, max(8, args.identities // 2)),
        "judges.pt": lambda: judges.train(args.folder, args.share, args.device)},
        shared=("codec.pt", "unet.pt", "student.pt", "decoder.pt", "judges.pt"))
    if not writes():
        return
    packed = args.output or args.folder / "microworld.safetensors"
    pack(args.folder, packed,
         {"recipe": "demo/making", "seed": str(pictures.SEED), "share": str(args.share), "identities": str(args.identities), "device": args.device})
    from . import report      # which samples, and so wants all of ComfyUI's packages; a bare machine can train without
    report.write(packed, args.folder, args.pairs)


def pack(folder: Path, output: Path, metadata: dict[str, str]) -> None:
    """Write the one file that ships from the stages' results."""
    weights = torch.load(folder / "student.pt", weights_only=True, map_location="cpu")
    judged = torch.load(folder / "judges.pt", weights_only=True, map_location="cpu")
    codec_weights = torch.load(folder / "decoder.pt", weights_only=True, map_location="cpu")
    part = lambda prefix: {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    save(output, part("net."), part("text."), codec_weights, judged["judges"], judged["spread"],
         {**metadata, "scale": str(denoiser.SCALE), "judges": json.dumps(judged["scores"])})
    log.info("wrote %s (%.1f MB); readouts on held-out renders: %s", output, output.stat().st_size / 1e6, judged["scores"])


if __name__ == "__main__":
    main()
