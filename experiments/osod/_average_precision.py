"""Average precision at IoU 0.5 and 0.75, by pycocotools: each class's own, and the mean over classes."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np

__all__ = ["average_precision", "keep_best"]

MOST, OVERLAP = 10, 0.5


def keep_best(boxes: np.ndarray, scores: np.ndarray) -> list[int]:
    """Non-maximum suppression of boxes (M, 4): at most MOST, none that overlaps a better one by more than OVERLAP."""
    order, kept = list(np.argsort(-scores, kind="stable")), []
    areas = np.prod(np.maximum(boxes[:, 2:] - boxes[:, :2], 0.0), axis=1)
    while order and len(kept) < MOST:
        best = order.pop(0)
        kept.append(int(best))
        low = np.maximum(boxes[best, :2], boxes[order, :2])
        high = np.minimum(boxes[best, 2:], boxes[order, 2:])
        shared = np.prod(np.maximum(high - low, 0.0), axis=1)
        overlap = shared / (areas[best] + areas[order] - shared + 1e-9)
        order = [one for one, much in zip(order, overlap, strict=True) if much <= OVERLAP]
    return kept


def average_precision(truth: list[Any], found: list[Any], side: float) -> dict[str, float]:
    """AP50 and AP75 in percent.

    truth holds (image, class, box) and found (image, class, box, score), boxes as corners in fractions of the side.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        classes = sorted({kind for _, kind, _ in truth})
        coco.dataset = {
            "info": {},
            "images": [{"id": image} for image in sorted({image for image, _, _ in truth})],
            "categories": [{"id": kind} for kind in classes],
            "annotations": [
                {"id": number + 1, "image_id": image, "category_id": kind, "iscrowd": 0, **_box(box, side)}
                for number, (image, kind, box) in enumerate(truth)
            ],
        }
        coco.createIndex()
        results = coco.loadRes(
            [
                {"image_id": image, "category_id": kind, "score": score, "bbox": _box(box, side)["bbox"]}
                for image, kind, box, score in found
            ]
        )
        judge = COCOeval(coco, results, "bbox")
        judge.params.iouThrs = np.asarray([0.5, 0.75])
        judge.params.maxDets = [MOST]
        judge.params.areaRng, judge.params.areaRngLbl = [[0.0, 1e10]], ["all"]
        judge.evaluate()
        judge.accumulate()
    precision = judge.eval["precision"][:, :, :, 0, 0]  # (thresholds, recalls, classes)
    fifty, more = (100.0 * float(part[:, (part > -1).all(axis=0)].mean()) for part in precision)
    return {"AP50": round(fifty, 2), "AP75": round(more, 2)}


def _box(box: Any, side: float) -> dict[str, Any]:
    x0, y0, x1, y1 = (float(side * edge) for edge in box)
    return {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0)}
