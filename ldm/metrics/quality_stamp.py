"""quality.json, beside the metrics.csv of a run whose validations score samples."""

from typing import ClassVar

from pydantic import ConfigDict

from ldm.runtime.schema import JsonFile

QUALITY = "quality.json"


class QualityStamp(JsonFile):
    """quality.json: what val/fd and val/class_accuracy of a run depend on."""

    model_config = ConfigDict(extra="allow")
    fix: ClassVar[str] = "remove it: the run writes it anew when it goes on"

    samples: int
