"""Logits of a text recogniser of 6,625 classes, PP-OCRv4 in the package rapidocr-onnxruntime, for transform.py.

It reads rendered English, a row a position, and stops before its last softmax. It needs an environment of its own:

    python -m venv rows && rows/bin/pip install onnx onnxruntime pillow
    rows/bin/pip install --no-deps rapidocr-onnxruntime
    rows/bin/python benchmarks/recogniser_rows.py recogniser.npy
"""

import random
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np

IMAGES, WORDS, HEIGHT, WIDTH = 260, 4, 48, 480
TEXT = Path("/usr/share/common-licenses/GPL-3")
FONTS = Path("/usr/share/fonts")


def main(target: str) -> None:
    """Write logits as float32 (positions, classes)."""
    import onnx
    import onnxruntime
    from PIL import Image, ImageDraw, ImageFont

    found = find_spec("rapidocr_onnxruntime")
    assert found is not None and found.submodule_search_locations
    (file,) = Path(found.submodule_search_locations[0]).rglob("ch_PP-OCRv4_rec_infer.onnx")
    model = onnx.load(str(file))
    last = [node for node in model.graph.node if node.op_type == "Softmax"][-1].input[0]
    model.graph.output.append(onnx.helper.make_tensor_value_info(last, onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(model.SerializeToString())
    fonts = sorted(str(font) for font in FONTS.rglob("*.[to]tf"))
    words, choose, noise = TEXT.read_text().split(), random.Random(0), np.random.default_rng(0)
    rows = []
    for _ in range(IMAGES):
        font = ImageFont.truetype(choose.choice(fonts), 32) if fonts else ImageFont.load_default(32)
        paper, ink = (tuple(int(v) for v in noise.integers(*span, 3)) for span in ((180, 255), (0, 90)))
        image = Image.new("RGB", (WIDTH, HEIGHT), paper)
        ImageDraw.Draw(image).text((6, 4), " ".join(choose.sample(words, WORDS)), font=font, fill=ink)
        pixels = np.asarray(image, np.float32) + noise.normal(0, 8, (HEIGHT, WIDTH, 3))
        batch = ((pixels / 255 - 0.5) / 0.5).transpose(2, 0, 1)[None].astype(np.float32)
        (logits,) = session.run([last], {session.get_inputs()[0].name: batch})
        rows.append(logits.reshape(-1, logits.shape[-1]))
    np.save(target, np.concatenate(rows).astype(np.float32))


if __name__ == "__main__":
    main(sys.argv[1])
