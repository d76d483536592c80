"""Captioned emoji, as an experiment of text wants them: combinations of a subject and a skin tone held out, and scores.

    python jobs/emoji.py split EMOJI data/emoji      a folder of pictures and metadata.jsonl -> data/emoji/{train,val}
    python jobs/emoji.py prompts data/emoji prompts  -> prompts/{seen,held_out,kinds}.txt, a prompt a line
    python jobs/emoji.py score EMOJI SAMPLES PROMPTS.txt [FEATURES.pt]   samples.npz of those prompts, in turn

Of every third subject that is there in all five tones, one tone is held out: its pictures are never seen in training,
the subject and the tone are, in other combinations. Beside these, one picture of each folder, for Folder wants the same
classes in both splits.

The tone of a sample is read at its subject's skin: the pixels at which the subject's five real pictures differ and grow
darker from tone to tone. Their median colour is nearest to one of five colours, the same for all subjects. Given
FEATURES, a TorchScript network of features, a logistic regression that was fitted to the real pictures' says the
samples' category.
"""

import json
import re
import shutil
import sys
import zlib
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

TONES = ["light", "medium-light", "medium", "medium-dark", "dark"]
COLORS = np.array([(249, 221, 189), (224, 187, 149), (186, 141, 104), (165, 108, 67), (112, 83, 74)], dtype=float)
VARIES, DARKER = 20.0, 3.0  # of 255: standard deviation over the tones, and the least step from one to the next
KINDS = 40  # prompts of each category
TONED = re.compile(r"(.+), (light|medium-light|medium|medium-dark|dark) skin tone")


def split(source: Path, target: Path) -> None:
    """Copy the pictures and their captions into target/train and target/val."""
    lines = captions(source)
    held = held_out(lines)
    for name in ("train", "val"):
        chosen = [line for line in lines if (line["file_name"] in held) == (name == "val")]
        for line in chosen:
            (target / name / line["file_name"]).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / line["file_name"], target / name / line["file_name"])
        text = "".join(json.dumps(line) + "\n" for line in chosen)
        (target / name / "metadata.jsonl").write_text(text)
        print(f"{target / name}: {len(chosen)} pictures, {len({t for t in map(tone_of, chosen) if t})} tones")


def tone_of(line: dict[str, str]) -> str | None:
    """The one skin tone that a caption ends in."""
    toned = TONED.fullmatch(line["text"])
    return toned and toned[2]


