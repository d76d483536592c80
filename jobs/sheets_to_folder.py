"""Unpack contact sheets (images stacked in one PNG, labels in a text file) into an image folder for `data=folder`.

    python jobs/sheets_to_folder.py SHEETS OUT --pattern 'cifar10_batch_{}.png' --size 32 --classes airplane,...

SHEETS holds the sheets, numbered from 0, and train_labels.txt with one label an image, in the sheets' order.
"""

import argparse
from itertools import count
from pathlib import Path

import numpy as np
from PIL import Image


def main() -> None:
    """Write OUT/CLASS/NUMBER.png, lossless."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sheets", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--pattern", required=True, help="file name of sheet {}")
    parser.add_argument("--size", type=int, required=True, help="side of an image in pixels")
    parser.add_argument("--classes", required=True, help="names of the labels 0, 1, ..., by commas")
    options = parser.parse_args()
    names = options.classes.split(",")
    labels = [int(line) for line in (options.sheets / "train_labels.txt").read_text().split()]
    number = 0
    for i in count():
        path = options.sheets / options.pattern.format(i)
        if not path.exists():
            break
        sheet = np.asarray(Image.open(path))
        for image in sheet.reshape(-1, options.size, options.size, *sheet.shape[2:]):
            folder = options.out / names[labels[number]]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{number:06d}.png")
            number += 1
    if number != len(labels):
        raise SystemExit(f"{options.sheets}: {number} images, but {len(labels)} labels")
    print(f"{number} images in {options.out}")


if __name__ == "__main__":
    main()