def held_out(lines: list[dict[str, str]]) -> set[str]:
    """The names of the files that are held out: see the head."""
    subjects: dict[str, dict[str, str]] = defaultdict(dict)
    folders: dict[str, list[str]] = defaultdict(list)
    for line in lines:
        toned = TONED.fullmatch(line["text"])
        if toned:
            subjects[toned[1]][toned[2]] = line["file_name"]
        else:
            folders[line["file_name"].partition("/")[0]].append(line["file_name"])
    held = {min(names, key=_number) for names in folders.values()}
    for subject, files in subjects.items():
        if len(files) == len(TONES) and _number(subject) % 3 == 0:
            held.add(files[TONES[_number(subject) // 3 % len(TONES)]])
    return held


def captions(folder: Path) -> list[dict[str, str]]:
    """The lines of a folder's metadata.jsonl."""
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]


def prompts(data: Path, target: Path) -> None:
    """Write what is asked for: toned prompts of the training set, those held out, and some of each category."""
    target.mkdir(parents=True, exist_ok=True)
    train, val = captions(data / "train"), captions(data / "val")
    by_hash = sorted(train, key=lambda line: _number(line["file_name"]))
    seen = [line["text"] for line in by_hash if tone_of(line)][:300]
    folders: dict[str, list[str]] = defaultdict(list)
    for line in by_hash:
        folders[line["file_name"].partition("/")[0]].append(line["text"])
    kinds = [text for texts in folders.values() for text in texts[:KINDS]]
    for name, texts in (
        ("seen", seen),
        ("held_out", [line["text"] for line in val if tone_of(line)]),
        ("kinds", kinds),
    ):
        (target / f"{name}.txt").write_text("".join(f"{text}\n" for text in texts))
        print(f"{target / name}.txt: {len(texts)} prompts")


def pixels(file: Path) -> np.ndarray:
    """[H, W, 3] on white."""
    with Image.open(file) as image:
        over = image.convert("RGBA")
    return np.asarray(Image.alpha_composite(Image.new("RGBA", over.size, (255,) * 4), over).convert("RGB"))


def skins(source: Path) -> dict[str, np.ndarray]:
    """Of each subject with five tones its skin, bool [H, W]; prints how often the rule is right on real pictures."""
    subjects: dict[str, dict[str, str]] = defaultdict(dict)
    for line in captions(source):
        if toned := TONED.fullmatch(line["text"]):
            subjects[toned[1]][toned[2]] = line["file_name"]
    found, right, count = {}, 0, 0
    for subject, files in subjects.items():
        if len(files) == len(TONES):
            real = np.stack([pixels(source / files[tone]) for tone in TONES]).astype(float)  # [5, H, W, 3]
            darker = (np.diff(real.mean(-1), axis=0) < -DARKER).all(0)
            skin = darker & (real.std(0).mean(-1) > VARIES)
            if skin.sum() >= 5:
                found[subject] = skin
                right += sum(tone_at(image, skin) == tone for image, tone in zip(real, TONES, strict=True))
                count += len(TONES)
    print(f"the rule on {count} real pictures: {right / count:.1%}")
    return found


def tone_at(image: np.ndarray, skin: np.ndarray) -> str:
    """The tone of an image [H, W, 3] at its skin, bool [H, W]."""
    return TONES[int(np.linalg.norm(np.median(image[skin], axis=0) - COLORS, axis=1).argmin())]


def score(source: Path, samples: Path, texts: list[str], features: Path | None) -> None:
    """Print how many samples have the tone, and the category, that their prompts ask for."""
    images = np.load(samples)["arr_0"]
    asked = [texts[i % len(texts)] for i in range(len(images))]
    skin, right, count = skins(source), 0, 0
    for image, text in zip(images, asked, strict=True):
        toned = TONED.fullmatch(text)
        if toned and toned[1] in skin:
            right, count = right + (tone_at(image, skin[toned[1]]) == toned[2]), count + 1
    if count:
        print(f"{samples}: the tone of {right} of {count} is as asked, {right / count:.1%}")
    if features is not None:
        _score_kinds(source, images, asked, torch.jit.load(str(features)).eval())


def _score_kinds(source: Path, images: np.ndarray, asked: list[str], network: Any) -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    @torch.no_grad()
    def seen(batch: list[np.ndarray]) -> np.ndarray:
        parts = [torch.from_numpy(np.stack(batch[i : i + 50])).permute(0, 3, 1, 2) for i in range(0, len(batch), 50)]
        return torch.cat([network(part) for part in parts]).numpy()

    lines = sorted(captions(source), key=lambda line: _number(line["file_name"]))
    kind_of = {line["text"]: line["file_name"].partition("/")[0] for line in lines}
    per: dict[str, int] = defaultdict(int)
    chosen = []
    for line in lines:  # as many of each as of the others, so that none is a guess
        kind = kind_of[line["text"]]
        per[kind] += 1
        chosen += [line] if per[kind] <= 120 else []
    x, y = seen([pixels(source / line["file_name"]) for line in chosen]), [kind_of[line["text"]] for line in chosen]
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=500))
    print(f"categories of real pictures, cross-validated: {cross_val_score(classifier, x, y, cv=4).mean():.1%}")
    said = classifier.fit(x, y).predict(seen(list(images)))
    right = [kind == kind_of[text] for kind, text in zip(said, asked, strict=True) if text in kind_of]
    print(f"the category of {sum(right)} of {len(right)} samples is that of their prompts, {np.mean(right):.1%}")


def _number(text: str) -> int:
    return zlib.crc32(text.encode())


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["split", source, target]:
            split(Path(source), Path(target))
        case ["prompts", data, target]:
            prompts(Path(data), Path(target))
        case ["score", source, samples, texts, *features]:
            lines = Path(texts).read_text().splitlines()
            score(Path(source), Path(samples), lines, Path(features[0]) if features else None)
        case _:
            sys.exit(str(__doc__))
